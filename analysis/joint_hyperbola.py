"""One fit of tokens against batch for several losses at once, with bounds for what was reached too soon or not at all.

For target loss t: E_t(B) = e_t (1 + B / B_t), log B_t = a + q (log e_t - mean log e), least squares in log tokens.
Point by point a loss gives one hyperbola; together their critical batches follow a power of the tokens, so a loss
that few batches reach leans on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import norm

from analysis.hyperbola import SEARCH_FACTOR
from analysis.interval import FitError, Floats
from analysis.tokens_to_loss import CurveTokens

# Power of B_c over tokens: 0.462 in Bergsma et al. 2025 (arXiv:2505.13738), 0.47 in Zhang et al. 2024
# (arXiv:2410.21676). The sd spans no growth to linear growth, so that data over an octave of tokens outweigh it.
PRIOR_POWER = 0.465
PRIOR_POWER_SD = 0.5
# sd of log tokens below which a point does not count for more: what interpolation between horizons misses
# on the usual law of loss over tokens; where it misses more the scatter tells.
LEAST_ERROR = 0.005
_FIRST_SCATTER = 0.05  # of the first pass, where draws tell no error; it only weighs bounds and the prior
# Variance that a target moves by on its own in a draw, besides what is common to its batch, over the common one. In 200
# simulated studies of nine batches without draws, 90% intervals held B_c in 94, 86 and 92% and q in 81, 85 and 89% with
# only the common part, with half of it exchanged for the target's own, and with this half added.
_OWN_SHARE = 0.5
_PASSES = 3
_WALL = 0.1  # natural logs beyond the searched B_c per unit of residual
_GRID_PER_OCTAVE = 2
_TOLERANCE = 1e-10

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points:
    """P points of C curves by T targets, curve by curve: log tokens against log batch, centered by the caller."""

    log_batches: Floats  # (P,)
    targets: Ints  # (P,)
    values: Floats  # (P,): log tokens, or the limit where censored
    bounds: Ints  # (P,): 0 measured, +1 more tokens than the limit, -1 fewer
    errors: Floats  # (P,): sd of log tokens
    n_targets: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointFit:
    """Estimates, then draws. Logs of tokens."""

    log_min_tokens: Floats  # (1 + draws, T)
    log_critical: Floats  # (1 + draws, T)
    power: Floats  # (1 + draws,)
    scatter: float  # sd of log tokens around the hyperbolas, beyond what bootstrap draws explain
    residuals: Floats  # (C, T): log tokens minus the hyperbola's, NaN where censored


def fit_jointly(tokens: Sequence[CurveTokens], *, n_draws: int, rng: np.random.Generator) -> JointFit:
    """The hyperbolas of all targets, and `n_draws` refits.

    A measured point's variance is that of its curve's bootstrap draws plus a scatter common to all points, estimated
    by moments. Points of one batch are read off the same runs, so the scatter is taken as common to a batch: its
    degrees of freedom are the batches less two, and in a draw a batch moves as a whole, by Student's t. A draw takes
    a draw of each curve (in random order: curves are independent), moves the prior's mean by its sd, and refits.

    Raises:
        FitError: a target that fewer than three batches measure; two points go through any hyperbola.
    """
    n_targets = len(tokens[0].target_losses)
    center, level = _centers(tokens)
    errors = _errors(tokens)
    counts = np.array([np.isfinite(item.values) for item in tokens]).sum(axis=0)
    if counts.min() < 3:
        raise FitError(f"a joint fit needs three measured batches or more at each target, got {counts.tolist()}")
    first = _points(tokens, [item.values for item in tokens], errors, _FIRST_SCATTER, center, level)
    start = _start(first)
    measured, scatter = first.bounds == 0, _FIRST_SCATTER
    df = int(measured.sum()) - 2 * n_targets
    points = first
    for _ in range(_PASSES):
        points = _points(tokens, [item.values for item in tokens], errors, scatter, center, level)
        start = _solve(points, start)
        off = (points.values - predict(start, points))[measured]
        explained = float(np.mean(errors.ravel()[measured] ** 2))
        scatter = float(np.sqrt(max(float(off @ off) / df - explained, 0.0)))
    solutions = [start]
    orders = [rng.permutation(len(item.draws)) for item in tokens]
    common, own = 1.0, np.sqrt(_OWN_SHARE)
    df_batches = max(int(counts.min()) - 2, 1)
    for k in range(n_draws):
        spread = np.hypot(scatter * np.sqrt(df_batches / rng.chisquare(df_batches)), LEAST_ERROR)
        values = [
            (item.draws[order[k]] if len(item.draws) else item.values)
            + spread * (common * rng.standard_normal() + own * rng.standard_normal(n_targets))
            for item, order in zip(tokens, orders, strict=True)
        ]
        drawn = _points(tokens, values, errors, scatter, center, level)
        solutions.append(_solve(drawn, start, prior=rng.normal(PRIOR_POWER, PRIOR_POWER_SD)))
    found = np.array(solutions)
    residuals = np.where(measured, points.values - predict(start, points), np.nan)
    return JointFit(
        log_min_tokens=found[:, :-2] + level,
        log_critical=np.array([_log_critical(row) for row in solutions]) + center,
        power=found[:, -1],
        scatter=scatter,
        residuals=residuals.reshape(-1, n_targets),
    )


def _centers(tokens: Sequence[CurveTokens]) -> tuple[float, float]:
    """Mean log batch and mean log tokens: another unit of tokens then leaves every number of the fit as it is."""
    batches = [np.log(item.curve.batch_tokens) for item in tokens]
    ends = [(item.log_shortest + item.log_longest) / 2 for item in tokens]
    return float(np.mean(batches)), float(np.mean(ends))


def _errors(tokens: Sequence[CurveTokens]) -> Floats:
    """sd of log tokens (C, T) by the draws; of a censored point the median of its curve's, or else of all."""
    found = np.array([_spreads(item) for item in tokens])
    overall = np.nanmedian(found) if np.isfinite(found).any() else 0.0
    medians = [np.nanmedian(row) if np.isfinite(row).any() else overall for row in found]
    return np.maximum(np.where(np.isfinite(found), found, np.array(medians)[:, None]), LEAST_ERROR)


def _spreads(item: CurveTokens) -> Floats:
    """Half the central 68% of each target's draws, NaN where it is censored; 0 without draws.

    Draws end at the horizons, so near one the wider side counts, which the horizon does not cut.
    """
    measured = np.isfinite(item.values)
    if not len(item.draws):
        return np.where(measured, 0.0, np.nan)
    clipped = np.clip(item.draws, item.log_shortest, item.log_longest)
    low, high = np.quantile(clipped, [0.15865, 0.84135], axis=0)
    with np.errstate(invalid="ignore"):
        spread = np.maximum(item.values - low, high - item.values)
    return np.where(measured, spread, np.nan)


def _points(
    tokens: Sequence[CurveTokens], values: Sequence[Floats], errors: Floats, scatter: float, center: float, level: float
) -> Points:
    n_targets = len(values[0])
    limits = [np.clip(row, item.log_shortest, item.log_longest) for row, item in zip(values, tokens, strict=True)]
    bounds = [np.where(np.isfinite(row), 0, np.sign(row)).astype(np.int64) for row in values]
    placed = [np.where(bound == 0, row, limit) for row, bound, limit in zip(values, bounds, limits, strict=True)]
    return Points(
        log_batches=np.repeat([np.log(item.curve.batch_tokens) - center for item in tokens], n_targets),
        targets=np.tile(np.arange(n_targets), len(tokens)),
        values=np.concatenate(placed) - level,
        bounds=np.concatenate(bounds),
        errors=np.sqrt(errors.ravel() ** 2 + scatter**2),
        n_targets=n_targets,
    )


def _log_critical(parameters: Floats) -> Floats:
    """log B_t of each target from (log e_1 .. log e_T, a, q)."""
    e, a, q = parameters[:-2], parameters[-2], parameters[-1]
    critical: Floats = a + q * (e - e.mean())
    return critical


def predict(parameters: Floats, points: Points) -> Floats:
    """Log tokens of every point."""
    ratios = points.log_batches - _log_critical(parameters)[points.targets]
    predicted: Floats = parameters[:-2][points.targets] + np.logaddexp(0.0, ratios)
    return predicted


def _start(points: Points) -> Floats:
    """The best of a grid over a, with the prior's q, of the measured points alone."""
    measured = points.bounds == 0
    one_hot = np.eye(points.n_targets)[points.targets[measured]]
    reach = float(np.ptp(points.log_batches))
    best: tuple[float, Floats] = (np.inf, np.zeros(points.n_targets + 2))
    for a in np.linspace(-reach, reach, max(int(2 * reach / np.log(2) * _GRID_PER_OCTAVE), 8)).tolist():
        e = (one_hot.T @ points.values[measured]) / one_hot.sum(axis=0)
        for _ in range(3):  # B_t depends on e_t, weakly
            parameters = np.array([*e, a, PRIOR_POWER])
            off = (points.values - predict(parameters, points))[measured]
            e = e + (one_hot.T @ off) / one_hot.sum(axis=0)
        parameters = np.array([*e, a, PRIOR_POWER])
        cost = float(np.sum((points.values - predict(parameters, points))[measured] ** 2))
        if cost < best[0]:
            best = cost, parameters
    return best[1]


def _solve(points: Points, start: Floats, *, prior: float = PRIOR_POWER) -> Floats:
    """Maximum of the likelihood, normal in log tokens and one-sided where censored (Tobit), times the prior of q."""
    low = float(points.log_batches.min() - np.log(SEARCH_FACTOR))
    high = float(points.log_batches.max() + np.log(SEARCH_FACTOR))

    def residuals(parameters: Floats) -> Floats:
        z = (points.values - predict(parameters, points)) / points.errors
        a = parameters[-2]
        wall = (max(a - high, 0.0) - max(low - a, 0.0)) / _WALL
        return np.concatenate([np.where(points.bounds == 0, z, _one_sided(-z * points.bounds)[0]),
                               [(parameters[-1] - prior) / PRIOR_POWER_SD, wall]])  # fmt: skip

    def jacobian(parameters: Floats) -> Floats:
        z = (points.values - predict(parameters, points)) / points.errors
        a = parameters[-2]
        slopes = np.where(points.bounds == 0, 1.0, -points.bounds * _one_sided(-z * points.bounds)[1])
        rows = -(slopes / points.errors)[:, None] * _gradient(parameters, points)
        last = np.zeros((2, len(parameters)))
        last[0, -1], last[1, -2] = 1 / PRIOR_POWER_SD, float(a > high or a < low) / _WALL
        return np.vstack([rows, last])

    solved = least_squares(residuals, start, jac=jacobian, method="lm", xtol=_TOLERANCE, ftol=_TOLERANCE)
    found: Floats = solved.x
    return found


def _gradient(parameters: Floats, points: Points) -> Floats:
    """d log tokens / d (log e, a, q) of every point, (P, T + 2)."""
    e, q, n = parameters[:-2], parameters[-1], points.n_targets
    ratios = points.log_batches - _log_critical(parameters)[points.targets]
    by_critical = -1 / (1 + np.exp(-ratios))
    own = np.eye(n)[points.targets]
    by_e = own + (by_critical * q)[:, None] * (own - 1 / n)
    return np.column_stack([by_e, by_critical, by_critical * (e - e.mean())[points.targets]])


def _one_sided(u: Floats) -> tuple[Floats, Floats]:
    """r = sqrt(-2 log Phi(u)), whose half square is the cost of a bound, and dr/du."""
    log_cdf = norm.logcdf(u)
    r = np.sqrt(-2 * log_cdf)
    return r, -np.exp(norm.logpdf(u) - log_cdf) / np.maximum(r, np.finfo(np.float64).tiny)
