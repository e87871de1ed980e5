"""Loss over one hyperparameter, for one optimizer at one width: what the fits see of a sweep."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from analysis.interval import FitError
from sweeps.trial import TrialResult, TrialStatus

Setting = tuple[str, Any]  # a field's name and its value: a number, a word, or None


Labels = Mapping[str, str]  # trial id -> what the sweep calls its optimizer
NO_LABELS: Labels = MappingProxyType({})
LABEL = "label"  # a field of its own beside those of `fields_of`
SCALES = ("model.width", "model.depth", "batch_tokens", "train_tokens")  # of `fields_of`
DEPTH = "model.depth"  # of `fields_of`: a size, as width is, and nothing to be chosen by its loss


class Series(NamedTuple):
    """What is followed over width: an optimizer, and the value of what else varies at one width."""

    optimizer: str
    fixed: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        return ", ".join((self.optimizer, *(f"{name}={value}" for name, value in self.fixed)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """Validation loss (nats) on a grid of log2(hp) by seed.

    A cell is None where its trial diverged, or was stopped early (then it is in `stopped`), or where it has no result
    yet (then it is in `missing`). A value with a seed that diverged or was stopped is censored: its loss is unknown
    but worse, so it bounds the search for the optimum.
    """

    optimizer: str
    width: int
    hp: str = "lr"
    fixed: tuple[Setting, ...] = ()  # what else the sweep varies at one width, and its value here
    log2_values: tuple[float, ...]  # ascending
    seeds: tuple[int, ...]  # ascending
    losses: tuple[tuple[float | None, ...], ...]  # one row a value, one column a seed
    missing: tuple[tuple[int, int], ...] = ()  # (row, column) without a result
    stopped: tuple[tuple[int, int], ...] = ()  # (row, column) stopped early

    def __post_init__(self) -> None:
        for name in ("log2_values", "seeds"):
            values = getattr(self, name)
            if not values or any(low >= high for low, high in pairwise(values)):
                raise ValueError(f"{name} must be ascending and not empty, got {values}")
        shape = (len(self.log2_values), len(self.seeds))
        if len(self.losses) != shape[0] or any(len(row) != shape[1] for row in self.losses):
            raise ValueError(f"losses must have the shape (values, seeds) = {shape}, got {self.losses}")
        if any(loss is not None and not math.isfinite(loss) for row in self.losses for loss in row):
            raise ValueError(f"a loss must be finite, or None where the trial diverged, got {self.losses}")
        if any(self.losses[row][column] is not None for row, column in (*self.missing, *self.stopped)):
            raise ValueError(
                f"a missing or stopped trial cannot have a loss, got missing={self.missing}, stopped={self.stopped}"
            )

    @property
    def censored(self) -> tuple[bool, ...]:
        """For each value, whether any seed diverged or was stopped there."""
        return self._any_none_but(self.missing)

    @property
    def diverged(self) -> tuple[bool, ...]:
        """For each value, whether any seed diverged there."""
        return self._any_none_but((*self.missing, *self.stopped))

    def _any_none_but(self, cells: tuple[tuple[int, int], ...]) -> tuple[bool, ...]:
        absent = set(cells)
        return tuple(
            any(loss is None and (i, j) not in absent for j, loss in enumerate(row))
            for i, row in enumerate(self.losses)
        )

    @property
    def stopped_values(self) -> tuple[float, ...]:
        """log2 of the values at which a seed was stopped and none diverged, ascending."""
        rows = {row for row, _ in self.stopped}
        return tuple(
            value
            for row, (value, diverged) in enumerate(zip(self.log2_values, self.diverged, strict=True))
            if row in rows and not diverged
        )

    @property
    def seed_losses(self) -> tuple[tuple[float, ...], ...]:
        """For each value the losses there are, or nothing where it is censored."""
        return tuple(
            () if censored else tuple(loss for loss in row if loss is not None)
            for row, censored in zip(self.losses, self.censored, strict=True)
        )

    @property
    def mean_losses(self) -> tuple[float | None, ...]:
        """Seed means; None where censored or not yet run."""
        return tuple(statistics.fmean(row) if row else None for row in self.seed_losses)

    @property
    def standard_errors(self) -> tuple[float | None, ...]:
        """Standard errors of the seed means, unpaired; None where censored or with fewer than two seeds."""
        return tuple(statistics.stdev(row) / math.sqrt(len(row)) if len(row) > 1 else None for row in self.seed_losses)

    @property
    def step_octaves(self) -> float:
        """Median spacing of the grid, in octaves; 0 for a single value."""
        steps = [high - low for low, high in pairwise(self.log2_values)]
        return statistics.median(steps) if steps else 0.0

    @property
    def series(self) -> Series:
        return Series(self.optimizer, self.fixed)


def surfaces(results: Iterable[TrialResult], hp: str = "lr", labels: Labels = NO_LABELS) -> tuple[Surface, ...]:
    """One surface for each optimizer, width and setting of whatever else varies at one width.

    An optimizer is what `labels` calls it. FAILED trials are evidence about nothing and count as not run. The order
    of `results` does not matter.

    Raises:
        FitError: `hp` is no hyperparameter or is not positive, or one trial has two different results.
    """
    by_run: dict[_Run, _Cells] = defaultdict(dict)
    for result in results:
        if result.status is not TrialStatus.FAILED:
            fields = fields_of(result) | {LABEL: label_of(result, labels)}
            cell = (_log2(fields.pop(hp, None), hp), fields.pop("seed"))
            _add(by_run[tuple(sorted(fields.items()))], cell, result)
    varying = _settings([dict(run) for run in by_run])
    built = [_surface(dict(run), cells, hp, varying) for run, cells in by_run.items()]
    return tuple(sorted(built, key=_order))


_Run = tuple[Setting, ...]  # every field but hp and seed
_Cells = dict[tuple[float, int], TrialResult]  # by (log2 of hp, seed)


def fields_of(result: TrialResult) -> dict[str, Any]:
    """All that determines a trial, flat: `lr`, `train_tokens`, `model.depth`, `optimizer.name`."""
    run = result.trial.run.to_dict()
    return {"data": result.trial.data_fingerprint, **run.pop("hparams"), **_flat(run, "")}


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _settings(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, set[str]]:
    """For each optimizer, what its runs of one width are told apart by.

    These are scales, and fields that vary at one combination of all scales. What only follows a scale, as a decay's
    length follows the horizon and beta2 the batch, has no name of its own.
    """
    axes = varying_fields(runs, SCALES)
    return {label: (fields & {*SCALES}) | axes.get(label, set()) for label, fields in varying_fields(runs).items()}


def label_of(result: TrialResult, labels: Labels) -> str:
    """What the sweep calls this trial's optimizer; without a label, the optimizer's own name."""
    return labels.get(result.trial_id, result.trial.run.optimizer.name) if labels else result.trial.run.optimizer.name


def _log2(value: object, hp: str) -> float:
    if not isinstance(value, int | float) or value <= 0:
        raise FitError(f"the fits work in log2({hp}), so {hp} must be a hyperparameter above 0, got {value}")
    return math.log2(value)


def _add(cells: _Cells, cell: tuple[float, int], result: TrialResult) -> None:
    known = cells.setdefault(cell, result)
    if (known.status, known.validation_loss) != (result.status, result.validation_loss):
        raise FitError(
            f"trial {result.trial_id} has two results: {known.status.value} {known.validation_loss} and "
            f"{result.status.value} {result.validation_loss}; find their files and remove the wrong one"
        )


def varying_fields(
    runs: Iterable[Mapping[str, Any]], scales: Iterable[str] = ("model.width",)
) -> Mapping[str, set[str]]:
    """For each optimizer (in LABEL), the fields that take several values at one combination of scales.

    A field that only follows the scales (a longer run for a wider model) is part of the scaling, not an axis.
    """
    values: dict[tuple[str, tuple[Any, ...], str], set[Any]] = defaultdict(set)
    kept = tuple(scales)
    for run in runs:
        for name, value in run.items():
            values[run[LABEL], tuple(run[scale] for scale in kept), name].add(value)
    varying: dict[str, set[str]] = defaultdict(set)
    for (optimizer, _, name), seen in values.items():
        if len(seen) > 1:
            varying[optimizer].add(name)
    return varying


def _surface(run: Mapping[str, Any], cells: _Cells, hp: str, varying: Mapping[str, set[str]]) -> Surface:
    log2_values, seeds = (tuple(sorted(set(axis))) for axis in zip(*cells, strict=True))
    grid = [[cells.get((value, seed)) for seed in seeds] for value in log2_values]
    return Surface(
        optimizer=run[LABEL],
        width=run["model.width"],
        hp=hp,
        fixed=tuple((name, run[name]) for name in sorted(varying.get(run[LABEL], ()))),
        log2_values=log2_values,
        seeds=seeds,
        losses=tuple(tuple(cell.validation_loss if cell else None for cell in row) for row in grid),
        missing=tuple((i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell is None),
        stopped=tuple(
            (i, j)
            for i, row in enumerate(grid)
            for j, cell in enumerate(row)
            if cell is not None and cell.status is TrialStatus.STOPPED
        ),
    )


def _order(surface: Surface) -> tuple[Any, ...]:
    """By optimizer, setting, width; numbers by size, and None or words beside them without a TypeError."""
    return (
        surface.optimizer,
        tuple((name, type(value).__name__, "" if value is None else value) for name, value in surface.fixed),
        surface.width,
    )
