"""A sweep whose later learning rates are planned from the results of earlier ones, stage by stage.

Every stage goes through `run_trials` or `run_basins` as a grid does. Before a stage runs, it stands in `stages.json`
and its trials in `sweep.json`, so a search that was killed goes on by the same command and trains nothing twice.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from analysis.surface import Surface, surfaces
from sweeps.basin import Basin, objective
from sweeps.run import SweepOutcome, pending
from sweeps.spec import SweepSpec, axes_of
from sweeps.stages import (
    STEPS_PER_OCTAVE,
    Stage,
    can_run,
    first_stages,
    planned_trials,
    read_stages,
    snapped,
    trials_at,
    write_stages,
)
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult
from transfer.console import say
from transfer.execution import Execution, run_basins, run_trials
from transfer.telescope import next_stage

Results = Mapping[str, TrialResult]
_MAX_ROUNDS = 3  # as many as `run_sweep` tries a trial


def run_search(
    spec: SweepSpec, store: ResultStore, execution: Execution, fingerprint: str, *, band_nats: float
) -> SweepOutcome:
    """Run every stage of the spec's search that the store does not hold yet.

    Raises:
        TrialsFailed: some trials of a stage have no result after every attempt; the stages after it wait for them.
        FitError: no window can be laid out at some width.
    """
    log = _Log(spec=spec, store=store, fingerprint=fingerprint)
    stages = stages_so_far(spec, store, fingerprint, band_nats=band_nats)
    if spec.search.method == "telescope":
        return _telescope(log, stages, execution, band_nats)
    return _refine(log, stages, execution)


def stages_so_far(spec: SweepSpec, store: ResultStore, fingerprint: str, *, band_nats: float) -> tuple[Stage, ...]:
    """The recorded stages, and what follows from the results there are. Writes and trains nothing."""
    recorded = read_stages(store.folder, spec)
    if spec.search.method == "telescope":
        return plan_on(spec, recorded, store.read(warn=say), fingerprint, band_nats=band_nats)
    return recorded


def plan_on(
    spec: SweepSpec, stages: Sequence[Stage], results: Results, fingerprint: str, *, band_nats: float
) -> tuple[Stage, ...]:
    """Telescoped stages, and for each optimizer those that follow from results; none after one that lacks some.

    Depends on its arguments alone: from no stages and a whole ledger it gives the stages that the ledger is from.
    """
    planned: list[Stage] = []
    for first in first_stages(spec):
        history = [stage for stage in stages if stage.optimizer == first.optimizer] or [first]
        while (seen := _surfaces(spec, history, results, fingerprint)) is not None:
            following = next_stage(
                history,
                seen,
                spec.run.widths,
                spec.search,
                band_nats=band_nats,
                can_run=partial(can_run, spec, first.optimizer),
            )
            if following is None:
                break
            history.append(following)
        planned += history
    return tuple(planned)


def _surfaces(
    spec: SweepSpec, history: Sequence[Stage], results: Results, fingerprint: str
) -> dict[int, Surface] | None:
    """Losses of one optimizer's stages by width; None while some have no result."""
    trials = [trial.trial_id for stage in history for trial in _trials_of(spec, stage, fingerprint)]
    if any(trial_id not in results for trial_id in trials):
        return None
    return {surface.width: surface for surface in surfaces(results[trial_id] for trial_id in trials)}


def _trials_of(spec: SweepSpec, stage: Stage, fingerprint: str) -> Iterable[Trial]:
    for lr in stage.lrs:
        yield from trials_at(spec, stage.optimizer, stage.width, lr, fingerprint)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Log:
    """Where a search writes down what it plans."""

    spec: SweepSpec
    store: ResultStore
    fingerprint: str

    def write(self, stages: Sequence[Stage]) -> tuple[Trial, ...]:
        """Record the stages, and return all trials planned so far."""
        trials = tuple(trial for _, trial in planned_trials(self.spec, stages, self.fingerprint))
        write_stages(self.store.folder, self.spec.search, stages)
        self.store.bind(name=self.spec.name, spec_text=self.spec.text, planned_ids=[trial.trial_id for trial in trials])
        return trials


def _telescope(log: _Log, stages: tuple[Stage, ...], execution: Execution, band_nats: float) -> SweepOutcome:
    """Stages of all optimizers side by side, until none plans another."""
    outcomes: list[SweepOutcome] = []
    while True:
        trials = log.write(stages)
        if outcomes and not pending(trials, outcomes[-1].results):
            return _joined(outcomes)
        outcomes.append(run_trials(trials, log.store, log.spec, execution, title=_title(log.spec, stages)))
        stages = plan_on(log.spec, stages, outcomes[-1].results, log.fingerprint, band_nats=band_nats)


def _title(spec: SweepSpec, stages: Sequence[Stage]) -> str:
    latest = {stage.optimizer: stage for stage in stages}
    number = max(sum(stage.optimizer == name for stage in stages) for name in latest)
    widths = sorted({stage.width for stage in latest.values()})
    return f"sweep {spec.name}, stage {number}, width {', '.join(map(str, widths))}"


def _joined(outcomes: Sequence[SweepOutcome]) -> SweepOutcome:
    """The last stage's view of every planned trial; the first one's of what was recorded before."""
    first, last = outcomes[0], outcomes[-1]
    return replace(last, reused=first.reused, seconds=sum(outcome.seconds for outcome in outcomes))


def _refine(log: _Log, recorded: tuple[Stage, ...], execution: Execution) -> SweepOutcome:
    """The grid, then each basin by Optuna, then what failed; anew while suggestions are owed, for workers were lost."""
    spec, title = log.spec, f"sweep {log.spec.name}"
    outcomes = [run_trials(log.write(recorded), log.store, spec, execution, title=title)]
    stages = basin_stages(spec, recorded, outcomes[0].results, log.fingerprint)
    current = {(stage.optimizer, stage.width): stage for stage in stages}

    def on_suggest(basin: Basin, log2_lr: float) -> None:
        key = (basin.optimizer, basin.width)
        current[key] = current[key].with_lr(2.0**log2_lr)
        log.write(tuple(current.values()))

    for _ in range(_MAX_ROUNDS):
        known = outcomes[-1].results
        basins = [_basin(spec, stage, known, log.fingerprint) for stage in current.values()]
        owed = [basin for basin in basins if basin.n_suggestions > 0]
        if not owed:
            break
        run_basins(owed, log.store, spec, execution, on_suggest=on_suggest, title=f"{title}, Optuna")
        trials = log.write(tuple(current.values()))
        outcomes.append(run_trials(trials, log.store, spec, execution, title=title))
    return _joined(outcomes)


def basin_stages(spec: SweepSpec, recorded: Sequence[Stage], results: Results, fingerprint: str) -> tuple[Stage, ...]:
    """The basin of every optimizer and width: as recorded, or around the lowest mean loss of the grid.

    It reaches to the neighbors of that value; where there is none, as far beyond as the grid's spacing, if that runs.
    A width at which the whole grid diverged has no basin.
    """
    known = {(stage.optimizer, stage.width): stage for stage in recorded}
    stages: list[Stage] = []
    for grid in first_stages(spec):
        for width in spec.run.widths:
            key = (grid.optimizer, width)
            stage = known.get(key) or _bracket(spec, replace(grid, width=width), results, fingerprint)
            if stage is None:
                say(f"{grid.optimizer} at width {width}: every value of the grid diverged, so there is no basin")
            else:
                stages.append(stage)
    return tuple(stages)


def _bracket(spec: SweepSpec, grid: Stage, results: Results, fingerprint: str) -> Stage | None:
    losses = _mean_losses(spec, grid, results, fingerprint)
    numbers = {log2_lr: loss for log2_lr, loss in losses if loss is not None}
    if not numbers:
        return None
    center = min(numbers, key=numbers.__getitem__)
    beyond = [grid.low - grid.spacing]
    if can_run(spec, grid.optimizer, grid.width, 2.0 ** (grid.high + grid.spacing)):
        beyond.append(grid.high + grid.spacing)
    fences = sorted([*(log2_lr for log2_lr, _ in losses), *beyond])
    at = fences.index(center)
    return Stage(
        optimizer=grid.optimizer,
        width=grid.width,
        kind="suggested",
        lrs=(),
        low=snapped(fences[at - 1]),
        high=snapped(fences[min(at + 1, len(fences) - 1)]),
        spacing=1 / STEPS_PER_OCTAVE,
        center=center,
        why=f"between the neighbors of the grid's lowest mean loss, {numbers[center]:.4f}",
    )


def _basin(spec: SweepSpec, stage: Stage, results: Results, fingerprint: str) -> Basin:
    """What is left to be suggested in a stage, knowing all its width's results."""
    tried = replace(stage, lrs=(*axes_of(spec, stage.optimizer)["lr"], *stage.lrs))
    return Basin(
        optimizer=stage.optimizer,
        width=stage.width,
        low=stage.low,
        high=stage.high,
        templates=trials_at(spec, stage.optimizer, stage.width, 2.0**stage.low, fingerprint),
        known=tuple(_mean_losses(spec, tried, results, fingerprint)),
        n_suggestions=max(0, spec.search.trials - len(stage.lrs)),
        sampler_seed=spec.search.sampler_seed,
        diagnose_every=None if spec.diagnostics is None else spec.diagnostics.every_steps,
    )


def _mean_losses(spec: SweepSpec, stage: Stage, results: Results, fingerprint: str) -> list[tuple[float, float | None]]:
    """log2 lr and mean loss over seeds, None where one diverged, of a stage's learning rates that all have results."""
    losses = []
    for lr in stage.lrs:
        trials = trials_at(spec, stage.optimizer, stage.width, lr, fingerprint)
        losses.append((math.log2(lr), objective(results.get(trial.trial_id) for trial in trials)))
    return losses


def expected_trials(spec: SweepSpec, fingerprint: str) -> tuple[tuple[str, Trial], ...]:
    """What a search is going to run if no window has to be widened; its learning rates are not known yet.

    For what it costs, which they do not change: each later stage counts with the right number of distinct values.
    """
    stages: list[Stage] = []
    for first in first_stages(spec):
        widths = sorted(spec.run.widths)
        later, n = {
            "grid": ([], 0),
            "telescope": (widths[1:], spec.search.points),
            "optuna": (widths, spec.search.trials),
        }[spec.search.method]
        lrs = tuple(2.0 ** (first.low + (index + 0.5) / (n + 1)) for index in range(n))
        stages += [replace(first, width=width, lrs=lrs) for width in later]
    return planned_trials(spec, stages, fingerprint)
