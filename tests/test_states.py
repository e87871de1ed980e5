"""A run that is stopped between two steps goes on as if nothing had been: bitwise in a loop, in any pack."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from proxy_models.config import RunConfig
from proxy_models.member_state import MemberState
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import OPTIMIZERS, AdamW, Muon, OptimizerConfig, Switch
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, Watch, train
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run

DATA = cyclic_data()
STACKED = Mode(executor="stacked")
SWITCHED = Switch(first=AdamW(), second=Muon(shape_factor="rms_match"), at_tokens=320)
KINDS: dict[str, OptimizerConfig] = {
    **{name: record() for name, record in OPTIMIZERS.items() if name != "switch"},
    "switch reset": SWITCHED,
    "switch keep": replace(SWITCHED, states="keep"),
}


def states_of(runs: list[RunConfig], steps: tuple[int, ...], mode: Mode) -> dict[tuple[int, int], MemberState]:
    """(member, step) -> state, from training them whole."""
    found: dict[tuple[int, int], MemberState] = {}
    watch = Watch(on_state=lambda member, state: found.update({(member, state.step): state}))
    list(train([Job(run=run, save_at=steps) for run in runs], DATA, mode=mode, watch=watch))
    return found


def go_on(jobs: list[Job], mode: Mode) -> list[TrainOutcome]:
    found = dict(train(jobs, DATA, mode=mode))
    return [found[index] for index in range(len(jobs))]


def numbers(outcome: TrainOutcome) -> tuple[Any, ...]:
    return (
        outcome.diverged_step,
        outcome.validation_loss,
        outcome.validation_loss_se,
        outcome.curve_steps,
        outcome.curve_losses,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_goes_on_bitwise(kind: str) -> None:
    """From before, at and after a switch of the optimizer, for those that have one at step 5 of 10."""
    run = tiny_run(optimizer=KINDS[kind], hparams={"lr": 1e-3, "decay_tokens": 128})
    (whole,) = outcomes([run], DATA)
    for (_, step), state in states_of([run], (3, 5, 8), EAGER_LOOP).items():
        (rest,) = go_on([Job(run=run, start=state)], EAGER_LOOP)
        assert numbers(rest) == numbers(whole), step


def test_saving_changes_no_number() -> None:
    run = tiny_run(optimizer=Muon())
    seen: list[int] = []
    watch = Watch(on_state=lambda member, state: seen.append(state.step), state_seconds=0.0)
    (saved,) = outcomes([run], DATA, watch=watch)
    assert seen == list(range(1, 10))  # every step but the last, whose moment is the outcome's
    assert numbers(saved) == numbers(outcomes([run], DATA)[0])


@pytest.mark.parametrize("kind", ["muon", "apollo", "switch keep"])
def test_states_of_a_large_pack_go_on_in_a_small_one_and_alone(kind: str) -> None:
    template = tiny_run(optimizer=KINDS[kind], hparams={"lr": 1e-3})
    runs = [replace(template, hparams=replace(template.hparams, lr=1e-3 * (1 + i / 8))) for i in range(8)]
    whole, states = outcomes(runs, DATA, mode=STACKED), states_of(runs, (6,), STACKED)
    few = [Job(run=runs[i], start=states[i, 6]) for i in (5, 0, 7)]
    for found, i in zip(go_on(few, STACKED), (5, 0, 7), strict=True):
        assert found.validation_loss == pytest.approx(whole[i].validation_loss, rel=1e-5)
        assert found.curve_losses == pytest.approx(whole[i].curve_losses, rel=1e-5)
    (alone,) = go_on([Job(run=runs[3], start=states[3, 6])], EAGER_LOOP)
    assert alone.validation_loss == pytest.approx(whole[3].validation_loss, rel=1e-5)


def test_members_that_stopped_at_different_steps_are_stacked_by_step() -> None:
    runs = [tiny_run(seed=seed) for seed in range(3)]
    states = states_of(runs, (2, 7), EAGER_LOOP)
    jobs = [Job(run=runs[0], start=states[0, 7]), Job(run=runs[1], start=states[1, 2]), Job(run=runs[2])]
    for found, whole in zip(go_on(jobs, STACKED), outcomes(runs, DATA), strict=True):
        assert found.validation_loss == pytest.approx(whole.validation_loss, rel=1e-5)


def test_a_state_is_by_parameter_and_its_own() -> None:
    run = tiny_run(optimizer=Muon())
    state = states_of([run], (4,), EAGER_LOOP)[0, 4]
    assert state.weights["blocks.0.attention.query.weight"].shape == (16, 16)
    assert set(state.optimizer["blocks.0.attention.query.weight"]) == {"momentum"}
    assert set(state.optimizer["embedding.weight"]) == {"momentum", "square"}
    assert len(state.losses) == 4
    kept = state.weights["embedding.weight"].clone()
    go_on([Job(run=run, start=state)], EAGER_LOOP)
    assert torch.equal(state.weights["embedding.weight"], kept)


def test_a_run_that_took_over_steps_counts_only_its_own() -> None:
    run = tiny_run()
    state = states_of([run], (6,), EAGER_LOOP)[0, 6]
    (whole,) = outcomes([run], DATA)
    (branch,) = go_on([Job(run=run, start=replace(state, train_seconds=0.0, inherited_steps=6))], EAGER_LOOP)
    assert branch.flops == pytest.approx(0.4 * whole.flops)
    assert branch.tokens_per_second == pytest.approx(4 * 64 / branch.train_seconds)


def test_a_diverging_run_saves_no_state_after_it() -> None:
    runs = [tiny_run(hparams={"lr": 1e30, "clip_norm": None}), tiny_run()]
    assert {member for member, _ in states_of(runs, (5,), STACKED)} == {1}


@pytest.mark.parametrize("mode", [EAGER_LOOP, STACKED], ids=lambda mode: mode.executor)
def test_no_member_passes_a_rung_before_all_have_reached_it(mode: Mode) -> None:
    runs = [tiny_run(hparams={"lr": lr}) for lr in (1e-3, 2e-3, 3e-3)]
    asked: list[tuple[int, dict[int, int]]] = []

    def halt(step: int, losses: Any) -> set[int]:
        asked.append((step, {member: len(seen) for member, seen in losses.items()}))
        return {1} if step == 4 else set()

    steps: list[tuple[int, int]] = []
    watch = Watch(on_step=lambda member, done, loss: steps.append((member, done)))
    found = dict(train([Job(run=run) for run in runs], DATA, mode=mode, watch=watch, rungs=(2, 4, 6), halt=halt))
    assert asked == [(2, {0: 2, 1: 2, 2: 2}), (4, {0: 4, 1: 4, 2: 4}), (6, {0: 6, 2: 6})]
    assert (found[1].stopped_step, found[1].validation_loss, found[1].diverged_step) == (4, None, None)
    assert found[1].curve_steps == (1, 2, 3, 4)
    assert max(done for member, done in steps if member == 1) == 4
    whole = outcomes(runs, DATA, mode=mode)
    for member in (0, 2):
        assert found[member].validation_loss == pytest.approx(whole[member].validation_loss, rel=1e-5)
        assert mode is STACKED or numbers(found[member]) == numbers(whole[member])
