"""A batch that changes during a run: its steps, its numbers, its trunk, and the gradient noise of its batches."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.checks import ConfigError
from proxy_models.config import BatchChange, RunConfig, run_config_from_dict
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import SGD, AdamW, Muon, Switch
from proxy_models.schedule import schedule_factor
from proxy_models.train import Watch
from proxy_models.training import Training
from sweeps.local_backend import LocalBackend
from sweeps.pack import make_packs
from sweeps.run import run_sweep
from sweeps.store import ResultStore
from sweeps.trial import Trial
from sweeps.trunk import flops_saved, plan_packs, plan_tree
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run

DATA = cyclic_data()
BATCH = 64  # of tiny_run


def changed(run: RunConfig, *, at_steps: int, factor: int, **change: float) -> RunConfig:
    batch_tokens = run.hparams.batch_tokens
    kept = BatchChange(at_tokens=at_steps * batch_tokens, batch_tokens=factor * batch_tokens, **change)  # type: ignore[arg-type]
    return replace(run, batch_change=kept)


def plain_run(optimizer: object = None, *, steps: int = 24, **hparams: object) -> RunConfig:
    given = {"lr": 1e-2, "batch_tokens": BATCH, "decay_tokens": 0, "warmup_tokens": 0, **hparams}
    return tiny_run(optimizer=optimizer or AdamW(), hparams=given, train_tokens=steps * BATCH)


@given(at_steps=st.integers(1, 20), factor=st.integers(1, 5), later=st.integers(1, 8))
def test_every_token_is_in_one_step(at_steps: int, factor: int, later: int) -> None:
    run = changed(plain_run(steps=at_steps + factor * later), at_steps=at_steps, factor=factor)
    assert run.steps == at_steps + later
    sizes = [run.batch_tokens_of(step) for step in range(run.steps)]
    assert sizes == [BATCH] * at_steps + [factor * BATCH] * later
    assert [run.tokens_before(step) for step in range(run.steps + 1)] == [sum(sizes[:n]) for n in range(run.steps + 1)]
    assert run.largest_batch_tokens == factor * BATCH


def test_the_schedule_follows_tokens() -> None:
    run = plain_run(steps=24, warmup_tokens=4 * BATCH, decay_tokens=8 * BATCH)
    faster = changed(run, at_steps=8, factor=4)
    assert [schedule_factor(faster, step) for step in range(8)] == [schedule_factor(run, step) for step in range(8)]
    # From 512 tokens on in steps of 256; the decay covers the last 512 of 1536, at the middle of each step.
    assert [schedule_factor(faster, step) for step in range(8, 12)] == [1.0, 1.0, 0.75, 0.25]


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_a_change_of_nothing_changes_nothing(optimizer: object) -> None:
    run = plain_run(optimizer)
    (plain,), (same,) = outcomes([run], DATA), outcomes([changed(run, at_steps=7, factor=1)], DATA)
    assert same.curve_losses == plain.curve_losses
    assert same.validation_loss == plain.validation_loss


def test_sgd_by_hand() -> None:
    """lr and batch from the change on, on data that depend on the step alone."""
    run = changed(plain_run(SGD(), clip_norm=None, momentum=0.0, lr=0.1), at_steps=4, factor=2, lr_ratio=0.5)
    trained, by_hand = Training([run], DATA), Training([run], DATA)
    for step in range(8):
        windows = trained.windows(step)
        assert windows.shape[1] * run.model.seq_len == (BATCH if step < 4 else 2 * BATCH)
        _, gradients = by_hand.gradients(windows, by_hand.weights)
        trained.step()
        with torch.no_grad():
            for weight, gradient in zip(by_hand.weights, gradients, strict=True):
                weight -= (0.1 if step < 4 else 0.05) * gradient
    for ours, theirs in zip(trained.weights, by_hand.weights, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_adam_keeps_its_moments_and_takes_the_new_beta2() -> None:
    run = changed(plain_run(AdamW(), clip_norm=None, beta2=0.9), at_steps=4, factor=2, beta2=0.81)
    training = Training([run], DATA)
    seconds: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for _ in range(6):
        gradients.append(training.gradients(training.windows(training.step_count), training.weights)[1][0].clone())
        training.step()
        (name, *_) = training.layouts[0].names
        states = training.optimizer.state(0).tensors[name]
        seconds.append(states["square"])
    for before, after, gradient, beta2 in (
        (seconds[2], seconds[3], gradients[3], 0.9),
        (seconds[3], seconds[4], gradients[4], 0.81),
    ):
        torch.testing.assert_close(after, beta2 * before + (1 - beta2) * gradient[0, 0].square())


def test_round_trip_and_identity() -> None:
    run = plain_run()
    assert "batch_change" not in run.identity()
    probe = changed(run, at_steps=8, factor=4, lr_ratio=2)
    assert run_config_from_dict(probe.to_dict()) == probe
    assert run_config_from_dict(run.to_dict()) == run
    old = run.to_dict()
    del old["batch_change"]
    assert run_config_from_dict(old) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (BatchChange(at_tokens=8 * BATCH, batch_tokens=3 * BATCH // 2), "multiple of the batch before, 64, got 96"),
        (BatchChange(at_tokens=100, batch_tokens=128), "whole batches of 64 tokens, got 100"),
        (BatchChange(at_tokens=24 * BATCH, batch_tokens=128), "got 1536, which leaves 0"),
        (BatchChange(at_tokens=8 * BATCH, batch_tokens=5 * BATCH), "got 512, which leaves 1024"),
    ],
)
def test_changes_that_cannot_be(change: BatchChange, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(plain_run(), batch_change=change)


def test_no_change_beside_a_switch() -> None:
    switch = Switch(first=AdamW(), second=Muon(), at_tokens=8 * BATCH)
    with pytest.raises(ConfigError, match="optimizer is switched"):
        changed(plain_run(switch), at_steps=4, factor=2)


def test_probes_branch_from_the_run_that_goes_on(tmp_path: Path) -> None:
    """Their numbers are those of the whole run alone."""
    trunk = plain_run(steps=40, decay_tokens=8 * BATCH)
    undecayed = replace(trunk, hparams=replace(trunk.hparams, decay_tokens=0), train_tokens=24 * BATCH)
    probes = [changed(undecayed, at_steps=16, factor=factor, lr_ratio=factor**0.5) for factor in (1, 2, 4)]
    trials = [Trial(run=run, data_fingerprint=DATA.fingerprint) for run in (trunk, *probes)]
    tree = plan_tree(trials)
    assert {fork.step for fork in tree.starts.values()} == {16}
    assert {fork.trunk_id for fork in tree.starts.values()} == {trials[0].trial_id}
    packs = plan_packs(trials, partial(make_packs, size=2))
    saved = sum(map(flops_saved, packs)) / sum(pack.flops for pack in packs)
    assert saved == pytest.approx(3 * 16 / (40 + 3 * 24))
    store = ResultStore(tmp_path)
    store.bind(name="probes", spec_text="", planned_ids=[trial.trial_id for trial in trials])
    outcome = run_sweep(
        trials,
        store=store,
        data_source=DATA,
        backend=LocalBackend(),
        workers=1,
        pack=partial(make_packs, size=2),
        on_event=lambda event: None,
    )
    for result in outcome.results.values():
        (alone,) = outcomes([result.trial.run], DATA)
        assert (result.validation_loss, result.curve_losses) == (alone.validation_loss, alone.curve_losses)
        if result.trial.run.batch_change is not None:
            assert result.flops == pytest.approx(alone.flops * 8 / 24)


@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_gradient_noise_of_a_step(executor: str) -> None:
    """Against one backward pass a sequence."""
    run = plain_run(batch_tokens=4 * BATCH, steps=24)
    members = [run] if executor == "loop" else [run, replace(run, seed=5)]
    training = Training(members, DATA, Mode(executor=executor))  # type: ignore[arg-type]
    training.step()
    found = training.gradient_noise()
    for member, alone in enumerate(members):
        single = Training([alone], DATA, EAGER_LOOP)
        single.step()
        windows = single.windows(1)
        parts = [single.gradients(part, single.weights)[1] for part in windows.split(windows.shape[1] // 8, dim=1)]
        flat = torch.stack([torch.cat([g.flatten() for g in part]) for part in parts])
        assert found["gradient_sq_micro"][member] == pytest.approx(float(flat.square().sum(1).mean()), rel=1e-4)
        assert found["gradient_sq_batch"][member] == pytest.approx(float(flat.mean(0).square().sum()), rel=1e-4)
        assert found["micro_tokens"][member] * 8 == found["batch_tokens"][member] == 4 * BATCH


def test_measuring_noise_changes_no_number() -> None:
    run = plain_run(batch_tokens=2 * BATCH)
    (plain,), (measured,) = outcomes([run], DATA), outcomes([run], DATA, watch=Watch(noise_every=5))
    assert (measured.validation_loss, measured.curve_losses) == (plain.validation_loss, plain.curve_losses)
    assert {diagnostic.step for diagnostic in measured.diagnostics} == {1, 6, 11}
    assert {d.quantity for d in measured.diagnostics if d.kind == "all"} == {
        "gradient_sq_micro", "gradient_sq_batch", "micro_tokens", "batch_tokens",
    }  # fmt: skip


def test_one_sequence_has_no_noise() -> None:
    run = plain_run()
    single = replace(run, hparams=replace(run.hparams, batch_tokens=run.model.seq_len))
    assert Training([single], DATA).gradient_noise() == {}
