"""What workers are at can be seen while they train, costs next to nothing, and nothing that counts rests on it."""

import json
import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from proxy_models.mode import EAGER_LOOP
from proxy_models.outcome import CURVE_EMA_STEPS, Smoothed
from sweeps import progress
from sweeps.progress import Reporter, read_progress
from sweeps.store import ResultStore
from sweeps.worker import run_pack
from tests.sweep_helpers import trial
from tests.worker_driver import data_source, worker_pack

TRIALS = tuple(trial(seed=seed) for seed in range(3))  # of 10 steps


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_worker_tells_of_its_pack_and_of_what_runs(tmp_path: Path, clock: Clock) -> None:
    with Reporter(tmp_path, TRIALS, now=clock) as reporter:
        reporter.begin(TRIALS)
        for done, loss in ((1, 5.5), (2, 4.5)):
            reporter.on_step(0, done, loss)
            reporter.on_step(2, done, loss + 1)
        assert read_progress(tmp_path, now=clock) == (), "short packs write nothing"
        clock.seconds += 2.0
        reporter.on_step(0, 3, 4.0)
        [seen] = read_progress(tmp_path, now=clock)
        expected = Smoothed(CURVE_EMA_STEPS)
        for loss in (5.5, 4.5, 4.0):
            expected.add(loss)
        assert seen.trial_ids == tuple(one.trial_id for one in TRIALS)
        assert seen.time == clock.seconds
        first, third = seen.running
        assert (first.trial_id, first.step, first.steps, first.loss) == (TRIALS[0].trial_id, 3, 10, expected.value)
        assert (first.curve_steps, first.curve_losses[-1]) == ((1, 2, 3), expected.value)
        assert (third.trial_id, third.step) == (TRIALS[2].trial_id, 2)
        [file] = (tmp_path / "progress").iterdir()
        assert os.uname().nodename not in file.name

        clock.seconds += 1.9
        reporter.on_step(0, 4, 4.0)
        assert read_progress(tmp_path, now=clock) == (seen,), "not before two seconds have passed"
        reporter.finish(0)
        reporter.on_step(2, 3, math.nan)
        clock.seconds += 0.1
        reporter.on_step(1, 1, 5.0)
        [later] = read_progress(tmp_path, now=clock)
        assert [one.trial_id for one in later.running] == [TRIALS[1].trial_id], "what has no loss is not told"
    assert read_progress(tmp_path, now=clock) == ()
    assert list((tmp_path / "progress").iterdir()) == []


@pytest.mark.parametrize("steps", [1, 99, 100, 101, 250, 12_345])
def test_a_curve_has_at_most_100_points_and_spans_the_run(tmp_path: Path, clock: Clock, steps: int) -> None:
    run = TRIALS[0].run
    one = replace(TRIALS[0], run=replace(run, train_tokens=steps * run.hparams.batch_tokens))
    with Reporter(tmp_path, [one], now=clock) as reporter:
        reporter.begin([one])
        for done in range(1, steps):
            reporter.on_step(0, done, 2.0)
        clock.seconds += 2
        reporter.on_step(0, steps, 2.0)
        [seen] = read_progress(tmp_path, now=clock)
    curve = seen.running[0].curve_steps
    assert min(steps, 50) <= len(curve) <= 100
    assert curve[-1] > 0.98 * steps


def test_stale_and_broken_files_are_not_read(tmp_path: Path, clock: Clock) -> None:
    with Reporter(tmp_path, TRIALS, now=clock) as reporter:
        reporter.begin(TRIALS)
        clock.seconds += 2
        reporter.on_step(0, 1, 5.0)
        folder = tmp_path / "progress"
        [file] = folder.iterdir()
        whole = file.read_bytes()
        (folder / "half.json").write_bytes(whole[: len(whole) // 2])
        (folder / "list.json").write_text("[]")
        (folder / "newer.json").write_text(json.dumps(json.loads(whole) | {"running": [{"a_new_field": 1}]}))
        (folder / ".tmp-left.json").write_bytes(whole)
        assert len(read_progress(tmp_path, now=clock)) == 1
        clock.seconds += 30.1
        assert read_progress(tmp_path, now=clock) == ()
    assert read_progress(tmp_path / "nowhere") == ()


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "progress").write_text("a file where the folder should be")
    with Reporter(tmp_path, TRIALS, now=clock) as reporter:
        reporter.begin(TRIALS)
        clock.seconds += 2
        reporter.on_step(0, 1, 5.0)


def test_a_real_worker_is_seen_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.02)
    pack = worker_pack(tmp_path, EAGER_LOOP, 2, 100)
    worker = threading.Thread(
        target=run_pack,
        args=(pack,),
        kwargs={
            "data_source": data_source(tmp_path),
            "store": ResultStore(tmp_path / "results"),
            "on_event": lambda event: None,
        },
    )
    worker.start()
    seen = []
    while worker.is_alive():
        seen += [one for report in read_progress(tmp_path / "results") for one in report.running]
        time.sleep(0.01)
    worker.join()
    assert seen
    assert {one.trial_id for one in seen} <= {one.trial_id for one in pack.trials}
    assert all(0 < one.step <= one.steps == 100 and 0 < one.loss < 10 for one in seen)
    assert read_progress(tmp_path / "results") == ()


def test_reports_cost_less_than_a_hundredth_of_a_small_step(tmp_path: Path) -> None:
    """Of 13 ms, a step at width 32: calls, and the writes that come with them every two seconds."""
    pack = tuple(trial(seed=seed) for seed in range(64))
    with Reporter(tmp_path, pack) as reporter:
        reporter.begin(pack)
        start = time.process_time()
        for done in range(1, 201):
            for member in range(64):
                reporter.on_step(member, done, 2.5)
        a_call = (time.process_time() - start) / (200 * 64)
        start = time.process_time()
        for _ in range(10):
            reporter._write()
        a_write = (time.process_time() - start) / 10
    assert a_call + a_write / 64 * 0.013 / progress.WRITE_SECONDS < 0.01 * 0.013
