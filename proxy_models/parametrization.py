"""The one table of scaling rules. Training, the coordinate check, the plan and every export read it.

A rule gives powers of the width multiplier m = width / base_width. At m = 1 `standard` and `mup` coincide.

Sources: Yang et al. 2022 (arXiv:2203.03466, Table 8, the form with a forward multiplier on the readout);
Bernstein's spectral condition (arXiv:2310.17813) for Muon; SCALE has no published width rule: the row
normalized to RMS 1 moves an output by lr*fan_in, as Adam's does, so it takes Adam's exponents (derived
here, held up by the coordinate check). Adam's eps follows the gradient, which is 1/m in every role once the
readout carries 1/m (Dey et al., arXiv:2505.01618).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from proxy_models.checks import ConfigError
from proxy_models.config import Parametrization, RunConfig


class Role(Enum):
    """What a parameter does, which decides how it scales with width."""

    EMBEDDING = "embedding"  # (vocab, width): only the output side grows
    HIDDEN = "hidden"  # both sides grow with width
    READOUT = "readout"  # (vocab, width): only the input side grows
    VECTOR = "vector"  # gains and biases


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthRule:
    """Powers of m for one (parametrization, optimizer, role)."""

    init_std: float = 0.0
    forward: float = 0.0
    lr: float = 0.0
    eps: float = 0.0  # read only by Adam


def _mup(*, hidden_lr: float, readout_lr: float = 0.0) -> dict[Role, WidthRule]:
    return {
        Role.EMBEDDING: WidthRule(eps=-1.0),
        Role.HIDDEN: WidthRule(init_std=-0.5, lr=hidden_lr, eps=-1.0),
        Role.READOUT: WidthRule(forward=-1.0, lr=readout_lr, eps=-1.0),
        Role.VECTOR: WidthRule(eps=-1.0),
    }


# PyTorch's habit: fan-in initialization, one learning rate for every width.
_STANDARD: Mapping[Role, WidthRule] = {
    Role.EMBEDDING: WidthRule(),
    Role.HIDDEN: WidthRule(init_std=-0.5),
    Role.READOUT: WidthRule(init_std=-0.5),
    Role.VECTOR: WidthRule(),
}

RULES: Mapping[tuple[Parametrization, str], Mapping[Role, WidthRule]] = {
    ("mup", "adamw"): _mup(hidden_lr=-1.0),
    # An orthogonal update times sqrt(fan_out/fan_in) has the same spectral size at every width.
    ("mup", "muon"): _mup(hidden_lr=0.0),
    # 0.2*sqrt(max(fan_out, fan_in)) grows as sqrt(m); m^-1/2 takes it back.
    ("mup", "muon_rms_match"): _mup(hidden_lr=-0.5),
    ("mup", "muon_as_adamw"): _mup(hidden_lr=-1.0),
    ("mup", "scale"): _mup(hidden_lr=-1.0),
    # A row of L2 norm 1 is a row of RMS 1 over sqrt(fan_in), on both sides that see a growing fan_in.
    ("mup", "scale_l2"): _mup(hidden_lr=-0.5, readout_lr=0.5),
    # A gradient is 1/m in every entry. HIDDEN sums fan_in of them against an input, which takes that back; an
    # EMBEDDING row or a gain does not, and READOUT's sum meets its forward multiplier (Yang et al., Table 8).
    ("mup", "sgd"): {
        Role.EMBEDDING: WidthRule(lr=1.0),
        Role.HIDDEN: WidthRule(init_std=-0.5),
        Role.READOUT: WidthRule(forward=-1.0, lr=1.0),
        Role.VECTOR: WidthRule(lr=1.0),
    },
    ("mup", "sign_sgd"): _mup(hidden_lr=-1.0),  # entries of size 1, as Adam's
    ("standard", "adamw"): _STANDARD,
    ("standard", "muon"): _STANDARD,
    ("standard", "muon_rms_match"): _STANDARD,
    ("standard", "muon_as_adamw"): _STANDARD,
    ("standard", "scale"): _STANDARD,
    ("standard", "scale_l2"): _STANDARD,
    ("standard", "sgd"): _STANDARD,
    ("standard", "sign_sgd"): _STANDARD,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleScale:
    """What one role gets in one run, after the rules."""

    role: Role
    init_std: float  # times fan_in ** -0.5 for HIDDEN, see `init_std_of`
    forward_multiplier: float
    effective_lr: float  # peak
    effective_weight_decay: float
    effective_eps: float


def width_rule(run: RunConfig, role: Role) -> WidthRule:
    """The table's row for a run and a role."""
    return RULES[run.parametrization, run.optimizer.rule][role]


def scale_role(run: RunConfig, role: Role) -> RoleScale:
    """Apply the table to one role.

    Weight decay: the invariants `lr_wd` and `timescale` keep lr*weight_decay fixed over width (Kosson et al.,
    arXiv:2510.19093), so weight decay takes the inverse of the learning rate's power; `none` leaves it.
    """
    hp, m, rule = run.hparams, run.width_mult, width_rule(run, role)
    ratio = {
        Role.EMBEDDING: hp.embedding_lr_ratio,
        Role.HIDDEN: 1.0,
        Role.READOUT: hp.readout_lr_ratio,
        Role.VECTOR: hp.vector_lr_ratio,
    }[role]
    decay_power = 0.0 if run.weight_decay_invariant == "none" else -rule.lr
    return RoleScale(
        role=role,
        init_std=init_std_of(run, role, fan_in=run.model.width),
        forward_multiplier=m**rule.forward,
        effective_lr=hp.lr * ratio * m**rule.lr,
        effective_weight_decay=0.0 if role is Role.VECTOR else hp.weight_decay * m**decay_power,
        effective_eps=hp.eps * m**rule.eps,
    )


def init_std_of(run: RunConfig, role: Role, *, fan_in: int) -> float:
    """Standard deviation of a parameter's initial entries; 0 for VECTOR, which starts at a constant.

    HIDDEN and READOUT: gain / sqrt(fan_in at base width), times the rule's power of m. EMBEDDING: constant.
    """
    hp, m, rule = run.hparams, run.width_mult, width_rule(run, role)
    base_std = {
        Role.EMBEDDING: hp.embedding_init_std,
        Role.HIDDEN: hp.hidden_init_gain * (fan_in / m) ** -0.5,
        Role.READOUT: hp.readout_init_gain * (fan_in / m) ** -0.5,
        Role.VECTOR: 0.0,
    }[role]
    return base_std * m**rule.init_std


def refuse_overshooting_decay(run: RunConfig) -> None:
    """A step of weight decay W <- W - lr*weight_decay*W may shrink a weight to nothing, but not turn its sign.

    Raises:
        ConfigError: effective lr times effective weight decay is above 1 at the peak for some role
            (the condition lr * weight_decay <= 1 of Sato et al., arXiv:2507.01598).
    """
    for role in Role:
        scale = scale_role(run, role)
        product = scale.effective_lr * scale.effective_weight_decay
        if product > 1:
            raise ConfigError(
                f"weight_decay times the effective lr of {role.value} must be at most 1 at the peak, got {product:.3g} "
                f"at lr={run.hparams.lr:g} and width {run.model.width}; "
                f"weight_decay can be at most {run.hparams.weight_decay / product:.3g} here"
            )
