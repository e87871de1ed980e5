"""Tokens and steps to one loss against batch: E = E_min (1 + B/B_c), which is S = S_min (1 + B_c/B).

Two definitions of the critical batch are in use, a factor of five apart, so each has a name here and neither is "the"
critical batch: the hyperbola's B_c, where tokens are twice their minimum (McCandlish et al. 2018, arXiv:1812.06162,
section 2.3), and the largest batch whose token overhead E/E_min - 1 is at most 20 % (Zhang et al. 2024,
arXiv:2410.21676), which on the hyperbola is 0.2 B_c.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from analysis.interval import FitError, Floats

ZHANG_OVERHEAD = 0.2  # of the definition in arXiv:2410.21676
LEAST_BATCHES = 4  # distinct ones: through two a hyperbola goes exactly, and with three one residual checks it
# A factor beyond the batches: B_c is searched no further. There the tokens of all batches differ by less than a tenth
# of a percent from a constant, or from a straight line in B, so no data tell values beyond apart.
SEARCH_FACTOR = 1000.0
_SEARCH_PER_OCTAVE = 4  # starts of the search: a sum of squares over log B_c may have two minima
_TOLERANCE = 1e-11  # of log B_c

Side = Literal["below", "inside", "above"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperbola:
    """E = min_tokens (1 + B / critical_batch_tokens), all in the unit the batches and tokens were given in."""

    min_tokens: float  # E_min
    critical_batch_tokens: float  # B_c of the hyperbola
    batch_tokens: tuple[float, ...]  # fitted
    log_residuals: tuple[float, ...]  # log tokens minus the hyperbola's, a batch each
    log_critical_error: float  # standard error of log B_c

    @property
    def min_steps(self) -> float:
        """S_min = E_min / B_c."""
        return self.min_tokens / self.critical_batch_tokens

    @property
    def side(self) -> Side:
        """Where B_c is among the batches. Unless "inside" it is extrapolated: say it is beyond them, not a number."""
        if self.critical_batch_tokens > max(self.batch_tokens):
            return "above"
        return "below" if self.critical_batch_tokens < min(self.batch_tokens) else "inside"

    def tokens_at(self, batch_tokens: ArrayLike) -> Floats:
        return self.min_tokens * (1 + np.asarray(batch_tokens, dtype=np.float64) / self.critical_batch_tokens)

    def steps_at(self, batch_tokens: ArrayLike) -> Floats:
        return self.tokens_at(batch_tokens) / np.asarray(batch_tokens, dtype=np.float64)

    def overhead_batch(self, overhead: float = ZHANG_OVERHEAD) -> float:
        """The largest batch that needs at most `overhead` (a fraction) more tokens than E_min: overhead * B_c.

        Raises:
            FitError: an overhead not above 0.
        """
        return require_overhead(overhead) * self.critical_batch_tokens


def require_overhead(overhead: float) -> float:
    """The overhead, if it is one.

    Raises:
        FitError: an overhead not above 0.
    """
    if not overhead > 0:
        raise FitError(f"a token overhead must be above 0 (0.2 is 20 %), got {overhead}")
    return overhead


def fit_hyperbola(
    batch_tokens: Sequence[float], tokens: Sequence[float], log_errors: Sequence[float] | None = None
) -> Hyperbola:
    """The hyperbola through the tokens needed at each batch, by least squares in log tokens.

    In logs every batch counts by its relative error, and steps give the same fit as tokens. Given B_c the best E_min
    is a weighted mean, so one search over log B_c is left. `log_errors` are standard deviations of log tokens; without
    them all points count equally and the residuals say how large errors are. With them `log_critical_error` is
    stretched by sqrt(chi2 / df) where residuals are larger than the errors allow (the Birge ratio).

    Raises:
        FitError: fewer than four distinct batches, lengths that differ, or a value that is not finite and above 0.
    """
    batches, needed = np.asarray(batch_tokens, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    errors = np.ones(len(batches)) if log_errors is None else np.asarray(log_errors, dtype=np.float64)
    if not len(batches) == len(needed) == len(errors):
        raise FitError(f"got {len(batches)} batches, {len(needed)} tokens and {len(errors)} errors: one each is needed")
    for name, values in (("batch_tokens", batches), ("tokens", needed), ("log_errors", errors)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise FitError(f"{name} must be finite and above 0, got {values.tolist()}")
    if len(set(batches.tolist())) < LEAST_BATCHES:
        raise FitError(
            f"a hyperbola needs {LEAST_BATCHES} distinct batches or more, got {sorted(set(batches.tolist()))}; "
            "run more, a factor of two or four apart, below and above the critical batch"
        )
    center, level = float(np.log(batches).mean()), float(np.log(needed).mean())
    x, y, weights = np.log(batches) - center, np.log(needed) - level, errors**-2.0

    def residuals(log_critical: float) -> Floats:
        off = y - np.logaddexp(0.0, x - log_critical)
        shifted: Floats = off - np.average(off, weights=weights)
        return shifted

    log_critical = _lowest(x, lambda at: float(weights @ residuals(at) ** 2))
    off = residuals(log_critical)
    shape = np.logaddexp(0.0, x - log_critical)
    return Hyperbola(
        min_tokens=float(np.exp(np.average(y - shape, weights=weights) + level)),
        critical_batch_tokens=float(np.exp(log_critical + center)),
        batch_tokens=tuple(batches.tolist()),
        log_residuals=tuple(off.tolist()),
        log_critical_error=_error(x - log_critical, off, weights, known=log_errors is not None),
    )


def _lowest(x: Floats, cost: Callable[[float], float]) -> float:
    """Where the cost over log B_c is least: the lowest point of a grid, then a search between its neighbors."""
    reach = np.log(SEARCH_FACTOR)
    low, high = float(x.min() - reach), float(x.max() + reach)
    grid = np.linspace(low, high, int(_SEARCH_PER_OCTAVE * (high - low) / np.log(2)) + 1)
    best = int(np.argmin([cost(at) for at in grid.tolist()]))
    around = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    return float(minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": _TOLERANCE}).x)


def _error(log_ratios: Floats, off: Floats, weights: Floats, *, known: bool) -> float:
    """Standard error of log B_c by linearizing: d log E / d log B_c = -1 / (1 + B_c / B), E_min eliminated."""
    slope = -1 / (1 + np.exp(-log_ratios))
    information = float(weights @ (slope - np.average(slope, weights=weights)) ** 2)
    spread = float(weights @ off**2) / (len(off) - 2)
    return float(np.sqrt((max(spread, 1.0) if known else spread) / information))
