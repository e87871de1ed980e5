"""Optima of one series over width as arrays, with bootstrap draws: what the laws over width are fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.interval import FitError, Floats, robust_sd
from analysis.optimum import Optimum

# Of a grid step: the error of the parabola's shape, which no seed shows. In lopsided basins sampled once an
# octave it is 0.05 to 0.1 octaves; two interleaved one-octave grids cut from Step Law's sweeps
# (arXiv:2503.04715) put the optimum 0.11 octaves apart (rms, over sqrt 2), seed noise included.
SHAPE_ERROR_STEPS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """n widths, d hyperparameters, and rows of draws. Places in log2, losses in nats, curvatures per octave squared."""

    widths: Floats  # (n,) ascending
    places: Floats  # (n, d)
    losses: Floats  # (n,)
    hessians: Floats  # (n, d, d)
    place_draws: Floats  # (rows, n, d)
    loss_draws: Floats  # (rows, n)
    hessian_draws: Floats  # (rows, n, d, d)

    @property
    def place_errors(self) -> Floats:
        """Standard deviations, (n, d)."""
        return _errors(self.place_draws)

    @property
    def loss_errors(self) -> Floats:
        """Standard deviations, (n,)."""
        return _errors(self.loss_draws)

    def without_smallest(self) -> "Located":
        """The same without the smallest width, where exponents mislead most (see `analysis.fast_transfer`)."""
        return Located(
            widths=self.widths[1:],
            places=self.places[1:],
            losses=self.losses[1:],
            hessians=self.hessians[1:],
            place_draws=self.place_draws[:, 1:],
            loss_draws=self.loss_draws[:, 1:],
            hessian_draws=self.hessian_draws[:, 1:],
        )


def locate(optima: Sequence[Optimum], *, rng: np.random.Generator) -> Located:
    """The optima of one hyperparameter by width, each width's draws in an order of its own.

    Raises:
        FitError: an optimum at an edge of its grid (a bound, not a value), one without draws, or two of one width.
    """
    optima = sorted(optima, key=lambda optimum: optimum.width)
    widths = [optimum.width for optimum in optima]
    edges = [optimum.width for optimum in optima if optimum.edge]
    if edges:
        raise FitError(f"at widths {edges} the optimum is at an edge of the grid: extend it there first")
    silent = [optimum.width for optimum in optima if not optimum.draws]
    if silent:
        raise FitError(f"at widths {silent} nothing tells the noise, so no rate has an interval: add a seed")
    if not widths or len(set(widths)) < len(widths):
        raise FitError(f"rates over width need one optimum a width, got widths {widths}")
    rows = min(len(optimum.draws) for optimum in optima)
    draws = np.stack([rng.permutation(np.array(optimum.draws))[:rows] for optimum in optima], axis=1)  # (rows, n, 3)
    floors = SHAPE_ERROR_STEPS * np.array([optimum.step_octaves for optimum in optima])
    short = np.maximum(floors**2 - _errors(draws[..., 0]) ** 2, 0.0)
    places = draws[..., 0] + np.sqrt(short) * rng.standard_normal(draws.shape[:2])
    return Located(
        widths=np.array(widths, dtype=np.float64),
        places=np.array([[optimum.log2_value] for optimum in optima]),
        losses=np.array([optimum.loss for optimum in optima]),
        hessians=np.array([[[optimum.curvature]] for optimum in optima]),
        place_draws=places[..., None],
        loss_draws=draws[..., 1],
        hessian_draws=draws[..., 2, None, None],
    )


def _errors(draws: Floats) -> Floats:
    """Robust standard deviations over the first axis.

    None is below half of their median: from few seeds one width's noise comes out tiny by luck, and would then set
    the law alone.
    """
    flat = draws.reshape(len(draws), draws.shape[1], -1)
    errors = np.array([[robust_sd(flat[:, i, j]) for j in range(flat.shape[2])] for i in range(flat.shape[1])])
    floored: Floats = np.maximum(errors, np.median(errors, axis=0) / 2).reshape(draws.shape[1:])
    return floored
