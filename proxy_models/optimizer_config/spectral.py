"""Optimizers that reshape the singular values of averaged gradients: Muon and its relatives."""

from dataclasses import dataclass
from typing import Literal

from proxy_models.checks import require
from proxy_models.optimizer_config.base import (
    AdamElsewhere,
    MomentumForm,
    PolarConfig,
    RankConfig,
    Scaling,
    ShapeFactor,
)
from proxy_models.roles import Role

MuonWidthRule = Literal["spectral_norm", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _MuonConfig(PolarConfig, AdamElsewhere):
    shape_factor: ShapeFactor = "spectral"
    width_rule: MuonWidthRule = "spectral_norm"
    nesterov: bool = True
    momentum_form: MomentumForm = "ema"

    @property
    def hidden_scaling(self) -> Scaling:
        if self.width_rule == "adamw":
            return "orthogonal_as_adam"
        return "orthogonal_rms" if self.shape_factor == "rms_match" else "orthogonal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(_MuonConfig):
    """Orthogonalized momentum on HIDDEN matrices, AdamW on the rest.

    `shape_factor` multiplies the orthogonalized momentum of a (fan_out, fan_in) matrix:
    `spectral` sqrt(fan_out/fan_in), `max1` sqrt(max(1, fan_out/fan_in)) (Jordan 2024),
    `rms_match` 0.2*sqrt(max(fan_out, fan_in)) (Moonlight, arXiv:2502.16982).
    `width_rule` says how HIDDEN's lr goes with width: `spectral_norm` keeps the update's spectral norm, which
    takes no correction for `spectral` and `max1` and m^-1/2 for `rms_match`; `adamw` takes 1/m whatever the shape
    factor, as Essential AI (arXiv:2505.02222) does: published rules that disagree, for a sweep to settle.
    Simplified Muon (arXiv:2601.13474) is momentum = 0, nesterov = false and ns_schedule = "svd".

    `momentum_form`: an exponential average, or `additive`, M <- momentum*M + G. The second is the first over
    1 - momentum, with Nesterov's step too, and an orthogonalized update does not see the factor.
    """

    name: Literal["muon"] = "muon"


@dataclass(frozen=True, kw_only=True, slots=True)
class NorMuon(_MuonConfig):
    """Muon whose rows are divided by their running RMS (beta2), and the whole set back to its size.

    As in microsoft/dion: every output unit moves about equally far. One float more a row.
    """

    name: Literal["normuon"] = "normuon"


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonAll(PolarConfig):
    """Every parameter through Muon (Page et al., arXiv:2511.06086); a vector as a diagonal matrix, in O(n).

    A matrix's update is multiplied by sqrt(max(1, rows/columns)). Written that way for an embedding, and as
    sqrt(rows/columns) for a readout: the same wherever the vocabulary is at least as large as the width, and
    width rules that hold on both sides of it.
    """

    name: Literal["muon_all"] = "muon_all"
    nesterov: bool = True
    ns_steps: int = 6

    def scaling(self, role: Role) -> Scaling:
        """The row of `parametrization.RULES` that scales this role."""
        return "orthogonal"


@dataclass(frozen=True, kw_only=True, slots=True)
class NSGD(AdamElsewhere):
    """Averaged gradients over their Frobenius norm, times sqrt(fan_out/fan_in), on HIDDEN matrices."""

    name: Literal["nsgd"] = "nsgd"
    nesterov: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class _FanionConfig(PolarConfig, RankConfig, AdamElsewhere):
    """A_k, the sum of u_i v_i^T over the k largest singular values; the polar factor where k is full rank."""

    shape_factor: ShapeFactor = "spectral"
    nesterov: bool = True

    def __post_init__(self) -> None:
        PolarConfig.__post_init__(self)
        RankConfig.__post_init__(self)
        require(
            self.shape_factor != "rms_match",
            "shape_factor must be 'spectral' or 'max1' for a Fanion, got 'rms_match': "
            "fewer than all singular values do not have that RMS; the nearest is 'max1'",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fanion(_FanionConfig):
    """A_k of averaged gradients: steepest descent in the dual of the Ky Fan k-norm (arXiv:2512.09678).

    rank = 1 is the paper's Neon. Below full rank by an exact singular value decomposition.
    """

    name: Literal["fanion"] = "fanion"


@dataclass(frozen=True, kw_only=True, slots=True)
class FFanion(_FanionConfig):
    """alpha*A_k + (1-alpha)*D/||D||_F with alpha = orthogonal_frac; F-Muon at full rank, the default.

    Both parts take the shape factor: without it on the second, NanoGPT loses 0.007 nats (arXiv:2512.09678).
    """

    name: Literal["f_fanion"] = "f_fanion"

    @property
    def default_rank_frac(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SFanion(_FanionConfig):
    """alpha*A_k + (1-alpha)*eta*sign(D) with alpha = orthogonal_frac, eta = sign_lr_ratio; S-Muon at full rank.

    The shape factor is on the first part alone (arXiv:2512.09678); the second moves every entry by eta, which
    width divides as it divides Adam's lr.
    """

    name: Literal["s_fanion"] = "s_fanion"

    @property
    def default_rank_frac(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Dion(RankConfig, AdamElsewhere):
    """Low-rank orthogonalized momentum with error feedback (Ahn et al., arXiv:2504.05295).

    One power iteration from the last step's basis: P = orth(M Q), R = M^T P, M <- M - (1-momentum) P R^T, Q = R with
    columns of norm 1; the update is sqrt(fan_out/fan_in) P Q^T.
    """

    name: Literal["dion"] = "dion"


@dataclass(frozen=True, kw_only=True, slots=True)
class IsotropicCurvature(AdamElsewhere):
    """The update Q of arXiv:2511.00674 that minimizes -tr(Q G^T) + E h(||Q z||), h(r) = r^power / power.

    z is uniform on the sphere of radius sqrt(fan_in), where activations are. Q keeps the singular vectors of the
    averaged gradients; power = 2 steps along them, and the larger the power, the more even the singular values,
    up to power = "none": a barrier at ||Q|| = 1, which is Muon with an exact polar factor. Even powers alone
    have moments in closed form. Exact singular value decompositions: slow from a few hundred in width.
    """

    name: Literal["isotropic_curvature"] = "isotropic_curvature"
    power: int | None = 4
    nesterov: bool = False

    def __post_init__(self) -> None:
        require(
            self.power is None or self.power in (2, 4, 6, 8),
            f"power must be 2, 4, 6 or 8, or none for a barrier, got {self.power}",
        )
