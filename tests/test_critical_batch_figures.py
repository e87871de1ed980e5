"""Figures of critical batches: what is drawn is what was found."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.critical_batch import CriticalBatchFit, fit_critical_batch
from analysis.figures.critical_batch import steps_and_tokens, token_ratio
from analysis.token_ratio import fit_token_ratio
from tests.critical_batch_helpers import BATCHES, SEQ_LEN, Planted


def found(batches: tuple[int, ...] = BATCHES) -> CriticalBatchFit:
    curves = Planted().curves(batches, noise=0.01, n_draws=30)
    return fit_critical_batch(curves, seq_len=SEQ_LEN, rng=np.random.default_rng(1))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_both_panels_mark_both_definitions_on_the_hyperbola() -> None:
    fit = found()
    figure = steps_and_tokens(fit)
    left, right = figure.axes
    assert left.get_xlabel() == right.get_xlabel() == "batch (tokens)"
    for ax, by_step in ((left, True), (right, False)):
        for marker, records in (("*", fit.records), ("P", fit.overheads)):
            drawn = {
                (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index, arg-type]
                for line in ax.get_lines()
                if line.get_marker() == marker
            }
            expected = {
                (r.value, float(h.steps_at(r.value) if by_step else h.tokens_at(r.value)))
                for r, h in zip(records, fit.hyperbolas, strict=True)
                if r.value is not None
            }
            assert drawn == expected
            assert drawn
    assert any("20% more tokens" in label for label in legend(figure))
    assert any("not reached" in label for label in legend(figure))
    assert "tokens" in figure.get_suptitle()


def test_what_is_not_measured_is_dotted_and_unmarked() -> None:
    fit = found(tuple(2**k for k in range(6, 12)))
    figure = steps_and_tokens(fit)
    lines = figure.axes[0].get_lines()
    assert not [line for line in lines if line.get_marker() in ("*", "P")]
    assert sum(line.get_linestyle() == ":" for line in lines) == len(fit.records)
    assert "no critical batch is measured" in figure.get_suptitle()
    assert "B$_c$ not measured" in legend(figure)


def test_token_ratio_shades_the_critical_batches() -> None:
    rng = np.random.default_rng(4)
    muon = Planted(scale=77.0, critical=16000.0, optimizer="muon").curves(noise=0.01, n_draws=30, rng=rng)
    fit = found()
    adamw = Planted().curves(noise=0.01, n_draws=30)
    ratio = fit_token_ratio(adamw, muon, rng=rng, critical=fit)
    figure = token_ratio(ratio, fit)
    (ax,) = figure.axes
    assert len(ax.patches) == 2
    assert ax.get_ylabel() == "tokens of adamw / tokens of muon, at equal loss"
    assert "at least" in legend(figure)
    assert not token_ratio(ratio).axes[0].patches


def test_nothing_to_draw_is_refused() -> None:
    rng = np.random.default_rng(4)
    adamw, muon = Planted().curves(), Planted(optimizer="muon").curves()
    nothing = fit_token_ratio(adamw, muon, rng=rng, target_losses=[1.6])
    with pytest.raises(ValueError, match="nothing to draw"):
        token_ratio(nothing)
