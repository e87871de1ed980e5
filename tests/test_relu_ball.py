"""The ball lab: gradients and Adam against torch's, paired data, and a small sweep through to the verdict."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from analysis.fast_transfer import Verdict
from analysis.surface import Surface
from tests.transfer_helpers import invoke
from transfer.labs import relu_ball as lab


def _stack(width: int, members: int) -> lab.Stack:
    """Members that differ, with biases."""
    stack = lab.initialize(width, members, seed=1)
    noise = torch.Generator().manual_seed(7)
    stack.hidden += 0.1 * torch.randn(stack.hidden.shape, generator=noise)
    stack.readout += 0.1 * torch.randn(stack.readout.shape, generator=noise)
    return stack


def _loss(hidden: torch.Tensor, readout: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of one member, as written in the paper, times muP's multiplier."""
    weights, biases = hidden[:, :-1], hidden[:, -1]
    logits = lab.BASE_WIDTH / len(readout) * torch.relu(x[:, :-1] @ weights.T + biases) @ readout
    return binary_cross_entropy_with_logits(logits, y)


def test_gradients_are_autograds() -> None:
    stack = _stack(width=48, members=3)
    x, y = lab.batch(torch.Generator().manual_seed(2))
    found = lab.gradients(stack, x, y)
    for i in range(3):
        hidden, readout = (p[i].clone().requires_grad_() for p in (stack.hidden, stack.readout))
        loss = _loss(hidden, readout, x, y)
        loss.backward()
        torch.testing.assert_close(found.losses[i], loss.detach())
        torch.testing.assert_close(found.hidden[i], hidden.grad, atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(found.readout[i], readout.grad, atol=1e-7, rtol=1e-4)


def test_adam_is_torchs_for_every_member() -> None:
    lrs = (2e-3, 3e-2)
    stack = _stack(width=20, members=2)
    members = [[p[i].clone() for p in (stack.hidden, stack.readout)] for i in range(2)]
    optimizers = [torch.optim.Adam(params, lr=lr) for params, lr in zip(members, lrs, strict=True)]
    adam, noise = lab.Adam(stack, lrs), torch.Generator().manual_seed(3)
    for step in range(8):
        hidden, readout = (torch.randn(p.shape, generator=noise) * 0.5**step for p in (stack.hidden, stack.readout))
        adam.step(stack, lab.Gradients(torch.zeros(2), hidden, readout))
        for i, optimizer in enumerate(optimizers):
            members[i][0].grad, members[i][1].grad = hidden[i].clone(), readout[i].clone()
            optimizer.step()
    for i in range(2):
        torch.testing.assert_close(stack.hidden[i], members[i][0])
        torch.testing.assert_close(stack.readout[i], members[i][1])


def test_labels_are_balanced_and_radial() -> None:
    samples = torch.Generator().manual_seed(4)
    batches = [lab.batch(samples) for _ in range(200)]
    assert float(torch.cat([y for _, y in batches]).mean()) == pytest.approx(0.5, abs=0.01)  # 4.5 standard errors
    x, y = batches[0]
    squares = x[:, :-1].square().sum(dim=1)
    assert squares[y == 1].min() > squares[y == 0].max()
    assert torch.all(x[:, -1] == 1)


@pytest.mark.parametrize("width", [128, 2048])
def test_initialization_is_mups(width: int) -> None:
    """Weights of variance 1/d, logits that fall as n^-1/2."""
    stack = lab.initialize(width, 2, seed=5)
    assert float(stack.hidden[0, :, :-1].std()) == pytest.approx(1 / 8, rel=0.05)
    assert torch.all(stack.hidden[..., -1] == 0)
    assert float(stack.readout[1].std()) == pytest.approx(128**-0.5, rel=0.2)
    x, _ = lab.batch(torch.Generator().manual_seed(6))
    units = torch.relu(x @ stack.hidden[0].T)
    logits = 128 / width * units @ stack.readout[0]
    assert float(logits.square().mean().sqrt()) * math.sqrt(width / 128) == pytest.approx(0.5**0.5, rel=0.5)


def test_a_members_loss_depends_on_its_lr_and_seed_alone() -> None:
    """Not on what trains beside it; and all members of a seed see the same start and samples."""
    together = lab.train(16, [1e-3, 1e-2, 1e-3], seed=2, steps=40)
    assert together[0] == together[2] != together[1]
    assert lab.train(16, [1e-2], seed=2, steps=40) == pytest.approx(together[1:2], rel=1e-5)
    assert lab.train(16, [1e-2], seed=3, steps=40) != pytest.approx(together[1:2], rel=1e-3)


def test_the_measured_loss_is_that_of_unseen_samples() -> None:
    """At a learning rate of 0 it is the loss at the start; one that overflows has none."""
    untrained, exploded = lab.train(32, [0.0, 1e30], seed=1, steps=64)
    stack, fresh = lab.initialize(32, 1, seed=1), torch.Generator().manual_seed(99)
    wanted = np.mean([float(lab.gradients(stack, *lab.batch(fresh)).losses) for _ in range(50)])
    assert untrained == pytest.approx(wanted, abs=0.02)
    assert exploded is None


def test_a_small_sweep() -> None:
    """Equal whatever the number of workers; wider is better."""
    widths, done = (16, 32, 64, 128), list[lab.Done]()
    first = lab.surfaces(widths, n_seeds=2, steps=200, workers=2, on_done=done.append)
    assert sum(part.work for part in done) == lab.total_work(widths, 2)
    assert first[:1] == lab.surfaces(widths[:1], n_seeds=2, steps=200, workers=1)
    study = lab.study(first, steps=200, rng=np.random.default_rng(0))
    losses = [optimum.loss for optimum in study.optima]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] + 0.05 < losses[0] < math.log(2)


def test_the_published_laws_are_slow() -> None:
    """Of arXiv:2512.22768, planted: loss 0.108 + 6.37 n^-0.742, log2 optimum -6.78 - 7.80 n^-0.388.

    kappa is -0.034, so optima have to be known to a few thousandths of an octave for it to be told from fast.
    """
    rng, log2_lrs = np.random.default_rng(8), np.arange(-9.0, -4.9, 1 / 32)

    def measured(width: int) -> Surface:
        best, lowest = -6.78 - 7.80 * width**-0.388, 0.108 + 6.37 * width**-0.742
        losses = lowest + 0.01 * (log2_lrs - best)[:, None] ** 2 + 1e-5 * rng.standard_normal((len(log2_lrs), 3))
        axes = {"log2_values": tuple(log2_lrs.tolist()), "seeds": (0, 1, 2)}
        return Surface(optimizer="adam", width=width, losses=tuple(map(tuple, losses.tolist())), **axes)

    study = lab.study([measured(round(181 * 2**k)) for k in range(7)], steps=2**14, rng=rng)
    assert study.transfer is not None
    assert study.transfer.verdict is Verdict.SLOW
    assert study.transfer.alpha.value == pytest.approx(0.742, abs=0.01)
    assert study.transfer.beta.value == pytest.approx(0.388, abs=0.01)
    assert study.to_json()["transfer"]["verdict"] == "slow"


def test_an_edge_is_reported_and_not_hidden() -> None:
    rising = [
        Surface(
            optimizer="adam",
            width=width,
            log2_values=(-4.0, -3.0, -2.0, -1.0),
            seeds=(0, 1),
            losses=tuple((0.1 * i + 1 / width, 0.1 * i + 2 / width) for i in range(4)),
        )
        for width in (16, 32, 64, 128)
    ]
    study = lab.study(rising, steps=400, rng=np.random.default_rng(0))
    assert study.transfer is None
    assert "at an edge" in (study.no_verdict or "")
    assert study.to_json()["no_verdict"] == study.no_verdict


def test_relu_ball_prints_and_writes(tmp_path: Path) -> None:
    options = ("--widths", "64,16,32,48", "--steps", 32, "--seeds", 2)
    shown = invoke("lab", "relu-ball", *options, "--out", tmp_path)
    assert (shown.exit_code, "two-layer ReLU" in shown.stdout) == (0, True)
    document = json.loads((tmp_path / "relu_ball.json").read_text())
    assert [surface["width"] for surface in document["surfaces"]] == [16, 32, 48, 64]
    assert document == json.loads(invoke("lab", "relu-ball", *options, "--json").stdout)
    assert (tmp_path / "relu_ball.svg").exists()


@pytest.mark.parametrize("widths", ["64,128,256", "64,128,256,wide", "64,128,256,256", "0,64,128,256", ""])
def test_widths_that_carry_no_rate_are_refused(widths: str) -> None:
    refused = invoke("lab", "relu-ball", "--widths", widths)
    assert refused.exit_code == 2
    assert "four or more different whole numbers" in " ".join(refused.stderr.replace("│", " ").split())
