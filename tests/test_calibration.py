"""What a step takes: near the truth, measured once, and never in the way."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from proxy_models.config import RunConfig
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import AdamW, Muon, Switch
from proxy_models.training import Training
from sweeps.calibration import StepCost, calibration_file, measure_step, step_cost, this_machine
from tests.proxy_helpers import cyclic_data, tiny_run

MACHINE = this_machine()
STACKED = Mode(executor="stacked")


class Counted:
    """Planted costs, and how often they were measured."""

    def __init__(self, seconds: Callable[[RunConfig], float] = lambda run: 0.25) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, run: RunConfig, mode: Mode, members: int) -> StepCost:
        self.calls += 1
        return StepCost(seconds=self.seconds(run), compile_seconds=3.0, peak_bytes=7)


def test_a_measured_step_is_near_one_that_is_timed_directly() -> None:
    """By the time of this process, so that a busy machine does not matter."""
    run = tiny_run(optimizer=AdamW(), width=64, train_tokens=64 * 40)
    measured = measure_step(run, EAGER_LOOP, 1)
    training, steps = Training([run], cyclic_data()), 30
    training.step()
    start = time.process_time()
    for _ in range(steps):
        training.step()
    direct = (time.process_time() - start) / steps
    assert direct / 2 < measured.seconds < 2 * direct
    assert (measured.compile_seconds, measured.peak_bytes) == (0.0, None)
    assert 0 < measure_step(run, STACKED, 3).seconds < 3 * direct


def test_measuring_leaves_torchs_settings_as_they_were() -> None:
    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(False)
        measure_step(tiny_run(optimizer=Muon()), EAGER_LOOP, 1)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    measure, file = Counted(), tmp_path / "deep" / "calibration.json"
    ask = partial(step_cost, machine=MACHINE, file=file, measure=measure)
    run = tiny_run(optimizer=Muon())
    first = ask(run, EAGER_LOOP, 1)
    same = replace(run, seed=9, train_tokens=2 * run.train_tokens, hparams=replace(run.hparams, lr=0.7))
    assert ask(same, EAGER_LOOP, 1) == first == StepCost(seconds=0.25, compile_seconds=3.0, peak_bytes=7)
    assert measure.calls == 1
    others = [
        (replace(run, optimizer=AdamW()), EAGER_LOOP, 1),
        (replace(run, model=replace(run.model, depth=5)), EAGER_LOOP, 1),
        (run, STACKED, 1),
        (run, STACKED, 2),
    ]
    for other in others:
        ask(*other)
    assert measure.calls == 5
    step_cost(run, EAGER_LOOP, 1, machine=replace(MACHINE, torch="1.0"), file=file, measure=measure)
    assert measure.calls == 6
    ask(*others[-1])
    assert measure.calls == 6


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 2}', '{"schema_version": 1, "step_costs": {"a": 1}}'])
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: str) -> None:
    measure, file = Counted(), tmp_path / "calibration.json"
    file.write_text(content)
    for _ in range(2):
        step_cost(tiny_run(optimizer=Muon()), EAGER_LOOP, 1, machine=MACHINE, file=file, measure=measure)
    assert measure.calls == 1
    assert json.loads(file.read_bytes())["step_costs"].keys() == {MACHINE.key}
    (tmp_path / "calibration.json").write_text(file.read_text().replace("0.25", "-1"))  # not a time
    step_cost(tiny_run(optimizer=Muon()), EAGER_LOOP, 1, machine=MACHINE, file=file, measure=measure)
    assert measure.calls == 2


def test_a_file_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A cache folder that is a file, as root can write everywhere."""
    (tmp_path / "cache").write_text("")
    measure = Counted()
    for _ in range(2):
        cost = step_cost(
            tiny_run(optimizer=Muon()), EAGER_LOOP, 1, machine=MACHINE, file=tmp_path / "cache" / "c.json",
            measure=measure,
        )  # fmt: skip
        assert cost.seconds == 0.25
    assert measure.calls == 2


def test_a_switched_optimizer_takes_the_mean_over_its_steps(tmp_path: Path) -> None:
    """Of 10 steps 4 by AdamW at 1 s, 6 by Muon at 2 s."""
    run = tiny_run(optimizer=AdamW())
    run = replace(run, optimizer=Switch(first=AdamW(), second=Muon(), at_tokens=4 * run.hparams.batch_tokens))
    assert run.steps == 10
    measure = Counted(lambda phase: 1.0 if isinstance(phase.optimizer, AdamW) else 2.0)
    cost = step_cost(run, EAGER_LOOP, 1, machine=MACHINE, file=tmp_path / "c.json", measure=measure)
    assert cost.seconds == pytest.approx(1.6)


def test_the_file_stands_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration_file() == tmp_path / "mutransfer" / "calibration.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration_file() == tmp_path / ".cache" / "mutransfer" / "calibration.json"


def test_a_step_takes_time() -> None:
    with pytest.raises(ValueError, match="a finite time above 0 s"):
        StepCost(seconds=0.0)
    assert MACHINE.free_bytes > 10**8
    assert MACHINE.cores <= (os.cpu_count() or 1)
