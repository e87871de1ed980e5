"""The one table of scaling rules. Training, the coordinate check, the plan and every export read it.

A rule gives powers of the width multiplier m = width / base_width and, under `complete_p`, of the depth multiplier
m_L = depth / base_depth. At m = 1 `standard` and `mup` coincide, and `mup` and `complete_p` at m_L = 1.

Sources: Yang et al. 2022 (arXiv:2203.03466, Table 8, the form with a forward multiplier on the readout);
Bernstein's spectral condition (arXiv:2310.17813) for Muon; SCALE has no published width rule: the row
normalized to RMS 1 moves an output by lr*fan_in, as Adam's does, so it takes Adam's exponents. What no paper
gives is derived here, and held up by the coordinate check. Adam's eps follows the gradient, which is 1/m in
every role once the readout carries 1/m (Dey et al., arXiv:2505.01618).

Depth: CompleteP (Dey et al., arXiv:2505.01618, alpha = 1, for Adam) is `mup` with every residual branch times 1/m_L,
so that the sum over the branches is of one size at every depth while each of them still learns features. Then the
gradients of all that stands in a branch, HIDDEN matrices and the gains of their norms, carry 1/m_L more, and those of
EMBEDDING and READOUT do not. For other optimizers it is derived here: an update that does not see its gradient's size
needs no correction, one that goes as the gradient's d-th power needs lr m_L^d; d = 1 is SGD.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from proxy_models.checks import ConfigError
from proxy_models.config import Parametrization, RunConfig
from proxy_models.optimizer_config import IsotropicCurvature, Scaling
from proxy_models.roles import Role


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingRule:
    """Powers of m, and below of m_L, for one (parametrization, scaling, role)."""

    init_std: float = 0.0
    forward: float = 0.0
    lr: float = 0.0
    eps: float = 0.0  # read only by Adam
    sign_lr: float = 0.0  # of sign_lr_ratio, read only by S-Fanions
    depth_lr: float = 0.0
    depth_eps: float = 0.0


_Roles = Mapping[Role, ScalingRule]
# Of m_L, on what a residual branch adds. It is the branch's, whatever the roles of the parameters in it.
RESIDUAL: Mapping[Parametrization, float] = {"standard": 0.0, "mup": 0.0, "complete_p": -1.0}


def _mup(*, hidden_lr: float, embedding_lr: float = 0.0, readout_lr: float = 0.0, vector_lr: float = 0.0) -> _Roles:
    return {
        Role.EMBEDDING: ScalingRule(lr=embedding_lr, eps=-1.0),
        # A sign moves an output by fan_in times its lr, as Adam does.
        Role.HIDDEN: ScalingRule(init_std=-0.5, lr=hidden_lr, eps=-1.0, sign_lr=-1.0),
        Role.READOUT: ScalingRule(forward=-1.0, lr=readout_lr, eps=-1.0),
        Role.VECTOR: ScalingRule(lr=vector_lr, eps=-1.0),
    }


# PyTorch's habit: fan-in initialization, one learning rate for every width.
_STANDARD: _Roles = {
    Role.EMBEDDING: ScalingRule(),
    Role.HIDDEN: ScalingRule(init_std=-0.5),
    Role.READOUT: ScalingRule(init_std=-0.5),
    Role.VECTOR: ScalingRule(),
}

_MUP: Mapping[Scaling, _Roles] = {
    "adam": _mup(hidden_lr=-1.0),
    # A gradient is 1/m in every entry. HIDDEN sums fan_in of them against an input, which takes that back; an
    # EMBEDDING row or a gain does not, and READOUT's sum meets its forward multiplier (Yang et al., Table 8).
    "sgd": _mup(hidden_lr=0.0, embedding_lr=1.0, readout_lr=1.0, vector_lr=1.0),
    # Times sqrt(fan_out/fan_in) it has the same spectral size at every width. As a readout it then moves a logit
    # as far at every width, before the forward multiplier; as an embedding, times sqrt(max(1, vocab/width)), its
    # entries are width^-1/2; as a diagonal matrix they are of size 1.
    "orthogonal": _mup(hidden_lr=0.0, embedding_lr=0.5, readout_lr=1.0),
    # sqrt(max(fan_out, fan_in)) grows as sqrt(m) on HIDDEN and not on a vocabulary larger than the width, where
    # a readout's aligned input alone grows by sqrt(m), against the forward multiplier's 1/m.
    "orthogonal_rms": _mup(hidden_lr=-0.5, readout_lr=0.5),
    "orthogonal_as_adam": _mup(hidden_lr=-1.0),
    # A unit of L2 norm 1 is one of RMS 1 over the root of its inputs (or outputs), on the sides that grow.
    "unit_l2": _mup(hidden_lr=-0.5, readout_lr=0.5),
    "unit_row_l2": _mup(hidden_lr=-0.5, embedding_lr=0.5),
}


def _complete_p(mup: _Roles, *, hidden_depth_lr: float) -> _Roles:
    """Adam's eps follows the gradient, which is 1/m_L in a branch.

    VECTOR is taken to be in a branch, where all gains but the final norm's are. For Adam its eps is then only smaller
    than it need be. For SGD lr times m_L would be right in a branch, but it blows up the final gain, which then moves
    the logits as depth^0.9 (measured over depths 2 to 16). So lr stays: the final gain moves them alike at every depth,
    and the gains in the branches, a small part of what a branch learns, move less the deeper the model.
    """
    return {
        **mup,
        Role.HIDDEN: replace(mup[Role.HIDDEN], depth_lr=hidden_depth_lr, depth_eps=-1.0),
        Role.VECTOR: replace(mup[Role.VECTOR], depth_eps=-1.0),
    }


RULES: Mapping[tuple[Parametrization, Scaling], _Roles] = {
    **{("mup", scaling): rules for scaling, rules in _MUP.items()},
    **{
        ("complete_p", scaling): _complete_p(rules, hidden_depth_lr=1.0 if scaling == "sgd" else 0.0)
        for scaling, rules in _MUP.items()
    },
    **{("standard", scaling): _STANDARD for scaling in _MUP},
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
    effective_sign_lr_ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardMultipliers:
    """Factors in a model's forward pass: with its config, all that a module depends on."""

    embedding: float = 1.0
    hidden: float = 1.0
    readout: float = 1.0
    residual: float = 1.0  # on what every branch adds


def scaling_rule(run: RunConfig, role: Role) -> ScalingRule:
    """The table's row for a run and a role; of a switched optimizer, the first phase's.

    The isotropic curvature model's update of power p goes as the gradient's 1/(p - 1)-th power. The table's row for
    its scaling is of updates that do not see the gradient's size, which width leaves alone and depth does not.
    """
    rule = RULES[run.parametrization, run.optimizer.scaling(role)][role]
    (_, first), *_ = run.phases
    optimizer = first.optimizer
    if run.parametrization == "complete_p" and role is Role.HIDDEN and isinstance(optimizer, IsotropicCurvature):
        return replace(rule, depth_lr=0.0 if optimizer.power is None else 1 / (optimizer.power - 1))
    return rule


def scale_role(run: RunConfig, role: Role) -> RoleScale:
    """Apply the table to one role.

    Weight decay: the invariants `lr_wd` and `timescale` keep lr*weight_decay fixed over width (Kosson et al.,
    arXiv:2510.19093) and depth, so weight decay takes the inverse of the learning rate's powers; `none` leaves it.
    """
    hp, m, deep, rule = run.hparams, run.width_mult, run.depth_mult, scaling_rule(run, role)
    ratio = {
        Role.EMBEDDING: hp.embedding_lr_ratio,
        Role.HIDDEN: 1.0,
        Role.READOUT: hp.readout_lr_ratio,
        Role.VECTOR: hp.vector_lr_ratio,
    }[role]
    kept = 0.0 if run.weight_decay_invariant == "none" else -1.0
    return RoleScale(
        role=role,
        init_std=init_std_of(run, role, fan_in=run.model.width),
        forward_multiplier=m**rule.forward,
        effective_lr=hp.lr * ratio * m**rule.lr * deep**rule.depth_lr,
        effective_weight_decay=0.0
        if role is Role.VECTOR
        else hp.weight_decay * m ** (kept * rule.lr) * deep ** (kept * rule.depth_lr),
        effective_eps=hp.eps * m**rule.eps * deep**rule.depth_eps,
        effective_sign_lr_ratio=hp.sign_lr_ratio * m**rule.sign_lr,
    )


def residual_multiplier(run: RunConfig) -> float:
    """Factor on what every residual branch adds."""
    return run.depth_mult ** RESIDUAL[run.parametrization]


def forward_multipliers(run: RunConfig) -> ForwardMultipliers:
    """Of every role with a matrix, and of the residual branches."""
    embedding, hidden, readout = (
        scale_role(run, role).forward_multiplier for role in (Role.EMBEDDING, Role.HIDDEN, Role.READOUT)
    )
    return ForwardMultipliers(embedding=embedding, hidden=hidden, readout=readout, residual=residual_multiplier(run))


def init_std_of(run: RunConfig, role: Role, *, fan_in: int) -> float:
    """Standard deviation of a parameter's initial entries; 0 for VECTOR, which starts at a constant.

    HIDDEN and READOUT: gain / sqrt(fan_in at base width), times the rule's power of m. EMBEDDING: constant.
    """
    hp, m, rule = run.hparams, run.width_mult, scaling_rule(run, role)
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
    for (_, phase), role in product(run.phases, Role):
        scale = scale_role(phase, role)
        shrinks = scale.effective_lr * scale.effective_weight_decay
        if shrinks > 1:
            raise ConfigError(
                f"weight_decay times the effective lr of {role.value} must be at most 1 at the peak, got {shrinks:.3g} "
                f"at lr={run.hparams.lr:g}, width {run.model.width} and depth {run.model.depth}; "
                f"weight_decay can be at most {run.hparams.weight_decay / shrinks:.3g} here"
            )
