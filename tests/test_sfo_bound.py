"""Muon's bound: the planted form recovered, intervals that cover, refusals, closed forms, the theory's ratios."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from analysis.interval import FitError
from analysis.sfo_bound import (
    BoundForm,
    MuonSetting,
    best_batch_with_decay,
    best_batch_without_decay,
    check_decay,
    decayed_u,
    fit_bound,
    fit_form,
    measured_minimizer,
    noise_factor,
    overhead_band,
    predicted_ratio,
    with_replicates,
)

PLANTED = BoundForm(steps_at_infinity=60.0, y=4.0)  # b* = 9 * 4^2 / 4 = 36, nothing reached up to 16
BATCHES = 2.0 ** np.arange(5, 12)


def setting(momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0) -> MuonSetting:
    return MuonSetting(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def test_a_planted_form_without_noise() -> None:
    fit = fit_bound(BATCHES, PLANTED.steps(BATCHES).tolist(), unit="examples", rng=np.random.default_rng(0))
    assert (fit.form.best_batch, PLANTED.best_batch) == (pytest.approx(36, rel=5e-3), 36)
    assert fit.form.steps_at_infinity == pytest.approx(60, rel=1e-3)
    assert fit.bracketed
    assert "never gives an absolute" in fit.sentence
    assert "at a batch of 36.1 examples [36." in fit.sentence


@pytest.mark.parametrize(("last", "never"), [(12, ()), (12, (8.0, 16.0)), (10, ())])
def test_intervals_cover_a_planted_minimizer(last: int, never: tuple[float, ...]) -> None:
    """3 % noise on the steps: b* within 10 %, and 90 % intervals that hold it 82 to 100 % of the time (two standard
    errors of 60 studies)."""
    rng, held, found = np.random.default_rng(3), 0, []
    batches = 2.0 ** np.arange(5, last)
    for _ in range(60):
        noisy = (PLANTED.steps(batches) * np.exp(0.03 * rng.standard_normal(len(batches)))).tolist()
        fit = fit_bound(
            [*never, *batches],
            [*[None] * len(never), *noisy],
            [3000] * (len(never) + len(batches)),
            unit="examples",
            rng=rng,
            n_draws=100,
        )
        held += fit.interval.contains(PLANTED.best_batch)
        found.append(fit.form.best_batch)
    assert held / 60 >= 0.82
    assert np.quantile(found, [0.05, 0.95]) == pytest.approx([36, 36], rel=0.1)
    assert np.median(found) == pytest.approx(36, rel=0.02)


def test_the_scatter_between_replicates_is_in_the_interval() -> None:
    """Seeds that scatter by 25 % near the pole and by 1 % elsewhere: residuals alone know nothing of the first."""
    batches = np.array([20.0, 28, 40, 64, 128, 256, 512])
    rng, noise = np.random.default_rng(4), np.where(batches == 20, 0.25, 0.01)
    held = 0
    for _ in range(30):
        seeds = PLANTED.steps(batches) * np.exp(noise * rng.standard_normal((4, len(batches))))
        samples = [
            fit_form(batches, np.take_along_axis(seeds, rng.integers(4, size=seeds.shape), 0).mean(axis=0).tolist())
            for _ in range(30)
        ]
        alone = fit_bound(batches, seeds.mean(axis=0).tolist(), unit="examples", rng=rng, n_draws=80)
        fit = with_replicates(alone, [form.best_batch for form in samples], 4)
        assert fit.interval.width > alone.interval.width
        held += fit.interval.contains(PLANTED.best_batch)
    assert held / 30 >= 0.8
    assert fit_form(batches, seeds.mean(axis=0).tolist()) == alone.form
    for samples_of, n in (([], 4), ([36.0], 1)):
        with pytest.raises(FitError, match="two replicates"):
            with_replicates(alone, samples_of, n)


def test_one_wild_batch_moves_little() -> None:
    steps = PLANTED.steps(BATCHES) * np.exp(0.01 * np.array([1, -1, 1, -1, 1, -1, 1]))
    steps[4] *= 1.6
    fit = fit_bound(BATCHES, steps.tolist(), unit="examples", rng=np.random.default_rng(0))
    assert fit.form.best_batch == pytest.approx(36, rel=0.06)


def test_batches_that_never_reached_the_target_bound_it_from_below() -> None:
    """The steps from 64 on say that 29 is the pole; that 32 did not reach it either raises it to there."""
    batches = 2.0 ** np.arange(6, 11)
    truth = BoundForm(steps_at_infinity=60.0, y=math.sqrt(29))
    steps = (truth.steps(batches) * np.exp([0.02, -0.04, 0.0, 0.04, -0.02])).tolist()

    def minimizer(budget: float) -> float:
        never, rng = [16.0, 32.0], np.random.default_rng(1)
        return fit_bound([*never, *batches], [None, None, *steps], [budget] * 7, unit="e", rng=rng).form.best_batch

    free = fit_bound(batches, steps, unit="e", rng=np.random.default_rng(1)).form
    assert free.smallest_batch == pytest.approx(29, rel=0.07)
    assert minimizer(5000) == pytest.approx(2.25 * 32, rel=0.03)
    assert minimizer(60) == pytest.approx(free.best_batch, rel=0.01)  # even a very large batch takes that long


def test_the_better_form_is_told() -> None:
    rng = np.random.default_rng(2)
    steps = PLANTED.steps(BATCHES) * np.exp(0.02 * rng.standard_normal(7))
    assert fit_bound(BATCHES, steps.tolist(), unit="examples", rng=rng).aic_over_hyperbola < -4
    hyperbola = 60 * (1 + 300 / BATCHES) * np.exp(0.02 * rng.standard_normal(7))
    assert fit_bound(BATCHES, hyperbola.tolist(), unit="examples", rng=rng).aic_over_hyperbola > 4


@pytest.mark.parametrize(
    ("batches", "steps", "message"),
    [
        ([32, 64, 128], [90, 70, 60], "reached at 3 batches, a fit needs 4"),
        ([8, 16, 32, 64, 128], [None, None, 90, 70, 60], "reached at 3 batches"),
        ([32, 32, 64, 128], [90, 80, 70, 60], "stands twice"),
        ([32, 64, 128, 256], [90, 70, -1, 60], "must be positive"),
        ([0, 64, 128, 256], [90, 70, 60, 60], "must be positive"),
        ([512, 1024, 2048, 4096], [61, 60, 60, 60], "add smaller batches"),
        ([512, 1024, 2048, 4096], [60, 60, 61, 60], "add smaller batches"),
        ([32, 64, 128, 256], [90, 70, 60], "one number of steps"),
    ],
)
def test_refusals(batches: list[float], steps: list[float | None], message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_bound(batches, steps, unit="examples", rng=np.random.default_rng(0))


def test_all_batches_below_the_minimizer_is_said() -> None:
    batches = np.array([18.0, 20, 23, 27, 31])
    fit = fit_bound(batches, PLANTED.steps(batches).tolist(), unit="tokens", rng=np.random.default_rng(0))
    assert not fit.bracketed
    assert "beyond the largest batch measured (31)" in fit.sentence


@given(t=st.floats(1e-3, 1e3), y=st.floats(1e-3, 1e3))
def test_the_minimum_is_the_arithmetic_mean_inequality(t: float, y: float) -> None:
    """4 (t + Y)^3 = 27 Y^2 t + (2t - Y)^2 (t + 4Y), so (t + Y)^3 / t >= 27 Y^2 / 4: b T(b) is least where 2t = Y."""
    assert 4 * (t + y) ** 3 == pytest.approx(27 * y**2 * t + (2 * t - y) ** 2 * (t + 4 * y), rel=1e-9)
    form = BoundForm(steps_at_infinity=2.5, y=y)
    assert form.sfo((t + y) ** 2) >= form.least_sfo * (1 - 1e-9)
    assert form.sfo(form.best_batch) == pytest.approx(form.least_sfo, rel=1e-9)


@given(overhead=st.floats(0.01, 3.0))
def test_the_band_is_where_the_overhead_is_paid(overhead: float) -> None:
    low, high = PLANTED.band(overhead)
    assert low < PLANTED.best_batch < high
    assert PLANTED.sfo(low) == pytest.approx((1 + overhead) * PLANTED.least_sfo, rel=1e-9)
    assert PLANTED.sfo(high) == pytest.approx((1 + overhead) * PLANTED.least_sfo, rel=1e-9)


def test_the_twenty_percent_band() -> None:
    assert overhead_band() == pytest.approx((0.672, 1.822), abs=5e-4)
    with pytest.raises(FitError, match="above 0"):
        overhead_band(0.0)


def test_steps_are_infinite_where_noise_exceeds_the_target() -> None:
    assert PLANTED.steps(np.array([4.0, 16.0])).tolist() == [math.inf, math.inf]
    assert PLANTED.steps(64.0) == pytest.approx(120)


def test_a_measured_minimizer() -> None:
    batches = [8.0, 16, 32, 64, 128]
    found = measured_minimizer([4.0, *batches], [None, *PLANTED.steps(np.array(batches) * 2.5).tolist()])
    assert not found.edge
    assert found.batch == pytest.approx(36 / 2.5, rel=0.26)  # a third of an octave
    assert measured_minimizer(batches, [100.0, 80, 60, 50, 40]).edge
    with pytest.raises(FitError, match="three batches"):
        measured_minimizer(batches, [None, None, None, 50, 40])


@pytest.mark.parametrize(
    ("momentum", "with_nesterov", "without"),
    [(0.8, 1.96, 1.0), (0.9, 0.845, 0.474), (0.95, 0.368, 0.231), (0.99, 0.058, 0.045)],
)
def test_noise_factors(momentum: float, with_nesterov: float, without: float) -> None:
    """9 k^2 is b* at D sigma^2 = 1 and eps - Z = 1."""
    assert best_batch_without_decay(setting(momentum), variance=1, target=1) == pytest.approx(with_nesterov, abs=6e-4)
    plain = setting(momentum, nesterov=False)
    assert best_batch_without_decay(plain, variance=1, target=1) == pytest.approx(without, abs=6e-4)


@pytest.mark.parametrize("nesterov", [True, False])
def test_without_momentum_noise_stays_and_with_all_of_it_goes(nesterov: bool) -> None:
    assert noise_factor(setting(0.0, nesterov)) == 1
    assert noise_factor(setting(1 - 1e-9, nesterov)) < 1e-4


def test_a_plain_averages_noise_factor_is_exact() -> None:
    """The standard deviation of sum_i (1 - beta) beta^i g_i; of Nesterov's C it is below the bound's k."""
    beta = 0.9
    weights = (1 - beta) * beta ** np.arange(400)
    assert noise_factor(setting(beta, nesterov=False)) == pytest.approx(math.sqrt(np.sum(weights**2)), rel=1e-12)
    ahead = beta * weights
    ahead[0] += 1 - beta
    assert 0.5 < math.sqrt(np.sum(ahead**2)) / noise_factor(setting(beta)) < 1


@pytest.mark.parametrize("gap_over_target", [1.05, 3.0, 400.0])
def test_with_decay_the_minimizer_is_lamberts(gap_over_target: float) -> None:
    """Against a search over b T(b) with T(b) = ln(X / (sqrt(eps') - Y / sqrt(b))) / (lambda eta)."""
    decayed, variance, target = setting(weight_decay=0.3), 7.0, 0.2
    y = 2 / 0.3 * noise_factor(decayed) * math.sqrt(variance)

    def sfo(log_batch: float) -> float:
        batch = math.exp(log_batch)
        return batch * math.log(gap_over_target * target / (target - y / math.sqrt(batch)))

    pole = 2 * math.log(y / target)
    searched = minimize_scalar(sfo, bounds=(pole + 1e-9, pole + 12), method="bounded", options={"xatol": 1e-10})
    found = best_batch_with_decay(decayed, variance=variance, target=target, initial_gap=gap_over_target * target)
    assert found == pytest.approx(math.exp(searched.x), rel=1e-5)
    u = decayed_u(gap_over_target)
    assert (1 + u) * math.exp(-u / 2) == pytest.approx(1 / gap_over_target, rel=1e-9)


def test_formulas_ask_for_their_own_setting() -> None:
    with pytest.raises(FitError, match="best_batch_with_decay"):
        best_batch_without_decay(setting(weight_decay=0.1), variance=1, target=1)
    with pytest.raises(FitError, match="best_batch_without_decay"):
        best_batch_with_decay(setting(), variance=1, target=1, initial_gap=2)
    with pytest.raises(FitError, match="above the target"):
        decayed_u(1.0)
    with pytest.raises(FitError, match="below 1"):
        setting(1.0)
    with pytest.raises(FitError, match="0 or more"):
        setting(weight_decay=-0.1)


def test_predicted_ratios() -> None:
    higher = predicted_ratio(setting(0.95), setting(0.9))
    assert higher.newer == higher.older == pytest.approx(0.368 / 0.845, abs=2e-3)
    assert not higher.contested
    plain = predicted_ratio(setting(0.95, nesterov=False), setting(0.9, nesterov=False))
    assert plain.older == pytest.approx(0.487, abs=1e-3)
    assert predicted_ratio(setting(nesterov=False), setting()).older == pytest.approx(0.474 / 0.845, abs=2e-3)


def test_derivations_that_disagree_about_decay_are_both_told() -> None:
    doubled = predicted_ratio(setting(weight_decay=0.2), setting(weight_decay=0.1))
    assert doubled.newer == 0.25
    assert doubled.older == pytest.approx((0.28 + 0.2) / (0.28 + 0.1))
    assert doubled.contested
    assert "disagree" in doubled.sentence
    switched_on = predicted_ratio(setting(weight_decay=0.1), setting())
    assert switched_on.newer is None
    assert switched_on.older == pytest.approx(0.38 / 0.28)
    assert "says nothing" in switched_on.sentence


@given(a=st.floats(0, 0.99), b=st.floats(0, 0.99), decay=st.floats(0.01, 1), other=st.floats(0.01, 1))
def test_ratios_go_both_ways(a: float, b: float, decay: float, other: float) -> None:
    one, two = setting(a, weight_decay=decay), setting(b, nesterov=False, weight_decay=other)
    there, back = predicted_ratio(one, two), predicted_ratio(two, one)
    assert there.newer is not None
    assert back.newer is not None
    assert there.newer * back.newer == pytest.approx(1)
    assert there.by_momentum * back.by_momentum == pytest.approx(1)


def test_the_guard_on_decay() -> None:
    assert check_decay(0.02, 1.0) is None
    assert check_decay(0.0, 5.0) is None
    warning = check_decay(0.5, 0.4)
    assert warning is not None
    assert "0.2" in warning
    with pytest.raises(FitError, match="at most 2 here"):
        check_decay(0.5, 2.1)
    with pytest.raises(FitError, match="at most 1"):
        check_decay(0.5, math.nan)
