"""Workers that are killed, starved or given a bad trial: what can go on goes on, with the same numbers."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

import sweeps.worker
from proxy_models.mode import EAGER_LOOP, Mode, loss_tolerance
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, Watch, train
from sweeps.checkpoints import checkpoint_file, fork_file, from_bytes, write_checkpoint
from sweeps.pack import Fork, Pack
from sweeps.run import Event, TrialFinished
from sweeps.store import ResultStore
from sweeps.trial import TrialResult, TrialStatus
from sweeps.worker import is_out_of_memory, run_pack
from tests.worker_driver import data_source, worker_pack

STACKED = Mode(executor="stacked")
STEPS = 200


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As every worker has."""
    threads = torch.get_num_threads()
    sweeps.worker.prepare_process()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def run(folder: Path, pack: Pack, *, results: str = "results", checkpoint_seconds: float = 60.0) -> list[TrialResult]:
    """Train in this process; what finished, in the order in which it did."""
    events: list[Event] = []
    run_pack(
        pack,
        data_source=data_source(folder),
        store=ResultStore(folder / results),
        on_event=events.append,
        checkpoint_seconds=checkpoint_seconds,
    )
    return [event.result for event in events if isinstance(event, TrialFinished)]


def start_worker(folder: Path, mode: Mode, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.worker_driver", str(folder), mode.name, *map(str, arguments)]
    # A block that is freed goes back to the system, so that a limit counts what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], env=environment)


def kill_at_checkpoint(folder: Path, pack: Pack, *, of: int) -> None:
    """Start a worker on the pack, and kill it once so many of its trials have a state on disk."""
    files = [checkpoint_file(folder / "results", trial.trial_id) for trial in pack.trials]
    with start_worker(folder, pack.mode, len(pack.trials), STEPS, 0.02) as worker:
        while worker.poll() is None and sum(file.exists() for file in files) < of:
            time.sleep(0.005)
        os.kill(worker.pid, signal.SIGKILL)
    assert worker.returncode == -signal.SIGKILL, "it was done before it was killed"


class Starts(list[list[int]]):
    """The steps at which each call of `train` has its members go on."""

    def train(self, jobs: Sequence[Job], *arguments: Any, **options: Any) -> Iterator[tuple[int, TrainOutcome]]:
        self.append([0 if job.start is None else job.start.step for job in jobs])
        yield from train(jobs, *arguments, **options)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    seen = Starts()
    monkeypatch.setattr(sweeps.worker, "train", seen.train)
    return seen


def layout_of(file: Path) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in load(file.read_bytes()).items() if name != "losses"}


def test_a_killed_worker_goes_on_where_it_was_with_the_same_bits(tmp_path: Path, starts: Starts) -> None:
    pack = worker_pack(tmp_path, EAGER_LOOP, 2, STEPS)
    kill_at_checkpoint(tmp_path, pack, of=1)
    [file] = (tmp_path / "results" / "checkpoints").glob("[!.]*")
    _, _, state = from_bytes(file.read_bytes())
    assert 0 < state.step < STEPS
    resumed = run(tmp_path, pack)
    assert max(starts[0]) == state.step
    assert list(file.parent.glob("[!.]*")) == [], "a result needs no checkpoint"
    whole = {result.trial_id: result for result in run(tmp_path, pack, results="uninterrupted")}
    assert starts[1] == [0, 0]
    for result in resumed:
        assert result.same_numbers(whole[result.trial_id])
        assert result.flops == whole[result.trial_id].flops
        assert result.status is TrialStatus.COMPLETED
    [continued] = [result for result in resumed if result.trial_id == file.stem]
    assert continued.train_seconds > state.train_seconds, "what was trained before the loss is counted"


def test_states_of_a_stacked_pack_of_8_go_on_in_packs_of_3_and_alone(tmp_path: Path, starts: Starts) -> None:
    pack = worker_pack(tmp_path, STACKED, 8, STEPS)
    kill_at_checkpoint(tmp_path, pack, of=8)
    layout = layout_of(checkpoint_file(tmp_path / "results", pack.trials[0].trial_id))
    resumed = [
        *run(tmp_path, replace(pack, trials=pack.trials[:3])),
        *run(tmp_path, replace(pack, trials=pack.trials[3:4])),
    ]
    assert [len(group) for group in starts] == [3, 1]
    assert min(step for group in starts for step in group) > 0
    for result in resumed:
        [alone] = run(tmp_path, Pack(trials=(result.trial,)), results="alone")
        assert (result.mode, alone.mode) == (STACKED.name, EAGER_LOOP.name)
        assert result.validation_loss == pytest.approx(alone.validation_loss, rel=loss_tolerance(STACKED))
        assert result.same_numbers(alone)

    one = replace(pack, trials=pack.trials[:1], mode=EAGER_LOOP, forks={pack.trials[0].trial_id: (7,)})
    run(tmp_path, one, results="loop")
    fork = Fork(trunk_id=pack.trials[0].trial_id, step=7)
    assert layout_of(fork_file(tmp_path / "loop", fork)) == layout


@pytest.mark.parametrize("mode", [EAGER_LOOP, STACKED])
def test_branches_go_on_from_the_forks_of_their_trunk(tmp_path: Path, starts: Starts, mode: Mode) -> None:
    """The trunk and the branch are one trial here, so that the branch's whole is known."""
    pack = worker_pack(tmp_path, mode, 2, 20)
    ids = [trial.trial_id for trial in pack.trials]
    whole = run(tmp_path, replace(pack, forks={ids[0]: (5, 12)}), results="results")
    folder = tmp_path / "results" / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{ids[0]}-{s}.safetensors" for s in (5, 12))
    folder.parent.rename(tmp_path / "trunk")
    (tmp_path / "branch").mkdir()
    (tmp_path / "trunk" / "checkpoints").rename(tmp_path / "branch" / "checkpoints")
    branches = run(tmp_path, replace(pack, starts={ids[0]: Fork(trunk_id=ids[0], step=12)}), results="branch")
    assert starts == [[0, 0], [12, 0]]
    assert {r.trial_id for r in branches} == set(ids)
    for branch in branches:
        [trunk] = [result for result in whole if result.trial_id == branch.trial_id]
        assert branch.same_numbers(trunk)
        own = 8 / 20 if branch.trial_id == ids[0] else 1.0
        assert branch.flops == pytest.approx(own * trunk.flops), "a branch counts what it trained itself"


def test_without_its_fork_a_branch_is_trained_from_the_beginning(tmp_path: Path, starts: Starts) -> None:
    pack = worker_pack(tmp_path, EAGER_LOOP, 1, 20)
    fork = Fork(trunk_id="0123456789abcdef", step=12)
    [result] = run(tmp_path, replace(pack, starts={pack.trials[0].trial_id: fork}))
    assert starts == [[0]]
    assert result.same_numbers(run(tmp_path, pack, results="alone")[0])


def test_short_trials_leave_no_checkpoint_and_no_progress(tmp_path: Path) -> None:
    run(tmp_path, worker_pack(tmp_path, EAGER_LOOP, 2, 20))
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["trials"]


def state_after(folder: Path, pack: Pack, index: int, step: int) -> Any:
    """A trial's state, from a run of its own."""
    trial, found = pack.trials[index], []
    data = sweeps.worker.data_of(trial, data_source(folder))
    watch = Watch(on_state=lambda member, state: found.append(state))
    list(train([Job(run=trial.run, save_at=(step,))], data, mode=pack.mode, watch=watch))
    return found[0]


def test_a_damaged_checkpoint_and_one_of_another_mode_are_not_used(
    tmp_path: Path, starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    pack = worker_pack(tmp_path, EAGER_LOOP, 3, 20)
    results = tmp_path / "results"
    for index, mode in enumerate((EAGER_LOOP, STACKED, EAGER_LOOP)):
        write_checkpoint(results, pack.trials[index].trial_id, mode, state_after(tmp_path, pack, index, 5))
    damaged = checkpoint_file(results, pack.trials[0].trial_id)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    finished = run(tmp_path, pack)
    assert starts == [[0, 0, 5]]
    assert [record.message.split(": ")[0].removeprefix(f"{results}/checkpoints/") for record in caplog.records] == [
        f"{pack.trials[0].trial_id}.safetensors is damaged",
        f"{pack.trials[1].trial_id}.safetensors is the state of trial {pack.trials[1].trial_id} in mode "
        f"{STACKED.name}, not of {pack.trials[1].trial_id} in {EAGER_LOOP.name}. It is not used; training starts from "
        "the beginning.",
    ]
    for result, alone in zip(finished, run(tmp_path, pack, results="alone"), strict=True):
        assert result.same_numbers(alone)


@pytest.mark.parametrize("mode", [EAGER_LOOP, STACKED])
def test_one_member_that_cannot_be_trained_fails_alone(tmp_path: Path, mode: Mode) -> None:
    """Its state is that of a wider model, so that an exception is raised in the midst of a pack."""
    pack, bad = worker_pack(tmp_path, mode, 5, 20), 2
    state = state_after(tmp_path, pack, bad, 5)
    wide = replace(state, weights={name: torch.cat([tensor, tensor]) for name, tensor in state.weights.items()})
    write_checkpoint(tmp_path / "results", pack.trials[bad].trial_id, mode, wide)
    finished = run(tmp_path, pack)
    store = ResultStore(tmp_path / "results")
    assert {result.trial_id for result in finished} == {t.trial_id for t in pack.trials} - {pack.trials[bad].trial_id}
    assert set(store.last_errors()) == {pack.trials[bad].trial_id}
    assert set(store.read()) == {result.trial_id for result in finished}


def groups_tried(folder: Path, mode: Mode, n_trials: int, megabytes: int) -> list[int]:
    """Sizes of the groups that a worker trains, which can have so much memory and no more."""
    with start_worker(folder, mode, n_trials, 2, 60, megabytes) as worker:
        assert worker.stdout is not None
        sizes = [len(json.loads(line)["starts"]) for line in worker.stdout]
    assert worker.returncode == 0
    return sizes


def test_without_memory_for_all_a_stacked_pack_is_halved_and_goes_on(tmp_path: Path) -> None:
    sizes = groups_tried(tmp_path, STACKED, 8, megabytes=220)
    results = ResultStore(tmp_path / "results").read()
    assert sizes[0] == 8
    assert max(sizes[1:]) == 4
    assert sizes == sorted(sizes, reverse=True), "what did not fit is not tried again"
    assert len(results) == 8
    assert ResultStore(tmp_path / "results").last_errors() == {}


@pytest.mark.parametrize(("mode", "sizes"), [(STACKED, [2, 1, 1]), (EAGER_LOOP, [2, 1])])
def test_without_memory_for_one_each_trial_fails_by_itself(tmp_path: Path, mode: Mode, sizes: list[int]) -> None:
    assert groups_tried(tmp_path, mode, 2, megabytes=15) == sizes
    errors = ResultStore(tmp_path / "results").last_errors()
    assert len(errors) == 2
    assert all("allocate memory" in error for error in errors.values())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_real_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as got:
        torch.empty(1 << 60)
    assert is_out_of_memory(got.value)


def test_a_full_disk_stops_the_worker_and_is_no_trials_failure(tmp_path: Path) -> None:
    pack = worker_pack(tmp_path, EAGER_LOOP, 1, 20)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        run(tmp_path, replace(pack, forks={pack.trials[0].trial_id: (5,)}))
    assert ResultStore(tmp_path / "results").last_errors() == {}
