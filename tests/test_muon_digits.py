"""The digits lab: its training against a plain network, its readings of curves, its verdicts, and the command."""

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from analysis.interval import FitError, Interval
from analysis.sfo_bound import BoundForm, MuonSetting
from proxy_models.checks import ConfigError
from proxy_models.optimizers.orthogonalize import orthogonalize
from tests.transfer_helpers import invoke
from transfer import cli_muon_digits, lab_tables
from transfer.labs import digits
from transfer.labs import muon_digits as lab

pytest.importorskip("sklearn")


def setting(momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0) -> MuonSetting:
    return MuonSetting(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def planted(
    form: BoundForm, *, lr: float = 0.02, of: MuonSetting = lab.REFERENCE, seeds: int = 3, noise: float = 0.0
) -> list[digits.Run]:
    """Runs whose loss falls as 1/steps and reaches the target where the form says, a batch each."""
    rng, steps, runs = np.random.default_rng(5), digits.evaluations(lr), []
    for batch in lab.BATCHES:
        scale = float(form.steps(batch)) * np.exp(noise * rng.standard_normal((seeds, 1)))
        losses = np.minimum(lab.TARGET * scale / np.array(steps), 2.3)
        runs.append(digits.Run(setting=of, batch=batch, lr=lr, steps=steps, losses=losses))
    return runs


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_of_the_stack_is_each_networks_own(nesterov: bool) -> None:
    """Against one network at a time with autograd, and Muon's update written out."""
    settings = [setting(0.8, nesterov, 0.4), setting(0.95, nesterov), setting(0.0, nesterov, 1.0)]
    seeds, lr, n_steps = (3, 7), 0.05, 4
    stack, generator = digits.Stack.of(settings, lr, seeds), torch.Generator().manual_seed(1)
    start = [weight.clone() for weight in stack.weights]
    x = torch.randn(n_steps, 2, 64, 5, generator=generator)
    labels = torch.randint(10, (n_steps, 2, 5), generator=generator)
    for step in range(n_steps):
        found = digits.gradients(stack.weights, x[step], labels[step])
        stack.step(found.weights, step + 1)
    for i, own in enumerate(settings):
        for j in range(len(seeds)):
            weights = [weight[i, j].clone().requires_grad_() for weight in start]
            momenta = [torch.zeros_like(weight) for weight in weights]
            for step in range(n_steps):
                hidden = torch.relu(weights[1] @ torch.relu(weights[0] @ x[step, j]))
                loss = cross_entropy((weights[2] @ hidden).T, labels[step, j])
                grads = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for weight, momentum, gradient in zip(weights, momenta, grads, strict=True):
                        momentum.copy_(own.momentum * momentum + (1 - own.momentum) * gradient)
                        ahead = own.momentum * momentum + (1 - own.momentum) * gradient if nesterov else momentum
                        polar = orthogonalize(ahead, schedule="polar_express", n_steps=5, dtype="float32")
                        weight.copy_((1 - lr * own.weight_decay) * weight - lr * polar)
            assert found.losses[i, j].item() == pytest.approx(loss.item(), rel=1e-4)
            for stacked, single in zip(stack.weights, weights, strict=True):
                torch.testing.assert_close(stacked[i, j], single.detach(), rtol=1e-3, atol=1e-4)


def test_a_settings_run_does_not_depend_on_its_company() -> None:
    """Nor on settings that stop earlier: the same images, the same start."""
    settings = [setting(0.8), setting(0.95, weight_decay=0.3)]
    together = digits.train(settings, batch=64, lr=0.04, seeds=(0, 1), target=0.5)
    for run, own in zip(together, settings, strict=True):
        (alone,) = digits.train([own], batch=64, lr=0.04, seeds=(0, 1), target=0.5)
        np.testing.assert_allclose(run.losses, alone.losses, rtol=2e-3)
        assert run.steps_to(0.5) == pytest.approx(alone.steps_to(0.5), rel=2e-3)


def test_training_learns_and_stops_at_the_target() -> None:
    (run,) = digits.train([setting()], batch=64, lr=0.02, seeds=(0, 1), target=0.2)
    reached = run.steps_to(0.2)
    assert reached is not None
    assert 30 < reached < 80
    assert np.isnan(run.losses[:, -1]).all()  # all seeds were below the target long before
    assert run.steps_to(1.0) < reached  # type: ignore[operator]
    weights = digits.initialize(1, (0, 1))
    assert max(float(torch.linalg.matrix_norm(w, ord=2).max()) for w in weights) < 1 / lab.DECAY
    shown = digits.images().pixels[:100].T, digits.images().digits[:100]
    assert digits.losses(weights, *shown).mean().item() == pytest.approx(math.log(10), abs=0.8)


def test_steps_to_a_target_are_interpolated_and_smoothed() -> None:
    steps = digits.evaluations(0.02)
    falling = 50 / np.array(steps, dtype=float)
    run = digits.Run(setting=setting(), batch=8, lr=0.02, steps=steps, losses=np.stack([falling, falling]))
    assert run.steps_to(0.5) == pytest.approx(100 * 2 ** (1 / digits._PER_OCTAVE), rel=0.02)  # the lag of the mean
    assert run.steps_to(0.001) is None
    assert run.steps_to(1e3) == steps[0]
    lucky = falling.copy()
    lucky[4] = 0.2  # one evaluation below the target, its neighbors far above
    once = digits.Run(setting=setting(), batch=8, lr=0.02, steps=steps, losses=lucky[None])
    assert once.steps_to(0.5) == pytest.approx(run.steps_to(0.5))
    assert steps[-1] == round(digits.REACH / 0.02)


def test_settings_that_cannot_be_stacked_or_overshoot() -> None:
    with pytest.raises(ValueError, match="unpack"):
        digits.Stack.of([setting(), setting(nesterov=False)], 0.1, (0,))
    with pytest.raises(FitError, match="at most 1"):
        digits.Stack.of([setting(weight_decay=3.0)], 0.4, (0,))


def test_a_planted_form_comes_back_from_its_runs() -> None:
    form = BoundForm(steps_at_infinity=50, y=3.0)  # b* = 20.25
    part = lab.at_fixed_lr(planted(form, noise=0.03), rng=np.random.default_rng(0))
    assert part.steps[:6] == (None,) * 6  # batches up to 9, and 6 / 0.02 = 300 steps at most: 11 is there
    assert part.fit is not None
    assert part.fit.form.best_batch == pytest.approx(20.25, rel=0.08)
    assert 0.9 * 20.25 < part.fit.interval.low < part.fit.interval.high < 1.1 * 20.25
    assert part.measured is not None
    assert part.measured_interval is not None
    assert part.measured.batch == pytest.approx(20.25, rel=0.3)
    document = part.to_json()
    assert (document["unit"], document["target_loss"]) == ("examples", lab.TARGET)


def test_a_planted_ratio_is_measured() -> None:
    rng = np.random.default_rng(0)
    reference = lab.at_fixed_lr(planted(BoundForm(steps_at_infinity=50, y=4.0), noise=0.03), rng=rng)
    moved = planted(BoundForm(steps_at_infinity=50, y=4.0 * 0.435**0.5), noise=0.03, of=lab.SETTINGS[5])
    found = lab.compare(lab.at_fixed_lr(moved, rng=rng), reference)
    assert found.predicted.older == pytest.approx(0.435, abs=1e-3)
    assert found.measured == pytest.approx(0.435, rel=0.12)
    assert found.verdicts == {"theory": "agrees"}
    assert found.supported


@pytest.mark.parametrize(
    ("predicted", "low", "high", "said"),
    [
        (0.4, 0.3, 0.5, "agrees"),
        (0.4, 0.3, 1.2, "not resolved"),
        (0.4, 0.9, 1.2, "no move seen"),
        (0.4, 0.6, 0.9, "right direction, wrong size"),
        (2.0, 2.1, 3.0, "right direction, wrong size"),
        (0.4, 1.1, 1.2, "opposite direction"),
        (None, 1.1, 1.2, "no prediction"),
    ],
)
def test_verdicts(predicted: float | None, low: float, high: float, said: str) -> None:
    assert lab.verdict(predicted, Interval(low=low, high=high, level=0.9)) == said
    assert lab.verdict(0.4, None) == "not measured"


def test_a_tuned_learning_rate_gives_a_planted_hyperbola() -> None:
    """Steps are a parabola in log lr whose vertex lies on S_min (1 + B_c / b), and moves with the root of the batch."""
    steps_min, critical, runs = 30.0, 24.0, []
    for batch in (4, 8, 16, 32, 64, 128):
        for lr in lab.LRS:
            best = 0.005 * (batch / 4) ** 0.5
            needed = steps_min * (1 + critical / batch) * math.exp(0.2 * math.log(lr / best) ** 2)
            steps = tuple(range(1, 3000, 1))
            losses = np.minimum(lab.TARGET * (needed / np.array(steps)) ** 40, 2.3)[None]
            runs.append(digits.Run(setting=lab.REFERENCE, batch=batch, lr=lr, steps=steps, losses=losses))
    found = lab.tune(runs)
    assert found.edges == ()
    assert found.fit is not None
    assert found.fit.critical_batch_tokens == pytest.approx(critical, rel=0.05)
    assert found.fit.min_steps == pytest.approx(steps_min, rel=0.05)
    assert found.lr_exponent == pytest.approx(0.5, abs=0.02)
    assert found.resolved
    at_edge = lab.tune([run for run in runs if run.lr <= 0.02])
    assert at_edge.edges == (64, 128)


def test_nothing_reached_is_said_and_drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run of every setting stays above the target."""
    monkeypatch.setattr(lab, "LRS", (0.01, 0.02))
    never = BoundForm(steps_at_infinity=1e6, y=0.1)
    study = lab.study(
        [run for setting in lab.SETTINGS for lr in lab.LRS for run in planted(never, lr=lr, of=setting, seeds=1)],
        rng=np.random.default_rng(0),
    )
    assert all(part.fit is None for part in study.fixed)
    lab_tables.show_muon_digits(study)
    printed = capsys.readouterr().out
    assert "reached at 0 batches" in printed
    assert "not measured" in printed
    assert len(cli_muon_digits._figure(study).axes) == 4
    json.dumps(study.to_json(), allow_nan=False)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_sklearn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    digits.images.cache_clear()
    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(ConfigError, match=r"\[labs\]"):
        digits.images()
    refused = invoke("lab", "muon-digits", "--batches", "16,32,64,128", "--seeds", 1)
    assert (refused.exit_code, "scikit-learn" in refused.stderr) == (2, True)


def test_batches_are_checked() -> None:
    refused = invoke("lab", "muon-digits", "--batches", "16,32,64")
    assert (refused.exit_code, "four or more" in refused.stderr) == (2, True)


def test_muon_digits_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "LRS", (0.02, 0.04))
    shown = invoke("lab", "muon-digits", "--batches", "16,32,64,128", "--seeds", 1, "--out", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "never gives an absolute" in shown.stdout
    assert shown.stdout.count("momentum 0.9 to 0.95") >= 2
    document = json.loads((tmp_path / "muon_digits.json").read_text())
    again = invoke("lab", "muon-digits", "--batches", "16,32,64,128", "--seeds", 1, "--json")
    assert document == json.loads(again.stdout)
    assert len(document["fixed_lr"]) == 2 * len(lab.SETTINGS)
    assert any(part["fit"] for part in document["fixed_lr"])
    assert (tmp_path / "muon_digits.svg").exists()
