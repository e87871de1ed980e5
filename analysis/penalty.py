"""What the optimum of a narrow proxy costs the widest one, read directly off the widest one's curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from analysis.bootstrap import draw_mean_noise
from analysis.interval import FitError, Floats, Interval, percentile_interval
from analysis.optimum import Optimum
from analysis.points import points_near_lowest
from analysis.surface import Series, Setting, Surface

_FLOOR_ERRORS = 1.645  # one-sided 95% of a difference of two seed means


@dataclass(frozen=True, kw_only=True, slots=True)
class Penalty:
    """Losses in nats. Below `noise_floor` a direct reading says nothing."""

    width: int
    octaves: float  # from the widest's optimum
    direct: float  # the widest's curve at this width's optimum, over its loss at its own
    direct_interval: Interval
    via_curvature: float  # curvature/2 * octaves**2, the curvature being the widest's
    noise_floor: float

    @property
    def resolved(self) -> bool:
        return self.direct > self.noise_floor


@dataclass(frozen=True, kw_only=True, slots=True)
class Penalties:
    """What each narrower width's optimum costs the widest of one series."""

    optimizer: str
    fixed: tuple[Setting, ...]
    widest: int
    penalties: tuple[Penalty, ...]  # by width, ascending

    @property
    def series(self) -> Series:
        return Series(self.optimizer, self.fixed)


def fit_penalties(
    surfaces: Sequence[Surface],
    optima: Sequence[Optimum],
    *,
    band_nats: float,
    rng: np.random.Generator,
    level: float = 0.9,
) -> Penalties:
    """One for each narrower width whose optimum lies on the widest's grid.

    `surfaces` and `optima` are of one series, no optimum at an edge. Every draw takes an optimum's draw and a noisy
    curve together.

    Raises:
        FitError: the widest has no optimum inside its grid, or nothing tells its noise.
    """
    widest = max(surfaces, key=lambda surface: surface.width)
    own = [optimum for optimum in optima if optimum.width == widest.width]
    points = points_near_lowest(widest, band_nats)
    if not own or points.noise is None:
        raise FitError(f"width {widest.width} has no optimum with an interval to compare narrower ones with")
    n_seeds = len(widest.seeds)
    floor = _FLOOR_ERRORS * points.noise.sd * float(np.sqrt(2 / n_seeds))
    found = []
    for optimum in sorted(optima, key=lambda optimum: optimum.width):
        inside = points.log2_values[0] <= optimum.log2_value <= points.log2_values[-1]
        if optimum.width == widest.width or not inside or not optimum.draws:
            continue
        places = np.array([optimum.log2_value, *(draw.log2_value for draw in optimum.draws)])
        noise = draw_mean_noise(points.noise, shape=(len(optimum.draws), len(points.means)), n_seeds=n_seeds, rng=rng)
        curves = points.means + np.concatenate([np.zeros_like(points.means)[None], noise])
        costs = _heights_at(places, points.log2_values, curves, band_nats) - points.minima(curves, band_nats).loss
        octaves = optimum.log2_value - own[0].log2_value
        found.append(
            Penalty(
                width=optimum.width,
                octaves=octaves,
                direct=float(costs[0]),
                direct_interval=percentile_interval(costs[1:], level),
                via_curvature=max(own[0].curvature, 0.0) / 2 * octaves**2,
                noise_floor=floor,
            )
        )
    return Penalties(optimizer=widest.optimizer, fixed=widest.fixed, widest=widest.width, penalties=tuple(found))


def _heights_at(places: Floats, log2_values: Floats, curves: Floats, band_nats: float) -> Floats:
    """Of each curve (rows, n) at its place (rows,), in nats, by a cubic spline through log(1 + excess / band_nats).

    Not by the smoothing spline that minima are sought with: it lifts a basin's floor by several millinats, as much as
    there is to read.
    """
    lows = curves.min(axis=1)
    weights = CubicSpline(log2_values, np.eye(len(log2_values)))(places)  # (rows, n): linear in the values
    at = (weights * np.log1p((curves - lows[:, None]) / band_nats)).sum(axis=1)
    heights: Floats = lows + band_nats * np.expm1(at)
    return heights
