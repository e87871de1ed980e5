"""Stages of a search that adapts: learning rates that were planned from results, and why.

`stages.json` in a results folder holds them all, written before their trials run, so that a search that was killed
goes on where it was, and every reader sees the whole plan.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from proxy_models.checks import ConfigError
from sweeps.files import replace_file
from sweeps.spec import SweepSpec, axes_of, labeled_trials, run_config
from sweeps.spec_errors import config_error
from sweeps.spec_models import SearchSection
from sweeps.store import StoreError
from sweeps.trial import Trial

STAGES = "stages.json"
SCHEMA_VERSION = 1
# Learning rates chosen from results are whole multiples of this (1.1%), so that a last digit of a fit, which
# another machine may give otherwise, makes no other trial.
STEPS_PER_OCTAVE = 64

Kind = Literal["grid", "window", "reexpansion", "suggested"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Learning rates of one optimizer at one width that are planned together."""

    optimizer: str  # its name in the spec
    width: int
    kind: Kind
    lrs: tuple[float, ...]  # ascending; as they were suggested where Optuna chose them
    low: float  # log2 of the lowest lr tried at this width up to this stage, or that may be suggested
    high: float
    spacing: float  # octaves
    center: float | None = None  # log2 of the optimum that the window was laid around
    reexpansions: int = 0  # of this width up to this stage
    why: str

    def __post_init__(self) -> None:
        if not self.low < self.high or self.spacing <= 0:
            raise ValueError(f"a stage needs low < high and a spacing above 0, got {self}")

    def with_lr(self, lr: float) -> "Stage":
        """The stage with one more learning rate."""
        return replace(self, lrs=(*self.lrs, lr))


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """What `stages.json` holds."""

    schema_version: int
    search: dict[str, Any]  # settings that the stages were planned with
    stages: tuple[Stage, ...]


_JSON: TypeAdapter[StageRecord] = TypeAdapter(StageRecord)


def write_stages(folder: Path, search: SearchSection, stages: Iterable[Stage]) -> None:
    """Replace the folder's stages, whole or not at all."""
    record = StageRecord(schema_version=SCHEMA_VERSION, search=search.settings, stages=tuple(stages))
    replace_file(folder / STAGES, _JSON.dump_json(record, indent=1) + b"\n")


def read_stages(folder: Path, spec: SweepSpec) -> tuple[Stage, ...]:
    """The stages planned so far of the spec's optimizers; () where another search, or none, planned them.

    Telescoped ones are another search's if a setting of [search], a first grid, or a width before the last planned is
    another; what Optuna chose stays planned, whatever its settings are now.

    Raises:
        StoreError: the file is damaged, or written by a newer version of the program.
    """
    if spec.search.method == "grid":
        return ()
    file = folder / STAGES
    try:
        record = _JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise StoreError(
            f"{file} is not a record of stages of this version ({error.errors()[0]['msg']}). Update the program, or "
            "remove the file: a telescoped search plans it again from the results."
        ) from None
    stages = tuple(stage for stage in record.stages if stage.optimizer in spec.optimizers)
    method = spec.search.method
    if record.search.get("method") != method:
        return ()
    if method == "telescope":
        first = {grid.optimizer: grid for grid in first_stages(spec)}
        same = all(stage == first[stage.optimizer] for stage in stages if stage.kind == "grid")
        known = same and record.search == spec.search.settings
        return stages if known and all(_widths_follow(spec, stages, name) for name in first) else ()
    return tuple(stage for stage in stages if stage.width in spec.run.widths)


def _widths_follow(spec: SweepSpec, stages: Sequence[Stage], optimizer: str) -> bool:
    """Whether one optimizer's stages went through the spec's widths from the smallest on, and left none out."""
    widths = list(dict.fromkeys(stage.width for stage in stages if stage.optimizer == optimizer))
    return widths == sorted(spec.run.widths)[: len(widths)]


def first_stages(spec: SweepSpec) -> tuple[Stage, ...]:
    """The grid of each optimizer at the smallest width, which a telescoped search starts from."""
    return tuple(_grid_stage(spec, optimizer) for optimizer in spec.optimizers)


def _grid_stage(spec: SweepSpec, optimizer: str) -> Stage:
    lrs = tuple(sorted(axes_of(spec, optimizer)["lr"]))
    log2_lrs = [math.log2(lr) for lr in lrs]
    return Stage(
        optimizer=optimizer,
        width=min(spec.run.widths),
        kind="grid",
        lrs=lrs,
        low=log2_lrs[0],
        high=log2_lrs[-1],
        spacing=median(high - low for low, high in pairwise(log2_lrs)),
        why="the spec's grid at the smallest width",
    )


def can_run(spec: SweepSpec, optimizer: str, width: int, lr: float) -> bool:
    """Whether such a run exists: at a high learning rate weight decay may overshoot."""
    try:
        run_config(spec, optimizer, width=width, seed=0, overrides={"lr": lr})
    except ConfigError:
        return False
    return True


def trials_at(spec: SweepSpec, optimizer: str, width: int, lr: float, data_fingerprint: str) -> tuple[Trial, ...]:
    """One trial for every seed of the spec.

    Raises:
        SpecError: the spec makes no such run, though it was planned; see `can_run`.
    """
    try:
        return tuple(
            Trial(
                run=run_config(spec, optimizer, width=width, seed=seed, overrides={"lr": lr}),
                data_fingerprint=data_fingerprint,
            )
            for seed in spec.run.seeds
        )
    except ConfigError as error:
        raise config_error(spec.file, f"optimizers.{optimizer}", error) from None


def planned_trials(spec: SweepSpec, stages: Sequence[Stage], data_fingerprint: str) -> tuple[tuple[str, Trial], ...]:
    """The spec's own trials, then those of the stages in their order, each with its optimizer's name, none twice."""
    labeled = [
        *labeled_trials(spec, data_fingerprint),
        *(
            (stage.optimizer, trial)
            for stage in stages
            for lr in stage.lrs
            for trial in trials_at(spec, stage.optimizer, stage.width, lr, data_fingerprint)
        ),
    ]
    by_trial = {trial: label for label, trial in labeled}
    return tuple((label, trial) for trial, label in by_trial.items())


def snapped(log2_lr: float) -> float:
    """The nearest whole step; of a spacing too."""
    return round(log2_lr * STEPS_PER_OCTAVE) / STEPS_PER_OCTAVE
