"""Running a sweep: what is missing is trained, what is recorded is kept, what failed is tried again.

Decides alone; a backend executes. Knows no ray and no torch.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from sweeps.checkpoints import fork_file, remove_forks
from sweeps.halving import halving_packs
from sweeps.pack import Fork, Pack
from sweeps.stopping import Stopping, stopped_results
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult, TrialStatus
from sweeps.trunk import plan_packs, plan_tree

if TYPE_CHECKING:
    from proxy_models.data import DataSource

NO_TRACE = "no error was recorded: the worker was lost, by a kill or for want of memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackStarted:
    """A worker began these trials."""

    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """How far a trial is that trains for long. Told now and then, and not by every backend."""

    trial: Trial
    step: int  # updates done, of trial.run.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialFinished:
    """A result, COMPLETED or DIVERGED, is recorded; or the trial was STOPPED early."""

    result: TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialFailed:
    """An attempt left no result. After the last attempt the trial is reported as FAILED."""

    trial: Trial
    error: str
    attempt: int  # from 1
    max_attempts: int


Event = PackStarted | TrialProgress | TrialFinished | TrialFailed
OnEvent = Callable[[Event], None]
MakePacks = Callable[[Sequence[Trial]], Sequence[Pack]]


class Backend(Protocol):
    """Trains packs and commits their results to the store."""

    def execute(
        self,
        packs: Sequence[Pack],
        *,
        store: ResultStore,
        data_source: "DataSource",
        workers: int,
        on_event: OnEvent,
    ) -> None:
        """Return when every pack was tried once. A trial that failed leaves no result, and a recorded failure."""
        ...


class BackendError(RuntimeError):
    """The backend itself does not work, whatever the trials. The message says what to do."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM. What is recorded stays; running the same sweep again does the rest."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """Every planned trial's result by id, FAILED ones included."""

    results: Mapping[str, TrialResult]
    reused: int  # trials that were recorded before
    seconds: float  # wall time of this run

    def count(self, status: TrialStatus) -> int:
        """Number of planned trials that ended so."""
        return sum(result.status is status for result in self.results.values())


def pending(planned: Sequence[Trial], done: Mapping[str, TrialResult]) -> tuple[Trial, ...]:
    """Trials without a result, in their order, none twice."""
    missing = {trial.trial_id: trial for trial in planned}
    return tuple(trial for trial_id, trial in missing.items() if trial_id not in done)


def run_sweep(
    trials: Sequence[Trial],
    *,
    store: ResultStore,
    data_source: "DataSource",
    backend: Backend,
    workers: int,
    pack: MakePacks,
    stopping: Stopping | None = None,
    max_attempts: int = 3,
    on_event: OnEvent,
) -> SweepOutcome:
    """Train what has no result yet, trying each trial up to `max_attempts` times.

    `pack` groups what is missing at each attempt; what trials share at their beginning is trained once. With
    `stopping` it is not, for a trial that is stopped would leave others without their beginning.

    Raises:
        Interrupted: SIGINT or SIGTERM.
        BackendError: the backend does not start or work.
        StoreError: the results folder cannot be used, or a trial gave two different numbers.
    """
    start = time.monotonic()
    done = _done(trials, store, stopping)
    todo = pending(trials, done)
    planned = len(pending(trials, {}))
    reused = planned - len(todo)

    def has_state(fork: Fork) -> bool:
        return fork_file(store.folder, fork).exists()

    for attempt in range(1, max_attempts + 1):
        if not todo:
            break
        with raising_interrupted():
            backend.execute(
                plan_packs(todo, pack, trained=_trained(trials, done), has_state=has_state)
                if stopping is None
                else halving_packs(pack(todo), stopping, done.values()),
                store=store,
                data_source=data_source,
                workers=workers,
                on_event=on_event,
            )
        done = _done(trials, store, stopping)
        todo = pending(todo, done)
        tree = plan_tree(todo, trained=_trained(trials, done), has_state=has_state)
        remove_forks(store.folder, keep=set(tree.starts.values()))
        errors = store.last_errors() if todo else {}
        for trial in todo:
            error = errors.get(trial.trial_id, NO_TRACE)
            on_event(TrialFailed(trial=trial, error=error, attempt=attempt, max_attempts=max_attempts))
    return SweepOutcome(
        results={trial.trial_id: done.get(trial.trial_id) or _failed(trial, store) for trial in trials},
        reused=reused,
        seconds=time.monotonic() - start,
    )


def _done(trials: Sequence[Trial], store: ResultStore, stopping: Stopping | None) -> Mapping[str, TrialResult]:
    """What is recorded, and without a result of their own the trials that were stopped."""
    return stopped_results(trials, store.read_stops(), stopping) | store.read()


def _trained(trials: Sequence[Trial], done: Mapping[str, TrialResult]) -> tuple[Trial, ...]:
    return tuple(trial for trial in trials if trial.trial_id in done)


def _failed(trial: Trial, store: ResultStore) -> TrialResult:
    error = store.last_errors().get(trial.trial_id, NO_TRACE)
    return TrialResult(trial=trial, status=TrialStatus.FAILED, error=error)


@contextmanager
def raising_interrupted() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into `Interrupted`, even where a library swallows what a handler raises.

    Yields the list of signals received so far. Outside of the main thread, where no handler can be set,
    signals are left alone.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise Interrupted(signum)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if received:
            raise Interrupted(received[0]) from None
