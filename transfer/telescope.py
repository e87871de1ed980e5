"""Telescoping: a grid at the smallest width, and at every larger one a few points, closer together, around the optimum.

Algorithm 1 of arXiv:2505.02222 halves the spacing whenever width doubles, which is right for optima that converge
as 1/width. Here it shrinks with the exponent that the optima so far show (arXiv:2512.22768 defines it as the rate of
the hyperparameter gap), the window keeps a whole cell of the last spacing on both sides, and a window whose lowest
loss is at an edge is widened there before the next width is planned.

Everything is a function of the stages so far and their results, so a search that was stopped is planned again alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.drift import fit_drift
from analysis.interval import FitError
from analysis.optimum import Optimum, fit_optimum
from analysis.power_law import EXPONENT_BOUNDS, fit_power_laws
from analysis.surface import Surface
from sweeps.spec_models import SearchSection
from sweeps.stages import Stage, snapped

PLAN_SEED = 25_050_222  # of the bootstrap; fixed, so that equal results give equal stages
N_BOOTSTRAP = 200
LEVEL = 0.9  # the exponent's lower bound is this interval's
MIN_SPACING = 1 / 8  # octaves: in basins of 0.1 nats an octave squared, half of it costs 0.0002 nats
_RATE_WANTS = 3  # widths: limit, amplitude and exponent

Side = Literal["low", "high"]
CanRun = Callable[[int, float], bool]  # width, lr


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What the stages at one width say."""

    center: float  # log2 lr: the fitted optimum, or the lowest point where none can be fitted
    optimum: Optimum | None
    side: Side | None  # of the window, where its lowest loss is: the optimum may lie beyond


def next_stage(
    history: Sequence[Stage],
    surfaces: Mapping[int, Surface],
    widths: Sequence[int],
    search: SearchSection,
    *,
    band_nats: float,
    can_run: CanRun,
) -> Stage | None:
    """The stage after `history` of one optimizer, whose results are all in `surfaces` by width; None: it is done.

    `history` starts with the grid at the smallest of `widths`. Values that cannot run, or diverged, are walls: no
    window is widened beyond them.

    Raises:
        FitError: almost nothing around the optimum can run at the next width.
    """
    last = history[-1]
    found = {stage.width: find(surfaces[stage.width], band_nats) for stage in history}
    here = found[last.width]
    if here.side is not None and last.reexpansions < search.max_reexpansions:
        wider = _widened(last, here.side, search.points // 2, can_run)
        if wider is not None:
            return wider
    later = [width for width in sorted(widths) if width > last.width]
    if not later:
        return None
    rate, why = shrink_rate([one.optimum for one in found.values()], search.shrink_bounds)
    return _narrowed(last, here, later[0], rate, why, search.points, can_run)


def find(surface: Surface, band_nats: float) -> Found:
    """The optimum of one width, and the side of its window that it touches."""
    means = np.array([np.inf if mean is None else mean for mean in surface.mean_losses])
    lowest, last = int(means.argmin()), len(means) - 1
    walls = np.flatnonzero(np.isinf(means))
    start, stop = max(walls[walls < lowest], default=-1) + 1, min(walls[walls > lowest], default=last + 1)
    side: Side | None = None
    if lowest == 0 or len(walls) == len(means):  # where all diverged, all learning rates are too high
        side = "low"
    elif lowest == last:
        side = "high"
    elif stop - start < 3:  # too few for a parabola: more of them, where no wall is
        side = "low" if start == 0 else "high" if stop == last + 1 else None
    rng = np.random.default_rng([PLAN_SEED, surface.width])
    try:
        optimum = fit_optimum(surface, band_nats=band_nats, n_bootstrap=N_BOOTSTRAP, rng=rng)
    except FitError:
        return Found(center=surface.log2_values[lowest], optimum=None, side=side)
    return Found(center=optimum.log2_value, optimum=optimum, side=side)


def shrink_rate(optima: Sequence[Optimum | None], bounds: tuple[float, float]) -> tuple[float, str]:
    """The exponent of width by which the spacing shrinks, at most 1 and within `bounds`, and where it is from.

    That is the lower bound of beta in log2 optimum = limit + amplitude * width**-beta (`LEVEL`, by bootstrap), from the
    optima that are inside of their windows; with fewer than three of them the lower of `bounds`.
    """
    inner = [optimum for optimum in optima if optimum is not None and optimum.edge is None]
    low, high = bounds
    if len(inner) < _RATE_WANTS:
        return min(low, 1.0), f"the lower shrink bound, for fewer than {_RATE_WANTS} optima are known, {len(inner)}"
    drift = fit_drift(inner, rng=np.random.default_rng(PLAN_SEED), level=LEVEL)
    laws = fit_power_laws(
        np.array(drift.widths, dtype=np.float64),
        np.array(drift.draws)[..., None],
        np.array(drift.errors)[:, None],
        bounds=EXPONENT_BOUNDS,
    )
    beta_low = float(np.quantile(laws.exponent, (1 - LEVEL) / 2))
    rate = min(max(min(beta_low, 1.0), low), high, 1.0)
    return rate, f"the exponent's lower bound {beta_low:.2f} over {len(inner)} widths, within {low:g} to {high:g}"


def _widened(last: Stage, side: Side, points: int, can_run: CanRun) -> Stage | None:
    """More points beyond one side, as far apart as the stage's, twice as many as the time before; None: a wall."""
    steps = points * 2**last.reexpansions
    end, sign = (last.low, -1) if side == "low" else (last.high, 1)
    beyond = [end + sign * last.spacing * (index + 1) for index in range(steps)]
    lrs = tuple(sorted(2.0**log2 for log2 in beyond if can_run(last.width, 2.0**log2)))
    if not lrs:
        return None
    return replace(
        last,
        kind="reexpansion",
        lrs=lrs,
        low=min(last.low, math.log2(lrs[0])),
        high=max(last.high, math.log2(lrs[-1])),
        reexpansions=last.reexpansions + 1,
        why=f"the lowest loss is at the {side} edge of the window",
    )


def _narrowed(last: Stage, found: Found, width: int, rate: float, why_rate: str, points: int, can_run: CanRun) -> Stage:
    """The window at the next width. Raises FitError if fewer than two of its values can run."""
    octaves = math.log2(width / last.width)
    shrunk = last.spacing if found.side is not None else last.spacing * 2.0 ** (-rate * octaves)
    spacing = min(last.spacing, max(snapped(shrunk), MIN_SPACING))
    half = max(points // 2, math.ceil(last.spacing / spacing))  # a whole cell of the last spacing, at least
    center = snapped(found.center)
    values = [center + spacing * index for index in range(-half, half + 1)]
    runnable = [value for value in values if can_run(width, 2.0**value)]
    if len(runnable) < 2:
        raise FitError(
            f"{last.optimizer}: at width {width} no two of the learning rates around {2.0**center:.3g}, the optimum of "
            f"width {last.width}, can run, for weight decay overshoots there; lower weight_decay"
        )
    kept = f"the spacing is kept, for the optimum at width {last.width} is still at the {found.side} edge"
    shrinks = f"the spacing shrinks by width**-{rate:.2g}: {why_rate}"
    return Stage(
        optimizer=last.optimizer,
        width=width,
        kind="window",
        lrs=tuple(2.0**value for value in runnable),
        low=runnable[0],
        high=runnable[-1],
        spacing=spacing,
        center=center,
        why=f"around the optimum of width {last.width}; {shrinks if found.side is None else kept}",
    )
