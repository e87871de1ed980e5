"""What is recorded is kept, what is missing is run, what failed is tried again a bounded number of times."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sweeps.worker
from proxy_models.data import DataError, DataSource
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, train
from sweeps.local_backend import LocalBackend
from sweeps.pack import Pack, make_packs
from sweeps.run import (
    NO_TRACE,
    BackendError,
    Event,
    Interrupted,
    OnEvent,
    PackStarted,
    SweepOutcome,
    TrialFailed,
    TrialFinished,
    pending,
    raising_interrupted,
    run_sweep,
)
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialStatus
from tests.sweep_helpers import N_DIVERGED, N_TRIALS, completed, diverged, start_driver, stop_after, trial, write_sweep

TRIALS = tuple(trial(seed=seed) for seed in range(6))


@dataclass
class FakeBackend:
    """Commits what it is given, but fails each trial in `failures` as often as it says there."""

    failures: Counter[str] = field(default_factory=Counter)
    diverging: frozenset[str] = frozenset()
    leaves_trace: bool = True
    tried: Counter[str] = field(default_factory=Counter)
    workers: int = 0

    def execute(
        self, packs: Sequence[Pack], *, store: ResultStore, data_source: DataSource, workers: int, on_event: OnEvent
    ) -> None:
        self.workers = workers
        for pack in packs:
            on_event(PackStarted(trials=pack.trials))
            for one in pack.trials:
                self._try(one, store, on_event)

    def _try(self, one: Trial, store: ResultStore, on_event: OnEvent) -> None:
        self.tried[one.trial_id] += 1
        if self.tried[one.trial_id] <= self.failures[one.trial_id]:
            if self.leaves_trace:
                store.record_failure(one, f"no memory, attempt {self.tried[one.trial_id]}", {})
            return
        result = diverged(one) if one.trial_id in self.diverging else completed(one)
        store.commit(result)
        on_event(TrialFinished(result=result))


def run(
    backend: FakeBackend, store: ResultStore, events: list[Event], trials: Sequence[Trial] = TRIALS
) -> SweepOutcome:
    return run_sweep(
        trials,
        store=store,
        data_source=DataSource(),
        backend=backend,
        workers=3,
        pack=partial(make_packs, size=4),
        on_event=events.append,
    )


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def test_pending_is_planned_less_done_in_order_and_none_twice() -> None:
    done = {TRIALS[1].trial_id: completed(TRIALS[1])}
    assert pending([*TRIALS, TRIALS[0]], done) == (TRIALS[0], *TRIALS[2:])


def test_every_trial_runs_once(store: ResultStore) -> None:
    backend, events = FakeBackend(diverging=frozenset({TRIALS[2].trial_id})), []
    outcome = run(backend, store, events)
    assert set(backend.tried.values()) == {1}
    assert backend.workers == 3
    assert list(outcome.results) == [one.trial_id for one in TRIALS]
    assert (outcome.count(TrialStatus.COMPLETED), outcome.count(TrialStatus.DIVERGED)) == (5, 1)
    assert (outcome.count(TrialStatus.FAILED), outcome.reused) == (0, 0)
    assert outcome.seconds > 0
    assert Counter(type(event) for event in events) == {PackStarted: 2, TrialFinished: 6}


def test_running_again_runs_nothing_and_a_grown_plan_only_the_new(store: ResultStore) -> None:
    run(FakeBackend(diverging=frozenset({TRIALS[2].trial_id})), store, [], TRIALS[:4])
    again = FakeBackend()
    assert run(again, store, [], TRIALS[:4]).reused == 4
    assert again.tried == {}
    outcome = run(again, store, [])
    assert set(again.tried) == {TRIALS[4].trial_id, TRIALS[5].trial_id}
    assert outcome.reused == 4
    assert outcome.results[TRIALS[2].trial_id].status is TrialStatus.DIVERGED


def test_a_failed_trial_is_tried_again_and_a_diverged_one_is_not(store: ResultStore) -> None:
    once, always = TRIALS[0].trial_id, TRIALS[1].trial_id
    backend = FakeBackend(failures=Counter({once: 1, always: 9}), diverging=frozenset({TRIALS[2].trial_id}))
    events: list[Event] = []
    outcome = run(backend, store, events)
    assert backend.tried == {one.trial_id: {once: 2, always: 3}.get(one.trial_id, 1) for one in TRIALS}
    assert outcome.results[once].status is TrialStatus.COMPLETED
    assert outcome.results[always].status is TrialStatus.FAILED
    assert outcome.results[always].error == "no memory, attempt 3"
    assert outcome.count(TrialStatus.FAILED) == 1
    failed = [(e.trial.trial_id, e.error, e.attempt, e.max_attempts) for e in events if isinstance(e, TrialFailed)]
    assert sorted(failed) == sorted(
        [(once, "no memory, attempt 1", 1, 3)] + [(always, f"no memory, attempt {n}", n, 3) for n in (1, 2, 3)]
    )
    assert run(backend, store, []).count(TrialStatus.FAILED) == 1, "failures of before do not use up later attempts"
    assert backend.tried[always] == 6


def test_a_trial_lost_without_a_trace_is_a_failure(store: ResultStore) -> None:
    backend = FakeBackend(failures=Counter({TRIALS[0].trial_id: 9}), leaves_trace=False)
    assert run(backend, store, []).results[TRIALS[0].trial_id].error == NO_TRACE


def test_a_damaged_result_runs_again(store: ResultStore) -> None:
    run(FakeBackend(), store, [])
    (store.folder / "trials" / f"{TRIALS[3].trial_id}.parquet").write_bytes(b"PAR1")
    backend = FakeBackend()
    assert run(backend, store, []).count(TrialStatus.COMPLETED) == 6
    assert backend.tried == {TRIALS[3].trial_id: 1}


# --- real training in this process


def run_local(folder: Path, trials: Sequence[Trial], source: DataSource, events: list[Event]) -> SweepOutcome:
    return run_sweep(
        trials,
        store=ResultStore(folder),
        data_source=source,
        backend=LocalBackend(),
        workers=1,
        pack=partial(make_packs, size=4),
        on_event=events.append,
    )


def test_a_local_sweep_trains_every_trial_and_repeats_bitwise(tmp_path: Path) -> None:
    spec, trials = write_sweep(tmp_path)
    events: list[Event] = []
    outcome = run_local(tmp_path / "one", trials, spec.data_source(), events)
    assert len(trials) == N_TRIALS
    assert outcome.count(TrialStatus.DIVERGED) == N_DIVERGED
    assert outcome.count(TrialStatus.COMPLETED) == N_TRIALS - N_DIVERGED
    finished = [event.result.trial_id for event in events if isinstance(event, TrialFinished)]
    assert Counter(finished) == Counter(one.trial_id for one in trials)
    assert all(result.flops > 0 and result.provenance for result in outcome.results.values())
    again = run_local(tmp_path / "two", trials[::-1], spec.data_source(), [])
    assert all(again.results[one].same_numbers(result) for one, result in outcome.results.items())


def _train_but_not_seed_1(jobs: Sequence[Job], *arguments: Any, **options: Any) -> Iterator[tuple[int, TrainOutcome]]:
    for member, job in enumerate(jobs):
        if job.run.seed == 1:
            raise MemoryError("none left")
        for _, outcome in train([job], *arguments, **options):
            yield member, outcome


def test_an_exception_in_one_trial_fails_that_trial_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.worker, "train", _train_but_not_seed_1)
    spec, trials = write_sweep(tmp_path)
    outcome = run_local(tmp_path / "results", trials, spec.data_source(), [])
    for one in trials:
        result = outcome.results[one.trial_id]
        assert (result.status is TrialStatus.FAILED) == (one.run.seed == 1)
        assert (result.error == "") == (one.run.seed == 0)
    error = outcome.results[next(one.trial_id for one in trials if one.run.seed == 1)].error
    assert error.startswith("MemoryError: none left (test_run.py, line ")


def test_other_data_than_planned_is_refused(tmp_path: Path) -> None:
    spec, trials = write_sweep(tmp_path)
    changed = [replace(one, data_fingerprint="0123") for one in trials]
    with pytest.raises(DataError, match=r"its fingerprint is .*, and the trials were planned for 0123"):
        run_local(tmp_path / "results", changed, spec.data_source(), [])


def test_the_local_backend_is_one_worker(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="workers must be 1, got 2"):
        LocalBackend().execute(
            [], store=ResultStore(tmp_path), data_source=DataSource(), workers=2, on_event=lambda event: None
        )


# --- interruption


def signal_self(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(5)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_become_interrupted_and_handlers_come_back(signum: signal.Signals, status: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f"interrupted by {signum.name}") as got, raising_interrupted():
        signal_self(signum)
    assert got.value.exit_status == status
    assert signal.getsignal(signum) is before


def test_a_swallowed_interruption_is_raised_at_the_end() -> None:
    def library() -> None:
        with raising_interrupted() as received:
            with contextlib.suppress(KeyboardInterrupt):
                signal_self(signal.SIGTERM)
            assert received == [signal.SIGTERM]

    with pytest.raises(Interrupted) as got:
        library()
    assert got.value.signum == signal.SIGTERM


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use() -> None:
        with raising_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
def test_a_killed_sweep_resumes_where_it_was(tmp_path: Path) -> None:
    write_sweep(tmp_path, steps=100)
    trials = tmp_path / "results" / "trials"
    for n_finished, signum, status in ((5, signal.SIGKILL, -9), (3, signal.SIGTERM, 143), (3, signal.SIGINT, 130)):
        driver = start_driver(tmp_path, "local")
        stop_after(driver, n_finished, signum)
        assert driver.returncode == status
    finished = {file.stem: file.stat().st_mtime_ns for file in trials.glob("*.parquet")}
    assert 11 <= len(finished) < N_TRIALS
    output, _ = start_driver(tmp_path, "local").communicate(timeout=120)
    lines = [json.loads(line) for line in output.splitlines()]
    started = [one for line in lines for one in line.get("started", [])]
    assert not set(started) & set(finished)
    assert lines[-1] == {
        "reused": len(finished),
        "completed": N_TRIALS - N_DIVERGED,
        "diverged": N_DIVERGED,
        "stopped": 0,
        "failed": 0,
    }
    assert len(started) == N_TRIALS - len(finished)
    assert {file.stem: file.stat().st_mtime_ns for file in trials.glob("*.parquet")}.items() >= finished.items()


def test_events_are_frozen() -> None:
    event = PackStarted(trials=TRIALS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.trials = ()  # type: ignore[misc]
