"""Runs from elsewhere, from the table to the plan and the report, through the commands a user types."""

import html
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import imported as figures
from analysis.interval import Interval
from analysis.observations import Observations
from analysis.observed_fit import SeriesFit, fit_observed
from sweeps.importing import read_import
from tests.transfer_helpers import invoke
from transfer import imported
from transfer.imported_plan import IMPORTED_PLAN_JSON
from transfer.imported_report import read_plan, stems

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "transfer" / "imported_plan.schema.json"
# Published without a license, so no part of this project: beside the checkout, or where the variable says.
STEPLAW = Path(os.environ.get("MUTRANSFER_DATA", ROOT.parent / "shared" / "data")) / "steplaw_dense_to_537m.csv"

PLANTED_MAP = """
name = "planted"
[loss]
column = "loss"
[series]
column = "optimizer"
[scales.n_params]
column = "N"
[scales.train_tokens]
column = "D"
[hps.lr]
column = "lr"
[hps.batch_tokens]
column = "batch"
[seed]
column = "seed"
"""
ONE_SCALE_MAP = PLANTED_MAP.replace('[scales.train_tokens]\ncolumn = "D"\n', "")
TARGET = "[scales]\nn_params = 8e8\ntrain_tokens = 1.6e10\n"
SIZES, TOKENS = (5e7, 1e8, 2e8, 4e8), (1e9, 4e9)
# of a miss of (lr, batch) in octaves, nats per octave squared
HESSIAN = np.array([[0.08, -0.03], [-0.03, 0.05]])


def planted_optimum(n_params: float, train_tokens: float) -> tuple[float, float]:
    """log2 lr falls with 0.6 of log2 N and rises with 0.3 of log2 D; log2 batch rises with half of log2 D."""
    n, d = np.log2(n_params / 1e8), np.log2(train_tokens / 1e9)
    return float(-8.3 - 0.6 * n + 0.3 * d), float(17.2 + 0.5 * d)


def planted_table(
    file: Path,
    *,
    sizes: Sequence[float] = SIZES,
    tokens: Sequence[float] = TOKENS,
    shift: float = 0.0,
    noise: float = 0.002,
    seeds: int = 2,
    diverges_above: float = np.inf,
    curvature: float = 1.0,
) -> Path:
    """Runs on a grid of 7 by 7 octaves around every cell's optimum; `shift` moves the grid of lr, in octaves."""
    rng = np.random.default_rng(11)
    rows: list[dict[str, Any]] = []
    for n_params in sizes:
        for train_tokens in tokens:
            best = planted_optimum(n_params, train_tokens)
            floor = 1.7 + 0.5 * (n_params / 1e8) ** -0.3 + 0.6 * (train_tokens / 1e9) ** -0.3
            for i in range(-3, 4):
                for j in range(-3, 4):
                    place = np.array([round(best[0]) + i + shift, round(best[1]) + j])
                    away = place - best
                    for seed in range(seeds):
                        loss = floor + 0.5 * curvature * away @ HESSIAN @ away + noise * rng.standard_normal()
                        rows.append(
                            {"optimizer": "adamw", "N": n_params, "D": train_tokens, "lr": 2.0 ** place[0],
                             "batch": 2.0 ** place[1], "seed": seed,
                             "loss": "nan" if away[0] > diverges_above else loss}
                        )  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.to_parquet(file) if file.suffix == ".parquet" else frame.to_csv(file, index=False)
    return file


def imported_folder(folder: Path, columns: str = PLANTED_MAP, **planted: Any) -> Path:
    """A results folder that holds the planted runs."""
    table = planted_table(folder / "runs.csv", **planted)
    (folder / "columns.toml").write_text(columns)
    result = invoke("import", table, "--columns", folder / "columns.toml", "--out", folder / "out")
    assert result.exit_code == 0, result.stderr
    return folder / "out"


def target_file(folder: Path, text: str = TARGET) -> Path:
    file = folder / "target.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported_folder(tmp_path_factory.mktemp("planted"))


def test_a_plan_recovers_the_planted_optimum(planted: Path) -> None:
    result = invoke("transfer", planted, "--target", target_file(planted.parent), "--json")
    assert result.exit_code == 0, result.stderr
    plan = IMPORTED_PLAN_JSON.validate_json(result.stdout)
    assert IMPORTED_PLAN_JSON.validate_json((planted / "plan.json").read_bytes()) == plan
    (adamw,) = plan.series
    assert (adamw.series, adamw.cells, plan.name) == ("adamw", len(SIZES) * len(TOKENS), "planted")
    assert plan.target == {"n_params": 8e8, "train_tokens": 1.6e10}
    assert adamw.extrapolation == {"n_params": pytest.approx(2.0), "train_tokens": pytest.approx(4.0)}
    for hp, truth in zip(adamw.hparams, planted_optimum(8e8, 1.6e10), strict=True):
        assert hp.log2_optimum.value == pytest.approx(truth, abs=0.25)
        assert np.log2(hp.value) == pytest.approx(truth, abs=0.25)
        assert hp.log2_optimum.interval is not None
        assert hp.log2_optimum.interval.contains(truth)
        assert (hp.low, hp.high) == tuple(2.0**x for x in (hp.log2_optimum.interval.low, hp.log2_optimum.interval.high))
    assert [hp.name for hp in adamw.hparams] == ["lr", "batch_tokens"]
    away = np.array([np.log2(hp.value) for hp in adamw.hparams]) - planted_optimum(8e8, 1.6e10)
    assert adamw.expected_excess_loss.interval is not None
    assert 0.5 * away @ HESSIAN @ away <= adamw.expected_excess_loss.interval.high
    assert any("4.0 times" in caveat and "train_tokens" in caveat for caveat in adamw.caveats)
    assert "caveat: adamw:" in result.stderr


def test_fits_say_what_they_found(planted: Path) -> None:
    result = invoke("fit", planted, "--json")
    assert result.exit_code == 0, result.stderr
    fits = json.loads(result.stdout)
    assert fits == json.loads((planted / "fits.json").read_text())
    (adamw,) = fits["series"]
    assert len(adamw["optima"]) == len(SIZES) * len(TOKENS)
    for optimum in adamw["optima"]:
        truth = planted_optimum(optimum["scales"]["n_params"], optimum["scales"]["train_tokens"])
        for value, interval, true in zip(optimum["log2_values"], optimum["intervals"], truth, strict=True):
            assert value == pytest.approx(true, abs=0.1)
            assert interval["low"] < value < interval["high"]
        np.testing.assert_allclose(optimum["hessian"], HESSIAN, atol=0.015)
    table = invoke("fit", planted)
    assert table.exit_code == 0
    assert "n_params" in table.stdout
    assert invoke("fit", planted, "--json").stdout == result.stdout


def test_a_report_has_its_figures_and_numbers(planted: Path) -> None:
    invoke("transfer", planted, "--target", target_file(planted.parent))
    result = invoke("report", planted)
    assert result.exit_code == 0, result.stderr
    folder = planted / "report"
    assert result.stdout.strip() == str(folder / "index.html")
    page, text = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    stems = sorted(file.stem for file in folder.glob("*.svg"))
    assert stems == ["adamw_excess", "adamw_loss_maps", "adamw_optima"]
    for stem in stems:
        ElementTree.parse(folder / f"{stem}.svg")
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert f'<figure id="{stem}">' in page
        assert f"({stem}.svg)" in text
    plan = IMPORTED_PLAN_JSON.validate_json((planted / "plan.json").read_bytes())
    for content in (html.unescape(page), text):
        assert "98 runs" not in content
        assert "784 runs" in content
        assert f"{plan.series[0].hparams[0].value:.3g}" in content
        assert plan.series[0].caveats[0] in content
        assert "runs.csv" in content


def test_a_report_without_a_plan_says_so(tmp_path: Path) -> None:
    """Of one hyperparameter, at a batch that every grid has."""
    columns = PLANTED_MAP.replace("[hps.batch_tokens]", "[filter]").replace('column = "batch"', "batch = 131072")
    folder = imported_folder(tmp_path, columns, sizes=(1e8, 2e8), tokens=(1e9, 2e9))
    assert invoke("report", folder).exit_code == 0
    assert "No plan yet" in (folder / "report" / "report.md").read_text()
    assert sorted(file.stem for file in (folder / "report").glob("*.png")) == ["adamw_excess", "adamw_optima"]


def test_a_plan_of_other_runs_is_left_out_of_the_report(
    tmp_path: Path, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = imported_folder(tmp_path, ONE_SCALE_MAP, sizes=(1e8, 2e8, 4e8), tokens=(1e9,), seeds=1)
    invoke("transfer", planted, "--target", target_file(planted.parent))
    for text, message in (
        ((planted / "plan.json").read_text(), "was made from other runs than these: left out"),
        ('{"schema_version": 1}', "is not a plan of this version: left out"),
    ):
        (folder / "plan.json").write_text(text)
        assert read_plan(folder, read_import(folder)) is None
        assert message in capsys.readouterr().err
    assert read_plan(planted, read_import(planted)) is not None


def test_the_schema_is_documented() -> None:
    """Regenerate with: python -m transfer.imported_plan > transfer/imported_plan.schema.json"""
    schema = json.loads(SCHEMA.read_text())
    assert schema == IMPORTED_PLAN_JSON.json_schema()
    for record in (schema, *(schema["$defs"][name] for name in ("HparamPlan", "SeriesPlan", "Estimate"))):
        assert all("description" in field for field in record["properties"].values())


# --- figures


@pytest.fixture(scope="module")
def cut_fit(tmp_path_factory: pytest.TempPathFactory) -> SeriesFit:
    """Eight cells. Runs of one diverge at high lr; another's grid is cut so that its optimum lies at the edge."""
    read = read_import(imported_folder(tmp_path_factory.mktemp("cut"), diverges_above=2.2))
    frame = read.frame
    largest = (frame["n_params"] == SIZES[-1]) & (frame["train_tokens"] == TOKENS[-1])
    lowest_kept = 2.0 ** (planted_optimum(SIZES[-1], TOKENS[-1])[0] + 0.6)
    frame = frame[~largest | (frame["lr"] > lowest_kept)]
    observations = Observations(scales=read.scales, hps=read.hps, frame=frame)
    (fit,) = fit_observed(observations, rng=np.random.default_rng(5), n_bootstrap=50).series
    return fit


def marks(ax: Axes, marker: str) -> list[Line2D]:
    return [line for line in ax.lines if line.get_marker() == marker]


def test_optima_over_scales_show_law_edge_and_plan(cut_fit: SeriesFit) -> None:
    scales = {"n_params": 8e8, "train_tokens": 1.6e10}
    interval = Interval(low=-10.0, high=-8.0, level=0.9)
    target = figures.PlannedPoint(scales=scales, log2_values=cut_fit.at(scales), intervals=(interval, None))
    figure = figures.optima_over_scales(("lr", "batch_tokens"), cut_fit.cells, cut_fit.at, target)
    assert [ax.get_xlabel() for ax in figure.axes] == ["n_params", "train_tokens"] * 2
    for ax in figure.axes:
        assert len(marks(ax, "o")) == 8
        assert sum(line.get_markerfacecolor() == "white" for line in marks(ax, "o")) == 1
        (plan,) = marks(ax, "D")
        (law,) = (line for line in ax.lines if line.get_linestyle() == "--")
        assert plan.get_ydata()[0] == pytest.approx(np.interp(plan.get_xdata()[0], law.get_xdata(), law.get_ydata()))
    # Moved along a law that is exact but for noise, optima lie on it.
    (law,) = (line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    for line in marks(figure.axes[0], "o"):
        if line.get_markerfacecolor() != "white":
            on_law = np.interp(line.get_xdata()[0], law.get_xdata(), law.get_ydata())
            assert line.get_ydata()[0] == pytest.approx(on_law, abs=0.15)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["optimum, 90% interval", "left out of the law", "law", "planned"]


def test_loss_maps_show_runs_optimum_and_divergence(cut_fit: SeriesFit) -> None:
    figure = figures.loss_maps(("lr", "batch_tokens"), cut_fit.cells[:3])
    *panels, bar = figure.axes
    assert bar.get_ylabel() == "loss above the optimum's (nats)"
    assert len(panels) == 3
    for cell, ax in zip(cut_fit.cells, panels, strict=False):
        ran = len(np.unique(cell.points[~np.isnan(cell.losses)], axis=0))
        assert len(marks(ax, ".")[0].get_xdata()) == ran
        assert len(marks(ax, "x")[0].get_xdata()) == np.isnan(cell.losses).sum() > 0
        assert marks(ax, "+")[0].get_xydata()[0] == pytest.approx(cell.log2_values)
        assert ax.get_title().replace("\n", " ") == cell.label
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a run", "optimum", "its 90% region", "diverged"]


def test_excess_curves_have_their_minimum_at_the_optimum(cut_fit: SeriesFit) -> None:
    figure = figures.excess_curves(("lr", "batch_tokens"), cut_fit.fitted)
    for ax in figure.axes[:2]:
        curves = [line for line in ax.lines if line.get_marker() == "."]
        assert len(curves) == 7
        for curve in curves:
            away, excess = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
            assert abs(away[excess.argmin()]) < 0.8
            assert excess.min() == pytest.approx(0.0, abs=0.03)


# --- one clear message


def test_importing_is_done_once(tmp_path: Path) -> None:
    folder = imported_folder(tmp_path)
    again = ("import", tmp_path / "runs.csv", "--columns", tmp_path / "columns.toml", "--out", folder)
    assert invoke(*again).exit_code == 0
    planted_table(tmp_path / "runs.csv", noise=0.01)
    refused = invoke(*again)
    assert (refused.exit_code, "another table" in refused.stderr) == (2, True)
    fresh = invoke(*again, "--fresh", "--json")
    assert fresh.exit_code == 0
    assert json.loads(fresh.stdout)["runs"] == 49 * 8 * 2
    assert len(list(tmp_path.glob("out.old-*"))) == 1


@pytest.mark.parametrize("command", ["import", "fit", "report", "transfer"])
def test_a_wrong_table_costs_nothing(tmp_path: Path, command: str) -> None:
    (tmp_path / "columns.toml").write_text(PLANTED_MAP)
    (tmp_path / "runs.csv").write_text("N,D,lr\n1,2,3\n")
    out = tmp_path / "out"
    if command == "import":
        result = invoke("import", tmp_path / "runs.csv", "--columns", tmp_path / "columns.toml", "--out", out)
    else:
        target = ("--target", target_file(tmp_path)) if command == "transfer" else ()
        result = invoke(command, out, *target)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("command", ["status", "verify"])
def test_what_needs_a_sweep_says_so(planted: Path, command: str) -> None:
    result = invoke(*((command, planted) if command == "status" else (command, planted / "plan.json", planted)))
    assert (result.exit_code, "holds runs that were made elsewhere" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[scales]\nn_params = 8e8\n", "train_tokens: is missing"),
        ("[scales]\nn_params = 8e8\ntrain_token = 2e9\n", "no scale of this import.*Did you mean 'train_tokens'"),
        ("width = 512\n", "width: unknown key"),
    ],
)
def test_a_target_must_name_the_scales(planted: Path, text: str, message: str) -> None:
    result = invoke("transfer", planted, "--target", target_file(planted.parent, text))
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"sizes": (1e8,), "tokens": (1e9,)}, "needs 4 cells with an optimum inside their grid, got 1"),
        ({"sizes": (1e8,), "tokens": (1e9, 2e9, 4e9, 8e9)}, "n_params take one value in all cells"),
        ({"curvature": 0.0}, "flat or a saddle|with an optimum inside their grid"),
    ],
)
def test_what_no_law_can_be_fitted_to_gives_no_plan(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    folder = imported_folder(tmp_path, **cells)
    assert invoke("fit", folder).exit_code == 0
    result = invoke("transfer", folder, "--target", target_file(tmp_path))
    assert (result.exit_code, "no series can be transferred" in result.stderr) == (2, True)
    assert re.search(message, result.stderr), result.stderr
    assert not (folder / "plan.json").exists()


def test_optima_at_the_edge_give_no_plan_and_say_where(tmp_path: Path) -> None:
    """The grid of lr ends three octaves below every optimum."""
    folder = imported_folder(tmp_path, shift=-4.0)
    result = invoke("transfer", folder, "--target", target_file(tmp_path))
    assert result.exit_code == 2
    assert "edge" in result.stderr


def test_a_cell_at_the_edge_is_left_out_and_named(tmp_path: Path) -> None:
    table = planted_table(tmp_path / "runs.csv")
    runs = pd.read_csv(table)
    cut = (runs["N"] == 5e7) & (runs["D"] == 1e9) & (runs["batch"] > 2.0**16.5)
    runs[~cut].assign(optimizer="ada mw").to_csv(table, index=False)
    other = runs[(runs["N"] == 5e7) & (runs["D"] == 1e9)].assign(optimizer="ada_mw")
    other.to_csv(table, index=False, header=False, mode="a")
    (tmp_path / "columns.toml").write_text(PLANTED_MAP)
    folder = tmp_path / "out"
    assert invoke("import", table, "--columns", tmp_path / "columns.toml", "--out", folder).exit_code == 0
    result = invoke("transfer", folder, "--target", target_file(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert re.search(r"caveat: ada mw: Left out: ada mw, n_params 5e\+07.*edge of the grid", result.stderr)
    assert "caveat: ada_mw: not planned: a law over n_params, train_tokens needs 4 cells" in result.stderr
    assert "left out, edge" in invoke("fit", folder).stdout
    assert stems(imported.fit(folder)) == ["ada_mw_0", "ada_mw_1"]


def test_all_diverged_is_no_fit(tmp_path: Path) -> None:
    folder = imported_folder(tmp_path, diverges_above=-np.inf)
    for command in (("fit", folder), ("transfer", folder, "--target", target_file(tmp_path)), ("report", folder)):
        result = invoke(*command)
        assert result.exit_code == 2
        assert "converge" in result.stderr


def test_one_seed_plans_with_caveats(tmp_path: Path) -> None:
    folder = imported_folder(tmp_path, seeds=1, diverges_above=2.2)
    result = invoke("transfer", folder, "--target", target_file(tmp_path), "--json")
    assert result.exit_code == 0, result.stderr
    (adamw,) = IMPORTED_PLAN_JSON.validate_json(result.stdout).series
    assert any("one seed" in caveat.lower() for caveat in adamw.caveats)
    assert adamw.hparams[0].log2_optimum.value == pytest.approx(planted_optimum(8e8, 1.6e10)[0], abs=0.4)


def test_one_scale_gets_a_verdict(tmp_path: Path) -> None:
    folder = imported_folder(tmp_path, ONE_SCALE_MAP, sizes=(5e7, 1e8, 2e8, 4e8, 8e8), tokens=(1e9,))
    fits = json.loads(invoke("fit", folder, "--json").stdout)
    (adamw,) = fits["series"]
    assert adamw["fast_transfer"] is not None
    plan = invoke("transfer", folder, "--target", target_file(tmp_path, "[scales]\nn_params = 1.6e9\n"), "--json")
    assert plan.exit_code == 0, plan.stderr
    (planned,) = IMPORTED_PLAN_JSON.validate_json(plan.stdout).series
    assert planned.hparams[0].log2_optimum.value == pytest.approx(planted_optimum(1.6e9, 1e9)[0], abs=0.25)
    assert planned.expected_loss is not None
    assert planned.expected_loss.interval is not None
    assert planned.expected_loss.value == pytest.approx(1.7 + 0.6 + 0.5 * 16**-0.3, abs=0.005)
    assert planned.expected_loss.interval.contains(1.7 + 0.6 + 0.5 * 16**-0.3)
    assert planned.expected_loss.interval.width < 0.05


# --- real runs


@pytest.mark.skipif(
    not STEPLAW.exists(), reason=f"no Step Law runs (arXiv:2503.04715) at {STEPLAW}: set MUTRANSFER_DATA"
)
def test_step_law_from_the_table_to_the_report(tmp_path: Path) -> None:
    """1,746 runs of 15 cells. Their own law over all cells: lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571."""
    columns = (
        PLANTED_MAP.replace('column = "optimizer"', 'value = "adamw"')
        .replace('column = "loss"', 'column = "smooth loss"')
        .replace('column = "batch"', 'column = "bs"\nmultiply = 2048')
        .replace('[seed]\ncolumn = "seed"\n', "")
    )
    (tmp_path / "columns.toml").write_text(columns)
    folder = tmp_path / "out"
    done = invoke("import", STEPLAW, "--columns", tmp_path / "columns.toml", "--out", folder)
    assert done.exit_code == 0, done.stderr
    target = target_file(tmp_path, "[scales]\nn_params = 1.07e9\ntrain_tokens = 2e10\n")
    planned = invoke("transfer", folder, "--target", target, "--json")
    assert planned.exit_code == 0, planned.stderr
    (adamw,) = IMPORTED_PLAN_JSON.validate_json(planned.stdout).series
    lr, batch = (hp.value for hp in adamw.hparams)
    assert abs(np.log2(lr / (1.79 * 1.07e9**-0.713 * 2e10**0.307))) < 0.75
    assert abs(np.log2(batch / (0.58 * 2e10**0.571))) < 0.75
    assert invoke("report", folder).exit_code == 0
    assert {file.suffix for file in (folder / "report").iterdir()} == {".html", ".md", ".svg", ".png"}
