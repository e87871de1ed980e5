"""The loop: same trial, same number; learning; divergence as data; the schedule multiplies every group."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from proxy_models.accounting import training_flops
from proxy_models.data import batch, validation_windows
from proxy_models.optimizer_config import AdamW, Muon, OptimizerConfig, Scale
from proxy_models.parametrization import scale_role
from proxy_models.schedule import schedule_factor
from proxy_models.train import Watch
from proxy_models.training import Training
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run, with_hparams

DATA = cyclic_data()
TIMES = ("train_seconds", "tokens_per_second", "flops_utilization")


@pytest.mark.parametrize("optimizer", [AdamW(), Muon(), Scale()], ids=lambda o: o.name)
def test_same_trial_same_number_and_it_learns(optimizer: OptimizerConfig) -> None:
    """Alone or in any place of a pack, bitwise; and well below the loss of guessing."""
    run = tiny_run(optimizer=optimizer, train_tokens=6400, hparams={"lr": 0.02})
    other = replace(run, seed=8)
    alone = [outcome for r in (run, other) for outcome in outcomes([r], DATA)]
    together = outcomes([other, run], DATA)[::-1]
    for a, b in zip(alone, together, strict=True):
        assert {k: v for k, v in asdict(a).items() if k not in TIMES} == {
            k: v for k, v in asdict(b).items() if k not in TIMES
        }
    assert alone[0].validation_loss != alone[1].validation_loss
    assert alone[0].validation_loss is not None
    assert alone[0].validation_loss < 0.7 * math.log(64)
    assert alone[0].curve_steps[-1] == 100
    assert alone[0].curve_losses[0] == pytest.approx(math.log(64), rel=0.05)  # zero readout: uniform guesses


def test_validation_loss_and_its_standard_error_are_those_of_the_held_out_windows() -> None:
    run = tiny_run(train_tokens=640)
    training = Training([run], DATA)
    for _ in range(run.steps):
        training.step()
    windows = torch.from_numpy(validation_windows(DATA, validation_tokens=256, seq_len=16))
    with torch.no_grad():
        logits = training.forward(windows[:, :-1]).double()
    per_sequence = F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").mean(1)
    ((loss, se),) = training.validate()
    assert len(windows) == 16
    assert loss == pytest.approx(per_sequence.mean().item(), rel=1e-6)
    assert se == pytest.approx(np.std(per_sequence.numpy(), ddof=1) / 4, rel=1e-5)


def test_divergence_is_reported_not_raised() -> None:
    run = tiny_run(hparams={"lr": 1e4, "clip_norm": None}, train_tokens=6400)
    (outcome,) = outcomes([run], DATA)
    assert outcome.diverged_step is not None
    assert outcome.diverged_step < 100
    assert outcome.validation_loss is None
    assert outcome.flops == pytest.approx(training_flops(run) * outcome.diverged_step / 100)


def test_a_run_that_ends_above_its_start_has_diverged() -> None:
    """Not exploding, but worse than guessing: no loss to fit."""
    data = replace(DATA, validation=DATA.validation[::-1].copy())  # what it learns is wrong there
    (outcome,) = outcomes([tiny_run(train_tokens=6400, hparams={"lr": 0.05})], data)
    assert outcome.diverged_step == 100
    assert outcome.validation_loss is None


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, int]] = []
    runs = [tiny_run(train_tokens=192), tiny_run(train_tokens=192, seed=1)]
    outcomes(runs, DATA, watch=Watch(on_step=lambda member, done, loss: seen.append((member, done))))
    assert seen == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]


def test_warmup_stable_decay_in_tokens() -> None:
    run = tiny_run(
        train_tokens=6400, hparams={"warmup_tokens": 640, "decay_tokens": 1280, "final_lr_frac": 0.2}
    )  # 100 steps: 10 up, 70 flat, 20 down
    factors = [schedule_factor(run, step) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 0.5) / 10 for i in range(10)])
    assert set(factors[10:80]) == {1.0}
    assert factors[80:] == pytest.approx([0.2 + 0.8 * (19.5 - i) / 20 for i in range(20)])
    # The same schedule at twice the batch passes through the same factors per token.
    doubled = with_hparams(run, batch_tokens=128)
    assert schedule_factor(doubled, 4) == pytest.approx((factors[8] + factors[9]) / 2)


def test_cosine_in_tokens() -> None:
    run = tiny_run(train_tokens=6400, schedule="cosine", hparams={"warmup_tokens": 640, "final_lr_frac": 0.1})
    assert schedule_factor(run, 54) == pytest.approx(0.55, abs=0.01)  # half way down
    assert schedule_factor(run, 99) == pytest.approx(0.1, abs=0.001)
    factors = [schedule_factor(run, step) for step in range(10, 100)]
    assert factors == sorted(factors, reverse=True)


def test_the_schedule_multiplies_each_groups_own_peak() -> None:
    """Half the factor moves every group half as far (Adam's first step has the size of its lr)."""
    moved = []
    for warmup in (0, 64 * 2):  # factor of the first step: 1, then 1/4
        run = tiny_run(hparams={"warmup_tokens": warmup, "embedding_lr_ratio": 5.0, "eps": 1e-30, "clip_norm": None})
        training = Training([run], DATA)
        before = [w.detach().clone() for w in training.weights]
        training.step()
        moved.append([(w.detach() - b).abs().max().item() for w, b in zip(training.weights, before, strict=True)])
    for stack, full, quarter in zip(training.layouts, *moved, strict=True):
        lr = scale_role(run, stack.role).effective_lr
        if full > 0:  # behind a zero readout nothing else has a gradient yet
            assert full == pytest.approx(lr, rel=1e-3)
            assert quarter == pytest.approx(lr / 4, rel=1e-3)


def test_every_learning_rate_sees_the_same_data() -> None:
    first, second = (batch(DATA, seed=4, step=step, batch_tokens=64, seq_len=16) for step in (0, 1))
    assert first.shape == (4, 17)
    assert not np.array_equal(first, second)
    low, high = (Training([tiny_run(hparams={"lr": lr})], DATA) for lr in (0.001, 0.1))
    low.step()
    assert torch.equal(low.windows(7), high.windows(7))
