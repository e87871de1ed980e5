"""Weight decay through the EMA timescale: closed forms, planted laws, bounds, the published law, and refusals."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.interval import FitError
from analysis.published_laws import law_of
from analysis.timescale import (
    TimescaleLaw,
    fit_timescale_law,
    published_timescale_law,
    timescale,
    timescale_runs,
    weight_decay_for,
)

C, M = 0.8, -0.38
BATCH, N_PARAMS = 2.0**14, 2e6
LRS = 2.0 ** np.arange(-9.0, -4.0)
POSITIVE = st.floats(1e-6, 1e6)


def optimum(tokens_per_param: float, c: float = C, m: float = M) -> float:
    return float(c * tokens_per_param**m)


def cell(
    tokens_per_param: float,
    *,
    tau: float | None = None,
    n_params: float = N_PARAMS,
    lrs: Any = LRS,
    reach: int = 3,
    center: float = 0.0,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Loss over lr and weight decay around a best lr and a best tau, octaves each; a grid of wd around its best."""
    rng, tokens = rng or np.random.default_rng(4), tokens_per_param * n_params
    tau = tau or optimum(tokens_per_param)
    middle = np.log2(BATCH / (2.0**-7 * tau * tokens)).round() + center
    rows = []
    for lr, log2_decay in product(lrs, middle + np.arange(-reach, reach + 1)):
        decay = 2.0**log2_decay
        off_tau = np.log2(timescale(batch_tokens=BATCH, lr=lr, weight_decay=decay, train_tokens=tokens) / tau)
        loss = 3.0 + 0.03 * (np.log2(lr) + 7.2) ** 2 + 0.02 * off_tau**2 + noise * rng.standard_normal()
        rows.append((lr, decay, loss))
    frame = pd.DataFrame(rows, columns=["lr", "weight_decay", "loss"])
    scales = {"n_params": n_params, "train_tokens": tokens, "batch_tokens": BATCH}
    return frame.assign(series="adamw", seed=0, **scales)


def fitted(*cells: pd.DataFrame) -> TimescaleLaw:
    return fit_timescale_law(timescale_runs(pd.concat(cells, ignore_index=True)), "adamw")


@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE)
def test_weight_decay_has_the_timescale_asked_for(tau: float, batch: float, lr: float, tokens: float) -> None:
    if batch / (tau * tokens) > 1:
        with pytest.raises(FitError, match=r"needs lr \* weight_decay = .*above 1"):
            weight_decay_for(tau, batch_tokens=batch, lr=lr, train_tokens=tokens)
        return
    decay = weight_decay_for(tau, batch_tokens=batch, lr=lr, train_tokens=tokens)
    again = timescale(batch_tokens=batch, lr=lr, weight_decay=decay, train_tokens=tokens)
    assert again == pytest.approx(tau)
    assert lr * decay * (tokens / batch) == pytest.approx(1 / tau)  # 1/(lr wd steps)


def test_recovers_a_planted_law_over_lr_and_weight_decay() -> None:
    law = fitted(*(cell(ratio, noise=1e-4) for ratio in (5, 20, 80, 320)))
    assert law.over_tokens_per_param.value == pytest.approx(M, abs=0.03)
    assert law.over_tokens_per_param.interval.contains(M)
    assert law.over_tokens_per_param.rests_on == law.rests_on == "fitted here"
    assert law.coefficient == pytest.approx(C, rel=0.1)
    for found, ratio in zip(law.optima, (5, 20, 80, 320), strict=True):
        assert found.tokens_per_param == pytest.approx(ratio)
        assert found.tau == pytest.approx(optimum(ratio), rel=0.1)
        assert found.interval is not None
        assert found.interval.contains(optimum(ratio))
    inside, beyond = law.at(50), law.at(2000)
    assert (inside.rests_on, beyond.rests_on) == ("measured here", "fitted here")
    assert beyond.interval.contains(optimum(2000))
    assert beyond.interval.high / beyond.interval.low > inside.interval.high / inside.interval.low
    assert law.at(5).rests_on == law.at(320).rests_on == "measured here"


def test_losses_of_other_sizes_at_equal_tokens_per_parameter_stay_apart() -> None:
    """Twice the parameters and tokens: other losses, the same tau."""
    other = cell(20, n_params=2 * N_PARAMS)
    law = fitted(cell(20), other.assign(loss=other["loss"] - 0.7))
    assert [round(found.tokens_per_param) for found in law.optima] == [20, 20]
    np.testing.assert_allclose([found.tau for found in law.optima], optimum(20), rtol=0.05)
    assert law.over_tokens_per_param.rests_on == "published prior"


def test_one_learning_rate_is_enough() -> None:
    law = fitted(*(cell(ratio, lrs=[2.0**-7.2], reach=4) for ratio in (10, 40, 160)))
    assert law.over_tokens_per_param.value == pytest.approx(M, abs=0.03)
    assert law.optima[0].tau == pytest.approx(optimum(10), rel=0.1)


def test_intervals_hold_the_best_tau_elsewhere() -> None:
    """Exponents drawn from the prior, cells scatter by 0.2 octaves: predicted at ten times their TPP."""
    rng, held = np.random.default_rng(31), []
    for _ in range(60):
        m = rng.normal(-0.527, 0.15)
        taus = [optimum(ratio, m=m) * 2 ** (0.2 * rng.standard_normal()) for ratio in (10, 40, 160, 1600)]
        law = fitted(*(cell(r, tau=t, noise=5e-4, rng=rng) for r, t in zip((10, 40, 160), taus[:3], strict=True)))
        held.append(law.at(1600).interval.contains(taus[3]))
    assert 0.83 <= np.mean(held) <= 0.99, np.mean(held)


def test_an_optimum_at_the_end_of_the_grid_is_a_bound() -> None:
    low, high = cell(20, center=4), cell(80, center=-4)
    law = fitted(cell(5), low, high)
    bounds = {round(found.tokens_per_param): found for found in law.optima if found.bound}
    assert bounds[20].bound == "at least"  # the best wd is the smallest tried: tau is that or longer
    assert bounds[20].tau < optimum(20)
    assert bounds[80].bound == "at most"
    assert bounds[80].tau > optimum(80)
    assert all(found.interval is None for found in bounds.values())
    assert law.line.n_points == 1
    assert len(law.left_out) == 2
    alone = fitted(low)
    assert alone.rests_on == "published prior"
    assert "edge of the grid" in alone.reason
    assert [found.bound for found in alone.optima] == ["at least"]


def test_without_a_weight_decay_axis_the_law_is_the_published_one() -> None:
    frame = cell(20)
    fixed = fitted(frame[frame["weight_decay"] == frame["weight_decay"].median()])
    for law in (fixed, published_timescale_law("adamw")):
        assert law.rests_on == law.over_tokens_per_param.rests_on == "published prior"
        assert law.coefficient == pytest.approx(1.084, rel=1e-6)
        power_lines = law_of("timescale", "Power Lines")
        for ratio in (5.0, 20.0, 300.0):
            assert law.at(ratio).tau == pytest.approx(power_lines.at(1e8, ratio * 1e8), rel=1e-6)
            assert law.at(ratio).rests_on == "published prior"
        assert law.at(20).interval.high / law.at(20).interval.low > 4
    assert fixed.reason == "weight_decay takes one value"
    assert published_timescale_law("adamw").reason == "nothing was swept"


def test_runs_without_weight_decay_are_left_out_and_counted() -> None:
    none = cell(20).iloc[:5].assign(weight_decay=0.0)
    runs = timescale_runs(pd.concat([cell(20), none], ignore_index=True))
    assert runs.left_out == ("5 of 40 runs without weight decay",)
    assert (runs.observations.frame["weight_decay"] > 0).all()
    assert fit_timescale_law(runs, "adamw").left_out == runs.left_out
    with pytest.raises(FitError, match="no run has weight decay above 0"):
        timescale_runs(none)


def test_refuses_what_has_no_timescale() -> None:
    with pytest.raises(FitError, match=r"columns \['n_params'\] are missing"):
        timescale_runs(cell(20).drop(columns="n_params"))
    with pytest.raises(FitError, match="weight_decay must be above 0 and finite, got 0"):
        timescale(batch_tokens=1e4, lr=1e-3, weight_decay=0.0, train_tokens=1e9)
    with pytest.raises(FitError, match="tokens_per_param must be above 0"):
        published_timescale_law("adamw").at(0)
    with pytest.raises(FitError, match="no series 'muon'"):
        fit_timescale_law(timescale_runs(cell(20)), "muon")
    mixed = pd.concat([cell(20), cell(80, lrs=[2.0**-7])], ignore_index=True)
    with pytest.raises(FitError, match="swept in some cells and fixed in others"):
        fit_timescale_law(timescale_runs(mixed), "adamw")
