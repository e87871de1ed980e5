"""What trials share at their beginning is found exactly, and trained once with the numbers of separate runs."""

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sweeps.worker
from proxy_models.accounting import training_flops
from proxy_models.checks import ConfigError
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import TokenData
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import SGD, AdamW, Muon, Switch
from proxy_models.outcome import TrainOutcome
from proxy_models.schedule import schedule_factor
from proxy_models.train import Job, train
from sweeps.local_backend import LocalBackend
from sweeps.pack import Fork, Pack, make_packs
from sweeps.run import SweepOutcome, run_sweep
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult
from sweeps.trunk import (
    MIN_SHARED_STEPS,
    flops_saved,
    plan_packs,
    plan_tree,
    shared_steps,
    stable_part,
)
from tests.sweep_helpers import read_sweep, start_driver, stop_after

BATCH = 32
COMPILED = Mode(compiled=True)


def trial(
    *, steps: int = 40, decay: int = 0, optimizer: Any = None, run: dict[str, Any] | None = None, **hp: Any
) -> Trial:
    """A trial of so many steps, of which the last ones decay."""
    return Trial(
        run=RunConfig(
            model=ModelConfig(width=16, depth=1, head_dim=8, seq_len=16),
            optimizer=optimizer or AdamW(),
            hparams=HParams(**{"lr": 0.02, "batch_tokens": BATCH, "decay_tokens": BATCH * decay, **hp}),
            **{"base_width": 16, "train_tokens": BATCH * steps, "validation_tokens": 64, "seed": 3, **(run or {})},
        ),
        data_fingerprint="abc",
    )


HORIZONS = [trial(steps=steps, decay=steps // 5) for steps in (20, 40, 80, 160, 320)]


def in_pairs(trials: Sequence[Trial]) -> tuple[Pack, ...]:
    return make_packs(trials, 2)


@st.composite
def runs(draw: st.DrawFn) -> RunConfig:
    """Runs of few kinds, so that many share a beginning; lengths in tokens are no multiples of a batch."""
    steps = draw(st.integers(1, 40))
    tokens = st.integers(0, BATCH * steps)
    optimizer = draw(
        st.sampled_from([AdamW(), SGD()])
        | st.builds(Switch, first=st.just(AdamW()), second=st.just(SGD()), at_tokens=st.none() | st.integers(1, 1280))
    )
    try:
        return trial(
            steps=steps,
            optimizer=optimizer,
            run={"schedule": draw(st.sampled_from(["wsd", "wsd", "cosine"]))},
            warmup_tokens=draw(st.just(0) | st.just(50) | tokens),
            decay_tokens=draw(st.just(0) | tokens),
            final_lr_frac=draw(st.sampled_from([0.0, 0.1, 1.0])),
            second_lr_ratio=draw(st.sampled_from([1.0, 0.5])),
        ).run
    except ConfigError:
        assume(False)
        raise


def step_of(run: RunConfig, step: int) -> tuple[float, object]:
    """What is done at a step: the schedule's factor, and the optimizer with its hyperparameters."""
    phase = [phase for start, phase in run.phases if start <= step][-1]
    of_end = {"decay_tokens": 0, "final_lr_frac": 0.0, "second_lr_ratio": 1.0}
    return schedule_factor(run, step), (phase.optimizer, replace(phase.hparams, **of_end))


@given(run=runs())
def test_shared_steps_are_those_of_the_run_without_an_end(run: RunConfig) -> None:
    endless = stable_part(Trial(run=run, data_fingerprint="abc")).run
    if run.schedule == "wsd":
        endless = replace(endless, train_tokens=BATCH * 1000)
    shared = shared_steps(run)
    assert 0 <= shared <= run.steps
    assert [step_of(run, step) for step in range(shared)] == [step_of(endless, step) for step in range(shared)]
    assert shared == run.steps or step_of(run, shared) != step_of(endless, shared)


@settings(max_examples=50)
@given(several=st.lists(runs(), max_size=8), order=st.randoms())
def test_branches_leave_trunks_that_go_on(several: list[RunConfig], order: Any) -> None:
    trials = list({run: Trial(run=run, data_fingerprint="abc") for run in several}.values())
    tree, by_id = plan_tree(trials), {one.trial_id: one for one in trials}
    for trial_id, fork in tree.starts.items():
        branch, trunk = by_id[trial_id], by_id[fork.trunk_id]
        assert stable_part(branch) == stable_part(trunk)
        assert MIN_SHARED_STEPS <= fork.step == shared_steps(branch.run) <= shared_steps(trunk.run)
        assert fork.step < trunk.run.steps
        assert fork.trunk_id not in tree.starts
        assert fork.step in tree.forks[fork.trunk_id]
    left = [one for one in trials if one.trial_id not in tree.starts and shared_steps(one.run) >= MIN_SHARED_STEPS]
    ends = Counter(stable_part(one) for one in left if shared_steps(one.run) < one.run.steps)
    assert set(ends.values()) <= {1}
    order.shuffle(trials)
    assert plan_tree(trials) == tree


def test_doubling_horizons_fork_off_the_longest() -> None:
    *branches, trunk = HORIZONS
    tree = plan_tree(HORIZONS)
    expected = dict(zip(branches, (16, 32, 64, 128), strict=True))
    assert tree.starts == {t.trial_id: Fork(trunk_id=trunk.trial_id, step=step) for t, step in expected.items()}
    assert tree.forks == {trunk.trial_id: (16, 32, 64, 128)}
    packs = plan_packs(HORIZONS, in_pairs)
    separate = sum(training_flops(one.run) for one in HORIZONS)
    assert sum(map(flops_saved, packs)) == pytest.approx(separate * 12 / 31)
    assert 1 - sum(map(flops_saved, packs)) / separate <= 0.63


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 80},
        {"decay": 0},
        {"decay": 20},
        {"decay": 20, "final_lr_frac": 0.5},
        {"final_lr_frac": 0.5},
        {"final_lr_frac": 1.0},
        {"second_lr_ratio": 0.5},
        {"optimizer": Switch(first=AdamW(), second=Muon(), at_tokens=20 * BATCH)},
        {"optimizer": Switch(first=AdamW(), second=SGD()), "decay": 4},
        {"run": {"validation_tokens": 128}},
    ],
)
def test_what_acts_later_is_shared(change: dict[str, Any]) -> None:
    assert len(plan_tree([trial(decay=8), trial(**{"decay": 8, **change})]).starts) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"clip_norm": None},
        {"warmup_tokens": 64},
        {"batch_tokens": 64},
        {"embedding_init_std": 0.5},
        {"optimizer": Muon()},
        {"optimizer": Switch(first=Muon(), second=AdamW(), at_tokens=20 * BATCH)},
        {"run": {"seed": 4}},
        {"run": {"base_width": 32}},
        {"run": {"parametrization": "standard"}},
        {"run": {"weight_decay_invariant": "none"}},
        {"run": {"schedule": "cosine"}},
        {"decay": 40 - MIN_SHARED_STEPS + 1},
    ],
)
def test_what_acts_before_is_not(change: dict[str, Any]) -> None:
    assert not plan_tree([trial(steps=320), trial(**change)]).starts


def test_a_run_is_not_gone_on_from_at_its_end() -> None:
    """Without a decay final_lr_frac does nothing: the two are one run, and wholly a part of a longer one."""
    same, longer = [trial(), trial(final_lr_frac=0.5)], trial(steps=80)
    assert not plan_tree(same).starts
    assert [fork.step for fork in plan_tree([*same, longer]).starts.values()] == [40, 40]


def test_other_data_share_nothing() -> None:
    assert not plan_tree([trial(), replace(trial(steps=80), data_fingerprint="abd")]).starts


def test_under_cosine_only_an_optimizer_that_is_switched_forks_off() -> None:
    cosine = {"run": {"schedule": "cosine"}}
    plain, switched = trial(**cosine), trial(optimizer=Switch(first=AdamW(), second=SGD(), at_tokens=640), **cosine)
    tree = plan_tree([switched, trial(steps=80, **cosine), plain])
    assert tree.starts == {switched.trial_id: Fork(trunk_id=plain.trial_id, step=20)}


def test_packs_of_trunks_come_before_those_that_wait() -> None:
    lone = trial(steps=20, lr=0.5)
    grid = [trial(steps=steps, decay=steps // 5, lr=lr) for steps in (20, 40, 80) for lr in (0.01, 0.02, 0.04)]
    packs = plan_packs([lone, *grid], in_pairs)
    assert sorted(one.trial_id for pack in packs for one in pack.trials) == sorted(t.trial_id for t in [lone, *grid])
    made: set[Fork] = set()
    for pack in packs:
        assert set(pack.starts.values()) <= made
        assert pack.starts.keys() in (set(), {one.trial_id for one in pack.trials})
        assert len({fork.step for fork in pack.starts.values()}) <= 1
        made |= {Fork(trunk_id=trunk, step=step) for trunk, steps in pack.forks.items() for step in steps}
    assert len(made) == 6
    assert made == {fork for pack in packs for fork in pack.starts.values()}
    waiting = [pack.flops - flops_saved(pack) for pack in packs if pack.starts]
    assert waiting == sorted(waiting, reverse=True)


def test_a_branch_goes_on_in_the_mode_of_its_trunk() -> None:
    """With the longest horizon alone in another mode, the second longest is the others' trunk."""

    def pack(trials: Sequence[Trial]) -> tuple[Pack, ...]:
        return tuple(Pack(trials=(one,), mode=COMPILED if one.run.steps == 320 else EAGER_LOOP) for one in trials)

    forks = {one.trial_id: made for made in plan_packs(HORIZONS, pack) for one in made.trials}
    assert not forks[HORIZONS[4].trial_id].forks
    assert forks[HORIZONS[3].trial_id].forks == {HORIZONS[3].trial_id: (16, 32, 64)}


def test_states_of_trials_that_are_trained_are_gone_on_from() -> None:
    *pending, trained = HORIZONS
    left = Fork(trunk_id=trained.trial_id, step=16)
    tree = plan_tree(pending, trained=[trained], has_state=lambda fork: fork == left)
    assert tree.starts[HORIZONS[0].trial_id] == left
    others = {one.trial_id: tree.starts.get(one.trial_id) for one in HORIZONS[1:4]}
    trunk_id = HORIZONS[3].trial_id
    assert list(others.values()) == [Fork(trunk_id=trunk_id, step=32), Fork(trunk_id=trunk_id, step=64), None]


SPEC = """
name = "trunks"
[data]
source = "text"
path = "text.txt"
validation_frac = 0.2
[model]
depth = 1
head_dim = 8
seq_len = 16
[run]
base_width = 16
widths = [16]
seeds = [0]
train_tokens = [640, 1280, 2560]
validation_tokens = 64
decay_frac = 0.2
[hparams]
batch_tokens = 32
warmup_tokens = 512
clip_norm = "none"
[axes]
lr = [0.1, 1.5, 1000]
[optimizers.muon]
[optimizers.switched]
kind = "switch"
first = { kind = "muon" }
second = { kind = "adamw" }
"""


class Sweep:
    """SPEC in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "text.txt").write_text("".join(random.Random(5).choices("abc efgh.\n", k=8000)))
        (folder / "spec.toml").write_text(SPEC)
        self.folder, self.store = folder, ResultStore(folder / "results")
        self.spec, self.trials = read_sweep(folder)

    def run(self) -> SweepOutcome:
        """With trunks."""
        return run_sweep(
            self.trials,
            store=self.store,
            data_source=self.spec.data_source(),
            backend=LocalBackend(),
            workers=1,
            pack=in_pairs,
            on_event=lambda event: None,
        )

    @property
    def states(self) -> set[str]:
        """Files of states."""
        return {file.name for file in (self.store.folder / "checkpoints").glob("[!.]*")}


@pytest.fixture(autouse=True, scope="module")
def _as_a_worker() -> Iterator[None]:
    threads = torch.get_num_threads()
    sweeps.worker.prepare_process()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialResult]:
    """What each trial gives from its own beginning."""
    sweep = Sweep(tmp_path_factory.mktemp("alone"))
    LocalBackend().execute(
        in_pairs(sweep.trials),
        store=sweep.store,
        data_source=sweep.spec.data_source(),
        workers=1,
        on_event=lambda event: None,
    )
    return sweep.store.read()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """By trial id, the steps that were taken over when it began."""
    seen = {}

    def seeing(jobs: Sequence[Job], data: TokenData, **options: Any) -> Iterator[tuple[int, TrainOutcome]]:
        for job in jobs:
            trial_id = Trial(run=job.run, data_fingerprint=data.fingerprint).trial_id
            seen[trial_id] = 0 if job.start is None else job.start.step
        yield from train(jobs, data, **options)

    monkeypatch.setattr(sweeps.worker, "train", seeing)
    return seen


def test_every_loss_is_that_of_a_separate_run(
    tmp_path: Path, alone: dict[str, TrialResult], starts: dict[str, int]
) -> None:
    sweep = Sweep(tmp_path)
    results = sweep.run().results
    assert results.keys() == alone.keys()
    assert all(result.same_numbers(alone[trial_id]) for trial_id, result in results.items())
    assert not sweep.states
    for result in results.values():
        run, fork = result.trial.run, plan_tree(sweep.trials).starts.get(result.trial_id)
        if fork is not None:
            trunk = results[fork.trunk_id]
            passed = trunk.diverged_step is None or trunk.diverged_step > fork.step
            assert starts[result.trial_id] == (fork.step if passed else 0)
            assert passed or result.diverged_step == trunk.diverged_step
        if run.hparams.lr == 0.1:
            taken = run.steps - starts[result.trial_id]
            assert result.flops == pytest.approx(training_flops(run) * taken / run.steps)
    assert {result.diverged_step for result in results.values() if result.trial.run.hparams.lr == 1000} == {2}
    plain, switched = (
        sum(starts[t.trial_id] > 0 for t in sweep.trials if t.run.optimizer.name == n) for n in ("muon", "switch")
    )
    assert plain >= 2
    assert switched >= 3


def test_a_trunk_that_is_killed_leaves_what_others_go_on_from(tmp_path: Path, alone: dict[str, TrialResult]) -> None:
    sweep = Sweep(tmp_path)
    with start_driver(tmp_path, "local") as driver:
        while driver.poll() is None and not sweep.states:
            time.sleep(0.001)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL, "it was done before it was killed"
    assert plan_tree(sweep.trials).forks.keys() - sweep.store.committed_ids()
    results = sweep.run().results
    assert all(result.same_numbers(alone[trial_id]) for trial_id, result in results.items())
    assert not sweep.states


def test_branches_of_a_recorded_trunk_go_on_from_its_states(
    tmp_path: Path, alone: dict[str, TrialResult], starts: dict[str, int]
) -> None:
    """The trunks of all three learning rates are recorded when the sweep is killed."""
    sweep = Sweep(tmp_path)
    stop_after(start_driver(tmp_path, "local"), 3, signal.SIGKILL)
    recorded = sweep.store.committed_ids()
    assert sweep.states
    outcome = sweep.run()
    assert outcome.reused == len(recorded) < len(sweep.trials)
    assert all(result.same_numbers(alone[trial_id]) for trial_id, result in outcome.results.items())
    assert not sweep.states
    branches = [one for one in sweep.trials if one.run.hparams.lr == 0.1 and one.trial_id not in recorded]
    assert branches
    assert [starts[one.trial_id] for one in branches] == [shared_steps(one.run) for one in branches]
