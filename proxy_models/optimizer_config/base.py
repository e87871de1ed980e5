"""What optimizer configs share: how their updates scale, ranks, and how a polar factor is computed."""

from dataclasses import dataclass
from typing import Literal

from proxy_models.checks import require
from proxy_models.roles import Role

# How the size of an update goes with the width of its matrix: a row of `parametrization.RULES` each.
Scaling = Literal[
    "adam",  # entries of size 1: Adam, signs, units of RMS 1
    "sgd",  # proportional to the gradient
    "orthogonal",  # spectral norm sqrt(fan_out / fan_in)
    "orthogonal_rms",  # orthogonal with entries of a size that no width changes
    "orthogonal_as_adam",  # the same, scaled as if it were Adam's
    "unit_l2",  # each output unit of L2 norm 1 over its inputs
    "unit_row_l2",  # each input unit of L2 norm 1 over its outputs
]
ShapeFactor = Literal["spectral", "max1", "rms_match"]
PolarSchedule = Literal["jordan", "you", "polar_express", "taylor1", "taylor2", "taylor3", "taylor4", "svd"]
PolarDtype = Literal["float32", "bfloat16"]
MomentumForm = Literal["ema", "additive"]


@dataclass(frozen=True, kw_only=True)  # no slots, here and below: a config may have two such bases
class PolarConfig:
    """How a polar factor is computed: `ns_steps` Newton-Schulz steps of a named schedule, or exactly by `svd`."""

    ns_schedule: PolarSchedule = "jordan"
    ns_steps: int = 5  # unused by the schedule svd
    ns_dtype: PolarDtype = "float32"

    def __post_init__(self) -> None:
        require(1 <= self.ns_steps <= 30, f"ns_steps must be between 1 and 30, got {self.ns_steps}")


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """A rank k: `rank` of them at every width, or the share `rank_frac` of a matrix's smaller side."""

    rank: int | None = None
    rank_frac: float | None = None  # None for both: `default_rank_frac`

    def __post_init__(self) -> None:
        require(
            self.rank is None or self.rank_frac is None,
            f"rank and rank_frac exclude each other, got rank={self.rank} and rank_frac={self.rank_frac}; "
            "keep rank_frac to let the rank grow with width",
        )
        require(self.rank is None or self.rank >= 1, f"rank must be at least 1, got {self.rank}")
        require(
            self.rank_frac is None or 0 < self.rank_frac <= 1,
            f"rank_frac must be above 0 and at most 1, which is full rank, got {self.rank_frac}",
        )

    @property
    def default_rank_frac(self) -> float:
        """Share of the smaller side where the config names no rank."""
        return 0.25

    def rank_of(self, smaller_side: int) -> int:
        """k for a matrix whose smaller side has this size; at least 1."""
        if self.rank is not None:
            return self.rank
        frac = self.default_rank_frac if self.rank_frac is None else self.rank_frac
        return max(1, round(frac * smaller_side))


class AdamElsewhere:
    """An update of its own on HIDDEN matrices, AdamW on every other role."""

    __slots__ = ()

    @property
    def hidden_scaling(self) -> Scaling:
        return "orthogonal"

    def scaling(self, role: Role) -> Scaling:
        """The row of `parametrization.RULES` that scales this role."""
        return self.hidden_scaling if role is Role.HIDDEN else "adam"
