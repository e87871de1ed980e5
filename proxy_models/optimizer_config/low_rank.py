"""Optimizers that keep Adam's moments of a projected gradient. On HIDDEN matrices; AdamW on the rest.

A gradient is projected on its smaller side, to rank_frac of it: a fixed rank would become another recipe with
width. Published scale factors (GaLore 0.25, and others) are left out: they are a factor on lr, that is, on the
ratios of the other roles.
"""

from dataclasses import dataclass
from typing import Literal

from proxy_models.checks import require
from proxy_models.optimizer_config.base import AdamElsewhere, RankConfig, Scaling

REFRESH_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class _LowRankConfig(RankConfig, AdamElsewhere):
    refresh_steps: int = REFRESH_STEPS  # between projections

    def __post_init__(self) -> None:
        RankConfig.__post_init__(self)
        _require_refresh(self.refresh_steps)

    @property
    def hidden_scaling(self) -> Scaling:
        return "adam"


@dataclass(frozen=True, kw_only=True, slots=True)
class GaLore(_LowRankConfig):
    """Adam on the gradient's top singular directions, projected back (Zhao et al., arXiv:2403.03507).

    The projection is renewed every `refresh_steps`; as in the published code, the moments are not turned with it.
    """

    name: Literal["galore"] = "galore"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fira(_LowRankConfig):
    """GaLore, and the rest of the gradient scaled as Adam scales the projected part (Chen et al., arXiv:2410.01623).

    One factor ||adam(R)|| / ||R|| for each index of the larger side, and at most 1 % growth of the rest's norm a
    step. The rest is G - P P^T G, as in the paper; the published code subtracts only 0.25 of it.
    """

    name: Literal["fira"] = "fira"


@dataclass(frozen=True, kw_only=True, slots=True)
class Apollo(_LowRankConfig):
    """The gradient scaled as Adam would a random projection of it (Zhu et al., arXiv:2412.05270).

    One factor for each index of the larger side, times sqrt(smaller side / k), which makes the update as large
    as Adam's; at most 1 % growth of its norm a step. Only the moments are kept: a projection is drawn again
    from its seed. The published updates are half of this in size (rank a quarter of the width up to 350M, scale 1).
    """

    name: Literal["apollo"] = "apollo"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApolloMini(AdamElsewhere):
    """APOLLO of rank 1 with one factor for the whole matrix. The published scale, a quarter of the width, halves it."""

    name: Literal["apollo_mini"] = "apollo_mini"
    refresh_steps: int = REFRESH_STEPS

    def __post_init__(self) -> None:
        _require_refresh(self.refresh_steps)

    @property
    def hidden_scaling(self) -> Scaling:
        return "adam"


def _require_refresh(steps: int) -> None:
    require(steps >= 1, f"refresh_steps must be at least 1, got {steps}")
