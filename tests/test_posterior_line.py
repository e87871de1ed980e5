"""Lines with priors: closed forms, intervals that cover, and an answer from no point at all."""

import numpy as np
import pytest
from scipy.stats import norm

from analysis.interval import FitError
from analysis.posterior_line import LinePosterior, NormalPrior, fit_line, mixture_interval

SLOPE = NormalPrior(mean=0.465, sd=0.1, source="a paper")
NO_SCATTER = 1e-6


def line(
    x: np.ndarray, y: np.ndarray, sd: float, prior: NormalPrior = SLOPE, *, scatter_sd: float = 0.15
) -> LinePosterior:
    return fit_line(x[:, None], y, sd**2 * np.eye(len(x)), [prior], scatter_sd=scatter_sd)


def test_without_scatter_it_is_the_normal_posterior() -> None:
    x, y = np.array([-1.0, 0.5, 2.0]), np.array([0.3, 0.9, 2.4])
    fitted, off = line(x, y, 0.2, scatter_sd=NO_SCATTER), x - x.mean()
    precision = (off**2).sum() / 0.04 + 100.0
    slope = ((off * y).sum() / 0.04 + 46.5) / precision
    np.testing.assert_allclose(fitted.mean, [y.mean(), slope], rtol=1e-6)
    np.testing.assert_allclose(fitted.covariance, np.diag([0.04 / 3, 1 / precision]), atol=1e-8)
    power = fitted.slope(0)
    assert power.data_share == pytest.approx(1 - 100 / precision, rel=1e-4)
    assert power.interval.high - power.value == pytest.approx(1.6449 * precision**-0.5, rel=1e-3)
    assert power.rests_on == "fitted here"
    mean, sd, _ = fitted.at(np.array([5.5]))
    assert mean == pytest.approx(y.mean() + 5 * slope)
    assert sd == pytest.approx((0.04 / 3 + 25 / precision) ** 0.5, rel=1e-4)


def test_errors_that_points_share_leave_the_slope() -> None:
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([0.1, 0.4, 1.1])
    own = 0.01 * np.eye(3)
    alone, shared = (fit_line(x, y, c, [SLOPE], scatter_sd=NO_SCATTER) for c in (own, own + 0.25))
    assert shared.slope(0).value == pytest.approx(alone.slope(0).value)
    np.testing.assert_allclose(np.diag(shared.covariance - alone.covariance), [0.25, 0.0], atol=1e-6)


def test_one_point_sets_the_height_and_the_prior_the_slope() -> None:
    fitted = line(np.array([3.0]), np.array([7.0]), 0.1)
    power = fitted.slope(0)
    assert (power.value, power.rests_on) == (pytest.approx(0.465), "published prior")
    assert power.data_share == pytest.approx(0.0, abs=1e-9)
    assert power.interval.width == pytest.approx(SLOPE.interval(0.9).width, rel=1e-3)
    assert fitted.at(np.array([5.0]))[0] == pytest.approx(7.0 + 2 * 0.465)


def test_no_point_leaves_the_priors() -> None:
    height = NormalPrior(mean=2.0, sd=0.5, source="a paper")
    empty = fit_line(
        np.empty((0, 1)), np.empty(0), np.empty((0, 0)), [SLOPE], scatter_sd=0.1, intercept=height, center=np.ones(1)
    )
    np.testing.assert_allclose(empty.mean, [2.0, 0.465])
    np.testing.assert_allclose(empty.covariance, np.diag([0.25, 0.01]))
    with pytest.raises(FitError, match="needs a prior for its height"):
        fit_line(np.empty((0, 1)), np.empty(0), np.empty((0, 0)), [SLOPE], scatter_sd=0.1)
    with pytest.raises(FitError, match="positive definite"):
        line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.0)


@pytest.mark.parametrize(("scatter", "least"), [(0.0, 0.86), (0.15, 0.86), (0.6, 0.76)])
@pytest.mark.parametrize("n", [3, 6])
def test_intervals_hold_a_new_point(n: int, scatter: float, least: float) -> None:
    """90% intervals, slopes from the prior. Scatter none or as supposed; four times that is beyond the prior."""
    rng, held = np.random.default_rng(11), []
    for _ in range(250):
        slope = rng.normal(SLOPE.mean, SLOPE.sd)
        x = rng.uniform(0, 2.3, n)
        y = 1.0 + slope * x + rng.normal(0, 0.1, n) + rng.normal(0, scatter, n)
        _, _, interval = line(x, y, 0.1).at(np.array([5.0]))
        held.append(interval.contains(1.0 + 5 * slope + rng.normal(0, scatter)))
    assert least <= np.mean(held) <= 0.995, np.mean(held)


def test_draws_are_of_the_posterior() -> None:
    fitted = line(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, 0.3, 1.2, 1.1]), 0.1)
    coefficients, scatter = fitted.draws(np.random.default_rng(0), 20_000)
    np.testing.assert_allclose(coefficients.mean(axis=0), fitted.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(coefficients.T), fitted.covariance, rtol=0.1, atol=5e-4)
    assert scatter.mean() == pytest.approx(fitted.weights @ fitted.scatter, rel=0.05)


def test_a_mixture_of_one_normal_is_that_normal() -> None:
    interval = mixture_interval(np.array([2.0, 2.0]), np.array([3.0, 3.0]), np.array([0.3, 0.7]), 0.8)
    np.testing.assert_allclose([interval.low, interval.high], norm.ppf([0.1, 0.9], 2, 3), rtol=1e-6)
    with pytest.raises(ValueError, match="sd must be above 0"):
        NormalPrior(mean=0.0, sd=0.0, source="none")
