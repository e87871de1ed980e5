"""Which of a surface's values a minimum is sought among, and how noisy they are."""

from dataclasses import dataclass

import numpy as np

from analysis.basin import Minima, Smoother, find_minima
from analysis.bootstrap import Noise, SeedSpread, residual_noise, two_way
from analysis.interval import FitError, Floats
from analysis.surface import Surface

_NOISE_BANDS = 5  # noise is estimated within this many bands of the lowest loss: on the cliff it is larger
_MISFIT_WANTS = 5  # points for noise from one seed: two degrees of freedom


@dataclass(frozen=True, slots=True)
class Points:
    """The values around the lowest loss up to the nearest without a loss, which bound the search."""

    log2_values: Floats
    means: Floats
    below: float | None  # log2 of the value that diverged, or was stopped, next to the first
    above: float | None
    noise: Noise | None
    seed_spread: SeedSpread | None

    def minima(self, losses: Floats, band_nats: float) -> Minima:
        first, last = float(self.log2_values[0]), float(self.log2_values[-1])
        bounds = (first if self.below is None else self.below, last if self.above is None else self.above)
        return find_minima(self.log2_values, losses, band_nats, Smoother.over(self.log2_values), bounds)


def points_near_lowest(surface: Surface, band_nats: float) -> Points:
    """The points that a minimum is sought among.

    Raises:
        FitError: a band that is not positive, or fewer than three neighboring values that converged.
    """
    if band_nats <= 0:
        raise FitError(f"band_nats must be above 0, got {band_nats}")
    log2_values, means, losses = run_rows(surface)
    converged = ~np.isnan(means)
    lowest = int(np.nanargmin(means)) if converged.any() else 0
    walls = np.flatnonzero(~converged)
    start, stop = max(walls[walls < lowest], default=-1) + 1, min(walls[walls > lowest], default=len(means))
    if stop - start < 3 or not converged.any():
        raise FitError(
            f"{surface.series} at width {surface.width}: a minimum needs three neighboring values of "
            f"{surface.hp} that converged, got {stop - start if converged.any() else 0} around the lowest "
            f"loss ({sum(surface.diverged)} of {len(means)} values diverged); add values of {surface.hp}"
        )
    filled = two_way(losses[start:stop]).filled
    means = filled.mean(axis=1)
    near = means <= max(means.min() + _NOISE_BANDS * band_nats, np.sort(means)[2])
    layout = two_way(losses[start:stop][near])
    return Points(
        log2_values=log2_values[start:stop],
        means=means,
        below=float(log2_values[start - 1]) if start > 0 else None,
        above=float(log2_values[stop]) if stop < len(log2_values) else None,
        noise=layout.noise,
        seed_spread=layout.seed_spread,
    )


def run_rows(surface: Surface) -> tuple[Floats, Floats, Floats]:
    """log2 values, seed means and losses of every value with a result, NaN where there is no loss."""
    means = np.array([np.nan if mean is None else mean for mean in surface.mean_losses])
    run = ~np.isnan(means) | np.array(surface.censored)
    losses = np.array(surface.losses, dtype=np.float64)  # None becomes NaN
    return np.array(surface.log2_values)[run], means[run], losses[run]


def misfit(points: Points, best: Minima) -> Noise | None:
    """Noise of single trials from how far they lie off the parabola; None with too few points."""
    inside = best.quadratic.in_band[0]
    if inside.sum() < _MISFIT_WANTS:
        return None
    x, y = points.log2_values[inside], points.means[inside]
    return residual_noise(y - np.polynomial.Polynomial.fit(x, y, 2)(x), len(x) - 3)
