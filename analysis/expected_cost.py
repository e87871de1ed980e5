"""What values close to an uncertain optimum cost on average, and which cost least: short of a cliff, not at its foot.

An optimum that is only known as normal around its mean is best answered with the values that minimize the expected
loss, and these lie to the gentle side of the mean (Varian 1975; Zellner, JASA 81, 1986, on asymmetric loss).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from analysis.cells import Cells
from analysis.interval import Floats
from analysis.shared_shape import SharedShape

_LOST = 0.1  # of the loss: a run this far above the optimum, or diverged, is lost, whatever it ends with
_FLOOR_STEPS = 0.5  # of a grid step: a narrower kernel would see single runs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AlignedLosses:
    """The points of all cells, moved so that the optimum is at 0, and their excess losses, without their stretch."""

    offsets: Floats  # (r, k), octaves
    excess: Floats  # (r,), nats where every log2 scale is at its mean
    steps: Floats  # (k,): median spacing of the values tried, octaves

    def expected(self, at: Floats, covariance: Floats) -> float:
        """Expected excess (nats, unstretched) of values `at` octaves from the mean of an optimum with `covariance`.

        The integral of the excess over the normal distribution is what local linear regression with that normal as
        its kernel estimates from the runs themselves, whatever the shape of the basin.
        """
        away = self.offsets - at
        kernel = np.exp(-((away @ np.linalg.inv(self._floored(covariance))) * away).sum(axis=1) / 2) + 1e-12
        root = np.sqrt(kernel)
        design = np.column_stack([np.ones(len(away)), away]) * root[:, None]
        return float(np.linalg.lstsq(design, self.excess * root, rcond=None)[0][0])

    def cheapest(self, covariance: Floats) -> Floats:
        """Where the expected excess is least, (k,) octaves from the mean."""
        spread = np.sqrt(np.diag(self._floored(covariance)))
        k = len(self.steps)
        simplex = np.vstack([np.zeros(k), np.diag(-spread / 2)])
        limits = [(-2 * s, 2 * s) for s in spread]
        found = minimize(
            self.expected,
            np.zeros(k),
            args=(covariance,),
            method="Nelder-Mead",
            bounds=limits,
            options={"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-9},
        )
        return np.asarray(found.x, dtype=np.float64)

    def _floored(self, covariance: Floats) -> Floats:
        return covariance + np.diag((_FLOOR_STEPS * self.steps) ** 2)


def align(cells: Cells, shape: SharedShape, steps: Floats) -> AlignedLosses:
    """The points of the cells that `shape` was fitted to. Runs that diverged count as lost."""
    tried = np.arange(cells.losses.shape[1]) < cells.n_points[:, None]
    excess = np.minimum(cells.losses - shape.levels[:, None], _LOST * shape.levels[:, None])
    offsets = cells.log2_hps - shape.log2_optima[:, None]
    return AlignedLosses(
        offsets=offsets[tried], excess=(excess / shape.stretches[:, None])[tried], steps=np.median(steps, axis=0)
    )
