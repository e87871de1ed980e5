"""Powers of the learning rate over batch, tokens and width: planted truth, priors where nothing was swept, shifts."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from analysis.batch_laws import BatchPoint, fit_critical_batch_law
from analysis.hp_powers import (
    BATCH,
    DEPTH,
    TOKENS,
    WIDTH,
    HpPowers,
    fit_hp_powers,
    lr_batch_power_by_cell,
    power_trend,
    prior_hp_powers,
)
from analysis.interval import FitError
from analysis.observations import Observations
from analysis.posterior_line import NormalPrior, Power
from tests.scale_helpers import CENTER, cell_rows, grid, observe, quadratic

TRUTH = {WIDTH: -0.08, BATCH: 0.23, TOKENS: -0.41}
BATCHES, BUDGETS, WIDTHS = (2.0**12, 2.0**14, 2.0**16), (2.0**24, 2.0**26, 2.0**28), (64.0, 128.0)
Q = Power(
    value=0.465,
    sd=0.1,
    interval=NormalPrior(mean=0.465, sd=0.1, source="").interval(0.9),
    data_share=0.0,
    prior=NormalPrior(mean=0.465, sd=0.1, source="a paper"),
)


def planted(
    *,
    widths: Sequence[float] = WIDTHS,
    batches: Sequence[float] = BATCHES,
    budgets: Sequence[float] = BUDGETS,
    powers: dict[str, float] = TRUTH,
    noise: float = 0.002,
    scatter: float = 0.0,
    rng: np.random.Generator | None = None,
    **cell: Any,
) -> Observations:
    rng = rng or np.random.default_rng(6)
    cells = []
    for width, batch, tokens in product(widths, batches, budgets):
        move = powers[WIDTH] * np.log2(width / 64) + powers[BATCH] * np.log2(batch / 2**14)
        move += powers[TOKENS] * np.log2(tokens / 2**26) + scatter * rng.standard_normal()
        scales = {WIDTH: width, BATCH: batch, TOKENS: tokens}
        cells.append(
            cell_rows(
                quadratic(1, CENTER[:1] + move), grid(1, reach=4), seeds=2, noise=noise, rng=rng, **scales, **cell
            )
        )
    return observe(cells, 1, (WIDTH, BATCH, TOKENS))


def fitted(observations: Observations, **settings: Any) -> HpPowers:
    return fit_hp_powers(observations, "adamw", **settings)


def test_recovers_planted_powers_and_says_they_are_fitted() -> None:
    found = fitted(planted())
    assert found.swept == (WIDTH, BATCH, TOKENS)
    for scale, truth in TRUTH.items():
        power = found.power(scale)
        assert power.value == pytest.approx(truth, abs=0.05), scale
        assert power.interval.contains(truth)
        assert power.rests_on == "fitted here"
    assert found.power(DEPTH).rests_on == "published prior"
    assert found.power(DEPTH).data_share == 0.0
    assert (found.left_out, found.reason) == ((), "")
    target = {WIDTH: 1024.0, BATCH: 2.0**18, TOKENS: 2.0**32}
    truth = CENTER[0] + 4 * TRUTH[WIDTH] + 4 * TRUTH[BATCH] + 6 * TRUTH[TOKENS]
    value, interval = found.at(target)
    assert value == pytest.approx(truth, abs=0.35)
    assert interval.contains(truth)


def test_a_scale_with_one_value_keeps_its_prior() -> None:
    found = fitted(planted(budgets=(2.0**26,)))
    assert found.swept == (WIDTH, BATCH)
    assert found.power(BATCH).value == pytest.approx(TRUTH[BATCH], abs=0.05)
    tokens = found.power(TOKENS)
    assert (tokens.value, tokens.rests_on) == (pytest.approx(-0.32), "published prior")
    assert "Bjorck" in tokens.prior.source
    shift = found.shift({BATCH: 4.0, TOKENS: 6.0}, rng=np.random.default_rng(0))
    assert dict(shift.rests_on) == {BATCH: "fitted here", TOKENS: "published prior"}
    assert shift.log2_value == pytest.approx(4 * found.power(BATCH).value - 6 * 0.32)
    assert shift.interval.width == pytest.approx(6 * 2 * 1.645 * 0.15, rel=0.15)


def test_scales_that_move_together_share_what_they_explain() -> None:
    """Batch ~ tokens^(1/2) in every cell: only p_D + p_B / 2 is measured, and it is right whatever the two are."""
    cells = [planted(batches=(2.0**b,), budgets=(2.0 ** (2 * b - 2),), widths=(64.0,)).frame for b in (12, 13, 14, 15)]
    found = fitted(observe(cells, 1, (WIDTH, BATCH, TOKENS)))
    truth = TRUTH[TOKENS] + 0.5 * TRUTH[BATCH]
    half = Power(value=0.5, sd=1e-6, interval=Q.interval, data_share=1.0, prior=Q.prior)
    together = found.co_scaled(half, rng=np.random.default_rng(0))
    assert together.value == pytest.approx(truth, abs=0.05)
    assert together.interval.contains(truth)
    alone = found.power(TOKENS)
    assert together.interval.width < 0.7 * alone.interval.width


def test_without_a_sweep_everything_is_published() -> None:
    found = prior_hp_powers("muon")
    batch = found.power(BATCH)
    assert (batch.value, batch.rests_on) == (pytest.approx(0.35), "published prior")
    assert (batch.interval.low, batch.interval.high) == (pytest.approx(0.103, abs=0.01), pytest.approx(0.597, abs=0.01))
    shift = found.shift({BATCH: 10.0}, rng=np.random.default_rng(0), n_draws=4000)
    assert shift.draws.min() == pytest.approx(0.0)
    assert shift.draws.max() == pytest.approx(6.0)  # never more than 0.6 octaves an octave
    assert shift.factor == pytest.approx(2**3.5)
    co = found.co_scaled(Q, rng=np.random.default_rng(0))
    assert co.value == pytest.approx(-0.32 + 0.465 * 0.35)
    assert co.rests_on == "published prior"
    expected = np.sqrt(0.15**2 + (0.465 * 0.15) ** 2 + (0.35 * 0.1) ** 2 + (0.1 * 0.15) ** 2)
    assert co.interval.width == pytest.approx(2 * 1.645 * expected, rel=0.05)
    with pytest.raises(FitError, match="has no cell with an optimum of lr: nothing was swept"):
        found.at({BATCH: 2.0**14})


def test_data_outvote_the_range_of_the_prior() -> None:
    """Far below its critical batch SGD wants lr ~ batch, which no prior of AdamW's allows."""
    found = fitted(planted(powers={WIDTH: 0.0, BATCH: 0.95, TOKENS: 0.0}))
    assert found.power(BATCH).value == pytest.approx(0.95, abs=0.06)
    assert found.power(BATCH).interval.high > 0.9
    shift = found.shift({BATCH: 1.0}, rng=np.random.default_rng(0))
    assert shift.log2_value == pytest.approx(found.power(BATCH).value)
    assert shift.draws.mean() == pytest.approx(0.95, abs=0.06)


@pytest.mark.parametrize("scatter", [0.0, 0.2])
def test_intervals_hold_the_planted_powers(scatter: float) -> None:
    """Six cells, powers drawn from the priors; wider without scatter, which six cells cannot rule out."""
    rng, held = np.random.default_rng(17), []
    for _ in range(80):
        powers = {WIDTH: 0.0, BATCH: rng.normal(0.35, 0.15), TOKENS: rng.normal(-0.32, 0.15)}
        found = fitted(
            planted(widths=(64.0,), batches=BATCHES[:2], powers=powers, noise=0.004, scatter=scatter, rng=rng)
        )
        held.append([found.power(scale).interval.contains(powers[scale]) for scale in (BATCH, TOKENS)])
    assert np.mean(held) >= 0.84, np.mean(held)
    assert not scatter or np.mean(held) <= 0.985, np.mean(held)


def test_co_scaling_takes_the_law_of_the_critical_batch() -> None:
    law = fit_critical_batch_law(
        [
            BatchPoint(min_tokens=d, n_params=1e6, critical_batch=3e4 * (d / 1e8) ** 0.6, log_sd=0.05)
            for d in (1e8, 1e9, 1e10)
        ]
    )
    found = fitted(planted())
    together = found.co_scaled(law.over_tokens, rng=np.random.default_rng(0))
    assert together.rests_on == "fitted here"
    assert together.value == pytest.approx(TRUTH[TOKENS] + 0.6 * TRUTH[BATCH], abs=0.06)


def test_cells_at_their_edges_leave_the_priors_and_a_reason() -> None:
    found = fitted(planted(powers={WIDTH: 0.0, BATCH: 0.0, TOKENS: 0.0}, diverges=lambda x: x[:, 0] > CENTER[0] + 9))
    assert found.optima is not None
    edges = [cell_rows(quadratic(1, CENTER[:1] + 9), grid(1), **{BATCH: batch}) for batch in BATCHES]
    moved = fitted(observe(edges, 1, (BATCH,)))
    assert moved.optima is None
    assert "no cell has an optimum inside its grid" in moved.reason
    assert moved.power(BATCH).rests_on == "published prior"
    assert moved.power(BATCH).value == pytest.approx(0.35)


def test_another_hyperparameter_has_a_wide_prior_of_its_own() -> None:
    observations = planted(widths=(64.0,))
    frame = observations.frame.rename(columns={"lr": "weight_decay"})
    found = fit_hp_powers(
        Observations(scales=observations.scales, hps=("weight_decay",), frame=frame), "adamw", hp="weight_decay"
    )
    assert found.scales == (WIDTH, BATCH, TOKENS)
    assert found.power(WIDTH).prior.source.startswith("none published")
    assert found.power(BATCH).value == pytest.approx(TRUTH[BATCH], abs=0.03)


# --- one cell


def test_the_power_within_each_cell_and_its_trend() -> None:
    cells = []
    for tokens in (2.0**24, 2.0**26, 2.0**28):
        powers = {WIDTH: 0.0, BATCH: 0.3 + 0.05 * np.log2(tokens / 2**26), TOKENS: 0.0}
        cells.append(
            planted(
                widths=(64.0,), budgets=(tokens,), batches=tuple(2.0**b for b in range(11, 17)), powers=powers
            ).frame
        )
    found = lr_batch_power_by_cell(observe(cells, 1, (WIDTH, BATCH, TOKENS)), "adamw")
    np.testing.assert_allclose([cell.value for cell in found.cells], [0.2, 0.3, 0.4], atol=0.05)
    for cell, truth in zip(found.cells, (0.2, 0.3, 0.4), strict=True):
        assert cell.interval.contains(truth)
        assert len(cell.batches) == len(cell.log2_values) == len(cell.intervals) == 6
        assert dict(cell.scales)[WIDTH] == 64.0
    trend = power_trend(found.cells, [np.log2(dict(cell.scales)[TOKENS]) for cell in found.cells])
    assert trend.value == pytest.approx(0.05, abs=0.02)
    assert trend.interval.contains(0.05)


def test_a_cell_without_a_law_is_named() -> None:
    whole = planted(widths=(64.0,)).frame
    few = whole[(whole[TOKENS] > 2.0**24) | (whole[BATCH] < 2.0**13)]
    found = lr_batch_power_by_cell(observe([few], 1, (WIDTH, BATCH, TOKENS)), "adamw")
    assert len(found.cells) == 2
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("width 64, train_tokens 1.678e+07: ")


def test_refuses_names_that_are_not_there() -> None:
    observations = planted(widths=(64.0,), budgets=(2.0**26,))
    with pytest.raises(FitError, match="no hyperparameter 'momentum'; there are lr"):
        fitted(observations, hp="momentum")
    with pytest.raises(FitError, match="no series 'muon'; there are adamw"):
        fit_hp_powers(observations, "muon")
    with pytest.raises(FitError, match="the power of lr over sequences needs both"):
        lr_batch_power_by_cell(observations, "adamw", batch="sequences")
    with pytest.raises(FitError, match=r"lr has no power over 'heads'; there are width, batch_tokens"):
        fitted(observations).power("heads")
    with pytest.raises(FitError, match="a trend needs two cells or more"):
        power_trend((), ())
    with pytest.raises(FitError, match=r"a value above 0 for each of width, batch_tokens, train_tokens"):
        fitted(observations).at({BATCH: 1e4})
