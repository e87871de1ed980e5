"""Loss over width: planted laws, bounds, and predictions that say how little three widths know."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.flags import Flag
from analysis.interval import FitError
from analysis.loss_law import LossLaw, fit_loss_law, predict_loss
from analysis.optimum import Optimum
from tests.analysis_helpers import planted_optimum

WIDTHS = (32, 64, 128)


def law_of(losses: dict[int, float], **optimum: float) -> LossLaw:
    optima = [planted_optimum(w, -7.0, loss, **optimum) for w, loss in losses.items()]  # type: ignore[arg-type]
    return fit_loss_law(optima, rng=np.random.default_rng(6))


def limited(width: int, limit: float, reducible: float, exponent: float) -> float:
    return limit + reducible * (width / 32) ** -exponent


@given(limit=st.floats(0.2, 3), reducible=st.floats(0.3, 3), exponent=st.floats(0.2, 1.8))
def test_recovers_a_planted_limit_through_three_widths(limit: float, reducible: float, exponent: float) -> None:
    law = law_of({w: limited(w, limit, reducible, exponent) for w in WIDTHS}, n_draws=4)
    assert law.limited.exponent == pytest.approx(exponent, abs=2e-3)
    assert law.limited.limit == pytest.approx(limit, abs=0.02)
    assert law.limited.reducible == pytest.approx(reducible, abs=0.02)
    assert law.wider_is_better


@given(scale=st.floats(1.1, 9), exponent=st.floats(0.12, 0.9))
def test_recovers_a_planted_pure_power_law(scale: float, exponent: float) -> None:
    law = law_of({w: scale * (w / 32) ** -exponent for w in (32, 48, 128, 512)}, n_draws=4)
    assert law.pure.limit == 0
    assert law.pure.reducible == pytest.approx(scale, rel=1e-6)
    assert law.pure.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.limited.limit == pytest.approx(0, abs=0.02 * scale)


def test_more_widths_than_parameters_are_least_squares() -> None:
    rng = np.random.default_rng(9)
    losses = {w: limited(w, 1.4, 1.1, 0.55) + 0.002 * rng.standard_normal() for w in (32, 64, 128, 256, 512)}
    law = law_of(losses)
    assert law.limited.limit == pytest.approx(1.4, abs=0.05)
    assert law.limited.exponent == pytest.approx(0.55, abs=0.05)


def test_prediction_is_the_mean_of_two_laws_that_part_beyond_the_data() -> None:
    law = law_of({w: limited(w, 1.4, 1.1, 0.55) for w in WIDTHS})
    pure = law.pure.reducible * (1024 / 32) ** -law.pure.exponent
    prediction = predict_loss(law, 1024)
    assert pure < limited(1024, 1.4, 1.1, 0.55) - 0.1
    assert prediction.loss == pytest.approx((pure + limited(1024, 1.4, 1.1, 0.55)) / 2, abs=1e-3)
    assert prediction.interval is not None
    assert prediction.interval.contains(pure)
    assert prediction.interval.contains(limited(1024, 1.4, 1.1, 0.55))
    near = predict_loss(law, 128).interval
    assert near is not None
    assert near.width < prediction.interval.width / 5


@pytest.mark.parametrize("limit", [0.0, 1.2])
def test_interval_covers_the_next_octave(limit: float) -> None:
    rng, covered = np.random.default_rng(41), 0
    truth = {w: limited(w, limit, 2.5 - limit, 0.5) for w in (*WIDTHS, 256)}
    for _ in range(100):
        optima = [
            planted_optimum(w, -7.0, truth[w] + 0.006 * rng.standard_normal(), loss_sd=0.006, n_draws=100, rng=rng)
            for w in WIDTHS
        ]
        interval = predict_loss(fit_loss_law(optima, rng=rng), 256).interval
        assert interval is not None
        covered += interval.contains(truth[256])
    assert covered / 100 >= 0.84


def test_wider_is_better_needs_every_step_to_fall() -> None:
    assert law_of({32: 2.5, 64: 2.3, 128: 2.29}).wider_is_better
    assert not law_of({32: 2.5, 64: 2.3, 128: 2.31}).wider_is_better


def test_a_rising_loss_gives_a_flat_limited_law_and_no_crash() -> None:
    law = law_of({32: 2.3, 64: 2.4, 128: 2.5})
    assert law.pure.exponent < 0
    assert 0 <= law.limited.limit <= 2.3
    assert law.limited.reducible >= 0
    assert not law.wider_is_better


def test_no_interval_where_an_optimum_has_none() -> None:
    optima = [planted_optimum(w, -7.0, 2.5 - w / 200, n_draws=0 if w == 64 else 50) for w in WIDTHS]
    law = fit_loss_law(optima, rng=np.random.default_rng(6))
    assert law.draws == ()
    assert predict_loss(law, 256).interval is None


def test_draws_at_or_below_zero_are_left_out() -> None:
    law = law_of({32: 0.9, 64: 0.6, 128: 0.4}, loss_sd=0.2)
    assert 300 < len(law.draws) < 400


@pytest.mark.parametrize(
    ("optima", "message"),
    [
        ([planted_optimum(w, -7.0, 2.5) for w in (32, 64)], r"three widths or more, got widths \[32, 64\]"),
        (
            [planted_optimum(w, -7.0, 2.5, flags=(Flag.EDGE_LOW,) if w == 64 else ()) for w in WIDTHS],
            r"at widths \[64\] the optimum is at an edge",
        ),
        ([planted_optimum(w, -7.0, 0.0) for w in WIDTHS], "losses above 0"),
    ],
)
def test_refuses_what_cannot_carry_a_law(optima: list[Optimum], message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_loss_law(optima, rng=np.random.default_rng(6))
