"""Fits to anybody's runs: the optimum of every cell of every series, the law over the scales, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from analysis.bootstrap import draw_seed_effect, pool, residual_noise, two_way
from analysis.cells import design_matrix, n_coefficients
from analysis.fast_transfer import FastTransfer, rates
from analysis.interval import FitError, Floats, Interval
from analysis.located import Located
from analysis.observations import LOSS, SEED, SERIES, Observations
from analysis.response import ResponseFlag, ResponseOptimum, fit_responses
from analysis.scale_law import ScaleLaw, fit_scale_law
from analysis.surface import Series
from analysis.width_laws import Quantity, fit_laws, quantity

SCHEMA_VERSION = 1


def short(value: float) -> str:
    """429M for 4.29e8: three digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CellFit:
    """The runs at one combination of scales, and their optimum: k hyperparameters in log2, losses in nats.

    In the law, the optimum is the one by the shape that all its cells share; otherwise the cell's own.
    """

    scales: Mapping[str, float]
    points: Floats  # (runs, k)
    losses: Floats  # (runs,), NaN where the run diverged
    seeds: Floats  # (runs,)
    log2_values: tuple[float, ...]
    intervals: tuple[Interval | None, ...]
    covariance: Floats  # (k, k), octaves squared; NaN where nothing tells the noise
    loss: float
    hessian: Floats  # (k, k), nats per octave squared
    in_law: bool
    alone: ResponseOptimum  # fitted to this cell only

    @property
    def flags(self) -> tuple[ResponseFlag, ...]:
        return self.alone.flags

    @property
    def label(self) -> str:
        """The scales in words."""
        return ", ".join(f"{name} {short(value)}" for name, value in self.scales.items())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeriesFit:
    """All that was fitted to one series; where law or verdict are None, the reason stands beside them."""

    series: str
    cells: tuple[CellFit, ...]  # with an optimum, by the product of their scales
    skipped: tuple[str, ...]  # cells without, and why
    law: ScaleLaw | None
    no_law: str
    verdict: FastTransfer | None
    no_verdict: str
    loss_limits: Located | None  # what the verdict and the loss's law rest on

    @property
    def fitted(self) -> tuple[CellFit, ...]:
        """The cells in the law."""
        return tuple(cell for cell in self.cells if cell.in_law)

    def at(self, scales: Mapping[str, float]) -> tuple[float, ...]:
        """log2 optimum by the law, which must exist."""
        assert self.law is not None
        return tuple(self.law.law.at(np.log2([scales[name] for name in self.law.scales]))[0].tolist())

    def expected_loss(self, scales: Mapping[str, float], level: float) -> Quantity | None:
        """At the optimum of these scales, by a power law with a limit; None over several scales, or from few cells."""
        if self.loss_limits is None:
            return None
        (scale,) = scales.values()
        return quantity(fit_laws(self.loss_limits).loss.at(scale)[:, 0], level)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObservedFit:
    """The fits of every series, and their settings."""

    scales: tuple[str, ...]
    hps: tuple[str, ...]
    n_bootstrap: int
    level: float
    series: tuple[SeriesFit, ...]

    def to_json(self) -> dict[str, Any]:
        """A document for json.dumps; losses in nats, hyperparameters in log2, an interval {low, high, level} or null.

        Keys: `schema_version`, `settings`, and `series`, each with `optima` (scales, log2_values, intervals, loss,
        hessian, edges, in_law, n_points, n_in_band, flags as {name, advice}, and the cell's own optimum in `alone`),
        `skipped`, `law` (powers {hp, scale, value, interval}; scatter, the standard deviation of optima around the
        law in octaves; cells; left_out) or the reason in `no_law`, and `fast_transfer` or the reason in
        `no_fast_transfer`. Bootstrap draws are left out: the same runs give them again.
        """
        settings = {name: getattr(self, name) for name in ("scales", "hps", "n_bootstrap", "level")}
        series = [_series_json(fit) for fit in self.series]
        return {"schema_version": SCHEMA_VERSION, "settings": settings, "series": series}


def fit_observed(
    observations: Observations, *, rng: np.random.Generator, n_bootstrap: int = 500, level: float = 0.9
) -> ObservedFit:
    """Fit every cell of every series, then the law over the scales, then the verdict where one scale moves.

    Each series draws from a stream of its own, so that another series leaves its fits as they were.

    Raises:
        FitError: no cell of any series has an optimum.
    """
    seed = int(rng.integers(2**63))
    fits = [
        _fit_series(name, observations, np.random.default_rng([seed, *name.encode()]), n_bootstrap, level)
        for name in observations.series
    ]
    if not any(fit.cells for fit in fits):
        raise FitError("; ".join(fit.no_law for fit in fits))
    return ObservedFit(
        scales=observations.scales, hps=observations.hps, n_bootstrap=n_bootstrap, level=level, series=tuple(fits)
    )


def _fit_series(
    name: str, observations: Observations, rng: np.random.Generator, n_bootstrap: int, level: float
) -> SeriesFit:
    frame = observations.frame[observations.frame[SERIES] == name].reset_index(drop=True)
    own = Observations(scales=observations.scales, hps=observations.hps, frame=frame)
    responses: Sequence[ResponseOptimum] = ()
    law, reason = None, ""
    try:
        responses = fit_responses(own, n_bootstrap=n_bootstrap, rng=rng, level=level)
        law = fit_scale_law(own, name, level=level)
    except FitError as error:
        reason = str(error)
    cells, skipped = _cells(own, responses, law, level)
    located = None if law is None or len(law.scales) > 1 else _located(law, cells, rng)
    verdict, no_verdict = _verdict(name, law, located, level)
    return SeriesFit(
        series=name,
        cells=cells,
        skipped=skipped,
        law=law,
        no_law=reason,
        verdict=verdict,
        no_verdict=no_verdict,
        loss_limits=None if verdict is None else located,
    )


def _cells(
    own: Observations, responses: Sequence[ResponseOptimum], law: ScaleLaw | None, level: float
) -> tuple[tuple[CellFit, ...], tuple[str, ...]]:
    """The cells with an optimum, by size, and the names of those without."""
    alone = {response.scales: response for response in responses}
    row = {} if law is None else {response.scales: i for i, response in enumerate(law.responses)}
    fits: list[CellFit] = []
    skipped: list[str] = []
    for values, runs in own.frame.groupby(list(own.scales)):
        scales = tuple(zip(own.scales, np.asarray(values, dtype=np.float64).tolist(), strict=True))
        if scales not in alone:
            name = ", ".join(f"{scale} {short(value)}" for scale, value in scales)
            converged = int(runs[LOSS].notna().sum())
            skipped.append(f"{name}: {converged} of {len(runs)} runs converged, too few for a minimum; add values")
            continue
        shared = _shared(law, row[scales], level) if law is not None and scales in row else {}
        response = alone[scales]
        own_fit = {
            "log2_values": tuple(response.log2_values.tolist()),
            "intervals": response.intervals,
            "covariance": response.covariance,
            "loss": response.loss,
            "hessian": response.hessian,
        }
        fits.append(
            CellFit(
                scales=dict(scales),
                points=np.log2(runs[list(own.hps)].to_numpy()),
                losses=runs[LOSS].to_numpy(),
                seeds=runs[SEED].to_numpy(),
                in_law=bool(shared),
                alone=response,
                **{**own_fit, **shared},
            )
        )
    return tuple(sorted(fits, key=lambda cell: (np.prod(list(cell.scales.values())), *cell.scales.values()))), tuple(
        skipped
    )


def _shared(law: ScaleLaw, i: int, level: float) -> dict[str, Any]:
    """The optimum of the law's i-th cell by the shape that its cells share."""
    shape = law.shape
    covariance = shape.covariances[i] + shape.common[i] @ shape.common[i].T
    place = shape.log2_optima[i]
    reach = norm.ppf((1 + level) / 2) * np.sqrt(np.diag(covariance))
    return {
        "log2_values": tuple(place.tolist()),
        "intervals": tuple(
            Interval(low=float(low), high=float(high), level=level)
            for low, high in zip(place - reach, place + reach, strict=True)
        ),
        "covariance": covariance,
        "loss": float(shape.levels[i]),
        "hessian": shape.hessian * shape.stretches[i],
    }


def _located(law: ScaleLaw, cells: Sequence[CellFit], rng: np.random.Generator) -> Located | None:
    """The law's cells over its only scale, each by its own fit; None where nothing tells the noise of one."""
    fitted = [cell for cell in cells if cell.in_law]
    rows = min(len(cell.alone.draws) for cell in fitted)
    if not rows:
        return None
    return Located(
        widths=np.array([cell.scales[law.scales[0]] for cell in fitted]),
        places=np.array([cell.alone.log2_values for cell in fitted]),
        losses=np.array([cell.alone.loss for cell in fitted]),
        hessians=np.array([cell.alone.hessian for cell in fitted]),
        place_draws=np.stack([cell.alone.draws[:rows] for cell in fitted], axis=1),
        loss_draws=_loss_draws(fitted, rows, rng),
        hessian_draws=np.stack([cell.alone.hessian_draws[:rows] for cell in fitted], axis=1),
    )


def _loss_draws(cells: Sequence[CellFit], rows: int, rng: np.random.Generator) -> Floats:
    """Student's t around every cell's lowest loss, (rows, cells).

    Its scale is the standard error of the quadratic's value at its vertex, from its misfit, and with several seeds
    also that of the mean over seeds, pooled over the cells.
    """
    columns, spreads = [], []
    for cell in cells:
        grid = _band(cell)
        layout = two_way(grid.losses)
        spreads.append((layout.seed_spread, grid.losses.shape[1]))
        design = design_matrix(grid.points - cell.alone.log2_values)
        means = layout.filled.mean(axis=1)
        solve = np.linalg.pinv(design)
        noise = residual_noise(means - design @ (solve @ means), len(means) - n_coefficients(grid.points.shape[1]))
        error = 0.0 if noise is None else noise.sd * float(np.linalg.norm(solve[0]))
        draws = np.zeros(rows) if noise is None else rng.standard_t(noise.df, size=rows)
        columns.append(cell.alone.loss + error * draws)
    spread = pool(spread for spread, _ in spreads)
    if spread is not None:
        columns = [
            column + draw_seed_effect(spread, n=rows, n_seeds=n_seeds, rng=rng)
            for column, (_, n_seeds) in zip(columns, spreads, strict=True)
        ]
    return np.column_stack(columns)


@dataclass(frozen=True, slots=True)
class _Band:
    points: Floats  # (n, k)
    losses: Floats  # (n, seeds), NaN where a run is missing


def _band(cell: CellFit) -> _Band:
    """The points that a cell's own quadratic was fitted to: its lowest, seeds averaged."""
    points, row = np.unique(cell.points, axis=0, return_inverse=True)
    seeds, column = np.unique(cell.seeds, return_inverse=True)
    losses = np.full((len(points), len(seeds)), np.nan)
    losses[row.ravel(), column] = cell.losses
    censored = np.zeros(len(points), dtype=np.bool_)
    censored[row.ravel()[np.isnan(cell.losses)]] = True
    means = np.where(censored, np.inf, np.nanmean(np.where(censored[:, None], 0.0, losses), axis=1))
    lowest = np.argsort(means, kind="stable")[: cell.alone.n_in_band]
    return _Band(points[lowest], losses[lowest])


def _verdict(name: str, law: ScaleLaw | None, located: Located | None, level: float) -> tuple[FastTransfer | None, str]:
    if law is None:
        return None, "there is no law over the scales"
    if len(law.scales) > 1:
        return None, f"it is over one scale, and here {' and '.join(law.scales)} move"
    if located is None:
        return None, "nothing tells the noise of some cells; add seeds or values"
    try:
        return rates(located, Series(name), level=level), ""
    except FitError as error:
        return None, str(error)


def _series_json(fit: SeriesFit) -> dict[str, Any]:
    return {
        "series": fit.series,
        "optima": [_cell_json(cell) for cell in fit.cells],
        "skipped": list(fit.skipped),
        "law": _law_json(fit.law),
        "no_law": fit.no_law or None,
        "fast_transfer": _verdict_json(fit.verdict),
        "no_fast_transfer": fit.no_verdict or None,
    }


def _cell_json(cell: CellFit) -> dict[str, Any]:
    return {
        "scales": dict(cell.scales),
        "log2_values": list(cell.log2_values),
        "intervals": _intervals(cell.intervals),
        "loss": cell.loss,
        "hessian": cell.hessian.tolist(),
        "edges": list(cell.alone.edges),
        "in_law": cell.in_law,
        "n_points": cell.alone.n_points,
        "n_in_band": cell.alone.n_in_band,
        "flags": [{"name": flag.value, "advice": flag.advice} for flag in cell.flags],
        "alone": {
            "log2_values": cell.alone.log2_values.tolist(),
            "intervals": _intervals(cell.alone.intervals),
            "loss": cell.alone.loss,
        },
    }


def _intervals(intervals: Sequence[Interval | None]) -> list[dict[str, Any] | None]:
    return [None if interval is None else asdict(interval) for interval in intervals]


def _law_json(law: ScaleLaw | None) -> dict[str, Any] | None:
    if law is None:
        return None
    return {
        "powers": [asdict(power) for power in law.powers],
        "scatter": dict(zip(law.hps, scatter(law), strict=True)),
        "cells": len(law.responses),
        "left_out": list(law.left_out),
    }


def scatter(law: ScaleLaw) -> tuple[float, ...]:
    """Standard deviation of the cells' own optima around the law, octaves a hyperparameter."""
    return tuple(np.sqrt(np.diag(law.law.scatter)).tolist())


def _verdict_json(found: FastTransfer | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": found.verdict.value,
        "sentence": found.sentence,
        "probability_fast": found.probability_fast,
        "reasons": list(found.reasons),
        **{name: asdict(getattr(found, name)) for name in ("alpha", "beta", "gamma", "kappa")},
    }
