"""Figures of the batch laws show what they claim: points, laws, published lines in the same definition, bounds."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.batch_laws import fit_critical_batch_law
from analysis.figures import style
from analysis.figures.batch_laws import critical_batch_over_tokens, lr_over_batch, timescale_over_tokens_per_param
from analysis.hp_powers import lr_batch_power_by_cell
from analysis.published_laws import OVERHEAD_20, law_of
from analysis.timescale import published_timescale_law
from tests.test_batch_laws import N0, points
from tests.test_hp_powers import planted
from tests.test_timescale import cell, fitted

LAW = fit_critical_batch_law(points((1e8, 3e8, 1e9)))


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def dashed(ax: Axes) -> list[np.ndarray]:
    """Published laws: lines that are neither solid nor error bars."""
    return [np.asarray(line.get_ydata()) for line in ax.lines if line.get_linestyle() not in ("-", "None")]


def saved(figure: Figure, folder: Path) -> None:
    file = style.save(figure, folder, "figure")
    assert file.stat().st_size > 5000
    assert file.with_suffix(".png").stat().st_size > 5000


def test_critical_batches_with_the_law_and_the_published_band(tmp_path: Path) -> None:
    one = fit_critical_batch_law(points((1e8,)))
    figure = critical_batch_over_tokens({"adamw": LAW, "muon": one}, target=(1e11, 1e9))
    left, right = figure.axes
    assert f"published prior, {100 * LAW.over_tokens.data_share:.0f} % from data" in left.get_title()
    assert "published prior, 0 % from data" in right.get_title()
    assert left.get_ylabel() == "critical batch (tokens; hyperbola's constant)"
    assert len(left.containers) == 4  # three points and the target
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert len(left.collections) >= 2  # the law's interval, the published band
    names = labels(figure)
    assert "Power Lines (arXiv:2505.13738)" in names
    assert "Zhang (arXiv:2410.21676)" in names
    assert "target of 1B parameters" in names
    saved(figure, tmp_path)


def test_published_laws_are_drawn_in_the_definition_of_the_axis() -> None:
    hyperbola, overhead = (
        critical_batch_over_tokens({"adamw": LAW}, definition=definition).axes[0]
        for definition in (LAW.predict(1e8, N0).definition, OVERHEAD_20)
    )
    for full, fifth in zip(dashed(hyperbola), dashed(overhead), strict=True):
        np.testing.assert_allclose(fifth, 0.2 * full)
    at = np.asarray(hyperbola.lines[0].get_xdata())
    assert dashed(hyperbola)[0][0] == pytest.approx(law_of("critical_batch", "Power Lines").at(N0, at[0]))
    assert "20 % token overhead" in overhead.get_ylabel()


def test_lr_over_batch_shows_the_fit_among_the_priors(tmp_path: Path) -> None:
    batches = tuple(2.0**b for b in range(11, 17))
    observations = planted(widths=(64.0,), budgets=(2.0**26,), batches=batches)
    found = lr_batch_power_by_cell(observations, "adamw").cells[0]
    figure = lr_over_batch({"adamw, 64M tokens": found, "again": found})
    ax = figure.axes[0]
    assert f"lr ~ batch^{found.value:.2f}" in ax.get_title()
    assert len(ax.containers) == 6
    fits = {}
    for line in ax.lines[:3]:
        x, y = np.log2(np.asarray(line.get_xdata())), np.log2(np.asarray(line.get_ydata()))
        fits[str(line.get_linestyle())] = np.polyfit(x, y, 1)[0]
    assert fits == {":": pytest.approx(0.5), "--": pytest.approx(0.35), "-": pytest.approx(found.value)}
    assert "square root, an upper bound" in labels(figure)
    saved(figure, tmp_path)


def test_timescales_with_bounds_hollow_and_power_lines(tmp_path: Path) -> None:
    law = fitted(cell(5), cell(20), cell(80), cell(40, center=4))
    figure = timescale_over_tokens_per_param({"adamw": law, "muon": published_timescale_law("muon")}, target=400.0)
    left, right = figure.axes
    hollow = [line for line in left.lines if line.get_marker() == "^"]
    assert [line.get_markerfacecolor() for line in hollow] == ["white"]
    assert "exponent: published prior" in right.get_title()
    names = labels(figure)
    assert "at least this: edge of the grid" in names
    assert "at most this: edge of the grid" not in names
    assert "Power Lines (arXiv:2505.13738)" in names
    saved(figure, tmp_path)


def test_nothing_to_draw_is_refused() -> None:
    for draw in (critical_batch_over_tokens, lr_over_batch, timescale_over_tokens_per_param):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw({})
