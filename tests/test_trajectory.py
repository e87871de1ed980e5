"""The trajectory decomposition: spectra against numpy, sums against true losses, and planted curves."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from analysis.figures.trajectory import trajectory_decomposition
from analysis.interval import FitError, Floats
from analysis.trajectory import (
    Limits,
    TopLosses,
    convexity_error,
    descend,
    place,
    select,
    steepest,
    study,
)
from proxy_models.checks import ConfigError
from proxy_models.optimizer_config import AdamW, Muon
from proxy_models.roles import Role
from proxy_models.stacks import Stack
from proxy_models.train import Watch
from proxy_models.training import Training
from proxy_models.trajectory import Following, alignment_eigenvalues, decompose_run, top_parts
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run
from tests.transfer_helpers import write_tiny
from transfer import cli_trajectory
from transfer.labs.trajectory import kinds

DATA = cyclic_data()
RNG = np.random.default_rng(4)


def matrices(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    gradient, step = (torch.randn(shape, generator=generator) for _ in range(2))
    return gradient, step - 0.2 * gradient


def largest_first(gradient: Floats, step: Floats) -> Floats:
    """Eigenvalues of the dense alignment matrix, by numpy's general solver."""
    dense = (gradient.T @ step + step.T @ gradient) / 2
    eigenvalues = np.linalg.eig(dense)[0].real
    return eigenvalues[np.argsort(-np.abs(eigenvalues))]


def test_spectrum_is_that_of_the_dense_alignment_matrix() -> None:
    gradients, steps = matrices(2, 7, 5)
    found = alignment_eigenvalues(gradients, steps).numpy()
    for i in range(2):
        assert found[i] == pytest.approx(largest_first(gradients[i].double().numpy(), steps[i].double().numpy()))
    assert (found < 0).any()  # of both signs, so that the order by size is not that by value
    assert (found > 0).any()
    assert found.sum(-1) == pytest.approx((gradients * steps).sum((-2, -1)).numpy(), rel=1e-5)


def test_a_step_along_the_gradient_has_the_gradients_own_spectrum() -> None:
    gradient, _ = matrices(6, 4)
    squares = np.linalg.svd(gradient.double().numpy(), compute_uv=False) ** 2
    assert alignment_eigenvalues(gradient, -0.3 * gradient).numpy() == pytest.approx(-0.3 * squares)


@pytest.mark.parametrize(("shape", "rows"), [((15, 5), False), ((5, 15), True), ((5, 5), False)])
def test_k_runs_over_the_side_that_is_the_width(shape: tuple[int, int], rows: bool) -> None:
    gradients, steps = matrices(1, *shape)
    stack = Stack(role=Role.HIDDEN, shape=shape, names=("only",))
    gradient, step = (m[0].double().numpy() for m in (gradients, steps))
    wanted = largest_first(gradient.T, step.T) if rows else largest_first(gradient, step)
    top = top_parts(stack, gradients, steps, width=5).numpy()
    assert top == pytest.approx(wanted.cumsum()[None])
    assert top[0, -1] == pytest.approx(np.sum(gradient * step))


def test_of_a_vector_there_is_the_inner_product() -> None:
    gradients, steps = matrices(3, 8)
    stack = Stack(role=Role.VECTOR, shape=(8,), names=("a", "b", "c"))
    found = top_parts(stack, gradients, steps, width=8).numpy()
    assert found[:, 0] == pytest.approx(np.einsum("ln,ln->l", gradients.double(), steps.double()))


def following(**changes: Any) -> Following:
    """Every iterate of a run of ten steps as it is, unless told otherwise."""
    settings: dict[str, Any] = {"first_window": 0.1, "last_window": 0.1, "last_interval": 1, "gradient_batches": 3}
    return Following(**{**settings, **changes})


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=lambda o: o.name)
def test_parts_are_those_of_the_iterates(optimizer: Any) -> None:
    """Without averaging: inner products of Simpson's mean gradients and steps, parameter by parameter, made here."""
    run = tiny_run(optimizer=optimizer, width=24)
    found = decompose_run(run, DATA, following=following())
    assert found is not None
    training = Training([run], DATA)
    windows = torch.cat([training.windows(step) for step in (10, 11, 12)], dim=1)
    weights, gradients, losses = [], [], []
    for done in range(11):
        loss, gradient = training.gradients(windows, training.weights)
        losses.append(loss.item())
        gradients.append(gradient)
        weights.append([w.detach().clone() for w in training.weights])
        if done < 10:
            training.step()
    middles = []
    for before, after in itertools.pairwise(weights):
        middle = [((a + b) / 2).requires_grad_() for a, b in zip(before, after, strict=True)]
        middles.append(training.gradients(windows, middle)[1])
    means = [
        [(a + 4 * b + c) / 6 for a, b, c in zip(*three, strict=True)]
        for three in zip(gradients[:-1], middles, gradients[1:], strict=True)
    ]
    wanted = {
        name: sum(float((means[t][i] * (weights[t + 1][i] - weights[t][i]))[0, j].sum()) for t in range(10))
        for i, stack in enumerate(training.layouts)
        for j, name in enumerate(stack.names)
    }
    assert {part.name: part.total for part in found.parts} == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert found.last_iterate_loss == pytest.approx(losses[-1], rel=1e-5)
    assert found.top[-1] == pytest.approx(found.linearized)
    assert len(found.top) == 24
    assert {part.shape for part in found.parts if len(part.top) == 1} == {(24,), (8,)}
    assert sum(top[-1] for top in kinds(found).values()) == pytest.approx(
        sum(wanted[part.name] for part in found.parts if part.role is not Role.VECTOR), rel=1e-3
    )
    assert {"embedding", "readout", "attention.query", "mlp.down"} <= set(kinds(found))


def test_the_sum_tends_to_the_change_of_the_loss() -> None:
    """Within 0.3 % looking every 12 steps, 0.05 % every 4, and to rounding every step."""
    run = tiny_run(train_tokens=3840, hparams={"lr": 0.03, "readout_lr_ratio": 4.0})
    errors = []
    for interval, tolerance in ((12, 3e-3), (4, 5e-4), (1, 1e-5)):
        averaged = following(last_window=0.1, first_interval=interval, last_interval=interval)
        found = decompose_run(run, DATA, following=averaged)
        assert found is not None
        errors.append(abs(found.linearized / found.change - 1))
        assert errors[-1] < tolerance
    assert found.change < -1.2
    assert errors == sorted(errors, reverse=True)


def test_following_changes_no_number_and_sees_every_iterate() -> None:
    run, seen = tiny_run(optimizer=Muon()), []
    (plain,), (followed,) = (
        outcomes([run], DATA),
        outcomes([run], DATA, watch=Watch(follow=lambda training, done: seen.append((done, training.step_count)))),
    )
    assert seen == [(step, step) for step in range(11)]
    assert (followed.curve_losses, followed.validation_loss) == (plain.curve_losses, plain.validation_loss)
    found = decompose_run(run, DATA)
    assert found is not None
    assert found.validation_loss == plain.validation_loss


def test_what_diverges_has_no_decomposition() -> None:
    assert decompose_run(tiny_run(hparams={"lr": 1e4, "clip_norm": None}, train_tokens=6400), DATA) is None


def test_windows_and_intervals_grow_and_stay() -> None:
    growing = Following(first_window=0.05, last_window=0.25, ramp=0.5, first_interval=1, last_interval=5)
    assert growing.decay(0, 40) == pytest.approx(1 - 1 / 2)
    assert growing.decay(10, 40) == pytest.approx(1 - 1 / 6)
    assert growing.decay(20, 40) == growing.decay(40, 40) == pytest.approx(1 - 1 / 10)
    assert growing.decay(1, 4) == 0  # a window below one step
    assert growing.gradients(40) == 4 * (15 + 14)
    assert growing.snapshots(40) == (0, 1, 2, 3, 5, 7, 9, 12, 15, 19, 24, 29, 34, 39, 40)
    assert Following(last_interval=1).snapshots(3) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_window": 0.3, "last_window": 0.2}, "windows must grow"),
        ({"ramp": 0.0}, "ramp must be"),
        ({"first_interval": 4, "last_interval": 2}, "intervals must grow"),
        ({"gradient_batches": 0}, "gradient_batches must be"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Following(**settings)


def test_convexity_error_and_slope_of_curves_made_by_hand() -> None:
    x, losses = np.arange(-9.0, -4.0), np.array([3.0, 1.0, 0.5, 1.5, 1.6])
    assert convexity_error(x, losses) == pytest.approx(1 / 3)  # slopes -2, -0.5, 1, 0.1
    assert steepest(x, losses) == pytest.approx(2.0)
    assert steepest(x / 2, losses) == pytest.approx(4.0)
    uneven = np.array([0.0, 1.0, 3.0, 4.0])  # a straight line's points are not equal steps
    assert convexity_error(uneven, np.array([0.0, 1.0, 2.5, 4.0])) == pytest.approx(1 / 2)  # slopes 1, 0.75, 1.5
    assert steepest(uneven, np.array([[0.0, 1.0, 2.5, 4.0], [0.0, 0.0, -7.0, -7.0]])) == pytest.approx([1.5, 3.5])


LRS = np.arange(-9.0, -2.0)
BEST = -5.7  # of the planted top-k loss
PLANTED_K = np.array([5, 4, 6, 3, 3, 4, 7])


def planted(width: int, *, tilt: float = 0.0, from_k: int = 0) -> TopLosses:
    """The top-k loss at the planted k is one parabola for every width; the rest adds 3.2/width at every lr.

    Below the planted k a width's own share of the parabola is missing. `tilt` is added to the slope of what comes
    after `from_k`, in nats an octave.
    """
    parabola = -2.0 + 0.06 * (LRS - BEST) ** 2
    k = np.arange(1, width + 1)
    share = np.minimum(k / PLANTED_K[:, None], 1.0) ** (1 + 8 / width)
    rest = np.clip((k - PLANTED_K[:, None]) / (width - PLANTED_K[:, None]), 0, 1)
    tilted = np.clip((k - from_k) / max(width - from_k, 1), 0, 1) * tilt * (LRS - LRS[0])[:, None]
    top = parabola[:, None] * share - (1.5 - 3.2 / width) * rest + tilted
    return TopLosses(width=width, log2_values=LRS, top=top)


def test_selection_finds_the_planted_k_at_every_learning_rate() -> None:
    selection = select(planted(16), planted(64), limits=Limits())
    assert selection.found
    assert selection.k == tuple(PLANTED_K)
    assert selection.taus == (0.0, 0.0)
    assert selection.invariance_gap == pytest.approx(0, abs=1e-12)
    assert selection.slopes == pytest.approx((0, 0), abs=1e-12)
    assert selection.place.log2_value == pytest.approx(BEST, abs=1e-6)
    assert selection.shift_octaves == pytest.approx(0, abs=1e-6)
    assert selection.bound_octaves == pytest.approx(0, abs=1e-5)


def objective(small: TopLosses, large: TopLosses, k: Sequence[int], taus: tuple[float, float]) -> float:
    """J, term by term."""
    gap, slopes = 0.0, [0.0, 0.0]
    for i, chosen in enumerate(k):
        gap += abs(small.top[i, chosen - 1] - large.top[i, chosen - 1]) / len(k)
        for which, curves in enumerate((small, large)):
            if i:
                step = curves.residuals[i, chosen - 1] - curves.residuals[i - 1, k[i - 1] - 1]
                slopes[which] = max(slopes[which], abs(step) / (curves.log2_values[i] - curves.log2_values[i - 1]))
    return gap + taus[0] * slopes[0] + taus[1] * slopes[1]


@pytest.mark.parametrize("taus", [(0.0, 0.0), (0.25, 0.0), (0.5, 1.0)])
def test_descent_ends_where_no_change_of_one_k_lowers_the_objective(taus: tuple[float, float]) -> None:
    x = np.array([-8.0, -7.0, -6.5, -5.0])
    small, large = (TopLosses(width=n, log2_values=x, top=-RNG.random((4, n)).cumsum(axis=1) * 6 / n) for n in (6, 12))
    found = descend(small, large, taus).tolist()
    best = objective(small, large, found, taus)
    for i, k in itertools.product(range(4), range(1, 7)):
        assert best <= objective(small, large, [*found[:i], k, *found[i + 1 :]], taus) + 1e-12
    everywhere = min(objective(small, large, k, taus) for k in itertools.product(range(1, 7), repeat=4))
    if taus == (0.0, 0.0):  # nothing ties the learning rates together
        assert best == pytest.approx(everywhere)
    assert everywhere - 1e-12 <= best <= objective(small, large, [3] * 4, taus)


def test_a_weight_on_slopes_flattens_a_bump_of_the_residual() -> None:
    """At one learning rate the planted k leaves a residual that is 0.4 off, and two more directions mend it."""
    small, i = planted(16), 3
    bumped = small.top.copy()
    bumped[i, PLANTED_K[i] + 1 :] -= 0.4
    bumped[i, PLANTED_K[i] + 1] = bumped[i, -1] - small.residuals[0, PLANTED_K[0] - 1]
    small = replace(small, top=bumped)
    assert descend(small, planted(64), (0.0, 0.0))[i] == PLANTED_K[i]
    assert descend(small, planted(64), (8.0, 0.0))[i] == PLANTED_K[i] + 2


def test_no_k_is_found_where_the_residual_carries_the_optimum() -> None:
    """Beyond the smaller width's last direction, so that no k of it reaches what moves the larger one's optimum."""
    small, large = planted(16), planted(64, tilt=0.24, from_k=16)  # by 0.24 / 0.12 octaves
    found = study([large, small])
    (selection,) = found.selections
    assert not selection.found
    assert any("octaves from the total's" in failure for failure in selection.failures)
    assert "No k found for width 16 against 64" in found.verdict
    assert found.total.spread_octaves == pytest.approx(2.0, abs=0.01)
    assert "moves (2.00 octaves)" in found.verdict


def test_a_top_loss_that_bends_down_is_refused() -> None:
    bent = planted(16)
    wave = np.where(np.arange(7) % 2, 0.5, -0.5)[:, None] * np.ones(16)
    selection = select(replace(bent, top=bent.top + wave), planted(64), limits=Limits())
    assert any("bends down" in failure for failure in selection.failures)
    assert selection.bound_octaves is None


def test_the_bound_holds_where_every_curve_is_convex() -> None:
    """t_n >= b_n (arXiv:2512.22768), on a fine grid, for residuals of several slopes."""
    for tilt in (0.005, 0.02, 0.05):
        (selection,) = (found := study([planted(16), planted(64, tilt=tilt, from_k=30)])).selections
        assert selection.bound_octaves is not None
        assert found.total.spread_octaves is not None
        assert selection.bound_octaves >= found.total.spread_octaves > 0.9 * tilt / 0.12


def test_stability_of_a_fixed_k_and_its_verdict() -> None:
    found = study(planted(width) for width in (64, 16, 32))
    assert [item.k for item in found.fixed] == list(range(1, 17))
    assert found.total.spread_octaves == pytest.approx(0, abs=1e-6)
    assert "stays put" in found.verdict
    assert found.verdict.count("is width-stable") == 2
    assert "k = 3 to 7" in found.verdict
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["selections"][0]["k"] == PLANTED_K.tolist()
    assert document["fixed_k"][15]["spread_octaves"] is not None


def test_optimum_at_an_edge_is_a_bound_and_has_no_spread() -> None:
    falling = np.linspace(0, -1, 7)[:, None] * np.ones(8)
    found = study([TopLosses(width=8, log2_values=LRS, top=falling), planted(16)])
    assert found.total.spread_octaves is None
    assert found.stable_k == ()
    assert "at an edge of the grid" in found.verdict
    assert place(LRS, falling[:, 0], band_nats=0.05).at_edge


def test_only_shared_learning_rates_are_compared() -> None:
    short = planted(16).at(LRS[:-1])
    found = study([short, planted(32)])
    assert found.dropped == (LRS[-1],)
    assert all(len(curves.log2_values) == 6 for curves in found.curves)
    with pytest.raises(FitError, match="only 3 learning rates"):
        study([planted(16).at(LRS[:3]), planted(32)])
    with pytest.raises(FitError, match="at least two widths"):
        study([planted(16)])
    with pytest.raises(ValueError, match=r"must be \(7, 9\)"):
        TopLosses(width=9, log2_values=LRS, top=planted(16).top)


def test_the_figure_draws_every_width_and_says_what_was_found() -> None:
    found = study([planted(16), planted(32), planted(64, tilt=0.24, from_k=32)])
    spectra = {f"kind{i}": -RNG.random(64).cumsum() for i in range(9)}
    figure = trajectory_decomposition(found, spectra, optimizer="planted", spectrum_of="width 64")
    total, top, residual, selected, places, spectrum = figure.axes
    assert total.lines[0].get_ydata().tolist() == found.curves[0].total.tolist()
    assert len(top.lines) == 2 * 4  # a curve and its optimum, for each of two widths and its partner
    assert top.get_title() == "top-k: k found for 0 of 2 widths"
    assert selected.get_title() == "no k found at width 16, 32"
    assert residual.lines[0].get_ydata().tolist() == found.selections[0].residual.tolist()
    assert len(places.lines) == 3 * 3
    assert len(spectrum.lines) == 9


APP = typer.Typer()
cli_trajectory.register(APP)
APP.callback()(lambda: None)  # so that the command keeps its name


def test_the_command_writes_numbers_and_figure(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    spec.write_text(spec.read_text().replace("widths = [16, 32, 64]", "widths = [16, 32]", 1))
    command = ["trajectory", str(spec), "--seeds", "2", "--workers", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(APP, [*command, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "trajectory.json").read_text())
    assert {"trajectory.svg", "trajectory.png"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert len(document["runs"]) == 2 * 5 * 2
    for run in document["runs"]:
        assert run["linearized"] == pytest.approx(run["top"][-1], rel=1e-6)
    both = [np.array(run["top"]) for run in document["runs"] if (run["width"], run["log2_lr"]) == (32, -6)]
    assert document["study"]["totals"][1][2] == pytest.approx(np.mean(both, axis=0)[-1])


@pytest.mark.slow
def test_processes_give_the_same_numbers_and_the_terminal_the_verdict(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    outputs = []
    for workers in ("1", "2"):
        command = ["trajectory", str(spec), "--workers", workers, "--out", str(tmp_path / workers)]
        result = CliRunner().invoke(APP, command)
        assert result.exit_code == 0, result.output
        outputs.append((result.stdout, (tmp_path / workers / "trajectory.json").read_text()))
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0][1])["study"]["verdict"] in outputs[0][0]


@pytest.mark.parametrize(
    ("options", "message"), [(["--optimizer", "lion"], "has no 'lion'"), (["--seeds", "9"], "fewer than the 9")]
)
def test_what_the_spec_has_not_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(APP, ["trajectory", str(write_tiny(tmp_path)[0]), *options])
    assert result.exit_code == 2
    assert message in result.stderr
