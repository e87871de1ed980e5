"""Figures contain what they claim: panels, lines, marks, labels, and files that are the same each time."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis import figures
from analysis.drift import predict_optimum
from analysis.figures import style
from analysis.fit import SweepFit, fit_sweep
from analysis.interval import FitError, Interval
from analysis.loss_law import predict_loss
from analysis.surface import Series
from proxy_models.coord_check import CoordSlope
from proxy_models.optimizer_config import Muon
from sweeps.trial import TrialResult
from tests.analysis_helpers import planted_results, trial_result


def fit(results: list[TrialResult], **settings: Any) -> SweepFit:
    return fit_sweep(results, rng=np.random.default_rng(19), n_bootstrap=60, **settings)


@pytest.fixture(scope="module")
def planted() -> SweepFit:
    return fit(planted_results(diverges_above=-4.5))


@pytest.fixture(scope="module")
def targets(planted: SweepFit) -> tuple[figures.Target, ...]:
    built = []
    for drift, law in zip(planted.drifts, planted.loss_laws, strict=True):
        place, loss = predict_optimum(drift, 256), predict_loss(law, 256)
        measured = [
            figures.MeasuredPoint(
                log2_value=place.log2_value + k, losses=(loss.loss + 0.05 * k * k, loss.loss + 0.01 + 0.03 * abs(k))
            )
            for k in (-1, 0)
        ]
        built.append(
            figures.Target(
                series=drift.series,
                width=256,
                log2_value=place.log2_value,
                interval=place.interval,
                loss=loss.loss,
                loss_interval=loss.interval,
                measured=(*measured, figures.MeasuredPoint(log2_value=place.log2_value + 1, losses=(2.9, None))),
            )
        )
    return tuple(built)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def marked(ax: Axes, marker: str) -> int:
    """How many points are drawn with a marker."""
    return sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == marker)


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


# --- loss against learning rate


def test_loss_against_lr_shows_every_width_optimum_and_divergence(planted: SweepFit) -> None:
    figure = figures.loss_against_lr(planted)
    assert len(figure.axes) == 2
    for series, ax in zip(planted.series, figure.axes, strict=True):
        means = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 6]
        assert len(means) == 3
        assert marked(ax, ".") == 3 * 6 * 2  # every seed
        assert marked(ax, "x") == 3  # 2^-4 diverged at every width
        stars = [line for line in ax.lines if line.get_marker() == "*"]
        drawn = sorted(float(star.get_xdata()[0]) for star in stars)
        assert drawn == pytest.approx(sorted(o.log2_value for o in planted.optima_of(series)))
        assert ax.get_title().startswith(f"{series}\noptimum ")
        assert ax.get_xlabel() == "peak learning rate at base width"
    assert figure.axes[0].get_ylabel() == "validation loss (nats per token)"
    assert {"width 32", "width 64", "width 128", "optimum, 90% interval", "diverged"} <= set(legend(figure))


def test_loss_against_lr_marks_the_target(planted: SweepFit, targets: tuple[figures.Target, ...]) -> None:
    figure = figures.loss_against_lr(planted, targets)
    for target, ax in zip(targets, figure.axes, strict=True):
        (planned,) = (line for line in ax.lines if line.get_linestyle() == "--")
        assert set(planned.get_xdata()) == {target.log2_value}
        assert marked(ax, "D") == 2
        assert marked(ax, "x") == 4
    assert {"planned for width 256, interval", "measured at width 256"} <= set(legend(figure))


def test_a_cliff_does_not_flatten_the_basin() -> None:
    results = [
        replace(result, validation_loss=6.8) if result.trial.run.hparams.lr > 2**-5 else result
        for result in planted_results(optimizers=("muon",))
    ]
    figure = figures.loss_against_lr(fit(results))
    (ax,) = figure.axes
    assert ax.get_ylim()[1] < 4
    assert marked(ax, "^") >= 3
    assert "loss above the panel" in legend(figure)


def test_ticks_are_powers_of_two(planted: SweepFit) -> None:
    figure = figures.loss_against_lr(planted)
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert "$2^{-7}$" in ticks
    assert style.power_of_two(-6.6342) == "$2^{-6.6}$"


def test_titles_speak_of_edges_and_missing_optima() -> None:
    results = planted_results(optimizers=("muon",), log2_lrs=(-12, -11, -10, -9), widths=(32, 64))
    assert "no optimum inside the grid" in titles(figures.loss_against_lr(fit(results)))[0]
    mixed = planted_results(optimizers=("muon",), widths=(64,)) + planted_results(
        optimizers=("muon",), log2_lrs=(-12, -11, -10, -9), widths=(32,)
    )
    assert "$2^{-6.6}$ at width 64, 1 at the edge" in titles(figures.loss_against_lr(fit(mixed)))[0]


def test_a_surface_without_any_loss_is_drawn_as_divergence() -> None:
    dead = [trial_result(None, lr=2.0**e, optimizer="muon", width=128) for e in (-7, -6, -5)]
    (ax,) = figures.loss_against_lr(fit(dead)).axes
    assert marked(ax, "x") == 3


# --- training curves


def test_loss_curves_are_of_the_best_learning_rate_tried() -> None:
    def curve(result: TrialResult) -> TrialResult:
        steps = tuple(range(1, 51))
        return replace(
            result, curve_steps=steps, curve_losses=tuple(2.0 + result.trial.run.hparams.lr + 3 / s for s in steps)
        )

    results = [curve(result) for result in planted_results(optimizers=("muon",))]
    figure = figures.loss_curves([*results, trial_result(None, lr=2.0, optimizer="muon", width=64)])
    (ax,) = figure.axes
    assert len(ax.lines) == 3 * 2  # widths, seeds
    for line in ax.lines:
        assert line.get_ydata()[-1] == pytest.approx(2.0 + 2**-7 + 3 / 50)
        assert line.get_xdata()[-1] == 50 * 128
    assert ax.get_title() == "muon\nbest lr tried: $2^{-7}$ at every width"
    assert ax.get_xlabel() == "training tokens"
    assert ax.get_ylabel() == "training loss, smoothed (nats per token)"
    assert ax.get_ylim()[1] < 3.0  # the start is cut off
    assert legend(figure) == ["width 32", "width 64", "width 128"]


def test_loss_curves_of_a_series_that_never_converged() -> None:
    figure = figures.loss_curves([trial_result(None, lr=0.1)])
    assert "none converged" in titles(figure)[0]


# --- over width


def test_drift_shows_optima_law_and_plan(planted: SweepFit, targets: tuple[figures.Target, ...]) -> None:
    figure = figures.drift(planted, targets)
    assert len(figure.axes) == 2
    for ax in figure.axes:
        assert marked(ax, "o") == 3
        assert marked(ax, "D") == 1
        assert np.diff(ax.get_ylim())[0] >= 3
    heights = [float(np.diff(ax.get_ylim())[0]) for ax in figure.axes]
    assert heights[0] == pytest.approx(heights[1])
    assert "moves" in titles(figure)[0]
    assert "no drift resolved" in titles(figure)[1]
    assert figure.axes[0].get_ylabel() == "optimal learning rate at base width"
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["32", "64", "128", "256"]
    assert "planned for width 256" in legend(figure)


def test_drift_draws_edges_hollow_and_lives_without_a_drift() -> None:
    results = planted_results(optimizers=("muon",), log2_lrs=(-12, -11, -10, -9), widths=(32,))
    figure = figures.drift(fit(results))
    (line,) = (line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert line.get_markerfacecolor() == "white"
    assert "fewer than two widths" in titles(figure)[0]
    assert "at the edge: a bound" in legend(figure)


def test_loss_against_width_shows_laws_and_outcomes(planted: SweepFit, targets: tuple[figures.Target, ...]) -> None:
    figure = figures.loss_against_width(planted, targets)
    (ax,) = figure.axes
    assert marked(ax, "*") == 2
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 2
    assert ax.get_title() == "wider is better at every step"
    assert ax.get_ylabel() == "validation loss at the optimum (nats per token)"
    assert {"adamw", "muon", "measured at the plan", "expected, 90% interval"} <= set(legend(figure))


def test_loss_against_width_says_when_wider_is_worse_or_unknown() -> None:
    worse = fit([_raised(result) for result in planted_results(optimizers=("muon",))])
    assert titles(figures.loss_against_width(worse)) == ["wider is not better at every step for muon"]
    few = fit(planted_results(optimizers=("muon",), widths=(32, 64)))
    assert "fewer than three widths" in titles(figures.loss_against_width(few))[0]


def _raised(result: TrialResult) -> TrialResult:
    assert result.validation_loss is not None
    return replace(result, validation_loss=result.validation_loss + (result.trial.run.model.width == 128))


# --- predicted against measured


def test_predicted_against_measured(targets: tuple[figures.Target, ...]) -> None:
    figure = figures.predicted_against_measured(targets)
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["adamw", "muon"]
    assert left.get_title() == "2 of 2 measured losses lie in the expected interval"
    assert left.get_xlabel() == "validation loss at width 256 (nats per token)"
    assert marked(left, "*") == 2
    assert right.get_title() == "planned: within 0.000 nats of the best tried"
    for line in right.lines:
        np.testing.assert_allclose(line.get_xdata(), [-1, 0], atol=1e-9)
        np.testing.assert_allclose(line.get_ydata(), [0.035 + 0.005, 0.0], atol=1e-9)


def test_a_target_judges_its_plan() -> None:
    points = (
        figures.MeasuredPoint(log2_value=-8.0, losses=(2.40, 2.42)),
        figures.MeasuredPoint(log2_value=-7.0, losses=(2.38, 2.36)),
        figures.MeasuredPoint(log2_value=-6.0, losses=(2.2, None)),
    )
    target = figures.Target(series=Series("muon"), width=256, log2_value=-8.0, measured=points)
    assert target.excess_loss == pytest.approx(0.04)
    assert points[2].mean_loss is None
    elsewhere = replace(target, log2_value=-7.5)
    assert elsewhere.planned is None
    assert elsewhere.excess_loss is None
    unmeasured = figures.Target(series=Series("muon"), width=256, log2_value=-8.0)
    figure = figures.predicted_against_measured([unmeasured])
    assert titles(figure) == ["what was measured; no loss was expected", "the plan was not measured"]


# --- coordinate check


@dataclass(frozen=True)
class Point:
    optimizer: str
    parametrization: str
    tap: str
    step: int
    size: int
    seed: int
    rms: float
    axis: str = "width"


def coordinate_points() -> list[Point]:
    return [
        Point(
            optimizer,
            parametrization,
            tap,
            step,
            width,
            seed,
            0.0
            if tap == "logits" and step == 0
            else 0.3 * width ** _power(parametrization, tap) * (1.1 if seed else 1),
        )
        for parametrization in ("standard", "mup")
        for optimizer in ("adamw", "muon")
        for tap in ("embedding", "block0.mlp_hidden", "block1.mlp_hidden", "logits")
        for step in (0, 5)
        for width in (32, 64, 128, 256)
        for seed in (0, 1)
    ]


def _power(parametrization: str, tap: str) -> float:
    return 0.6 if (parametrization, tap) == ("standard", "block1.mlp_hidden") else 0.02


def test_coordinate_check_shows_the_last_step_of_every_tap() -> None:
    figure = figures.coordinate_check(coordinate_points())
    assert [title.split("\n")[0] for title in titles(figure)] == [
        "adamw, standard",
        "muon, standard",
        "adamw, mup",
        "muon, mup",
    ]
    assert titles(figure)[0].endswith("steepest slope +0.60:\nblock 1 mlp hidden")
    assert "+0.02" in titles(figure)[2]
    for ax in figure.axes:
        assert len(ax.lines) == 4
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert figure.axes[0].get_ylabel() == "activation RMS after 5 steps"
    assert legend(figure) == ["embedding", "mlp hidden", "logits", "block 0", "block 1"]
    embedding = figure.axes[0].lines[0].get_ydata()
    assert embedding[0] == pytest.approx(0.3 * 32**0.02 * 1.1**0.5)


def test_coordinate_check_leaves_out_what_is_exactly_zero() -> None:
    start = [point for point in coordinate_points() if point.step == 0]
    figure = figures.coordinate_check(start)
    assert all(len(ax.lines) == 3 for ax in figure.axes)
    assert figure.axes[0].get_ylabel() == "activation RMS after 0 steps"


def test_coordinate_check_of_one_width_has_no_slope() -> None:
    narrow = [point for point in coordinate_points() if point.size == 32]
    assert titles(figures.coordinate_check(narrow))[0] == "adamw, standard\none width only"


def test_coordinate_check_over_depth_has_panels_of_its_own() -> None:
    deep = [
        Point("adamw", parametrization, f"{place}_block.mlp", 5, depth, 0, depth**power, "depth")
        for parametrization, power in (("complete_p", 0.01), ("mup", 0.5))
        for place in ("first", "last")
        for depth in (2, 4, 8, 16)
    ]
    wide = [point for point in coordinate_points() if point.optimizer == "adamw" and point.parametrization == "mup"]
    figure = figures.coordinate_check([*wide, *deep])
    assert [title.split("\n")[0] for title in titles(figure)] == [
        "adamw, mup, over width", "adamw, complete_p, over depth", "adamw, mup, over depth",
    ]  # fmt: skip
    assert titles(figure)[2].endswith("steepest slope +0.50:\nfirst block mlp")
    assert [ax.get_xlabel() for ax in figure.axes] == ["width", "depth", "depth"]
    assert legend(figure)[-4:] == ["block 0", "block 1", "first block", "last block"]


def test_coordinate_check_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="needs points, got none"):
        figures.coordinate_check([])
    with pytest.raises(ValueError, match="needs slopes, got none"):
        figures.coordinate_slopes([], 0.2)


def test_coordinate_slopes_have_a_row_an_optimizer_and_a_column_a_parametrization() -> None:
    slopes = [
        CoordSlope(optimizer=optimizer, parametrization=p, tap=tap, step=step, slope=_power(p, tap) + step / 1000)
        for p in ("mup", "standard")
        for optimizer in ("adamw", "muon", "scale", "dion", "sgd")
        for tap in ("embedding", "block1.mlp_hidden")
        for step in (0, 4)
    ]
    figure = figures.coordinate_slopes(slopes, 0.25)
    assert titles(figure) == [
        "mup\nsteepest slope +0.02: adamw, embedding",
        "standard\nsteepest slope +0.60: adamw, block 1 mlp hidden",
    ]
    mup, standard = figure.axes
    assert [label.get_text() for label in mup.get_yticklabels()] == ["adamw", "muon", "scale", "dion", "sgd"]
    points = sorted((float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in standard.lines)
    assert points == sorted((power + 0.004, row) for power in (0.02, 0.6) for row in range(5))
    assert legend(figure) == ["embedding", "mlp hidden", "flat: within 0.25"]


def test_many_series_share_out_panels_best_first() -> None:
    results = [
        trial_result(
            2.9 - 0.1 * n + 0.05 * (x + 6) ** 2 - 0.01 * width / 32,
            lr=2.0**x,
            width=width,
            seed=seed,
            optimizer=Muon(ns_steps=n),
        )
        for n in range(1, 10)
        for width in (32, 64, 128)
        for x in range(-8, -3)
        for seed in (0, 1)
    ]
    figure = figures.loss_against_width(fit(results))
    assert len(figure.axes) == 2
    names = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert names == [[f"muon, optimizer.ns_steps={n}" for n in part] for part in (range(9, 2, -1), (2, 1))]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_figures_refuse_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.loss_curves([])
    with pytest.raises(FitError):
        fit([])


# --- files and style


def test_files_are_whole_and_equal_when_redrawn(planted: SweepFit, tmp_path: Path) -> None:
    first = figures.save(figures.loss_against_lr(planted), tmp_path / "a", "loss")
    again = figures.save(figures.loss_against_lr(planted), tmp_path / "b", "loss")
    assert first == tmp_path / "a" / "loss.svg"
    assert first.read_bytes() == again.read_bytes()
    assert first.with_suffix(".png").read_bytes() == again.with_suffix(".png").read_bytes()
    assert ElementTree.parse(first).getroot().tag.endswith("svg")
    assert first.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert b"<dc:date>" not in first.read_bytes()


def test_drawing_leaves_the_callers_settings_alone(planted: SweepFit, tmp_path: Path) -> None:
    with mpl.rc_context({"font.size": 31.0, "axes.grid": False}):
        before = dict(mpl.rcParams)
        figure = figures.drift(planted)
        figures.save(figure, tmp_path, "drift")
        assert dict(mpl.rcParams) == before
    assert figure.axes[0].xaxis.label.get_size() == 10


def test_text_is_legible_and_lines_stand_out() -> None:
    sizes = [value for key, value in style.STYLE.items() if key.endswith("size") and "marker" not in key]
    assert min(sizes) >= 9
    looks = style.width_looks([32, 64, 128, 256, 512])
    assert len({look["marker"] for look in looks.values()}) == len({look["color"] for look in looks.values()}) == 5
    for look in looks.values():
        linear = [u / 12.92 if u <= 0.03928 else ((u + 0.055) / 1.055) ** 2.4 for u in to_rgb(look["color"])]
        assert 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05) > 2.5  # WCAG contrast with white


@pytest.mark.parametrize(("n", "inches"), [(1, 7.0), (2, 8.5), (3, 10.0), (4, 8.5), (7, 10.0)])
def test_figures_are_of_page_width(n: int, inches: float) -> None:
    figure, axes = style.panels(n, height=3.0)
    assert figure.get_figwidth() == inches
    assert len(axes) == len(figure.axes) == n


def test_bars_never_point_backwards() -> None:
    assert style.bars(None, 2.0) is None
    assert style.bars(Interval(low=1.0, high=1.5, level=0.9), 2.0) == [[1.0], [0.0]]
