"""Observations as padded arrays, one row a cell: a series at one value of every scale."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.interval import FitError, Floats
from analysis.observations import LOSS, SEED, SERIES, Observations

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_NOISE_BANDS = 5  # noise is estimated within this many bands of the lowest loss: on the cliff it is larger
_BAND_SDS = 4  # of a point: a narrower band would be filled with points that noise lowers
_POINTS_PER_COEFFICIENT = 3  # of the quadratic that tells the noise of one seed
_SWEEPS = 50  # of the additive fit; without missing runs the first is exact
_TOLERANCE = 1e-12  # nats


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """c cells of at most m points in k hyperparameters. Losses in nats, averaged over seeds.

    Points are sorted by loss. Behind the `n_converged` with a loss come the censored (a seed diverged there), and
    behind all `n_points` padding; both are infinite in `losses`.
    """

    keys: pd.DataFrame  # (c,) rows: series, then the scales
    scales: tuple[str, ...]
    hps: tuple[str, ...]
    log2_hps: Floats  # (c, m, k)
    losses: Floats  # (c, m), ascending
    n_seeds: Ints  # (c, m)
    n_converged: Ints  # (c,)
    n_points: Ints  # (c,)
    noise_sd: Floats  # (c,) of one run, from several seeds; NaN where no point has them
    noise_df: Ints  # (c,)
    band: Floats  # (c,) nats: points so close to the lowest are near the minimum

    def name(self, cell: int) -> str:
        """The cell in words."""
        row = self.keys.iloc[cell]
        return ", ".join([str(row[SERIES]), *(f"{name} {row[name]:.4g}" for name in self.scales)])

    def of_series(self, series: str) -> "Cells":
        """The cells of one series.

        Raises:
            FitError: there is no such series.
        """
        own = np.flatnonzero((self.keys[SERIES] == series).to_numpy())
        if not len(own):
            names = ", ".join(sorted(self.keys[SERIES].astype(str).unique()))
            raise FitError(f"there is no series {series!r}; there are {names}")
        return self.take(own, int(self.n_points[own].max()))

    def take(self, cells: Ints, n_points: int) -> "Cells":
        """Some cells, with their lowest points only."""
        return Cells(
            keys=self.keys.iloc[cells].reset_index(drop=True),
            scales=self.scales,
            hps=self.hps,
            log2_hps=self.log2_hps[cells, :n_points],
            losses=self.losses[cells, :n_points],
            n_seeds=self.n_seeds[cells, :n_points],
            n_converged=np.minimum(self.n_converged[cells], n_points),
            n_points=np.minimum(self.n_points[cells], n_points),
            noise_sd=self.noise_sd[cells],
            noise_df=self.noise_df[cells],
            band=self.band[cells],
        )


def n_coefficients(k: int) -> int:
    """Of a quadratic in k hyperparameters."""
    return (k + 1) * (k + 2) // 2


def design_matrix(x: Floats) -> Floats:
    """Columns 1, x_i, and x_i x_j (halved where i = j) for i <= j, along a new last axis."""
    i, j = np.triu_indices(x.shape[-1])
    return np.concatenate([np.ones((*x.shape[:-1], 1)), x, x[..., i] * x[..., j] * np.where(i == j, 0.5, 1.0)], axis=-1)


def cells_of(observations: Observations, *, band_fraction: float) -> Cells:
    """Seed means and noise of every cell.

    Near the lowest loss the means are those of loss = point effect + seed effect + residual by least squares, so a
    missing run does not shift its point by its seed's effect (as in `bootstrap.two_way`); the noise is the residual's.
    The band is `band_fraction` of the lowest loss, and at least so wide that noise does not choose the points in it.

    Raises:
        FitError: a band that is not positive.
    """
    if not band_fraction > 0:
        raise FitError(f"band_fraction must be above 0, got {band_fraction}")
    frame, names = observations.frame, [SERIES, *observations.scales]
    cell = frame.groupby(names, sort=True, observed=True).ngroup().to_numpy().astype(np.int64)
    n_cells = int(cell.max()) + 1
    point, first = _points(frame, cell, observations.hps)
    point_cell = cell[first]
    loss = frame[LOSS].to_numpy()
    counts = np.bincount(point)
    means = np.bincount(point, weights=loss) / counts  # NaN where a seed diverged
    lowest = np.full(n_cells, np.inf)
    np.fmin.at(lowest, point_cell, means)
    near = means <= lowest[point_cell] * (1 + _NOISE_BANDS * band_fraction)  # False for NaN
    rows = np.flatnonzero(near[point])
    means, noise_sd, noise_df = _two_way(
        means, loss[rows], point[rows], cell[rows], frame[SEED].to_numpy()[rows], n_cells
    )
    order = np.lexsort((np.where(np.isnan(means), np.inf, means), point_cell))
    n_points = np.bincount(point_cell, minlength=n_cells)
    starts = np.concatenate([[0], np.cumsum(n_points)[:-1]])
    column = np.arange(len(order)) - starts[point_cell[order]]
    shape = (n_cells, int(n_points.max()))

    def padded(values: NDArray[np.generic], empty: float) -> Floats:
        full = np.full((*shape, *values.shape[1:]), empty)
        full[point_cell[order], column] = values[order]
        return full

    log2_hps = padded(np.log2(frame[list(observations.hps)].to_numpy()[first]), 0.0)
    losses = padded(np.where(np.isnan(means), np.inf, means), np.inf)
    n_seeds = padded(counts, 1).astype(np.int64)
    mean_sd = np.where(np.isnan(noise_sd), _misfit_sd(log2_hps, losses), noise_sd / np.sqrt(n_seeds[:, 0]))
    return Cells(
        keys=frame[names].iloc[_first_of(cell)].reset_index(drop=True),
        scales=observations.scales,
        hps=observations.hps,
        log2_hps=log2_hps,
        losses=losses,
        n_seeds=n_seeds,
        n_converged=np.bincount(point_cell[~np.isnan(means)], minlength=n_cells),
        n_points=n_points,
        noise_sd=noise_sd,
        noise_df=noise_df,
        band=np.fmax(band_fraction * losses[:, 0], _BAND_SDS * mean_sd),
    )


def _misfit_sd(log2_hps: Floats, losses: Floats) -> Floats:
    """How far single points lie off a quadratic through the lowest, (c,); NaN with too few points."""
    k, n_lowest = log2_hps.shape[2], _POINTS_PER_COEFFICIENT * n_coefficients(log2_hps.shape[2])
    heights = losses[:, :n_lowest] - np.where(np.isfinite(losses[:, :1]), losses[:, :1], 0.0)
    inside = np.isfinite(heights)
    design = design_matrix(log2_hps[:, :n_lowest] - log2_hps[:, :1]) * inside[..., None]
    heights = np.where(inside, heights, 0.0)
    residuals = heights - (design @ (np.linalg.pinv(design) @ heights[..., None]))[..., 0]
    df = inside.sum(axis=1) - n_coefficients(k)
    return np.where(df > 0, np.sqrt((residuals**2).sum(axis=1) / np.maximum(df, 1)), np.nan)


def _first_of(codes: Ints) -> Ints:
    """Where each code first occurs, by code."""
    first: Ints = np.unique(codes, return_index=True)[1]
    return first


def _points(frame: pd.DataFrame, cell: Ints, hps: tuple[str, ...]) -> tuple[Ints, Ints]:
    """For each run the number of its point (cell and hyperparameters), and for each point its first run."""
    code = cell.astype(np.int64)
    for hp in hps:
        codes, distinct = pd.factorize(frame[hp])
        code = np.unique(code, return_inverse=True)[1] * len(distinct) + codes
    _, first, point = np.unique(code, return_index=True, return_inverse=True)
    return point, first


def _two_way(
    means: Floats, loss: Floats, point: Ints, cell: Ints, seed: Ints, n_cells: int
) -> tuple[Floats, Floats, Ints]:
    """Point means free of seed effects, and each cell's noise and degrees of freedom.

    Least squares for the additive model by backfitting, over all cells at once.
    """
    point_of, point = np.unique(point, return_inverse=True)
    _, seed = np.unique(seed, return_inverse=True)
    _, firsts, column = np.unique(cell * (seed.max(initial=0) + 1) + seed, return_index=True, return_inverse=True)
    column_cell = cell[firsts]
    n_columns = np.bincount(column_cell, minlength=n_cells)
    per_point, per_column = np.bincount(point), np.bincount(column)
    seed_effect = np.zeros(len(firsts))
    for _ in range(_SWEEPS):
        point_effect = np.bincount(point, weights=loss - seed_effect[column]) / per_point
        fresh = np.bincount(column, weights=loss - point_effect[point]) / per_column
        fresh -= (np.bincount(column_cell, weights=fresh, minlength=n_cells) / np.maximum(n_columns, 1))[column_cell]
        moved = float(np.abs(fresh - seed_effect).max(initial=0.0))
        seed_effect = fresh
        if moved < _TOLERANCE:
            break
    residual = loss - point_effect[point] - seed_effect[column]
    row_count = np.bincount(cell, minlength=n_cells)
    point_cell = np.empty(len(point_of), dtype=np.int64)
    point_cell[point] = cell
    df = row_count - np.bincount(point_cell, minlength=n_cells) - n_columns + (row_count > 0)
    square = np.bincount(cell, weights=residual**2, minlength=n_cells)
    adjusted = means.copy()
    adjusted[point_of] = point_effect
    return adjusted, np.where(df > 0, np.sqrt(square / np.maximum(df, 1)), np.nan), df
