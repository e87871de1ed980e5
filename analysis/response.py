"""The optimum over k hyperparameters at once in every cell: a quadratic with cross terms in log2, near the minimum.

With all cells and bootstrap draws in one batch of linear algebra, a million runs take seconds.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
from scipy.sparse.csgraph import connected_components

from analysis.cells import Bools, Cells, Ints, cells_of, design_matrix, n_coefficients
from analysis.interval import FitError, Floats, Interval, percentile_interval
from analysis.observations import SERIES, Observations

# Of the lowest loss: the band of points a quadratic is fitted to. Relative, for what a user accepts to lose and what
# curvatures amount to both go with the loss. On Step Law's runs (arXiv:2503.04715), N up to 268M, laws fitted to all
# cells but one cost the left-out one 0.03 % with 0.006, 0.05 % with 0.01 and 0.07 to 0.2 % with 0.015 to 0.03 (as in
# `scale_law`): the basin is steeper on the side of high lr, which carries a wide band's vertex away from it.
BAND_FRACTION = 0.006
SPARE_POINTS = 2  # beyond the coefficients: so many points belong to the band whatever their loss
_INDEPENDENT = 1e-3  # least singular value of the quadratic's design, for hyperparameters within -1 and 1
_RIDGE = 1e-12
_RIVAL_BANDS = 3  # a second minimum more than this many bands above the lowest is no rival
_NEAR_BANDS = 5  # points further up can enter no draw's band
_CHUNK = 2**20  # numbers in one batch of draws


class ResponseFlag(Enum):
    """Why an optimum may not be what it seems."""

    EDGE = "edge"
    NEXT_TO_DIVERGED = "next_to_diverged"
    NOT_CONVEX = "not_convex"
    SEVERAL_MINIMA = "several_minima"
    TOO_FEW_POINTS = "too_few_points"
    NO_INTERVAL = "no_interval"
    ONE_SEED = "one_seed"

    @property
    def advice(self) -> str:
        """What it means, then what to do."""
        return _ADVICE[self]


_ADVICE = {
    ResponseFlag.EDGE: (
        "A hyperparameter is best at the end of the values tried, so its optimum may lie beyond; the cell is left out "
        "of laws over scale. Add values there."
    ),
    ResponseFlag.NEXT_TO_DIVERGED: (
        "The optimum is next to values that diverged, so it may be extrapolated towards them. "
        "Add values half a step apart there."
    ),
    ResponseFlag.NOT_CONVEX: (
        "The loss near its lowest point is flat or a saddle, so the best point tried stands in for the optimum. "
        "Add values further apart, or seeds."
    ),
    ResponseFlag.SEVERAL_MINIMA: (
        "The loss has more than one minimum beyond noise. Look at the figure, and add seeds and finer values between."
    ),
    ResponseFlag.TOO_FEW_POINTS: (
        "The band around the minimum holds hardly more points than the quadratic has coefficients, so nothing checks "
        "its shape. Add values half a step apart around the minimum."
    ),
    ResponseFlag.NO_INTERVAL: "Too few runs to estimate the noise, so there is no interval. Add a seed, or values.",
    ResponseFlag.ONE_SEED: (
        "With one seed the interval rests on how far runs lie off the quadratic. Add a seed."
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResponseOptimum:
    """The minimum of one cell, in log2; losses in nats.

    The Hessian (nats per octave squared) prices a miss of d octaves: d.H.d/2 nats. It is the fitted one, whatever its
    signs. `intervals` are None at an edge, beside NOT_CONVEX and without draws.
    """

    series: str
    scales: tuple[tuple[str, float], ...]
    hps: tuple[str, ...]
    log2_values: Floats  # (k,)
    intervals: tuple[Interval | None, ...]
    loss: float
    hessian: Floats  # (k, k)
    draws: Floats  # (draws, k); no rows where nothing tells the noise
    hessian_draws: Floats  # (draws, k, k)
    edges: tuple[Literal["low", "high"] | None, ...]
    n_points: int  # with a loss, seeds averaged
    n_in_band: int
    flags: tuple[ResponseFlag, ...]

    @property
    def covariance(self) -> Floats:
        """Of the draws, octaves squared; NaN without draws."""
        k = len(self.hps)
        return np.cov(self.draws.T).reshape(k, k) if len(self.draws) > 1 else np.full((k, k), np.nan)


def fit_responses(
    observations: Observations,
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
    level: float = 0.9,
    band_fraction: float = BAND_FRACTION,
) -> tuple[ResponseOptimum, ...]:
    """The optimum of every cell that has one: least squares near its lowest loss (within `Cells.band`).

    Runs beyond a cliff are outside the band. Points that diverged bound the search: the optimum is never placed beyond
    the first value at which all diverged, nor beyond the band's points on any other side. Draws add Student's t noise
    to the seed means and redo everything, the band included: from the residuals between seeds, or with one seed from
    those of the quadratic. Planted optima were inside 90% intervals in 85 to 95% of 500 simulated cells.

    Cells with too few points that converged are left out.

    Raises:
        FitError: no cell has more points that converged than the quadratic has coefficients.
    """
    cells = cells_of(observations, band_fraction=band_fraction)
    return responses_of(cells, n_bootstrap=n_bootstrap, rng=rng, level=level)


def responses_of(
    cells: Cells, *, n_bootstrap: int, rng: np.random.Generator, level: float
) -> tuple[ResponseOptimum, ...]:
    """`fit_responses` of cells."""
    wants = n_coefficients(len(cells.hps)) + 1
    fits = np.flatnonzero(cells.n_converged >= wants)
    if not len(fits):
        raise FitError(
            f"a minimum over {', '.join(cells.hps)} needs {wants} points that converged, and no cell has them: the "
            f"most are {cells.n_converged.max()} of {cells.n_points.max()}, at "
            f"{cells.name(int(cells.n_converged.argmax()))}; add values, or move them to where runs converge"
        )
    points = n_near(cells)
    step = max(1, _CHUNK // (int(points[fits].max()) * (n_bootstrap + 1)))
    optima: list[ResponseOptimum] = []
    for start in range(0, len(fits), step):
        chunk = fits[start : start + step]
        optima.extend(_fit_chunk(cells, chunk, int(points[chunk].max()), n_bootstrap, rng, level))
    return tuple(optima)


def n_near(cells: Cells) -> Ints:
    """How many of each cell's points lie so low that noise may bring them into the band, (c,)."""
    limit = cells.losses[:, :1] + _NEAR_BANDS * cells.band[:, None]
    near: Ints = np.maximum((np.isfinite(cells.losses) & (cells.losses <= limit)).sum(axis=1), fewest_in_band(cells))
    return near


def fewest_in_band(cells: Cells) -> Ints:
    """How many of each cell's lowest points belong to the band whatever their loss, (c,).

    A few more than the quadratic has coefficients; as many more as it takes to tell them apart, where the lowest
    points of a grid hold only two values of a hyperparameter.
    """
    wants = n_coefficients(len(cells.hps))
    fewest = cells.n_converged.copy()
    open_cells = np.ones(len(fewest), dtype=np.bool_)
    for n_points in [wants + SPARE_POINTS, *(factor * wants for factor in (2, 3, 4, 6, 8))]:
        inside = (np.arange(min(n_points, cells.losses.shape[1])) < cells.n_converged[:, None])[..., None]
        x = cells.log2_hps[:, : inside.shape[1]] - cells.log2_hps[:, :1]
        design = design_matrix(x / np.maximum(np.abs(x * inside).max(axis=1, keepdims=True), 1e-12)) * inside
        told_apart = np.linalg.svd(design, compute_uv=False)[:, -1] > _INDEPENDENT
        fewest = np.where(open_cells & told_apart, np.minimum(n_points, fewest), fewest)
        open_cells &= ~told_apart
    return fewest


def _fit_chunk(
    all_cells: Cells, chunk: Ints, near: int, n_bootstrap: int, rng: np.random.Generator, level: float
) -> list[ResponseOptimum]:
    cells = all_cells.take(chunk, near)
    whole = all_cells.take(chunk, all_cells.losses.shape[1])
    box, fewest = _Box.around(whole), fewest_in_band(cells)
    best = _quadratics(cells, cells.losses[:, None], fewest, box)
    one_seed = np.isnan(cells.noise_sd)
    sd = np.where(one_seed, best.misfit_sd[:, 0], cells.noise_sd)
    df = np.where(one_seed, best.misfit_df[:, 0], cells.noise_df)
    known = np.isfinite(sd)
    shape = (len(chunk), n_bootstrap, cells.losses.shape[1])
    scale = (
        np.sqrt(df / rng.chisquare(np.maximum(df, 1)[:, None], size=shape[:2]).T).T
        if n_bootstrap
        else np.ones(shape[:2])
    )
    noise = rng.standard_normal(shape) * (np.where(known, sd, 0.0)[:, None] * scale)[..., None]
    drawn = _quadratics(cells, cells.losses[:, None] + noise / np.sqrt(cells.n_seeds)[:, None], fewest, box)
    several = _several_minima(whole, cells, np.where(known & ~one_seed, sd, np.nan))
    return [
        _record(whole, i, best, drawn, box, bool(known[i]), bool(one_seed[i]), bool(several[i]), level)
        for i in range(len(chunk))
    ]


@dataclass(frozen=True, slots=True)
class _Box:
    """The ends of what was tried in each cell, (c, k): where runs converged, and the next values, where none did."""

    low: Floats
    high: Floats
    low_fence: Floats  # as `low` where nothing was tried below
    high_fence: Floats

    @classmethod
    def around(cls, cells: Cells) -> "_Box":
        tried = (np.arange(cells.losses.shape[1]) < cells.n_points[:, None])[..., None]
        ran = np.isfinite(cells.losses)[..., None]
        values = cells.log2_hps
        low, high = np.where(ran, values, np.inf).min(axis=1), np.where(ran, values, -np.inf).max(axis=1)
        below = np.where(tried & (values < low[:, None]), values, -np.inf).max(axis=1)
        above = np.where(tried & (values > high[:, None]), values, np.inf).min(axis=1)
        return cls(low, high, np.where(np.isinf(below), low, below), np.where(np.isinf(above), high, above))

    def bounds(self, log2_hps: Floats, in_band: Bools) -> tuple[Floats, Floats]:
        """Of the vertex: the ends of the points in the band, or the fence where these are the last; (c, b, k)."""
        values = [column[:, None] for column in np.moveaxis(log2_hps, 2, 0)]  # each (c, 1, m)
        low = np.stack([np.where(in_band, column, np.inf).min(axis=2) for column in values], axis=-1)
        high = np.stack([np.where(in_band, column, -np.inf).max(axis=2) for column in values], axis=-1)
        last_low, last_high = low == self.low[:, None], high == self.high[:, None]
        return np.where(last_low, self.low_fence[:, None], low), np.where(last_high, self.high_fence[:, None], high)


@dataclass(frozen=True, slots=True)
class _Quadratics:
    """Of each cell and row of losses, (c, b, ...)."""

    log2_values: Floats  # (c, b, k)
    loss: Floats
    hessian: Floats  # (c, b, k, k)
    convex: Bools
    beyond: Floats  # (c, b, k): -1 or +1 where the vertex lay beyond the band's points
    n_in_band: Ints
    misfit_sd: Floats  # NaN without degrees of freedom
    misfit_df: Ints


def _quadratics(cells: Cells, losses: Floats, fewest: Ints, box: _Box) -> _Quadratics:
    """Least squares within the band of each row of `losses` (c, b, m), and the vertex within the box."""
    k = len(cells.hps)
    wants = n_coefficients(k)
    lowest, at = losses.min(axis=2), losses.argmin(axis=2)
    last = np.minimum(fewest, losses.shape[2])[:, None, None] - 1
    few_lowest = np.take_along_axis(np.partition(losses, np.unique(last), axis=2), last, axis=2)[..., 0]
    limit = np.maximum(lowest + cells.band[:, None], few_lowest)
    weights = (np.isfinite(losses) & (losses <= limit[..., None])).astype(np.float64)
    origin = cells.log2_hps[:, 0]  # of the lowest seed mean; (c, k)
    design = design_matrix(cells.log2_hps - origin[:, None])  # (c, m, p)
    rows, columns = np.triu_indices(wants)
    products = design[..., rows] * design[..., columns]
    normal = np.empty((*weights.shape[:2], wants, wants))
    normal[..., rows, columns] = weights @ products
    normal[..., columns, rows] = normal[..., rows, columns]
    heights = np.where(weights > 0, losses, lowest[..., None]) - lowest[..., None]
    moments = heights @ design
    # A ridge of rounding size, for draws whose points do not tell the coefficients apart.
    normal += _RIDGE * (1 + normal) * np.eye(wants)
    coefficients = np.linalg.solve(normal, moments[..., None])[..., 0]
    gradient, hessian = coefficients[..., 1 : k + 1], _hessians(coefficients, k)
    convex = np.linalg.eigvalsh(hessian)[..., 0] > 1e-9
    solvable = np.where(convex[..., None, None], hessian, np.eye(k))
    vertex = -np.linalg.solve(solvable, gradient[..., None])[..., 0] + origin[:, None]
    best_tried = np.take_along_axis(cells.log2_hps, at[..., None], axis=1)
    vertex = np.where(convex[..., None], vertex, best_tried)
    low, high = box.bounds(cells.log2_hps, weights > 0)
    beyond = np.where(vertex < low, -1.0, np.where(vertex > high, 1.0, 0.0))
    values = np.clip(vertex, low, high)
    offset = values - origin[:, None]
    fitted = (
        coefficients[..., 0]
        + (gradient * offset).sum(axis=-1)
        + np.einsum("cbi,cbij,cbj->cb", offset, hessian, offset) / 2
    )
    count = weights.sum(axis=2).astype(np.int64)
    square = (weights * heights**2).sum(axis=2) - (coefficients * moments).sum(axis=-1)
    df = count - wants
    return _Quadratics(
        log2_values=values,
        loss=np.where(convex, lowest + fitted, lowest),
        hessian=hessian,
        convex=convex,
        beyond=beyond,
        n_in_band=count,
        misfit_sd=np.where(df > 0, np.sqrt(np.maximum(square, 0.0) / np.maximum(df, 1)), np.nan),
        misfit_df=df,
    )


def _hessians(coefficients: Floats, k: int) -> Floats:
    i, j = np.triu_indices(k)
    hessian = np.empty((*coefficients.shape[:-1], k, k))
    hessian[..., i, j] = coefficients[..., k + 1 :]
    hessian[..., j, i] = coefficients[..., k + 1 :]
    return hessian


def _record(
    cells: Cells,
    i: int,
    best: _Quadratics,
    drawn: _Quadratics,
    box: _Box,
    known: bool,
    one_seed: bool,
    several: bool,
    level: float,
) -> ResponseOptimum:
    ends, diverged = _ends(cells, i, best, box)
    convex = bool(best.convex[i, 0])
    draws = drawn.log2_values[i] if known else drawn.log2_values[i][:0]
    key, k = cells.keys.iloc[i], len(cells.hps)
    holds = {
        ResponseFlag.EDGE: any(ends),
        ResponseFlag.NEXT_TO_DIVERGED: diverged,
        ResponseFlag.NOT_CONVEX: not convex,
        ResponseFlag.SEVERAL_MINIMA: several,
        ResponseFlag.TOO_FEW_POINTS: bool(best.n_in_band[i, 0] <= n_coefficients(k) + SPARE_POINTS),
        ResponseFlag.NO_INTERVAL: not len(draws),
        ResponseFlag.ONE_SEED: one_seed,
    }
    located = convex and len(draws) > 0
    return ResponseOptimum(
        series=str(key[SERIES]),
        scales=tuple((name, float(key[name])) for name in cells.scales),
        hps=cells.hps,
        log2_values=best.log2_values[i, 0],
        intervals=tuple(percentile_interval(draws[:, j], level) if located and not ends[j] else None for j in range(k)),
        loss=float(best.loss[i, 0]),
        hessian=best.hessian[i, 0],
        draws=draws,
        hessian_draws=drawn.hessian[i][: len(draws)],
        edges=ends,
        n_points=int(cells.n_converged[i]),
        n_in_band=int(best.n_in_band[i, 0]),
        flags=tuple(flag for flag in ResponseFlag if holds[flag]),
    )


def _ends(cells: Cells, i: int, best: _Quadratics, box: _Box) -> tuple[tuple[Literal["low", "high"] | None, ...], bool]:
    """Which hyperparameters are best at an end of what was tried, and whether runs that diverged bound one instead."""
    lowest, place = cells.log2_hps[i, 0], best.log2_values[i, 0]
    low = (lowest == box.low[i]) | ((best.beyond[i, 0] < 0) & (place <= box.low[i]))
    high = (lowest == box.high[i]) | ((best.beyond[i, 0] > 0) & (place >= box.high[i]))
    low_wall, high_wall = box.low_fence[i] < box.low[i], box.high_fence[i] > box.high[i]
    ends: list[Literal["low", "high"] | None] = []
    for j in range(len(cells.hps)):
        ends.append("low" if low[j] and not low_wall[j] else "high" if high[j] and not high_wall[j] else None)
    return tuple(ends), bool((low & low_wall | high & high_wall).any())


def _several_minima(whole: Cells, cells: Cells, noise_sd: Floats) -> Bools:
    """Whether another minimum lies near the lowest, parted by a barrier that noise does not explain.

    Points are neighbors where no hyperparameter differs by more than one of the values tried. A barrier is three
    standard errors of a difference and at least a quarter of the band, or the whole band where the noise is unknown.
    """
    band = cells.band
    worth = np.isfinite(cells.losses) & (cells.losses <= cells.losses[:, :1] + (_RIVAL_BANDS + 2) * band[:, None])
    found = np.zeros(len(band), dtype=np.bool_)
    for i, inside in enumerate(worth):
        n = int(inside.sum())
        tried = whole.log2_hps[i, : whole.n_points[i]]
        ranks = np.stack(
            [np.searchsorted(np.unique(axis), cells.log2_hps[i, :n, j]) for j, axis in enumerate(tried.T)], axis=1
        )
        adjacent = (np.abs(ranks[:, None] - ranks) <= 1).all(axis=2)
        error = 3 * noise_sd[i] * np.sqrt(2 / cells.n_seeds[i, :n].mean())
        barrier = band[i] if np.isnan(noise_sd[i]) else max(band[i] / 4, error)
        found[i] = _rivals(cells.losses[i, :n], adjacent, barrier, cells.losses[i, 0] + _RIVAL_BANDS * band[i])
    return found


def _rivals(losses: Floats, adjacent: Bools, barrier: float, ceiling: float) -> bool:
    """Whether a minimum below `ceiling`, beside the lowest, is parted by `barrier` from all that is lower.

    `losses` ascending. It is, if it stays the lowest of what is connected below the barrier.
    """
    lower_neighbor = np.tril(adjacent, -1).any(axis=1)
    for minimum in np.flatnonzero(~lower_neighbor & (losses <= ceiling))[1:]:
        flooded = int(np.searchsorted(losses, losses[minimum] + barrier))
        if flooded == len(losses):
            continue  # the barrier would be above every point that is looked at
        labels = connected_components(adjacent[:flooded, :flooded], directed=False)[1]
        if labels.tolist().index(labels[minimum]) == minimum:
            return True
    return False
