"""How optima move with several scales at once, and where they will be: log2 hp* = v + sum_j p_j log2 scale_j.

How it was chosen, on Step Law's runs (arXiv:2503.04715) with N up to 268M only, 8 cells of lr and batch: every law was
fitted without one cell, or without the cells of most tokens, and priced on what had been left out by a smoothing
thin-plate spline. Percent of that surface's minimum, mean over cells, one cell left out / most tokens left out:

* a quadratic a cell within 0.6, 1, 1.5 % of the lowest loss and ordinary least squares: 0.03 / 0.02, 0.05 / 0.08,
  0.07 / -, and worse with wider bands, whose vertex the steep side pushes to low lr. Optima scatter by 0.2 octaves.
* one quadratic shape for all cells (`shared_shape`) within 0.6, 1, 1.5 %: 0.07 / 0.06, 0.06 / 0.07, 0.10 / 0.15.
* one cubic shape within 0.6, 1, 1.5 %: 0.05 / 0.03, 0.04 / 0.07, 0.05 / 0.11; optima scatter by 0.1 octaves. Priors of
  0.25 to 10 on the powers: within 0.03 of each other, the wide ones better.
* one cubic shape and the values that cost least on average (`expected_cost`) instead of the mean optimum, within 0.6
  and 1 %: 0.03 / 0.02, 0.03 / 0.03. Chosen, with 0.6 %: as good as the best, and it depends least on the band.
* a quartic shape ran away with few points; bands stretched with the curvature and soft weights were no better.

N takes only 215M and 268M there, so nothing in that could judge how its power extrapolates: `benchmarks/steplaw.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from analysis.cells import Cells, Ints, cells_of
from analysis.expected_cost import AlignedLosses, align
from analysis.interval import FitError, Floats, Interval, percentile_interval
from analysis.located import SHAPE_ERROR_STEPS
from analysis.observations import SERIES, Observations
from analysis.response import BAND_FRACTION, ResponseOptimum, n_near, responses_of
from analysis.shared_shape import SharedShape, fit_shared_shape

# Standard deviation of a power before the data are seen. Published ones of lr and batch over parameters, tokens,
# compute and width lie between -1 and 2/3, with a root mean square of 0.45 (arXiv:2503.04715, 2401.02954, 2406.19146,
# 2409.19913, 2203.03466); twice that leaves it to the data, unless cells span a scale by a fraction of an octave.
PRIOR_POWER_SD = 1.0
# Of the optima's own errors: taken off the residuals for the scatter that a prediction allows for. From few cells the
# unbiased estimate (1) is often 0: in 600 simulated studies of 6 to 15 cells 90% intervals then held 86 to 93% of new
# optima, with this 89 to 95%, and up to 99% where cells hardly scatter.
_PREDICTIVE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearLaw:
    """Coefficients B (1 + a, k) in centered log2 scales, as normal with a covariance, and the scatter around them."""

    center: Floats  # (a,)
    coefficients: Floats  # (1 + a, k)
    covariance: Floats  # ((1 + a) * k, (1 + a) * k), of coefficients.ravel()
    scatter: Floats  # (k, k): between cells, octaves squared
    predictive_scatter: Floats  # (k, k): what a prediction allows for it
    df: int

    def at(self, log2_scales: Floats) -> tuple[Floats, Floats]:
        """Mean (k,) and covariance (k, k) of a cell's own optimum."""
        row = np.concatenate([[1.0], log2_scales - self.center])
        lever = np.kron(row, np.eye(self.scatter.shape[0]))
        return row @ self.coefficients, lever @ self.covariance @ lever.T + self.predictive_scatter


def fit_linear_law(
    log2_scales: Floats, optima: Floats, covariances: Floats, common: Floats, *, prior_sd: float = PRIOR_POWER_SD
) -> LinearLaw:
    """A random-effects meta-regression of n optima (n, k) on a scales.

    The scatter between cells is estimated by moments, E[R'R] = sum_i M_ii (V_i + T) for the residuals R of ordinary
    least squares with M = I - H, and clipped to be positive semidefinite (the multivariate DerSimonian-Laird
    estimator with equal weights: Jackson, White and Riley, Biometrical Journal 55, 2013). Then generalized least
    squares with V_i + T and a normal prior of mean 0 on the powers. `common` (n, k, q) are errors that cells share:
    they widen the law, without a part in the weights.

    Raises:
        FitError: fewer cells than leave one degree of freedom.
    """
    (n, a), k = log2_scales.shape, optima.shape[1]
    center = log2_scales.mean(axis=0)
    design = np.column_stack([np.ones(n), log2_scales - center])
    hat = design @ np.linalg.pinv(design)
    df = n - int(np.linalg.matrix_rank(design))
    if df < 1:
        raise FitError(f"a law over {a} scales needs optima of at least {n - df + 1} cells, got {n}; add cells")
    residuals = optima - hat @ optima
    within = np.einsum("n,nij->ij", 1 - np.diag(hat), covariances)
    scatter, predictive = (_semidefinite((residuals.T @ residuals - part * within) / df) for part in (1, _PREDICTIVE))
    weights = np.linalg.inv(covariances + scatter)
    levers = np.einsum("np,nij->npij", design, weights)  # (n, 1 + a, k, k)
    precision = np.einsum("npij,nr->pirj", levers, design).reshape((1 + a) * k, -1)
    precision = precision + np.diag(np.repeat([0.0, *[prior_sd**-2] * a], k))
    moments = np.einsum("npij,nj->pi", levers, optima).ravel()
    covariance = np.linalg.inv(precision)
    shared = covariance @ np.einsum("npij,njq->piq", levers, common).reshape((1 + a) * k, -1)
    return LinearLaw(
        center=center,
        coefficients=(covariance @ moments).reshape(1 + a, k),
        covariance=covariance + shared @ shared.T,
        scatter=scatter,
        predictive_scatter=predictive,
        df=df,
    )


def _semidefinite(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    clipped: Floats = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return clipped


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePower:
    """Octaves of a hyperparameter per octave of a scale."""

    hp: str
    scale: str
    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScalePrediction:
    """The hyperparameters to use at given scales, and where the optimum is expected.

    `log2_values` cost least on average over where the optimum may be; `optimum` is its mean, which lies closer to
    the steep side of the basin. `draws` (draws, k) are of the cell's own optimum, in log2.
    """

    scales: tuple[tuple[str, float], ...]
    hps: tuple[str, ...]
    log2_values: tuple[float, ...]
    optimum: tuple[float, ...]  # log2
    intervals: tuple[Interval, ...]  # of the cell's own optimum, log2; they include the scatter between cells
    excess_loss: float  # nats: expected cost of using `log2_values` instead of the cell's own optimum
    excess_loss_interval: Interval
    draws: Floats

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(2.0**value for value in self.log2_values)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScaleLaw:
    """The law of one series over its scales, and the cells it rests on."""

    series: str
    scales: tuple[str, ...]
    hps: tuple[str, ...]
    shape: SharedShape
    aligned: AlignedLosses
    law: LinearLaw
    responses: tuple[ResponseOptimum, ...]  # of the cells in the law
    left_out: tuple[str, ...]  # cells that are not, and why
    level: float

    @property
    def powers(self) -> tuple[ScalePower, ...]:
        k, reach = len(self.hps), float(student.ppf((1 + self.level) / 2, self.law.df))
        errors = np.sqrt(np.diag(self.law.covariance)).reshape(-1, k) * reach
        return tuple(
            ScalePower(
                hp=hp,
                scale=scale,
                value=float(self.law.coefficients[1 + i, j]),
                interval=_around(float(self.law.coefficients[1 + i, j]), float(errors[1 + i, j]), self.level),
            )
            for j, hp in enumerate(self.hps)
            for i, scale in enumerate(self.scales)
        )

    def predict(self, scales: Mapping[str, float], *, rng: np.random.Generator, n_draws: int = 2000) -> ScalePrediction:
        """The hyperparameters expected to be best at `scales`: the law there, by Student's t with its df.

        Raises:
            FitError: a scale that is missing or not above 0.
        """
        lacking = [name for name in self.scales if not scales.get(name, 0.0) > 0]
        if lacking:
            raise FitError(
                f"a prediction needs a value above 0 for each of {', '.join(self.scales)}; {lacking} have none"
            )
        log2_scales = np.log2([scales[name] for name in self.scales])
        mean, covariance = self.law.at(log2_scales)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        chi = np.sqrt(self.law.df / rng.chisquare(self.law.df, size=(n_draws, 1)))
        misses = rng.standard_normal((n_draws, len(mean))) @ root.T * chi
        stretch, shift = float(self.shape.stretch(log2_scales)), self.aligned.cheapest(covariance)
        off = shift - misses
        excess = stretch * np.einsum("ni,ij,nj->n", off, self.shape.hessian, off) / 2
        reach = float(student.ppf((1 + self.level) / 2, self.law.df))
        return ScalePrediction(
            scales=tuple((name, float(scales[name])) for name in self.scales),
            hps=self.hps,
            log2_values=tuple((mean + shift).tolist()),
            optimum=tuple(mean.tolist()),
            intervals=tuple(
                _around(value, reach * error, self.level)
                for value, error in zip(mean.tolist(), np.sqrt(np.diag(covariance)).tolist(), strict=True)
            ),
            excess_loss=float(excess.mean()),
            excess_loss_interval=percentile_interval(excess, self.level),
            draws=mean + misses,
        )


def fit_scale_law(
    observations: Observations,
    series: str,
    *,
    level: float = 0.9,
    band_fraction: float = BAND_FRACTION,
    prior_sd: float = PRIOR_POWER_SD,
) -> ScaleLaw:
    """Optima of all cells by one shape of basin, then their law over the scales.

    Cells at an edge of their grid are bounds, not values: they are left out, and named in `left_out`, as are those
    whose runs near the minimum are too few. Every optimum's error is at least a tenth of a grid step.

    Raises:
        FitError: no such series, too few cells with an optimum inside their grid, a scale that takes one value, or
            scales that move together.
    """
    cells = cells_of(observations, band_fraction=band_fraction).of_series(series)
    rng = np.random.default_rng(0)  # without draws there is nothing random
    responses = responses_of(cells, n_bootstrap=0, rng=rng, level=level)
    return scale_law_of(cells, responses, level=level, prior_sd=prior_sd)


def scale_law_of(
    cells: Cells,
    responses: Sequence[ResponseOptimum],
    *,
    level: float = 0.9,
    prior_sd: float = PRIOR_POWER_SD,
) -> ScaleLaw:
    """`fit_scale_law` of the cells of one series and their responses."""
    inside, index, left_out = _inside_the_grid(cells, responses)
    _require_spread(cells.scales, inside, left_out)
    found = _shared_optima(cells, inside, index, left_out)
    shape = found.shape
    return ScaleLaw(
        series=str(cells.keys[SERIES].iloc[0]),
        scales=cells.scales,
        hps=cells.hps,
        shape=shape,
        aligned=align(cells.take(index, cells.losses.shape[1]), shape, found.steps),
        law=fit_linear_law(shape.log2_scales, shape.log2_optima, found.covariances, shape.common, prior_sd=prior_sd),
        responses=found.responses,
        left_out=left_out,
        level=level,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SharedOptima:
    """The optima of n cells by the shape they share, with their errors, before any law over the scales."""

    shape: SharedShape
    covariances: Floats  # (n, k, k): each cell's own error, at least a tenth of a grid step; octaves squared
    steps: Floats  # (n, k): median spacing of the values tried, octaves
    responses: tuple[ResponseOptimum, ...]  # (n,)
    left_out: tuple[str, ...]


def fit_shared_optima(observations: Observations, series: str, *, band_fraction: float = BAND_FRACTION) -> SharedOptima:
    """The cells of one series with an optimum inside their grid, whether or not they carry a law over the scales.

    Raises:
        FitError: no such series, no cell with an optimum inside its grid, or a loss without a minimum.
    """
    cells = cells_of(observations, band_fraction=band_fraction).of_series(series)
    responses = responses_of(cells, n_bootstrap=0, rng=np.random.default_rng(0), level=0.9)
    inside, index, left_out = _inside_the_grid(cells, responses)
    if not inside:
        raise FitError(f"no cell has an optimum inside its grid: {'; '.join(left_out)}. Extend the grids")
    return _shared_optima(cells, inside, index, left_out)


def _inside_the_grid(
    cells: Cells, responses: Sequence[ResponseOptimum]
) -> tuple[list[ResponseOptimum], Ints, tuple[str, ...]]:
    """Responses away from the edges, their cells, and which cells are left out and why."""
    inside = [response for response in responses if not any(response.edges)]
    rows = {tuple(key): i for i, key in enumerate(cells.keys[list(cells.scales)].itertuples(index=False))}
    index = np.array([rows[tuple(value for _, value in response.scales)] for response in inside], dtype=np.int64)
    at_edge = {rows[tuple(value for _, value in response.scales)] for response in responses if any(response.edges)}
    left_out = tuple(
        f"{cells.name(i)}: {'its optimum is at an edge of the grid' if i in at_edge else 'too few runs converged'}"
        for i in range(len(cells.losses))
        if i not in set(index.tolist())
    )
    return inside, index, left_out


def _shared_optima(
    cells: Cells, inside: Sequence[ResponseOptimum], index: Ints, left_out: tuple[str, ...]
) -> SharedOptima:
    near = cells.take(index, int(n_near(cells)[index].max()))
    shape = fit_shared_shape(near, np.stack([response.log2_values for response in inside]))
    steps = np.array([_steps(cells.log2_hps[i, : cells.n_points[i]]) for i in index])
    floors = np.eye(len(near.hps)) * ((SHAPE_ERROR_STEPS * steps) ** 2)[:, None]
    return SharedOptima(
        shape=shape,
        covariances=shape.covariances + floors,
        steps=steps,
        responses=tuple(inside),
        left_out=left_out,
    )


def _require_spread(scales: Sequence[str], inside: Sequence[ResponseOptimum], left_out: Sequence[str]) -> None:
    values = np.log2([[value for _, value in response.scales] for response in inside]).reshape(len(inside), len(scales))
    wants, said = len(scales) + 2, f"; left out: {'; '.join(left_out)}" if left_out else ""
    if len(inside) < wants:
        raise FitError(
            f"a law over {', '.join(scales)} needs {wants} cells with an optimum inside their grid, got {len(inside)}"
            f"{said}. Add cells, or extend the grids"
        )
    fixed = [name for name, column in zip(scales, values.T, strict=True) if np.ptp(column) < 1e-9]
    if fixed:
        raise FitError(
            f"{', '.join(fixed)} take one value in all cells, so nothing says how optima move with them{said}"
        )
    if np.linalg.matrix_rank(np.column_stack([np.ones(len(values)), values - values.mean(axis=0)])) <= len(scales):
        raise FitError(f"{', '.join(scales)} move together over the cells, so their powers cannot be told apart{said}")


def _steps(log2_hps: Floats) -> Floats:
    """Median spacing of each hyperparameter's values, octaves."""
    spacings = [np.diff(np.unique(axis.round(6))) for axis in log2_hps.T]
    return np.array([np.median(spacing) if len(spacing) else 0.0 for spacing in spacings])


def _around(value: float, reach: float, level: float) -> Interval:
    return Interval(low=value - reach, high=value + reach, level=level)
