"""Training a list of trials on the chosen backend, with progress on the terminal."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from sweeps.basin import Basin, OnSuggest
from sweeps.pack import Pack
from sweeps.run import (
    Event,
    MakePacks,
    OnEvent,
    PackStarted,
    SweepOutcome,
    TrialFailed,
    TrialFinished,
    TrialProgress,
    raising_interrupted,
    run_sweep,
)
from sweeps.shape_plans import Plans, packs_of, shape_id_of, wall_seconds
from sweeps.spec import SweepSpec
from sweeps.stopping import Stopping, stopped_results
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialStatus
from sweeps.trunk import plan_packs
from transfer.console import Progress, TrialsFailed, duration, say
from transfer.engine_plans import device_of, kept_plans

if TYPE_CHECKING:
    from sweeps.calibration import Machine
    from sweeps.local_backend import LocalBackend
    from sweeps.ray_backend import RayBackend

BackendName = Literal["ray", "local"]
RAY_START_SECONDS = 9.0  # about, of Ray and its workers, who load torch, on two cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Where trials run."""

    backend: BackendName = "ray"
    workers: int | None = None  # None: one a core, or one a share of a GPU; one for `local`
    address: str | None = None  # of a running Ray cluster
    gpus_per_worker: float | None = None  # None: one where the plan is to train on GPUs

    @property
    def processes(self) -> int:
        """That may compute on this machine at a time."""
        return 1 if self.backend == "local" else self.workers or os.cpu_count() or 1

    @property
    def start_seconds(self) -> float:
        """About what passes before the first trial starts."""
        return RAY_START_SECONDS if self.backend == "ray" else 0.0

    def workers_on(self, spec: SweepSpec, machine: "Machine") -> int:
        """Raises SpecError where the spec asks for a device that is not there."""
        if self.workers is not None or self.backend == "local":
            return self.workers or 1
        gpus = self.gpus_on(spec, machine)
        return max(1, int(machine.gpus / gpus)) if gpus else os.cpu_count() or 1

    def gpus_on(self, spec: SweepSpec, machine: "Machine") -> float:
        """GPUs of a worker; raises as `workers_on`."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if device_of(spec, machine) == "cuda" else 0.0


@contextmanager
def session(execution: Execution) -> Iterator[None]:
    """Within this, what trains on Ray uses one Ray, which the first starts or reaches; it ends with this."""
    if execution.backend == "local":
        yield
        return
    from sweeps.ray_cluster import kept_cluster

    with kept_cluster():
        yield


def run_trials(
    trials: Sequence[Trial],
    store: ResultStore,
    spec: SweepSpec,
    execution: Execution,
    *,
    title: str,
    stopping: Stopping | None = None,
) -> SweepOutcome:
    """Train trials with progress on stderr. Raises TrialsFailed as `sweep`, and as `kept_plans`."""
    from sweeps.calibration import this_machine
    from sweeps.provenance import provenance

    recorded = store.committed_ids() | stopped_results(trials, store.read_stops(), stopping).keys()
    todo = [trial for trial in trials if trial.trial_id not in recorded]
    reused = len(trials) - len(todo)
    machine = this_machine()
    workers = execution.workers_on(spec, machine)
    plans = kept_plans(trials, store, spec, machine, workers)
    say(f"{title}: {len(trials)} trials, {reused} recorded before, {len(todo)} to run")
    if todo:
        store.record_start(provenance())
    pack = partial(
        packs_of,
        plans=plans,
        diagnose_every=None if spec.diagnostics is None else spec.diagnostics.every_steps,
        noise_every=spec.noise_every_steps,
    )
    with Progress(title, sum(_seconds(trial, plans) for trial in todo)) as progress:
        outcome = run_sweep(
            trials,
            store=store,
            data_source=spec.data_source(),
            backend=_backend(execution, spec, machine),
            workers=workers,
            pack=pack,
            stopping=stopping,
            on_event=_show(progress, len(todo), plans),
        )
    if todo:
        wall = wall_seconds(expected_packs(todo, pack, stopping), plans, workers) + execution.start_seconds
        say(f"{title}: took {duration(outcome.seconds)}, {duration(wall)} predicted")
    failed = outcome.count(TrialStatus.FAILED)
    if failed:
        raise TrialsFailed(
            f"{failed} of {len(trials)} trials failed; the rest is recorded in {store.folder.name}. "
            f"See {store.folder.name}/failures, then run the same command to try them again."
        )
    return outcome


def expected_packs(trials: Sequence[Trial], pack: MakePacks, stopping: Stopping | None) -> Sequence[Pack]:
    """By which the time of a sweep is predicted: as `run_sweep` trains them, if nothing is stopped or lost."""
    return plan_packs(trials, pack) if stopping is None else pack(trials)


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
    from sweeps.calibration import this_machine
    from sweeps.provenance import provenance

    n_trials = sum(basin.n_suggestions * len(basin.templates) for basin in basins)
    machine = this_machine()
    workers = execution.workers_on(spec, machine)
    plans = kept_plans([trial for basin in basins for trial in basin.templates], store, spec, machine, workers)
    say(f"{title}: {n_trials} trials in {len(basins)} basin{'s' if len(basins) > 1 else ''}")
    store.record_start(provenance())
    work = sum(basin.n_suggestions * _seconds(trial, plans) for basin in basins for trial in basin.templates)
    with Progress(title, work) as progress, raising_interrupted():
        _backend(execution, spec, machine).refine(
            [replace(basin, mode=plans[shape_id_of(basin.templates[0])].mode) for basin in basins],
            store=store,
            data_source=spec.data_source(),
            workers=workers,
            on_event=_show(progress, n_trials, plans),
            on_suggest=on_suggest,
        )


def _show(progress: Progress, n_trials: int, plans: Plans) -> OnEvent:
    """What tells of events on the terminal."""
    counts = dict.fromkeys(TrialStatus, 0)
    shown: dict[str, float] = {}  # seconds of trials that train

    def advance(trial: Trial, seconds: float) -> None:
        before = shown.get(trial.trial_id, 0.0)  # more than now, where a lost trial began anew
        shown[trial.trial_id] = max(seconds, before)
        progress.advance(shown[trial.trial_id] - before, _count_note(counts, n_trials))

    def show(event: Event) -> None:
        match event:
            case TrialFinished(result=result):
                counts[result.status] += 1
                advance(result.trial, _seconds(result.trial, plans))
                del shown[result.trial_id]
            case TrialProgress(trial=trial, step=step):
                advance(trial, _seconds(trial, plans) * step / trial.run.steps)
            case TrialFailed(trial=trial, error=error, attempt=attempt, max_attempts=of):
                say(f"trial {trial.trial_id} failed, attempt {attempt} of {of}: {error}")
            case PackStarted():
                pass

    return show


def _seconds(trial: Trial, plans: Plans) -> float:
    return plans[shape_id_of(trial)].seconds_of(trial.run)


def _count_note(counts: Mapping[TrialStatus, int], of: int) -> str:
    done = sum(counts.values())
    ends = ((status, counts[status]) for status in (TrialStatus.DIVERGED, TrialStatus.STOPPED))
    return f"{done} of {of} trials" + "".join(f", {count} {status.value}" for status, count in ends if count)


def _backend(execution: Execution, spec: SweepSpec, machine: "Machine") -> "LocalBackend | RayBackend":
    """Ray is imported only where it is wanted."""
    if execution.backend == "local":
        from sweeps.local_backend import LocalBackend

        return LocalBackend()
    from sweeps.ray_backend import RayBackend

    return RayBackend(address=execution.address, gpus_per_worker=execution.gpus_on(spec, machine))
