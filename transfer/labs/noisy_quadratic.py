"""The noisy quadratic model: steps to a loss in closed form, so that every critical batch of it is known.

The setting of Zhang et al. 2019 (arXiv:1907.04164): L = 1/2 sum_i h_i theta_i^2 with h_i = 1/i in 500 dimensions, SGD
at a constant lr with gradient noise of covariance diag(c)/B, c_i = h_i, from theta_i^2 = 1. Then

    E[theta_i^2](t) = fixed_i + (1 - fixed_i) a_i^t,  a_i = (1 - lr h_i)^2,  fixed_i = lr^2 c_i / (B (1 - a_i))

and the steps to a target loss at each lr, real numbers, are found by bisection; the best lr at each batch gives the
curves that a sweep would measure. Checked on them: how far S = S_min (1 + B_c/B) holds (McCandlish et al. 2018,
arXiv:1812.06162), where 20 % more tokens are needed, how the best lr goes with the batch, and that the gradient noise
scale tr(Sigma)/|G|^2 (`analysis.noise_scale`) is not the critical batch: it depends on how a run came to the loss. An
example counts as a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.hyperbola import ZHANG_OVERHEAD, Hyperbola, fit_hyperbola
from analysis.interval import Floats

DIMENSIONS = 500
BATCHES = tuple(2**k for k in range(15))  # examples
# The loss starts at 3.40. To targets up to h_1/2 = 0.5 it falls without turning at every lr that gets there: where
# noise lifts a mode above its start it lifts the first one most, and that mode alone is then above 0.5.
TARGETS = (0.5, 0.2, 0.1)
N_LRS = 60
LR_RANGE = (1e-4, 1.999)  # to just below 2 / h_1, from where on SGD diverges
BELOW, ABOVE = 1 / 8, 8.0  # of B_c: where the slope of log lr over log batch is read
# Learning rates between the neighbors of the best, twice over: the grid's quarter octaves would show in slopes.
_ZOOM, _ZOOMS = 21, 2
_BISECTIONS = 50  # of the logarithm of the steps: to its last bit
_MOST_STEPS = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The best lr at one batch."""

    batch: int  # examples
    lr: float
    steps: float  # to the target loss
    noise_scale: float  # tr(Sigma) / E|G|^2 on arrival, examples

    @property
    def examples(self) -> float:
        return self.batch * self.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One target loss: what a sweep over batches finds. Batches are in examples."""

    target: float
    cells: tuple[Cell, ...]  # ascending in batch
    hyperbola: Hyperbola

    @property
    def critical_batch(self) -> float:
        """The hyperbola's B_c: twice E_min examples."""
        return self.hyperbola.critical_batch_tokens

    @property
    def largest_log_residual(self) -> float:
        return max(map(abs, self.hyperbola.log_residuals))

    @property
    def overhead_batch(self) -> float:
        """Where the measured curve is 20 % above the hyperbola's E_min; on the hyperbola that is 0.2 B_c."""
        return self._batch_needing((1 + ZHANG_OVERHEAD) * self.hyperbola.min_tokens)

    @property
    def overhead_batch_measured(self) -> float:
        """The same above the fewest examples of any batch: no fit in it, but those are already more than E_min."""
        return self._batch_needing((1 + ZHANG_OVERHEAD) * min(cell.examples for cell in self.cells))

    @property
    def slope_below(self) -> float:
        """Of log lr over log batch, up to an eighth of B_c."""
        return self._slope(lambda batch: batch <= BELOW * self.critical_batch)

    @property
    def slope_above(self) -> float:
        """Of log lr over log batch, from eight times B_c on."""
        return self._slope(lambda batch: batch >= ABOVE * self.critical_batch)

    @property
    def noise_ratios(self) -> tuple[float, ...]:
        """The noise scale on arrival over B_c, a batch each: 1 everywhere if it were the critical batch."""
        return tuple(cell.noise_scale / self.critical_batch for cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        return {
            "target_loss": self.target,
            "cells": [asdict(cell) for cell in self.cells],
            "critical_batch": {"definition": "hyperbola", "unit": "examples", "value": self.critical_batch},
            "min_steps": self.hyperbola.min_steps,
            "largest_log_residual": self.largest_log_residual,
            "overhead_batch": {
                "definition": "20 % above the hyperbola's E_min",
                "unit": "examples",
                "value": self.overhead_batch,
                "of_critical_batch": self.overhead_batch / self.critical_batch,
            },
            "overhead_batch_measured": {
                "definition": "20 % above the fewest examples measured",
                "unit": "examples",
                "value": self.overhead_batch_measured,
                "of_critical_batch": self.overhead_batch_measured / self.critical_batch,
            },
            "lr_slope_below": self.slope_below,
            "lr_slope_above": self.slope_above,
            "noise_scale_over_critical_batch": self.noise_ratios,
        }

    def _batch_needing(self, examples: float) -> float:
        """By interpolation in logs of the examples over the batch, which only rise."""
        needed = np.log([cell.examples for cell in self.cells])
        return float(np.exp(np.interp(np.log(examples), needed, np.log([cell.batch for cell in self.cells]))))

    def _slope(self, chosen: Callable[[float], bool]) -> float:
        cells = [cell for cell in self.cells if chosen(cell.batch)]
        x, y = np.log([[cell.batch, cell.lr] for cell in cells]).T
        return float(np.polyfit(x, y, 1)[0])


def study(target: float, batches: Sequence[int] = BATCHES) -> Study:
    """Every batch at its best lr, then the hyperbola."""
    cells = tuple(best_cell(batch, target) for batch in batches)
    return Study(
        target=target,
        cells=cells,
        hyperbola=fit_hyperbola([cell.batch for cell in cells], [cell.examples for cell in cells]),
    )


def best_cell(batch: int, target: float) -> Cell:
    """The fewest steps over a grid of lr, then over finer ones around its best.

    Raises:
        ValueError: a target at which the loss may turn, or a best lr at the edge of the grid.
    """
    h = curvatures()
    if not 0 < target <= h[0] / 2:
        raise ValueError(f"a target loss must be above 0 and at most {h[0] / 2}, got {target}")
    lrs, best = np.geomspace(*LR_RANGE, N_LRS), 0
    for zoom in range(_ZOOMS + 1):
        steps = steps_to(target, lrs, batch)
        best = int(np.argmin(steps))
        if not (0 < best < len(lrs) - 1 and np.isfinite(steps[best])):
            raise ValueError(f"no lr inside {LR_RANGE} is the best one to loss {target} with batch {batch}")
        if zoom < _ZOOMS:
            lrs = np.geomspace(lrs[best - 1], lrs[best + 1], _ZOOM)
    moments = second_moments(lrs[[best]], batch, steps[[best]])[0]
    return Cell(
        batch=batch, lr=float(lrs[best]), steps=float(steps[best]), noise_scale=float(h.sum() / (h**2 @ moments))
    )


def steps_to(target: float, lrs: Floats, batch: float) -> Floats:
    """Steps until the expected loss is `target`, real numbers, one a learning rate; infinite where it never is."""
    h = curvatures()
    reached = _fixed(lrs, batch) @ h / 2 < target
    able = lrs[reached]
    low, high = np.zeros(len(able)), np.full(len(able), np.log(_MOST_STEPS))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = second_moments(able, batch, np.exp(middle)) @ h / 2 > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    steps = np.full(len(lrs), np.inf)
    steps[reached] = np.exp(high)
    return steps


def second_moments(lrs: Floats, batch: float, steps: Floats) -> Floats:
    """E[theta_i^2] after `steps` steps, (learning rates, dimensions)."""
    fixed = _fixed(lrs, batch)
    moments: Floats = fixed + (1 - fixed) * _contraction(lrs) ** steps[:, None]
    return moments


def curvatures() -> Floats:
    """h_i = 1/i, and as much gradient noise: c_i = h_i."""
    return 1 / np.arange(1.0, DIMENSIONS + 1)


def _contraction(lrs: Floats) -> Floats:
    squared: Floats = (1 - lrs[:, None] * curvatures()) ** 2
    return squared


def _fixed(lrs: Floats, batch: float) -> Floats:
    """What noise alone keeps each E[theta_i^2] at, (learning rates, dimensions)."""
    variance = lrs[:, None] ** 2 * curvatures() / batch
    fixed: Floats = variance / (1 - _contraction(lrs))
    return fixed
