"""Training a list of trials on the chosen backend, with progress on the terminal."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from proxy_models.accounting import training_flops
from proxy_models.config import RunConfig
from sweeps.basin import Basin, OnSuggest
from sweeps.pack import make_packs
from sweeps.run import (
    Event,
    OnEvent,
    PackStarted,
    SweepOutcome,
    TrialFailed,
    TrialFinished,
    raising_interrupted,
    run_sweep,
)
from sweeps.spec import SweepSpec
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialStatus
from transfer.console import Progress, TrialsFailed, say

if TYPE_CHECKING:
    from sweeps.local_backend import LocalBackend
    from sweeps.ray_backend import RayBackend

BackendName = Literal["ray", "local"]
PACK_SIZE = 4  # trials handed to a worker at a time, fewer where there are few, so that workers finish together
STEP_OVERHEAD_FLOPS = 5e8  # of one CPU core: steps at widths 32 to 256 take a + b * FLOPs with a / b of this size


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Where trials run."""

    backend: BackendName = "ray"
    workers: int | None = None  # None: one a core; one for `local`
    address: str | None = None  # of a running Ray cluster


def run_trials(
    trials: Sequence[Trial], store: ResultStore, spec: SweepSpec, execution: Execution, *, title: str
) -> SweepOutcome:
    """Train trials with progress on stderr. Raises TrialsFailed as `sweep`."""
    from sweeps.provenance import provenance

    recorded = store.committed_ids()
    todo = [trial for trial in trials if trial.trial_id not in recorded]
    reused = len(trials) - len(todo)
    say(f"{title}: {len(trials)} trials, {reused} recorded before, {len(todo)} to run")
    if todo:
        store.record_start(provenance())
    with Progress(title, sum(_work(trial.run) for trial in todo)) as progress:
        backend, workers = _backend(execution)
        outcome = run_sweep(
            trials,
            store=store,
            data_source=spec.data_source(),
            backend=backend,
            workers=workers,
            pack=partial(
                make_packs,
                size=max(1, min(PACK_SIZE, len(todo) // (4 * workers))),
                diagnose_every=None if spec.diagnostics is None else spec.diagnostics.every_steps,
            ),
            on_event=_show(progress, len(todo)),
        )
    failed = outcome.count(TrialStatus.FAILED)
    if failed:
        raise TrialsFailed(
            f"{failed} of {len(trials)} trials failed; the rest is recorded in {store.folder.name}. "
            f"See {store.folder.name}/failures, then run the same command to try them again."
        )
    return outcome


def run_basins(
    basins: Sequence[Basin],
    store: ResultStore,
    spec: SweepSpec,
    execution: Execution,
    *,
    on_suggest: OnSuggest,
    title: str,
) -> None:
    """Train what Optuna suggests, with progress on stderr. What failed is left to `run_trials`."""
    from sweeps.provenance import provenance

    n_trials = sum(basin.n_suggestions * len(basin.templates) for basin in basins)
    say(f"{title}: {n_trials} trials in {len(basins)} basin{'s' if len(basins) > 1 else ''}")
    store.record_start(provenance())
    work = sum(basin.n_suggestions * _work(trial.run) for basin in basins for trial in basin.templates)
    with Progress(title, work) as progress, raising_interrupted():
        backend, workers = _backend(execution)
        backend.refine(
            basins,
            store=store,
            data_source=spec.data_source(),
            workers=workers,
            on_event=_show(progress, n_trials),
            on_suggest=on_suggest,
        )


def _show(progress: Progress, n_trials: int) -> OnEvent:
    """What tells of events on the terminal."""
    counts = dict.fromkeys(TrialStatus, 0)

    def show(event: Event) -> None:
        match event:
            case TrialFinished(result=result):
                counts[result.status] += 1
                progress.advance(_work(result.trial.run), _count_note(counts, n_trials))
            case TrialFailed(trial=trial, error=error, attempt=attempt, max_attempts=of):
                say(f"trial {trial.trial_id} failed, attempt {attempt} of {of}: {error}")
            case PackStarted():
                pass

    return show


def _work(run: RunConfig) -> float:
    """What a run's time is about proportional to: its FLOPs, and a part of every step that no width changes."""
    return training_flops(run) + STEP_OVERHEAD_FLOPS * run.steps


def _count_note(counts: Mapping[TrialStatus, int], of: int) -> str:
    done = sum(counts.values())
    diverged = counts[TrialStatus.DIVERGED]
    return f"{done} of {of} trials" + (f", {diverged} diverged" if diverged else "")


def _backend(execution: Execution) -> "tuple[LocalBackend | RayBackend, int]":
    """The backend and its number of workers. Ray is imported only where it is wanted."""
    if execution.backend == "local":
        from sweeps.local_backend import LocalBackend

        return LocalBackend(), execution.workers or 1
    from sweeps.ray_backend import RayBackend

    return RayBackend(address=execution.address), execution.workers or os.cpu_count() or 1
