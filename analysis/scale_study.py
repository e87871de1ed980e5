"""What a sweep says of the scales beside width: critical batches, lr over batch, tokens and depth, weight decay.

Every part is made apart; one that cannot be is in `unmeasured`, with the reason.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.attempt import P, T, attempt
from analysis.batch_laws import BatchPoint, CriticalBatchLaw, fit_critical_batch_law
from analysis.bootstrap import SeedSpread, pool
from analysis.branch_probes import (
    TOLERANCE_NATS,
    BatchStage,
    LocalCriticalBatch,
    Probe,
    batch_warmup,
    local_critical_batches,
)
from analysis.critical_batch import CriticalBatchFit, fit_critical_batch
from analysis.hp_powers import (
    BATCH,
    DEPTH,
    TOKENS,
    WIDTH,
    CellPowers,
    CoScaledPower,
    HpPowers,
    fit_hp_powers,
    lr_batch_power_by_cell,
)
from analysis.interval import FitError
from analysis.noise_scale import NoiseTrend, noise_points, noise_scale_trend
from analysis.observations import LOSS, SEED, SERIES, Observations, from_results
from analysis.optimum import Optimum, fit_optimum
from analysis.points import Points, points_near_lowest
from analysis.surface import NO_LABELS, Labels, Surface, label_of, surfaces
from analysis.timescale import TimescaleLaw, fit_timescale_law, timescale_runs
from analysis.token_ratio import TokenRatio, fit_token_ratio
from analysis.tokens_to_loss import BatchCurve
from proxy_models.accounting import n_params
from proxy_models.config import ModelConfig
from sweeps.trial import TrialResult, TrialStatus

SCHEMA_VERSION = 1
# Of the losses at each batch and horizon: enough for a 90 % interval, and every draw of a curve is fitted again.
N_DRAWS = 200
_FIELDS = {WIDTH: "model.width", DEPTH: "model.depth", BATCH: "batch_tokens", TOKENS: "train_tokens"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmeasured:
    """A part that could not be made, and why."""

    what: str
    optimizer: str
    width: int | None  # None: over all
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What is to be measured, and how."""

    steps_to_loss: bool = False
    target_losses: tuple[float, ...] | None = None  # nats; None: chosen from the results
    tolerance_nats: float = TOLERANCE_NATS  # of branched probes
    lr_exponent: float = 0.5  # of branched probes: lr as batch to this
    level: float = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseRecord:
    """The gradient noise scale along one trial."""

    trial_id: str
    width: int
    batch_tokens: int
    lr: float
    trend: NoiseTrend


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerScales:
    """All that was found of one optimizer."""

    optimizer: str
    powers: HpPowers | None  # of lr, over width, depth, batch and tokens
    by_cell: CellPowers | None  # of lr over batch alone, at each width, depth and horizon
    co_scaled: CoScaledPower | None  # of lr over tokens where the batch follows the critical one
    curves: tuple[BatchCurve, ...]
    critical: tuple[CriticalBatchFit, ...]  # one a model
    law: CriticalBatchLaw | None
    branches: tuple[LocalCriticalBatch, ...]
    warmups: tuple[tuple[int, tuple[BatchStage, ...]], ...]  # by width
    noise: tuple[NoiseRecord, ...]
    timescale: TimescaleLaw | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleStudy:
    """Every optimizer, in the order of the labels, and each one's tokens against the first's."""

    optimizers: tuple[OptimizerScales, ...]
    ratios: tuple[TokenRatio, ...]
    unmeasured: tuple[Unmeasured, ...]

    def of(self, optimizer: str) -> OptimizerScales | None:
        """By its label."""
        return next((found for found in self.optimizers if found.optimizer == optimizer), None)


def varying_scales(results: Iterable[TrialResult]) -> tuple[str, ...]:
    """Of batch, tokens and depth those that take several values."""
    runs = [result.trial.run for result in results]
    values = {
        BATCH: {run.hparams.batch_tokens for run in runs},
        TOKENS: {run.train_tokens for run in runs},
        DEPTH: {run.model.depth for run in runs},
    }
    return tuple(name for name, seen in values.items() if len(seen) > 1)


def study_scales(
    results: Iterable[TrialResult],
    *,
    rng: np.random.Generator,
    measures: Measures,
    band_nats: float,
    diagnostics: Mapping[str, pd.DataFrame] | None = None,
    labels: Labels = NO_LABELS,
) -> ScaleStudy | None:
    """Study a sweep's whole grid and its probes; None where nothing but width varies.

    `diagnostics` by trial id hold the gradient noise. An optimizer's draws depend on `rng`'s state and its name alone.

    Raises:
        FitError: one trial has two different results.
    """
    kept = [result for result in results if result.status is not TrialStatus.FAILED]
    grid = [result for result in kept if result.trial.run.batch_change is None]
    if not varying_scales(grid) and len(grid) == len(kept):
        return None
    seed = int(rng.integers(2**63))
    by_label: dict[str, list[TrialResult]] = defaultdict(list)
    for result in kept:
        by_label[label_of(result, labels)].append(result)
    order = [label for label in dict.fromkeys((*labels.values(), *by_label)) if label in by_label]
    studies = [
        _Study(label, by_label[label], np.random.default_rng([seed, *label.encode()]), measures, band_nats, labels)
        for label in order
    ]
    found = tuple(study.made(diagnostics or {}) for study in studies)
    unmeasured = [reason for study in studies for reason in study.unmeasured]
    ratios = []
    for other in found[1:] if measures.steps_to_loss else ():
        for (width, size), curves in _by_model(found[0].curves).items():
            ratio = attempt(
                fit_token_ratio,
                curves,
                _by_model(other.curves).get((width, size), ()),
                rng=np.random.default_rng([seed, width, *other.optimizer.encode()]),
                critical=next((fit for fit in found[0].critical if fit.n_params == size), None),
                target_losses=measures.target_losses,
                level=measures.level,
            )
            if isinstance(ratio, FitError):
                name = f"{found[0].optimizer} / {other.optimizer}"
                unmeasured.append(Unmeasured(what="token ratio", optimizer=name, width=width, reason=str(ratio)))
            else:
                ratios.append(ratio)
    return ScaleStudy(optimizers=found, ratios=tuple(ratios), unmeasured=tuple(unmeasured))


class _Study:
    """One optimizer's parts, and the reasons of those that are missing."""

    def __init__(
        self,
        label: str,
        results: Sequence[TrialResult],
        rng: np.random.Generator,
        measures: Measures,
        band_nats: float,
        labels: Labels,
    ) -> None:
        self.label, self.rng, self.measures, self.band_nats, self.labels = label, rng, measures, band_nats, labels
        self.grid = [result for result in results if result.trial.run.batch_change is None]
        self.probes = [result for result in results if result.trial.run.batch_change is not None]
        self.unmeasured: list[Unmeasured] = []

    def made(self, diagnostics: Mapping[str, pd.DataFrame]) -> OptimizerScales:
        powers = self._tried("powers of lr", None, self._powers)
        curves = tuple(self._curves()) if self.measures.steps_to_loss else ()
        critical = tuple(self._critical(curves))
        law = self._tried("law of the critical batch", None, self._law, critical) if critical else None
        branches = tuple(self._branches())
        several = len({result.trial.run.hparams.batch_tokens for result in self.grid}) > 1
        return OptimizerScales(
            optimizer=self.label,
            powers=powers,
            by_cell=self._tried("lr over batch", None, self._by_cell) if several else None,
            co_scaled=None if powers is None or law is None else powers.co_scaled(law.over_tokens, rng=self.rng),
            curves=curves,
            critical=critical,
            law=law,
            branches=branches,
            warmups=tuple(self._warmups(branches)),
            noise=tuple(self._noise(diagnostics)),
            timescale=self._timescale(),
        )

    def _tried(self, what: str, width: int | None, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        made = attempt(make, *args, **kwargs)
        if isinstance(made, FitError):
            self.unmeasured.append(Unmeasured(what=what, optimizer=self.label, width=width, reason=str(made)))
            return None
        return made

    @cached_property
    def _observed(self) -> tuple[Observations, str]:
        """lr over all scales, and the setting of the other axes with the lowest loss."""
        observations = from_results(self.grid, ("lr",), self.labels, _FIELDS)
        return observations, str(observations.frame.groupby(SERIES, observed=True)[LOSS].min().idxmin())

    def _powers(self) -> HpPowers:
        return fit_hp_powers(*self._observed, level=self.measures.level)

    def _by_cell(self) -> CellPowers:
        return lr_batch_power_by_cell(*self._observed, level=self.measures.level)

    def _curves(self) -> Iterable[BatchCurve]:
        models: dict[ModelConfig, dict[int, dict[int, tuple[Surface, ...]]]] = defaultdict(lambda: defaultdict(dict))
        for (model, batch_tokens, tokens), members in _cells(self.grid):
            models[model][batch_tokens][tokens] = surfaces(members, labels=self.labels)
        for model, batches in models.items():
            spread = self._seed_spread(
                surface for horizons in batches.values() for built in horizons.values() for surface in built
            )
            for batch_tokens, horizons in batches.items():
                best: dict[int, Optimum] = {}
                for tokens, built in horizons.items():
                    what = f"loss of batch {batch_tokens} at {tokens} tokens"
                    optimum = self._tried(what, model.width, self._best, built, spread)
                    if optimum is not None:
                        best[tokens] = optimum
                if best:
                    yield BatchCurve(
                        optimizer=self.label,
                        width=model.width,
                        n_params=n_params(model),
                        batch_tokens=batch_tokens,
                        train_tokens=tuple(best),
                        losses=tuple(optimum.loss for optimum in best.values()),
                        draws=_loss_draws(list(best.values())),
                        at_edge=tuple(optimum.edge is not None for optimum in best.values()),
                    )

    def _seed_spread(self, built: Iterable[Surface]) -> SeedSpread | None:
        """Of one model, over all batches and horizons: the two seeds of one cell say next to nothing."""
        near = (attempt(points_near_lowest, surface, self.band_nats) for surface in built)
        return pool(points.seed_spread for points in near if isinstance(points, Points))

    def _best(self, built: Sequence[Surface], spread: SeedSpread | None) -> Optimum:
        """The lowest optimum over lr among the settings of the other axes."""
        tried = [
            attempt(
                fit_optimum,
                surface,
                band_nats=self.band_nats,
                n_bootstrap=N_DRAWS,
                rng=self.rng,
                level=self.measures.level,
                seed_spread=spread,
            )
            for surface in built
        ]
        found = [optimum for optimum in tried if isinstance(optimum, Optimum)]
        if not found:
            raise next(error for error in tried if isinstance(error, FitError))
        return min(found, key=lambda optimum: optimum.loss)

    def _critical(self, curves: Sequence[BatchCurve]) -> Iterable[CriticalBatchFit]:
        for (width, _), members in _by_model(curves).items():
            fitted = self._tried(
                "critical batch by steps to a loss",
                width,
                fit_critical_batch,
                members,
                rng=self.rng,
                target_losses=self.measures.target_losses,
                seq_len=self.grid[0].trial.run.model.seq_len,
                level=self.measures.level,
            )
            if fitted is not None:
                yield fitted

    def _law(self, critical: Sequence[CriticalBatchFit]) -> CriticalBatchLaw:
        return fit_critical_batch_law(
            [point for fit in critical for point in points_of(fit)], level=self.measures.level
        )

    def _branches(self) -> Iterable[LocalCriticalBatch]:
        by_width: dict[int, list[Probe]] = defaultdict(list)
        for result in self.probes:
            by_width[result.trial.run.model.width].append(probe_of(result, self.label))
        for width, probes in sorted(by_width.items()):
            found = self._tried(
                "critical batch by branches",
                width,
                local_critical_batches,
                probes,
                rng=self.rng,
                tolerance=self.measures.tolerance_nats,
                level=self.measures.level,
            )
            yield from found or ()

    def _warmups(self, branches: Sequence[LocalCriticalBatch]) -> Iterable[tuple[int, tuple[BatchStage, ...]]]:
        for width in dict.fromkeys(local.width for local in branches):
            own = [local for local in branches if local.width == width]
            stages = self._tried(
                "batch warm-up",
                width,
                batch_warmup,
                own,
                own[0].trunk_batch_tokens,
                lr_exponent=self.measures.lr_exponent,
            )
            if stages is not None:
                yield width, stages

    def _noise(self, diagnostics: Mapping[str, pd.DataFrame]) -> Iterable[NoiseRecord]:
        for result in self.grid:
            frame = diagnostics.get(result.trial_id)
            if frame is None:
                continue
            run = result.trial.run
            trend = self._tried(
                "gradient noise scale", run.model.width, lambda f: noise_scale_trend(noise_points(f)), frame
            )
            if trend is not None:
                yield NoiseRecord(
                    trial_id=result.trial_id,
                    width=run.model.width,
                    batch_tokens=run.hparams.batch_tokens,
                    lr=run.hparams.lr,
                    trend=trend,
                )

    def _timescale(self) -> TimescaleLaw | None:
        """None without a weight-decay axis."""
        if len({result.trial.run.hparams.weight_decay for result in self.grid}) < 2:
            return None
        rows = [_timescale_row(result, self.label) for result in self.grid]
        return self._tried(
            "timescale of weight decay",
            None,
            lambda: fit_timescale_law(timescale_runs(pd.DataFrame(rows)), self.label, level=self.measures.level),
        )


def points_of(fit: CriticalBatchFit) -> tuple[BatchPoint, ...]:
    """The measured critical batches of one fit, for a law over tokens.

    Its targets are read off the same runs: together they count as one measurement, so each one's variance is taken
    times their number.
    """
    points = [
        BatchPoint.of_draws(
            record.draws,
            min_tokens=record.min_tokens,
            n_params=record.n_params,
            label=f"width {record.width}, loss {record.target_loss:.3g}",
        )
        for record in fit.measured
        if record.min_tokens is not None and record.draws
    ]
    return tuple(replace(point, log_sd=point.log_sd * len(points) ** 0.5) for point in points)


def probe_of(result: TrialResult, optimizer: str) -> Probe:
    """What one branched trial says. Its run must have a change of batch."""
    run = result.trial.run
    change = run.batch_change
    assert change is not None
    return Probe(
        optimizer=optimizer,
        width=run.model.width,
        at_tokens=change.at_tokens,
        batch_tokens=run.hparams.batch_tokens,
        factor=change.batch_tokens / run.hparams.batch_tokens,
        lr_ratio=change.lr_ratio,
        window_tokens=run.train_tokens - change.at_tokens,
        seed=run.seed,
        loss=result.validation_loss,
    )


def _timescale_row(result: TrialResult, label: str) -> dict[str, Any]:
    run = result.trial.run
    return {
        SERIES: label,
        "n_params": n_params(run.model),
        "train_tokens": run.train_tokens,
        "batch_tokens": run.hparams.batch_tokens,
        "lr": run.hparams.lr,
        "weight_decay": run.hparams.weight_decay,
        SEED: run.seed,
        LOSS: float("nan") if result.validation_loss is None else result.validation_loss,
    }


_Cell = tuple[ModelConfig, int, int]  # model, batch_tokens, train_tokens


def _cells(results: Iterable[TrialResult]) -> list[tuple[_Cell, list[TrialResult]]]:
    """By width, depth, batch and tokens, ascending."""
    cells: dict[_Cell, list[TrialResult]] = defaultdict(list)
    for result in results:
        run = result.trial.run
        cells[run.model, run.hparams.batch_tokens, run.train_tokens].append(result)
    return sorted(cells.items(), key=lambda item: (item[0][0].width, item[0][0].depth, *item[0][1:]))


def _loss_draws(optima: Sequence[Optimum]) -> tuple[tuple[float, ...], ...]:
    """(draws, optima) of their losses; none where one has none.

    A draw whose parabola is nearly flat may put its vertex, and its loss, anywhere: without a loss above 0 it is left
    out.
    """
    n_draws = min(len(optimum.draws) for optimum in optima)
    rows = zip(*([draw.loss for draw in optimum.draws[:n_draws]] for optimum in optima), strict=True)
    return tuple(row for row in rows if all(0 < loss < float("inf") for loss in row))


def _by_model(curves: Sequence[BatchCurve]) -> dict[tuple[int, int], list[BatchCurve]]:
    """By width and parameters."""
    groups: dict[tuple[int, int], list[BatchCurve]] = defaultdict(list)
    for curve in curves:
        groups[curve.width, curve.n_params].append(curve)
    return groups
