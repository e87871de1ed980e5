"""Drifts with width: planted slopes and laws, honest errors, predictions that cover."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from analysis.drift import Drift, fit_drift, predict_optimum
from analysis.flags import Flag
from analysis.interval import FitError
from analysis.surface import Series
from tests.analysis_helpers import planted_optimum

WIDTHS = (32, 64, 128)


def drift_of(law: Callable[[int], float], widths: tuple[int, ...] = WIDTHS, **optimum: float) -> Drift:
    optima = [planted_optimum(width, law(width), **optimum) for width in widths]  # type: ignore[arg-type]
    return fit_drift(optima, rng=np.random.default_rng(4))


@given(slope=st.floats(-2, 2), level=st.floats(-12, 3), widths=st.sets(st.integers(8, 4096), min_size=2, max_size=6))
def test_recovers_a_planted_slope_whatever_the_weights(slope: float, level: float, widths: set[int]) -> None:
    optima = [planted_optimum(w, level + slope * np.log2(w), sd=0.05 + w % 7 / 10) for w in widths]
    drift = fit_drift(optima, rng=np.random.default_rng(4))
    assert drift.slope == pytest.approx(slope, abs=1e-6)
    spread = np.log2(max(widths)) - np.log2(min(widths))
    assert drift.range_octaves == pytest.approx(abs(slope) * spread, abs=1e-6)


def test_slope_weighs_optima_by_their_errors() -> None:
    values, sds = np.array([-7.1, -6.4, -6.9, -5.8]), np.array([0.15, 0.6, 0.3, 0.9])
    widths = np.array([32, 64, 128, 256])
    optima = [planted_optimum(w, v, sd=s) for w, v, s in zip(widths.tolist(), values, sds, strict=True)]
    drift = fit_drift(optima, rng=np.random.default_rng(4))
    (slope, _), _ = curve_fit(lambda x, a, b: a * x + b, np.log2(widths), values, sigma=drift.errors)
    assert drift.slope == pytest.approx(slope, rel=1e-6)
    assert drift.errors == pytest.approx(sds, rel=0.15)
    assert drift.series == Series("muon", (("weight_decay", 0.1),))


def test_drift_is_resolved_only_beyond_its_noise() -> None:
    assert drift_of(lambda w: -7 + 0.8 * np.log2(w / 64), sd=0.15).resolved
    assert not drift_of(lambda w: -7 + 0.1 * np.log2(w / 64), sd=0.15).resolved
    falling = drift_of(lambda w: -7 - 0.8 * np.log2(w / 64), sd=0.15)
    assert falling.resolved
    assert falling.slope_interval.high < 0


def test_an_erratic_optimum_is_not_a_confident_slope() -> None:
    values = {32: -8.0, 64: -6.0, 128: -7.0}
    drift = drift_of(lambda w: values[w], sd=0.05)
    assert drift.range_octaves == 2.0
    assert not drift.resolved
    assert predict_optimum(drift, 256).interval.width > 2


def test_a_lucky_tiny_interval_is_floored_at_a_tenth_of_a_step() -> None:
    optima = [planted_optimum(w, v, sd=s) for w, v, s in ((32, -7.4, 0.25), (64, -6.6, 1e-6), (128, -6.8, 0.25))]
    drift = fit_drift(optima, rng=np.random.default_rng(4))
    assert drift.errors[1] == pytest.approx(0.1, rel=0.15)
    assert drift.errors[0] == pytest.approx(0.25, rel=0.15)


def test_an_optimum_without_an_interval_counts_as_half_a_step() -> None:
    drift = fit_drift(
        [planted_optimum(32, -7.4, n_draws=0), planted_optimum(64, -6.6), planted_optimum(128, -6.8)],
        rng=np.random.default_rng(4),
    )
    assert drift.errors == pytest.approx((0.5, 0.2, 0.2), rel=0.15)
    assert len(drift.draws) == 400
    alone = fit_drift([planted_optimum(w, -7.0, n_draws=0) for w in WIDTHS], rng=np.random.default_rng(4))
    assert not alone.resolved


def test_unresolved_drift_predicts_the_weighted_mean() -> None:
    values, sds = np.array([-7.1, -6.9, -7.3]), np.array([0.2, 0.4, 0.3])
    optima = [planted_optimum(w, v, sd=s) for w, v, s in zip(WIDTHS, values, sds, strict=True)]
    drift = fit_drift(optima, rng=np.random.default_rng(4))
    prediction = predict_optimum(drift, 256)
    weights = np.array(drift.errors) ** -2
    assert prediction.law == "constant"
    assert prediction.log2_value == pytest.approx(float(weights @ values / weights.sum()))
    assert prediction.value == pytest.approx(2**prediction.log2_value)
    assert prediction.interval.contains(prediction.log2_value)
    assert prediction.interval.level == 0.9


@pytest.mark.parametrize(("limit", "correction"), [(-5.6, -48.0), (-9.3, 40.0)])
def test_resolved_drift_predicts_the_finite_width_law(limit: float, correction: float) -> None:
    prediction = predict_optimum(drift_of(lambda w: limit + correction / w, sd=0.12), 512)
    assert prediction.law == "finite_width"
    assert prediction.log2_value == pytest.approx(limit + correction / 512, abs=1e-6)


@pytest.mark.parametrize("law", ["constant", "steady", "finite_width", "faint"])
def test_prediction_covers_whichever_law_holds(law: str) -> None:
    """Three widths cannot tell the laws apart, so the interval has to hold the truth under each."""
    laws: dict[str, Callable[[int], float]] = {
        "constant": lambda w: -7.3,
        "steady": lambda w: -7.3 + 0.5 * np.log2(w / 64),
        "finite_width": lambda w: -6.4 - 32 / w,
        "faint": lambda w: -7.3 + 0.15 * np.log2(w / 64),
    }
    rng, covered = np.random.default_rng(31), 0
    for _ in range(200):
        sd = 0.2
        optima = [
            planted_optimum(w, laws[law](w) + sd * rng.standard_normal(), sd=sd, n_draws=200, rng=rng) for w in WIDTHS
        ]
        covered += predict_optimum(fit_drift(optima, rng=rng), 256).interval.contains(laws[law](256))
    assert covered / 200 >= 0.85


def test_slope_interval_covers_a_planted_slope() -> None:
    rng, covered = np.random.default_rng(32), 0
    for _ in range(300):
        values = {w: -7.3 + 0.3 * np.log2(w) + 0.2 * rng.standard_normal() for w in WIDTHS}
        optima = [planted_optimum(w, v, n_draws=200, rng=rng) for w, v in values.items()]
        covered += fit_drift(optima, rng=rng).slope_interval.contains(0.3)
    assert 0.86 <= covered / 300 <= 0.98  # above 90%: the Birge ratio widens and never narrows


def test_order_of_the_optima_does_not_matter() -> None:
    optima = [planted_optimum(w, -7 + w / 100) for w in WIDTHS]
    assert fit_drift(optima, rng=np.random.default_rng(4)) == fit_drift(optima[::-1], rng=np.random.default_rng(4))


def test_refuses_one_width_and_edges() -> None:
    with pytest.raises(FitError, match=r"two widths or more, got widths \[64\]"):
        fit_drift([planted_optimum(64, -7.0)], rng=np.random.default_rng(4))
    optima = [planted_optimum(32, -7.0), planted_optimum(64, -4.0, flags=(Flag.EDGE_HIGH,))]
    with pytest.raises(FitError, match=r"at widths \[64\] the optimum is at an edge"):
        fit_drift(optima, rng=np.random.default_rng(4))
