"""An excess loss in units people feel: how much narrower a tuned model would lose as little."""

from dataclasses import dataclass

import numpy as np

from analysis.interval import Floats
from analysis.loss_law import LossLaw, PowerLaw
from analysis.width_laws import Quantity, quantity


@dataclass(frozen=True, kw_only=True, slots=True)
class Equivalent:
    """Shares of the target's width and of its training FLOPs that an excess loss wastes; 0 is none, 1 all."""

    width_share: Quantity
    compute_share: Quantity


def equivalent(
    law: LossLaw, width: float, excess: float, excess_draws: Floats, *, flops_exponent: float
) -> Equivalent | None:
    """The width n at which law(n) = law(width) + excess, as shares lost: 1 - n/width and 1 - (n/width)**flops_exponent.

    `excess` in nats; FLOPs of a run grow as width**flops_exponent near the target. None without draws of the law, or
    where the loss does not fall with width.
    """
    if not law.draws or law.limited.reducible <= 0:
        return None
    forms = (law.limited, *law.draws)
    excesses = np.concatenate([[excess], np.resize(excess_draws, len(law.draws))])
    ratios = np.array([_ratio(form, width / law.widths[0], e) for form, e in zip(forms, excesses, strict=True)])
    return Equivalent(
        width_share=quantity(1 - ratios, law.level), compute_share=quantity(1 - ratios**flops_exponent, law.level)
    )


def _ratio(law: PowerLaw, relative_width: float, excess: float) -> float:
    """Width over the target's at which a tuned model has the loss of the target with this excess."""
    gap = law.reducible * relative_width**-law.exponent
    return float((1 + excess / gap) ** (-1 / law.exponent)) if gap > 0 and law.exponent > 0 else 1.0
