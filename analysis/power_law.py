"""limit + amplitude * (scale / first)**-exponent with a free limit, for many rows at once.

The largest scale is never taken for infinity: that would force gaps to 0 there and inflate their exponents.
"""

from dataclasses import dataclass

import numpy as np

from analysis.interval import Floats

# Widths: losses fell with 0.36 to 0.92 in arXiv:2512.22768 (appendix), optima with 0.39 to 1. Beyond these bounds
# limit and exponent trade off without end; a fit that ends at the lower one has not begun to converge.
EXPONENT_BOUNDS = (0.1, 2.0)
_COARSE = 40  # exponents, evenly spaced in log: then golden sections around the best
_GOLDEN_STEPS = 30
_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaws:
    """Least-squares fits, one a row; `limit` and `amplitude` are (rows, dims), the exponent is shared by dims."""

    first: float  # the smallest scale: `amplitude` is the gap there
    limit: Floats
    amplitude: Floats
    exponent: Floats  # (rows,)
    sse: Floats  # (rows,): weighted sum of squared residuals

    def at(self, scale: float) -> Floats:
        """(rows, dims)."""
        return self.limit + self.gap(scale)

    def gap(self, scale: float) -> Floats:
        """Signed distance from the limit, (rows, dims)."""
        falling: Floats = (scale / self.first) ** -self.exponent[:, None]
        return self.amplitude * falling


def fit_power_laws(
    scales: Floats, values: Floats, errors: Floats, *, lowest_limit: float = -np.inf, bounds: tuple[float, float]
) -> PowerLaws:
    """Weighted least squares by variable projection: given the exponent the rest is linear.

    `scales` (n,) ascending, `values` (rows, n, dims), `errors` (n, dims) standard deviations. A limit below
    `lowest_limit` is set to it and the amplitude fitted again.
    """
    weights = errors**-2.0

    def at(exponents: Floats) -> tuple[Floats, Floats, Floats]:
        """Limit, amplitude (rows, dims) and SSE (rows,) for one exponent a row."""
        falling = ((scales / scales[0]) ** -exponents[:, None])[..., None]  # (rows, n, 1)
        total = weights.sum(axis=0)
        mean_x, mean_y = (falling * weights).sum(axis=1) / total, (values * weights).sum(axis=1) / total
        centered = falling - mean_x[:, None]
        amplitude = (centered * weights * values).sum(axis=1) / (centered**2 * weights).sum(axis=1)
        limit = mean_y - amplitude * mean_x
        bound = np.maximum(limit, lowest_limit)
        again = (falling * weights * (values - bound[:, None])).sum(axis=1) / (falling**2 * weights).sum(axis=1)
        amplitude = np.where(limit < lowest_limit, again, amplitude)
        residuals = values - bound[:, None] - amplitude[:, None] * falling
        return bound, amplitude, (residuals**2 * weights).sum(axis=(1, 2))

    rows = len(values)
    low, high = np.log(bounds)
    grid = np.linspace(low, high, _COARSE)
    sse = np.stack([at(np.full(rows, np.exp(x)))[2] for x in grid])
    best = sse.argmin(axis=0)
    left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, _COARSE - 1)]
    for _ in range(_GOLDEN_STEPS):
        span = _GOLDEN * (right - left)
        lower = at(np.exp(right - span))[2] <= at(np.exp(left + span))[2]
        left, right = np.where(lower, left, right - span), np.where(lower, left + span, right)
    exponent = np.exp((left + right) / 2)
    limit, amplitude, sse = at(exponent)
    return PowerLaws(first=float(scales[0]), limit=limit, amplitude=amplitude, exponent=exponent, sse=sse)
