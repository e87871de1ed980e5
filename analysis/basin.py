"""Where losses over log2(hp) are lowest: a parabola near the minimum and a spline, for many rows at once.

`log2_values` is (n,), ascending. `losses` is (rows, n): one row of seed means, or one a bootstrap draw.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, make_smoothing_spline

from analysis.interval import Floats

Bools = NDArray[np.bool_]

_POINTS_PER_STEP = 100  # of the grid on which a spline's minimum is read off
_SMOOTHING_NEEDS = 5  # points, by make_smoothing_spline
# In octaves cubed: it averages over about half an octave. Generalized cross-validation on 5 to 12 points
# smooths by anything from nothing to a straight line; on 135 rows of Step Law's runs (arXiv:2503.04715) split
# into two interleaved one-octave grids, the two minima differed (over sqrt 2) by 0.13 octaves rms with this
# stiffness, by 0.2 to 0.4 with cross-validation and by 0.2 to 0.3 with an interpolating cubic.
_STIFFNESS = 0.1


@dataclass(frozen=True, slots=True)
class Quadratics:
    """loss + curvature/2 * (log2_hp - vertex)**2, one a row; vertex and loss NaN where it opens downwards."""

    vertex: Floats
    loss: Floats
    curvature: Floats  # second derivative, nats per octave squared
    in_band: Bools  # (rows, n): the points it was fitted to


def band(losses: Floats, band_nats: float) -> Bools:
    """The unbroken run of points around each row's lowest that are within `band_nats` of it.

    The lowest point and its two neighbors always belong; at an end of the grid, the last three points.
    """
    n = losses.shape[1]
    index, lowest = np.arange(n), losses.argmin(axis=1)[:, None]
    outside = losses > losses.min(axis=1, keepdims=True) + band_nats
    left = np.where(outside & (index < lowest), index, -1).max(axis=1, keepdims=True)
    right = np.where(outside & (index > lowest), index, n).min(axis=1, keepdims=True)
    inside: Bools = ((left < index) & (index < right)) | (np.abs(index - lowest.clip(1, n - 2)) <= 1)
    return inside


def fit_quadratics(log2_values: Floats, losses: Floats, band_nats: float) -> Quadratics:
    """Least squares for loss = c + b t + a t**2 within the band, t counted from each row's lowest point."""
    in_band, lowest = band(losses, band_nats), losses.argmin(axis=1)
    origin, floor = log2_values[lowest], losses.min(axis=1)
    powers = (log2_values - origin[:, None])[..., None] ** np.arange(3)  # (rows, n, 3)
    weighted = powers * in_band[..., None]
    normal = np.einsum("rni,rnj->rij", weighted, powers)
    moments = np.einsum("rni,rn->ri", weighted, losses - floor[:, None])
    c, b, a = np.linalg.solve(normal, moments[..., None])[..., 0].T
    upwards = np.where(a > 0, a, np.nan)
    return Quadratics(
        vertex=origin - b / (2 * upwards),
        loss=floor + c - b**2 / (4 * upwards),
        curvature=2 * a,
        in_band=in_band,
    )


@dataclass(frozen=True, slots=True)
class Smoother:
    """A spline through n points, as the matrix that takes their values to its own on a fine grid."""

    grid: Floats
    matrix: Floats  # (len(grid), n)

    @classmethod
    def over(cls, log2_values: Floats) -> Self:
        """A natural cubic smoothing spline; through three or four points, the interpolating cubic.

        (PCHIP would not do: its minimum is always at one of the points.)
        """
        n = len(log2_values)
        grid = np.linspace(log2_values[0], log2_values[-1], (n - 1) * _POINTS_PER_STEP + 1)
        if n < _SMOOTHING_NEEDS:
            return cls(grid, CubicSpline(log2_values, np.eye(n))(grid))
        return cls(grid, make_smoothing_spline(log2_values, np.eye(n), lam=_STIFFNESS)(grid))

    def minima(self, losses: Floats, band_nats: float) -> tuple[Floats, Floats]:
        """Place and loss of each row's minimum.

        The spline goes through log(1 + excess_loss / band_nats), which has its minimum in the same place: a
        cliff of several nats on the right would otherwise bend it everywhere.
        """
        floor = losses.min(axis=1, keepdims=True)
        values = np.log1p((losses - floor) / band_nats) @ self.matrix.T
        return self.grid[values.argmin(axis=1)], floor[:, 0] + band_nats * np.expm1(values.min(axis=1))


@dataclass(frozen=True, slots=True)
class Minima:
    """The minimum of each row, and how it was found."""

    log2_value: Floats
    loss: Floats
    by_quadratic: Bools  # False: by the spline
    quadratic: Quadratics
    spline_log2_value: Floats


def find_minima(
    log2_values: Floats, losses: Floats, band_nats: float, smoother: Smoother, bounds: tuple[float, float]
) -> Minima:
    """The quadratic's vertex where it lies between the lowest point's neighbors, else the spline's minimum.

    `bounds` stand in for the neighbors that the first and last points lack.
    """
    fences = np.concatenate([[bounds[0]], log2_values, [bounds[1]]])
    lowest = losses.argmin(axis=1)
    quadratic = fit_quadratics(log2_values, losses, band_nats)
    bracketed = (fences[lowest] < quadratic.vertex) & (quadratic.vertex < fences[lowest + 2])
    spline, spline_loss = smoother.minima(losses, band_nats)
    return Minima(
        log2_value=np.where(bracketed, quadratic.vertex, spline),
        loss=np.where(bracketed, quadratic.loss, spline_loss),
        by_quadratic=bracketed,
        quadratic=quadratic,
        spline_log2_value=spline,
    )
