"""The noisy quadratic lab: its closed form against simulated SGD, and what a sweep over batches would find on it."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.hyperbola import fit_hyperbola
from analysis.noise_scale import NoisePoints, noise_scale
from tests.transfer_helpers import invoke
from transfer.labs import noisy_quadratic as lab


@pytest.fixture(scope="module")
def studies() -> list[lab.Study]:
    return [lab.study(target) for target in lab.TARGETS]


def test_simulated_sgd_has_these_moments() -> None:
    """Mean theta_i^2 of 4000 runs of SGD, each at its own noise, within 5 errors in every dimension."""
    rng, lr, batch, steps, runs, dims = np.random.default_rng(1), 0.7, 3, 25, 4000, 40
    h = lab.curvatures()[:dims]
    theta = np.ones((runs, dims))
    for _ in range(steps):
        theta -= lr * (h * theta + rng.standard_normal(theta.shape) * np.sqrt(h / batch))
    predicted = lab.second_moments(np.array([lr]), batch, np.array([float(steps)]))[0, :dims]
    error = (theta**2).std(axis=0) / np.sqrt(runs)
    assert np.all(np.abs((theta**2).mean(axis=0) - predicted) < 5 * error)


@pytest.mark.parametrize(("lr", "batch"), [(0.05, 1), (0.9, 16), (1.9, 4096)])
def test_the_loss_at_these_steps_is_the_target(lr: float, batch: int) -> None:
    h, lrs = lab.curvatures(), np.array([lr])
    steps = lab.steps_to(0.2, lrs, batch)
    for times, sign in ((0.97, 1), (1.0, 0), (1.03, -1)):
        loss = lab.second_moments(lrs, batch, times * steps)[0] @ h / 2
        assert loss - 0.2 == pytest.approx(0, abs=1e-12) if sign == 0 else np.sign(loss - 0.2) == sign


def test_an_lr_whose_noise_holds_the_loss_up_never_arrives() -> None:
    """At batch 1 the loss cannot fall below about lr/4 sum h: 0.2 needs lr of about 0.1."""
    steps = lab.steps_to(0.2, np.array([0.08, 0.2]), 1)
    assert np.isfinite(steps).tolist() == [True, False]


def test_the_loss_falls_without_turning_where_it_arrives() -> None:
    """What the bisection rests on, at every lr of the grid."""
    lrs = np.geomspace(*lab.LR_RANGE, lab.N_LRS)
    for batch in (1, 16, 1024):
        arrive = lrs[np.isfinite(lab.steps_to(lab.TARGETS[0], lrs, batch))]
        times = np.geomspace(1, 1e6, 200)
        losses = np.stack(
            [lab.second_moments(arrive, batch, np.full(len(arrive), t)) @ lab.curvatures() for t in times]
        )
        assert np.all(np.diff(losses, axis=0) <= 1e-12)


def test_the_best_lr_is_a_minimum() -> None:
    cell = lab.best_cell(32, 0.2)
    around = lab.steps_to(0.2, cell.lr * np.array([0.97, 1.0, 1.03]), 32)
    assert around.argmin() == 1
    assert around[1] == pytest.approx(cell.steps, rel=1e-6)


def test_the_hyperbola_holds(studies: list[lab.Study]) -> None:
    for study in studies:
        assert study.hyperbola.side == "inside"
        assert study.largest_log_residual < 0.16
        assert study.largest_log_residual > 0.02  # a form, not an identity


def test_twenty_percent_point(studies: list[lab.Study]) -> None:
    """Near a fifth of B_c above the hyperbola's E_min; above the fewest examples measured, themselves more, later."""
    for study in studies:
        assert 0.16 < study.overhead_batch / study.critical_batch < 0.26
        assert 0.3 < study.overhead_batch_measured / study.critical_batch < 0.45


def test_lr_goes_with_the_batch_below_and_stays_above(studies: list[lab.Study]) -> None:
    for study in studies:
        assert 0.93 < study.slope_below < 1.02
        assert abs(study.slope_above) < 0.07


def test_noise_scale_is_no_absolute_critical_batch(studies: list[lab.Study]) -> None:
    """At one loss it differs 8-fold and more between runs that differ in batch alone, and is never B_c."""
    for study in studies:
        assert min(study.noise_ratios) > 1.5
        assert max(study.noise_ratios) > 15
        assert max(study.noise_ratios) > 8 * min(study.noise_ratios)


def test_noise_scale_moves_as_the_critical_batch_does(studies: list[lab.Study]) -> None:
    """Its use: at one batch both rise as the loss falls, here by factors of 3 and 4."""
    first, last = studies[0], studies[-1]
    assert last.critical_batch > 2 * first.critical_batch
    assert last.cells[0].noise_scale > 2 * first.cells[0].noise_scale


def test_noise_scale_is_what_the_estimator_finds() -> None:
    """Gradients drawn at a cell's arrival, put through `analysis.noise_scale`."""
    rng, cell, h = np.random.default_rng(2), lab.best_cell(8, 0.5), lab.curvatures()
    moments = lab.second_moments(np.array([cell.lr]), 8, np.array([cell.steps]))[0]
    steps, micro, batch = 600, 4, 32
    true = h * np.sqrt(moments) * rng.standard_normal((steps, 1, lab.DIMENSIONS))
    gradients = true + np.sqrt(h / micro) * rng.standard_normal((steps, batch // micro, lab.DIMENSIONS))
    found = noise_scale(
        NoisePoints(
            tokens=np.arange(1.0, steps + 1),
            micro_sq=(gradients**2).sum(axis=2).mean(axis=1),
            batch_sq=(gradients.mean(axis=1) ** 2).sum(axis=1),
            micro_tokens=np.full(steps, float(micro)),
            batch_tokens=np.full(steps, float(batch)),
        ),
        level=0.99,
    )
    assert found.interval is not None
    assert found.interval.contains(cell.noise_scale)
    assert found.interval.width < cell.noise_scale


def test_fixed_lr_fakes_a_critical_batch(studies: list[lab.Study]) -> None:
    """Without a new lr at each batch, the one best for batch 1 shows a B_c less than a third of the real one."""
    study = studies[-1]
    lrs = np.array([study.cells[0].lr])
    tokens = [batch * float(lab.steps_to(study.target, lrs, batch)[0]) for batch in lab.BATCHES]
    assert fit_hyperbola(lab.BATCHES, tokens).critical_batch_tokens < study.critical_batch / 3


@pytest.mark.parametrize("target", [0.0, 0.51, -1.0])
def test_refuses_a_target_it_cannot_solve(target: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.5"):
        lab.best_cell(8, target)


def test_noisy_quadratic_prints_and_writes(tmp_path: Path) -> None:
    shown = invoke("lab", "noisy-quadratic", "--out", tmp_path)
    assert shown.exit_code == 0
    assert shown.stdout.count("not an absolute critical batch") == len(lab.TARGETS)
    document = json.loads((tmp_path / "noisy_quadratic.json").read_text())
    assert [study["target_loss"] for study in document["studies"]] == list(lab.TARGETS)
    assert document["studies"][0]["critical_batch"]["definition"] == "hyperbola"
    assert document["studies"][0]["critical_batch"]["unit"] == "examples"
    assert (tmp_path / "noisy_quadratic.svg").exists()


def test_committed_results_are_what_the_lab_gives(studies: list[lab.Study]) -> None:
    committed = json.loads((Path(__file__).parents[1] / "results/lab_noisy_quadratic/noisy_quadratic.json").read_text())
    for study, document in zip(studies, committed["studies"], strict=True):
        assert document["critical_batch"]["value"] == pytest.approx(study.critical_batch, rel=1e-3)
        assert document["noise_scale_over_critical_batch"] == pytest.approx(list(study.noise_ratios), rel=1e-3)
