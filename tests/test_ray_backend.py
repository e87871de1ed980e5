"""The same sweep through a real Ray: the same numbers, whatever dies on the way."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sweeps.local_backend import LocalBackend
from sweeps.pack import make_packs
from sweeps.ray_backend import RayBackend
from sweeps.ray_monitor import describe_loss
from sweeps.run import BackendError, Event, PackStarted, SweepOutcome, TrialFailed, TrialFinished, run_sweep
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialStatus
from tests.sweep_helpers import N_DIVERGED, N_TRIALS, start_driver, stop_after, write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[1]


def run(
    folder: Path,
    results: Path,
    on_event: Callable[[Event], None],
    *,
    edit: Callable[[Trial], Trial] = lambda trial: trial,
    steps: int = 10,
) -> SweepOutcome:
    spec, trials = write_sweep(folder, steps=steps)
    return run_sweep(
        tuple(map(edit, trials)),
        store=ResultStore(results),
        data_source=spec.data_source(),
        backend=RayBackend(),
        workers=2,
        pack=partial(make_packs, size=4),
        on_event=on_event,
    )


def children_of(root: int) -> Iterator[tuple[int, str]]:
    """(pid, command line) of every process below `root`."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        parents.setdefault(parent, []).append(pid)
    waiting = [root]
    while waiting:
        for pid in parents.get(waiting.pop(), []):
            waiting.append(pid)
            try:
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue


def scratch_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(".ray-tune-*"))


def test_ray_gives_the_numbers_of_the_local_backend_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = scratch_folders()
    events: list[Event] = []
    outcome = run(tmp_path, Path("results"), events.append)  # a relative folder
    assert outcome.count(TrialStatus.COMPLETED) == N_TRIALS - N_DIVERGED
    assert outcome.count(TrialStatus.DIVERGED) == N_DIVERGED
    finished = [event.result.trial_id for event in events if isinstance(event, TrialFinished)]
    assert Counter(finished) == Counter(outcome.results.keys())
    assert sum(len(event.trials) for event in events if isinstance(event, PackStarted)) == N_TRIALS
    assert capfd.readouterr() == ("", "")
    assert scratch_folders() <= before
    assert not (tmp_path / "home").exists()

    spec, trials = write_sweep(tmp_path)
    local = run_sweep(
        trials,
        store=ResultStore(tmp_path / "local"),
        data_source=spec.data_source(),
        backend=LocalBackend(),
        workers=1,
        pack=partial(make_packs, size=24),
        on_event=lambda event: None,
    )
    assert all(local.results[one].same_numbers(result) for one, result in outcome.results.items())


def test_a_killed_worker_is_a_failure_that_is_tried_again(tmp_path: Path) -> None:
    events: list[Event] = []

    def kill_the_first_workers(event: Event) -> None:
        if isinstance(event, TrialFinished) and not any(isinstance(before, TrialFinished) for before in events):
            for pid, command in children_of(os.getpid()):
                if command.startswith(("ray::ResourceTrainable", "ray::PackRunner")):
                    os.kill(pid, signal.SIGKILL)
        events.append(event)

    outcome = run(tmp_path, tmp_path / "results", kill_the_first_workers, steps=100)
    failed = [event for event in events if isinstance(event, TrialFailed)]
    assert failed
    assert all("a worker was lost: ActorDiedError: " in event.error and event.attempt == 1 for event in failed)
    assert outcome.count(TrialStatus.FAILED) == 0
    assert outcome.count(TrialStatus.COMPLETED) == N_TRIALS - N_DIVERGED
    assert len(ResultStore(tmp_path / "results").read()) == N_TRIALS


def test_other_data_than_planned_stops_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"a worker cannot go on: DataError: .* were planned for 0123"):
        run(tmp_path, tmp_path / "results", lambda event: None, edit=lambda one: replace(one, data_fingerprint="0123"))


def test_ray_client_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"got the address ray://head:10001\. Run this command on the cluster"):
        execute_at("ray://head:10001", tmp_path)


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"Ray does not start at address '127\.0\.0\.1:1': .* Check the cluster"):
        execute_at("127.0.0.1:1", tmp_path)


def execute_at(address: str, folder: Path) -> None:
    spec, _ = write_sweep(folder)
    RayBackend(address).execute(
        [], store=ResultStore(folder), data_source=spec.data_source(), workers=1, on_event=lambda event: None
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("died.\n\tpid: 7\n\tip: 10.0.0.1"), "a worker was lost: RuntimeError: died."),
        (
            ValueError("Traceback (most recent call last):\n  File x\nImportError: no torch"),
            "a worker was lost: ValueError: ImportError: no torch",
        ),
        (None, "a worker was lost: NoneType: None"),
    ],
)
def test_a_loss_is_told_in_one_line(error: object, text: str) -> None:
    assert describe_loss(error) == text


def watch(driver: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], set[int]]:
    """The driver's events, and every process that it started."""
    seen: set[int] = set()
    with driver:
        while driver.poll() is None:
            seen |= {pid for pid, _ in children_of(driver.pid)}
            time.sleep(0.2)
        assert driver.stdout is not None
        return [json.loads(line) for line in driver.stdout], seen


def test_a_killed_sweep_resumes_where_it_was(tmp_path: Path) -> None:
    # Workers outlive a killed driver by up to three seconds: trials of more than a second leave enough to resume.
    write_sweep(tmp_path, steps=600)
    trials = tmp_path / "results" / "trials"
    for n_finished, signum, status in ((2, signal.SIGKILL, -9), (2, signal.SIGTERM, 143), (2, signal.SIGINT, 130)):
        driver = start_driver(tmp_path, "ray")
        stop_after(driver, n_finished, signum)
        assert driver.returncode == status
    finished = {file.stem: file.stat().st_mtime_ns for file in trials.glob("*.parquet")}
    assert 6 <= len(finished) < N_TRIALS
    lines, processes = watch(start_driver(tmp_path, "ray"))
    started = [one for line in lines for one in line.get("started", [])]
    assert not set(started) & set(finished)
    assert len(started) == len(set(started))
    assert {key: lines[-1][key] for key in ("completed", "diverged", "failed")} == {
        "completed": N_TRIALS - N_DIVERGED,
        "diverged": N_DIVERGED,
        "failed": 0,
    }
    assert lines[-1]["reused"] + len(started) == N_TRIALS
    assert {file.stem: file.stat().st_mtime_ns for file in trials.glob("*.parquet")}.items() >= finished.items()
    time.sleep(1)
    assert len(processes) >= 4
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()], "a process outlived its sweep"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a running Ray that is not ours to start or stop."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as sockets:  # short: a socket's path has at most 107 characters
        head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        options = [f"--port={port}", f"--temp-dir={sockets}", "--include-dashboard=false", "--disable-usage-stats"]
        with subprocess.Popen([*head, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
            process.terminate()


def test_a_sweep_on_a_running_cluster_leaves_it_running_and_no_scratch(tmp_path: Path, cluster: str) -> None:
    write_sweep(tmp_path)
    for reused in (0, N_TRIALS):
        lines, _ = watch(start_driver(tmp_path, cluster))
        assert lines[-1] == {
            "reused": reused,
            "completed": N_TRIALS - N_DIVERGED,
            "diverged": N_DIVERGED,
            "stopped": 0,
            "failed": 0,
        }
    host, _, port = cluster.rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["trials"]
