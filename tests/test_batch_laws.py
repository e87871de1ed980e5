"""The law of the critical batch: planted exponents, intervals that cover and widen, definitions, and refusals."""

from collections.abc import Sequence

import numpy as np
import pytest

from analysis.batch_laws import BatchPoint, CriticalBatchLaw, batch_for, fit_critical_batch_law
from analysis.interval import FitError
from analysis.posterior_line import NormalPrior
from analysis.published_laws import HYPERBOLA, OVERHEAD_20, BatchDefinition

LOOSE = NormalPrior(mean=0.0, sd=5.0, source="nothing")
D0, N0, B0 = 1e8, 5e6, 4e4


def truth(min_tokens: float, n_params: float, q: float, r: float = 0.0) -> float:
    return float(B0 * (min_tokens / D0) ** q * (n_params / N0) ** r)


def points(
    budgets: Sequence[float],
    sizes: Sequence[float] = (N0,),
    *,
    q: float = 0.465,
    r: float = 0.0,
    noise: float = 0.0,
    sd: float = 0.15,
    rng: np.random.Generator | None = None,
) -> list[BatchPoint]:
    rng = rng or np.random.default_rng(3)
    return [
        BatchPoint(
            min_tokens=d,
            n_params=n,
            critical_batch=truth(d, n, q, r) * float(np.exp(noise * rng.standard_normal())),
            log_sd=sd,
        )
        for n in sizes
        for d in budgets
    ]


def test_recovers_planted_exponents_over_tokens_and_parameters() -> None:
    budgets, sizes = np.geomspace(3e7, 3e9, 4), np.geomspace(1e6, 1e8, 4)
    law = fit_critical_batch_law(points(budgets, sizes, q=0.62, r=-0.13, sd=0.02, noise=0.02))
    assert law.fits_params
    assert law.over_tokens.value == pytest.approx(0.62, abs=0.03)
    assert law.over_params.value == pytest.approx(-0.13, abs=0.03)
    assert law.over_tokens.interval.contains(0.62)
    assert law.over_params.interval.contains(-0.13)
    assert law.over_tokens.rests_on == law.over_params.rests_on == "fitted here"
    assert law.over_tokens.data_share > 0.9
    assert law.predict(3e11, 7e9).value == pytest.approx(truth(3e11, 7e9, 0.62, -0.13), rel=0.3)


def test_a_decade_of_noisy_points_says_little_a_hundred_times_further() -> None:
    """15 % noise a point over one decade, exponent free: 100 times beyond, p10 to p90 is about half to twice."""
    for n in (3, 6):
        law = fit_critical_batch_law(points(np.geomspace(1e8, 1e9, n)), tokens_prior=LOOSE, scatter=1e-6, level=0.8)
        found = law.predict(1e11, N0)
        assert 0.42 < found.interval.low / found.value < 0.62
        assert 1.6 < found.interval.high / found.value < 2.4
    near, far = (fit_critical_batch_law(points((1e8, 3e8, 1e9))).predict(d, N0) for d in (3e8, 1e11))
    assert far.interval.high / far.interval.low > 2 * near.interval.high / near.interval.low
    assert (near.rests_on, far.rests_on) == ("measured here", "published prior")


def test_one_point_is_carried_by_the_published_exponent() -> None:
    law = fit_critical_batch_law(points((1e8,), sd=0.05))
    assert law.over_tokens.data_share == pytest.approx(0.0, abs=1e-6)
    assert law.over_tokens.rests_on == "published prior"
    assert "Power Lines" in law.over_tokens.prior.source
    assert law.predict(1e10, N0).value == pytest.approx(truth(1e10, N0, 0.465), rel=1e-3)
    assert law.predict(1e8, N0).value == pytest.approx(B0, rel=1e-3)


def test_parameters_keep_their_prior_until_three_sizes_have_three_budgets() -> None:
    """Two sizes 20 times apart that differ by a factor of 2 do not become a law of N, but widen the interval there."""
    law = fit_critical_batch_law(points((1e8, 3e8, 1e9), (1e6, 2e7), r=0.23, sd=0.05))
    assert not law.fits_params
    assert (law.over_params.value, law.over_params.data_share) == (0.0, 0.0)
    assert law.over_params.rests_on == "published prior"
    same, other = law.predict(1e9, np.sqrt(1e6 * 2e7)), law.predict(1e9, 7e9)
    assert other.value == pytest.approx(same.value)
    assert other.log_sd == pytest.approx(np.hypot(same.log_sd, 0.1 * np.log(7e9 / np.sqrt(1e6 * 2e7))))
    assert other.interval.high / other.value > same.interval.high / same.value
    together = fit_critical_batch_law(
        [point for d, n in ((1e8, 5e6), (1e9, 5e7), (1e10, 5e8)) for point in points((d,), (n,))]
    )
    assert not together.fits_params
    assert together.over_tokens.sd > fit_critical_batch_law(points((1e8, 1e9, 1e10))).over_tokens.sd


@pytest.mark.parametrize("sizes", [(N0,), (1e6, 2e7), (1e6, 5e6, 2e7)])
def test_intervals_hold_a_measurement_at_the_target(sizes: tuple[float, ...]) -> None:
    """Exponents drawn from their priors, errors and scatter of 10 % each; the target 100 times the tokens and size."""
    rng, held = np.random.default_rng(29), []
    for _ in range(250):
        q, r = rng.normal(0.465, 0.1), rng.normal(0.0, 0.1)
        law = fit_critical_batch_law(
            points((1e8, 3e8, 1e9), sizes, q=q, r=r, noise=np.hypot(0.1, 0.1), sd=0.1, rng=rng)
        )
        found = law.predict(1e11, 5e8)
        held.append(found.interval.contains(truth(1e11, 5e8, q, r) * np.exp(0.1 * rng.standard_normal())))
    assert 0.85 <= np.mean(held) <= 0.98, np.mean(held)


def test_definitions_are_converted_and_never_mixed() -> None:
    hyperbola = points((1e8, 3e8, 1e9))
    overhead = [
        BatchPoint(
            min_tokens=p.min_tokens,
            n_params=p.n_params,
            critical_batch=0.2 * p.critical_batch,
            log_sd=p.log_sd,
            definition=OVERHEAD_20,
        )
        for p in hyperbola
    ]
    laws = [fit_critical_batch_law(found) for found in (hyperbola, overhead, [hyperbola[0], *overhead[1:]])]
    values = [law.predict(1e10, N0).value for law in laws]
    np.testing.assert_allclose(values, values[0])
    law = laws[0]
    assert batch_for(law, 1e10, N0).value == pytest.approx(0.2 * values[0])
    assert batch_for(law, 1e10, N0, overhead=0.05).value == pytest.approx(0.05 * values[0])
    assert batch_for(law, 1e10, N0).definition == OVERHEAD_20
    assert law.predict(1e10, N0).definition.label == "hyperbola's constant"
    assert batch_for(law, 1e10, N0).definition.label == "20 % token overhead"
    assert hyperbola[0].as_defined(BatchDefinition(overhead=0.5)) == pytest.approx(0.5 * hyperbola[0].critical_batch)


def test_a_point_from_draws() -> None:
    draws = 3e4 * np.exp(0.12 * np.random.default_rng(2).standard_normal(4000))
    point = BatchPoint.of_draws(draws, min_tokens=1e8, n_params=1e6, definition=HYPERBOLA, label="muon")
    assert point.critical_batch == pytest.approx(3e4, rel=0.01)
    assert point.log_sd == pytest.approx(0.12, rel=0.05)
    assert isinstance(fit_critical_batch_law([point]), CriticalBatchLaw)
    with pytest.raises(FitError, match="leave out what was not bracketed"):
        BatchPoint.of_draws([3e4, -1.0], min_tokens=1e8, n_params=1e6)


def test_refuses_what_is_no_point() -> None:
    with pytest.raises(FitError, match="needs at least one measured critical batch"):
        fit_critical_batch_law([])
    with pytest.raises(FitError, match=r"min_tokens must be above 0 and finite, got 0"):
        BatchPoint(min_tokens=0, n_params=1e6, critical_batch=1e4, log_sd=0.1)
    with pytest.raises(FitError, match=r"log_sd must be above 0 and finite, got nan"):
        BatchPoint(min_tokens=1e8, n_params=1e6, critical_batch=1e4, log_sd=float("nan"))
    law = fit_critical_batch_law(points((1e8,)))
    with pytest.raises(FitError, match="min_tokens and n_params above 0"):
        law.predict(-1, 1e6)
    with pytest.raises(FitError, match="overhead must be above 0"):
        batch_for(law, 1e9, 1e6, overhead=0)
