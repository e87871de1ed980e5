"""Laws over several scales: planted truth, intervals that cover, the cheapest values, statsmodels, real runs."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from analysis.cells import cells_of
from analysis.expected_cost import AlignedLosses
from analysis.interval import FitError
from analysis.response import BAND_FRACTION, fit_responses
from analysis.scale_law import ScaleLaw, fit_linear_law, fit_scale_law
from analysis.shared_shape import fit_shared_shape
from tests.scale_helpers import CENTER, Loss, cell_rows, grid, needs_step_law, observe, quadratic, step_law

POWERS = np.array([[-0.45, 0.12], [0.23, 0.61]])  # of (lr, batch) over N and D
SCALES = [{"N": 2.0**n, "D": 2.0**d} for n in (20, 21, 22.5) for d in (29, 31, 32)]


def optimum_at(scales: dict[str, float]) -> np.ndarray:
    return CENTER[:2] + np.log2([scales["N"] / 2**21, scales["D"] / 2**31]) @ POWERS


def lopsided(optimum: Any, *, stretch: float = 1.0) -> Loss:
    """Twice as steep per octave to the right of the optimum's lr; quadratic to third order at the optimum."""

    def loss(x: np.ndarray) -> np.ndarray:
        u, v = np.moveaxis(x - np.asarray(optimum), -1, 0)
        return 2.5 + stretch * (0.10 * (np.exp(0.7 * u) - 0.7 * u - 1) - 0.012 * u * v + 0.016 * v**2)

    return loss


def planted(
    *,
    loss: Any = quadratic,
    noise: float = 0.0,
    scatter: float = 0.0,
    rng: np.random.Generator | None = None,
    **cell: Any,
) -> Any:
    rng = rng or np.random.default_rng(2)
    cells = []
    for scales in SCALES:
        place = optimum_at(scales) + scatter * rng.standard_normal(2)
        made = quadratic(2, place) if loss is quadratic else loss(place)
        cells.append(cell_rows(made, grid(2, step=0.5, reach=6), noise=noise, rng=rng, **cell, **scales))
    return observe(cells, 2, ("N", "D"))


def power(law: ScaleLaw, hp: str, scale: str) -> float:
    return next(p.value for p in law.powers if (p.hp, p.scale) == (hp, scale))


def test_recovers_planted_powers_and_predicts_beyond() -> None:
    law = fit_scale_law(planted(), "adamw", prior_sd=1e3)
    fitted = [[power(law, hp, scale) for hp in law.hps] for scale in law.scales]
    np.testing.assert_allclose(fitted, POWERS, atol=1e-3)
    target = {"N": 2.0**26, "D": 2.0**35}
    prediction = law.predict(target, rng=np.random.default_rng(0))
    np.testing.assert_allclose(prediction.optimum, optimum_at(target), atol=0.02)
    np.testing.assert_allclose(prediction.values, 2.0 ** np.array(prediction.log2_values))
    assert law.left_out == ()
    assert len(law.responses) == 9
    assert prediction.excess_loss_interval.low <= prediction.excess_loss <= prediction.excess_loss_interval.high


@pytest.mark.parametrize("k", [1, 3])
def test_one_and_three_hyperparameters_over_one_scale(k: int) -> None:
    powers = np.array([-0.42, 0.17, 0.26])[:k]
    rng = np.random.default_rng(19)
    cells = [
        cell_rows(quadratic(k, CENTER[:k] + powers * (w - 8)), grid(k), seeds=2, noise=0.001, rng=rng, width=2.0**w)
        for w in (6, 7, 8, 9)
    ]
    law = fit_scale_law(observe(cells, k, ("width",)), "adamw", prior_sd=1e3)
    np.testing.assert_allclose([p.value for p in law.powers], powers, atol=0.02)
    assert all(p.interval.contains(power) for p, power in zip(law.powers, powers, strict=True))
    np.testing.assert_allclose(law.predict({"width": 2.0**12}, rng=rng).optimum, CENTER[:k] + 4 * powers, atol=0.1)


@pytest.mark.parametrize("stretch_power", [-0.15, 0.1])
def test_one_shape_finds_lopsided_optima_that_a_parabola_misses(stretch_power: float) -> None:
    """Cells whose basins are equal but for their place, height and steepness, all between grid points."""
    cells = []
    for scales in SCALES:
        steep = (scales["D"] / 2**31) ** stretch_power
        cells.append(cell_rows(lopsided(optimum_at(scales), stretch=steep), grid(2, step=0.5, reach=6), **scales))
    observations = observe(cells, 2, ("N", "D"))
    responses = fit_responses(observations, n_bootstrap=0, rng=np.random.default_rng(0), band_fraction=0.02)
    law = fit_scale_law(observations, "adamw", band_fraction=0.02)
    truth = np.array([optimum_at(dict(response.scales)) for response in responses])
    alone = np.abs(np.array([response.log2_values for response in responses]) - truth).mean()
    together = np.abs(law.shape.log2_optima - truth).mean()
    assert together < 0.05
    assert together < 0.4 * alone
    assert law.shape.stretch_powers[1] == pytest.approx(stretch_power, abs=0.03)
    steepness = law.shape.stretch(np.array([21.0, 31.0]))  # of the cell for which the Hessian was planted
    np.testing.assert_allclose(steepness * law.shape.hessian, [[0.049, -0.012], [-0.012, 0.032]], rtol=0.2)


def test_noise_does_not_choose_the_points_near_the_minimum() -> None:
    """Noise of one seed wider than the band's share of the loss widens the band; otherwise errors are 0.25 to 0.45."""
    rng, errors = np.random.default_rng(8), []
    for _ in range(8):
        observations = planted(noise=0.02, rng=rng)
        responses = fit_responses(observations, n_bootstrap=0, rng=rng)
        cells = cells_of(observations, band_fraction=BAND_FRACTION)
        truth = np.array([optimum_at(dict(response.scales)) for response in responses])
        places = np.array([response.log2_values for response in responses])
        both = places, fit_shared_shape(cells, places).log2_optima
        errors.append([np.median(np.abs(found - truth)) for found in both])
    assert (np.mean(errors, axis=0) < 0.17).all()
    assert (cells.band > 0.04).all()


# --- the law


def simulated(rng: np.random.Generator, n: int = 9, *, scatter: float = 0.15) -> tuple[Any, Any, Any, Any]:
    """log2 scales, optima with errors, their covariances, and the planted coefficients."""
    x = np.column_stack([rng.uniform(20, 24, n), rng.uniform(29, 35, n)])
    spread = scatter * np.array([[1.0, 0.0], [0.5, 0.8]])
    covariances = np.array([np.array([[1.0, 0.4], [0.4, 1.5]]) * s for s in rng.uniform(0.002, 0.04, n)])
    errors = np.array([rng.multivariate_normal([0, 0], c) for c in covariances])
    optima = CENTER[:2] + (x - [21, 31]) @ POWERS + rng.standard_normal((n, 2)) @ spread.T
    return x, optima + errors, covariances, spread


@pytest.mark.parametrize("scatter", [0.0, 0.15])
@pytest.mark.parametrize("at", [(22.0, 31.0), (26.0, 36.0)])
def test_intervals_hold_the_optimum_of_a_new_cell(scatter: float, at: tuple[float, float]) -> None:
    """In 500 simulated studies 90% intervals of a new cell's own optimum hold 85 to 95%; wider without scatter."""
    rng, held = np.random.default_rng(23), []
    for _ in range(500):
        x, optima, covariances, spread = simulated(rng, scatter=scatter)
        law = fit_linear_law(x, optima, covariances, np.zeros((9, 2, 1)))
        mean, covariance = law.at(np.array(at))
        truth = CENTER[:2] + (np.array(at) - [21, 31]) @ POWERS + spread @ rng.standard_normal(2)
        reach = student.ppf(0.95, law.df) * np.sqrt(np.diag(covariance))
        held.append(np.abs(truth - mean) <= reach)
    rates = np.mean(held, axis=0)
    assert (rates >= 0.85).all(), rates
    assert (rates <= (0.95 if scatter else 0.995)).all(), rates


def test_equals_statsmodels_generalized_least_squares() -> None:
    api = pytest.importorskip("statsmodels.api")
    x, optima, covariances, _ = simulated(np.random.default_rng(5))
    law = fit_linear_law(x, optima, covariances, np.zeros((9, 2, 1)), prior_sd=1e6)
    design = np.column_stack([np.ones(9), x - x.mean(axis=0)])
    sigma = np.zeros((18, 18))
    for i in range(9):
        sigma[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = covariances[i] + law.scatter
    fitted = api.GLS(optima.ravel(), np.kron(design, np.eye(2)), sigma=sigma).fit()
    np.testing.assert_allclose(law.coefficients.ravel(), fitted.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(law.covariance, fitted.normalized_cov_params, rtol=1e-6, atol=1e-10)


def test_estimates_the_scatter_between_cells() -> None:
    rng = np.random.default_rng(41)
    found, spread = [], np.eye(2)
    for _ in range(300):
        x, optima, covariances, spread = simulated(rng, n=12, scatter=0.3)
        found.append(fit_linear_law(x, optima, covariances, np.zeros((12, 2, 1))).scatter)
    np.testing.assert_allclose(np.mean(found, axis=0), spread @ spread.T, rtol=0.15)


def test_errors_that_cells_share_widen_the_level_and_not_the_powers() -> None:
    x, optima, covariances, _ = simulated(np.random.default_rng(9))
    alone = fit_linear_law(x, optima, covariances, np.zeros((9, 2, 1)), prior_sd=1e6)
    shared = fit_linear_law(x, optima, covariances, np.tile([[0.3], [0.1]], (9, 1, 1)), prior_sd=1e6)
    np.testing.assert_allclose(shared.coefficients, alone.coefficients)
    added = np.diag(shared.covariance - alone.covariance)
    np.testing.assert_allclose(added, [0.09, 0.01, 0, 0, 0, 0], atol=1e-8)


def test_the_prior_decides_where_a_scale_hardly_varies() -> None:
    x, optima, covariances, _ = simulated(np.random.default_rng(14))
    x[:, 0] = 22 + 0.01 * (x[:, 0] - 22)
    loose, tight = (fit_linear_law(x, optima, covariances, np.zeros((9, 2, 1)), prior_sd=sd) for sd in (100.0, 1.0))
    assert np.abs(loose.coefficients[1]).max() > 3
    assert np.abs(tight.coefficients[1]).max() < 0.8
    np.testing.assert_allclose(tight.covariance[2, 2], 1.0, rtol=0.05)
    np.testing.assert_allclose(tight.coefficients[2], loose.coefficients[2], atol=0.15)


# --- the values that cost least


def aligned(cost: Any) -> AlignedLosses:
    offsets = grid(2, step=0.25, reach=16) - CENTER[:2]
    return AlignedLosses(offsets=offsets, excess=cost(*offsets.T), steps=np.array([0.25, 0.25]))


def test_expected_cost_is_that_of_a_quadratic_under_a_normal() -> None:
    """E[d.H.d/2] = (trace(H C) + s.H.s)/2, with the kernel's own half grid step in C."""
    losses = aligned(lambda u, v: 0.05 * u**2 - 0.03 * u * v + 0.04 * v**2)
    hessian, covariance = np.array([[0.1, -0.03], [-0.03, 0.08]]), np.array([[0.30, 0.1], [0.1, 0.20]])
    within = covariance + 0.125**2 * np.eye(2)
    for shift in np.array([[0.0, 0.0], [0.5, -0.2]]):
        expected = (np.trace(hessian @ within) + shift @ hessian @ shift) / 2
        assert losses.expected(shift, covariance) == pytest.approx(expected, rel=0.02)
    np.testing.assert_allclose(losses.cheapest(covariance), 0.0, atol=0.02)


def test_cheapest_values_keep_away_from_a_cliff() -> None:
    """LINEX cost exp(a u) - a u - 1 with a normal optimum of variance s**2: cheapest at -a s**2 / 2 (Zellner 1986)."""
    losses = aligned(lambda u, v: np.exp(0.8 * u) - 0.8 * u - 1 + 0.1 * v**2)
    covariance = np.diag([0.4, 0.1])
    np.testing.assert_allclose(losses.cheapest(covariance), [-0.8 * (0.4 + 0.125**2) / 2, 0.0], atol=0.03)


def test_a_prediction_far_away_is_wide_and_on_the_gentle_side() -> None:
    law = fit_scale_law(planted(loss=lopsided, noise=0.001, scatter=0.1), "adamw")
    rng = np.random.default_rng(0)
    near, far = (law.predict({"N": 2.0**n, "D": 2.0**31}, rng=rng) for n in (21.2, 27))
    assert far.intervals[0].width > 1.5 * near.intervals[0].width
    assert far.log2_values[0] < far.optimum[0] - 0.02
    assert far.excess_loss > near.excess_loss > 0
    assert far.intervals[0].contains(optimum_at({"N": 2.0**27, "D": 2.0**31})[0])
    np.testing.assert_allclose(far.draws.mean(axis=0), far.optimum, atol=0.1)


# --- bad input


def test_a_cell_at_an_edge_is_left_out_and_named() -> None:
    observations = planted(noise=0.001, seeds=2)
    frame = observations.frame
    first = (frame["N"] == 2.0**20) & (frame["D"] == 2.0**29)
    cut = observe([frame[~first | (np.log2(frame["lr"]) < CENTER[0] - 0.9)]], 2, ("N", "D"))
    law = fit_scale_law(cut, "adamw")
    assert len(law.responses) == 8
    assert law.left_out == ("adamw, N 1.049e+06, D 5.369e+08: its optimum is at an edge of the grid",)


def test_refuses_what_carries_no_law() -> None:
    one = observe([cell_rows(quadratic(2, CENTER[:2]), grid(2))], 2)
    with pytest.raises(FitError, match="needs 3 cells with an optimum inside their grid, got 1"):
        fit_scale_law(one, "adamw")
    with pytest.raises(FitError, match="there is no series 'muon'; there are adamw"):
        fit_scale_law(one, "muon")
    edges = observe([cell_rows(quadratic(2, CENTER[:2] + 9), grid(2), N=2.0**i) for i in range(20, 24)], 2)
    with pytest.raises(FitError, match=r"got 0; left out: adamw, N 1.049e\+06: its optimum is at an edge of the grid"):
        fit_scale_law(edges, "adamw")
    fixed = observe(
        [cell_rows(quadratic(2, CENTER[:2]), grid(2), N=1e6, D=2.0**i) for i in range(20, 25)], 2, ("N", "D")
    )
    with pytest.raises(FitError, match="N take one value in all cells"):
        fit_scale_law(fixed, "adamw")
    tied = observe(
        [cell_rows(quadratic(2, CENTER[:2]), grid(2), N=2.0**i, D=20 * 2.0**i) for i in range(20, 25)], 2, ("N", "D")
    )
    with pytest.raises(FitError, match="N, D move together"):
        fit_scale_law(tied, "adamw")


def test_refuses_a_loss_that_is_flat_or_diverged_everywhere() -> None:
    def flat(x: np.ndarray) -> np.ndarray:
        return np.full(len(x), 2.5)

    def dome(x: np.ndarray) -> np.ndarray:
        return 2.6 - 0.001 * ((x - CENTER[:2]) ** 2).sum(axis=-1)

    rng = np.random.default_rng(7)
    noisy = observe([cell_rows(flat, grid(2), noise=1e-4, N=2.0**i, rng=rng) for i in range(20, 26)], 2)
    with pytest.raises(FitError, match=r"flat or a saddle|inside their grid"):
        fit_scale_law(noisy, "adamw")
    cells = cells_of(observe([cell_rows(dome, grid(2))], 2), band_fraction=0.01)
    with pytest.raises(FitError, match="flat or a saddle around its lowest points, so it has no optimum in lr, batch"):
        fit_shared_shape(cells, CENTER[None, :2])
    lost = observe([cell_rows(quadratic(2, CENTER[:2]), grid(2), diverges=lambda x: x[:, 0] < 99)], 2)
    with pytest.raises(FitError, match="needs 7 points that converged"):
        fit_scale_law(lost, "adamw")
    few = cells_of(observe([cell_rows(quadratic(2, CENTER[:2]), grid(2, reach=1)[:6])], 2), band_fraction=0.01)
    with pytest.raises(FitError, match="the shape of the basin needs more than 6 points"):
        fit_shared_shape(few, CENTER[None, :2])


def test_refuses_too_few_cells_for_the_scatter_and_unknown_scales() -> None:
    x, optima, covariances, _ = simulated(np.random.default_rng(3), n=3)
    with pytest.raises(FitError, match="a law over 2 scales needs optima of at least 4 cells, got 3"):
        fit_linear_law(x, optima, covariances, np.zeros((3, 2, 1)))
    law = fit_scale_law(planted(), "adamw")
    with pytest.raises(FitError, match=r"a value above 0 for each of N, D; \['D'\] have none"):
        law.predict({"N": 1e6}, rng=np.random.default_rng(0))


# --- real runs


@needs_step_law
def test_predicts_the_left_out_cells_of_step_law() -> None:
    """Each training cell from the other seven: its own optimum (within a run's spacing) is inside the interval."""
    observations, held = step_law(), []
    whole = fit_scale_law(observations, "dense")
    frame = observations.frame
    for i, response in enumerate(whole.responses):
        scales = dict(response.scales)
        own = (frame["N"] == scales["N"]) & (frame["D"] == scales["D"])
        rest = fit_scale_law(observe([frame[~own]], 2, ("N", "D")), "dense")
        prediction = rest.predict(scales, rng=np.random.default_rng(0), n_draws=200)
        held.append(
            [r.contains(float(v)) for r, v in zip(prediction.intervals, whole.shape.log2_optima[i], strict=True)]
        )
    assert np.mean(held) >= 0.8
    assert power(whole, "lr", "N") < 0 < power(whole, "lr", "D")
    assert 0.5 < power(whole, "batch_tokens", "D") < 0.75
