"""Sweeps that share one real Ray: packs that wait for others, data that is read once, workers that are like new."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from proxy_models.data import DataSource, TokenData, load_data
from sweeps.checkpoints import fork_file
from sweeps.local_backend import LocalBackend
from sweeps.pack import Fork, make_packs
from sweeps.ray_backend import RayBackend
from sweeps.ray_cluster import kept_cluster
from sweeps.ray_worker import shared_data, start_anew
from sweeps.run import (
    Backend,
    BackendError,
    Event,
    PackStarted,
    SweepOutcome,
    TrialFailed,
    TrialFinished,
    TrialProgress,
    run_sweep,
)
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialStatus
from sweeps.trunk import plan_tree
from sweeps.worker import run_pack
from tests.sweep_helpers import N_DIVERGED, N_TRIALS, write_sweep
from tests.test_ray_backend import children_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def session() -> Iterator[None]:
    with kept_cluster():
        yield
    assert not ray.is_initialized()


def horizons(folder: Path, *, trunk_steps: int, fork_step: int) -> tuple[DataSource, tuple[Trial, Trial]]:
    """A trunk, and a branch that leaves it for a short decay. Steps take about 2 ms."""
    spec, trials = write_sweep(folder)
    one = trials[0]

    def of(steps: int, decay: int) -> Trial:
        hparams = replace(one.run.hparams, lr=0.01, decay_tokens=32 * decay)
        return replace(one, run=replace(one.run, train_tokens=32 * steps, hparams=hparams))

    return spec.data_source(), (of(trunk_steps, trunk_steps // 4), of(fork_step + 10, 10))


def run(
    trials: tuple[Trial, ...],
    source: DataSource,
    results: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    backend: Backend | None = None,
    size: int = 1,
) -> SweepOutcome:
    return run_sweep(
        trials,
        store=ResultStore(results),
        data_source=source,
        backend=backend or RayBackend(),
        workers=2 if backend is None else 1,
        pack=partial(make_packs, size=size),
        on_event=on_event,
    )


def alone(trial: Trial, source: DataSource, folder: Path) -> SweepOutcome:
    """One trial from its beginning, in this process."""
    return run((trial,), source, folder / trial.trial_id, backend=LocalBackend())


def test_a_branch_starts_while_its_trunk_trains_and_has_the_numbers_of_a_run_alone(tmp_path: Path) -> None:
    source, (trunk, branch) = horizons(tmp_path, trunk_steps=4000, fork_step=100)
    fork = plan_tree([trunk, branch]).starts[branch.trial_id]
    assert fork == Fork(trunk_id=trunk.trial_id, step=100)
    order: list[str] = []
    steps: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, PackStarted) and event.trials == (branch,):
            assert fork_file(tmp_path / "results", fork).exists()
            order.append("branch starts")
        elif isinstance(event, TrialFinished) and event.result.trial == trunk:
            order.append("trunk ends")
        elif isinstance(event, TrialProgress) and event.trial == trunk:
            steps.append(event.step)

    outcome = run((branch, trunk), source, tmp_path / "results", note)
    assert order == ["branch starts", "trunk ends"]
    assert steps == sorted(steps)
    assert 0 < steps[0] < 4000, "its progress was told"
    expected = alone(branch, source, tmp_path).results[branch.trial_id]
    assert outcome.results[branch.trial_id].same_numbers(expected)


def test_a_branch_whose_trunk_is_lost_trains_from_its_beginning(tmp_path: Path) -> None:
    source, (trunk, branch) = horizons(tmp_path, trunk_steps=400, fork_step=100)
    events: list[Event] = []

    def kill_the_trunk(event: Event) -> None:
        if isinstance(event, PackStarted) and not events:
            assert event.trials == (trunk,)
            for pid, command in children_of(os.getpid()):
                if command.startswith(("ray::ResourceTrainable", "ray::PackRunner")):
                    os.kill(pid, signal.SIGKILL)
        events.append(event)

    outcome = run((trunk, branch), source, tmp_path / "results", kill_the_trunk)
    assert outcome.count(TrialStatus.COMPLETED) == 2
    assert [event.trial for event in events if isinstance(event, TrialFailed)] == [trunk]
    assert [event.result.trial for event in events if isinstance(event, TrialFinished)] == [branch, trunk]
    expected = alone(branch, source, tmp_path).results[branch.trial_id]
    assert outcome.results[branch.trial_id].same_numbers(expected)


def test_text_is_read_once_by_the_driver(tmp_path: Path) -> None:
    spec, trials = write_sweep(tmp_path)

    def remove_the_text(event: Event) -> None:
        if isinstance(event, PackStarted):
            (tmp_path / "text.txt").unlink(missing_ok=True)

    outcome = run(trials, spec.data_source(), tmp_path / "results", remove_the_text, size=4)
    assert outcome.count(TrialStatus.COMPLETED) == N_TRIALS - N_DIVERGED


def test_a_token_file_is_left_to_the_workers(tmp_path: Path) -> None:
    tokens = np.random.default_rng(5).integers(100, size=2000, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    source = DataSource(kind="tokens", path=str(tmp_path / "tokens.npy"), validation_frac=0.2)
    fingerprint = load_data(source, vocab_size=256, seq_len=16).fingerprint
    _, trials = write_sweep(tmp_path)
    trials = tuple(replace(one, data_fingerprint=fingerprint) for one in trials[:2])
    assert shared_data(source, trials) is source
    assert run(trials, source, tmp_path / "results").count(TrialStatus.COMPLETED) == 2


def test_training_takes_tokens_that_cannot_be_written_to(tmp_path: Path) -> None:
    """As Ray hands them out; a warning of torch's is an error here."""
    spec, trials = write_sweep(tmp_path)
    data = shared_data(spec.data_source(), trials)
    assert isinstance(data, TokenData)
    for tokens in (data.train, data.validation):
        tokens.flags.writeable = False
    store = ResultStore(tmp_path / "results")
    run_pack(make_packs(trials[:1], 1)[0], data_source=data, store=store, on_event=lambda event: None)
    assert store.is_committed(trials[0].trial_id)


def test_a_worker_is_like_new_for_each_pack() -> None:
    drawn = set()
    for n_before in (0, 3):
        for _ in range(n_before):
            random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
        start_anew()
        drawn.add((random.random(), np.random.random(), torch.rand(1).item()))  # noqa: NPY002
    assert len(drawn) == 1


def test_gpus_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    source, trials = horizons(tmp_path, trunk_steps=40, fork_step=20)
    with pytest.raises(BackendError, match=r"a worker is to have 512 GPUs, and Ray has \d+ in all\. Use --gpus-per"):
        RayBackend(gpus_per_worker=512).execute(
            make_packs(trials, 1),
            store=ResultStore(tmp_path / "results"),
            data_source=source,
            workers=2,
            on_event=lambda event: None,
        )


def test_sweeps_share_one_ray(tmp_path: Path) -> None:
    before = ray.get_runtime_context().get_node_id()
    source, (_, trial) = horizons(tmp_path, trunk_steps=40, fork_step=20)
    run((trial,), source, tmp_path / "results")
    assert ray.get_runtime_context().get_node_id() == before
