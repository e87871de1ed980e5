"""Optima over several hyperparameters at once: planted truth, intervals that cover, flags, statsmodels."""

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import two_way
from analysis.cells import cells_of
from analysis.interval import FitError
from analysis.optimum import fit_optimum
from analysis.response import BAND_FRACTION, ResponseFlag, ResponseOptimum, fit_responses
from tests.analysis_helpers import parabola, planted_surface
from tests.scale_helpers import (
    CENTER,
    HESSIANS,
    HPS,
    Loss,
    cell_rows,
    grid,
    needs_step_law,
    observe,
    quadratic,
    step_law,
)


def fit_one(rows: pd.DataFrame, k: int, **settings: float) -> ResponseOptimum:
    options = {"n_bootstrap": 200, "rng": np.random.default_rng(6)} | settings
    (optimum,) = fit_responses(observe([rows], k), **options)  # type: ignore[arg-type]
    return optimum


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("band_fraction", [0.006, 0.05])
def test_recovers_a_planted_quadratic_between_grid_points(k: int, band_fraction: float) -> None:
    optimum = CENTER[:k] + np.array([0.37, -0.21, 0.44])[:k]
    rows = cell_rows(quadratic(k, optimum, floor=2.71), grid(k), seeds=2)
    found = fit_one(rows, k, band_fraction=band_fraction)
    np.testing.assert_allclose(found.log2_values, optimum, atol=1e-7)
    np.testing.assert_allclose(found.hessian, HESSIANS[k], rtol=1e-6)
    effects = rows.groupby("seed")["loss"].min() - rows["loss"].min()
    assert found.loss == pytest.approx(2.71 + 0.05 * np.random.default_rng(4).standard_normal(2).mean())
    assert len(effects) == 2
    assert found.edges == (None,) * k
    assert not {ResponseFlag.NOT_CONVEX, ResponseFlag.SEVERAL_MINIMA, ResponseFlag.EDGE} & set(found.flags)


def test_a_cliff_and_divergence_do_not_move_the_optimum() -> None:
    basin = quadratic(2, CENTER[:2] + 0.2)

    def cliff(x: np.ndarray) -> np.ndarray:
        return basin(x) + np.where(x[:, 0] > CENTER[0] + 1.5, 4.0, 0.0)

    rows = cell_rows(cliff, grid(2), diverges=lambda x: x[:, 0] > CENTER[0] + 2.5)
    np.testing.assert_allclose(fit_one(rows, 2).log2_values, CENTER[:2] + 0.2, atol=1e-7)


@pytest.mark.parametrize(("seeds", "noise", "step"), [(2, 0.004, 1.0), (3, 0.01, 1.0), (1, 0.002, 0.5)])
def test_intervals_cover_planted_optima(seeds: int, noise: float, step: float) -> None:
    """In 500 simulated cells of two hyperparameters 90% intervals hold between 85 and 95% of the optima."""
    rng = np.random.default_rng([31, seeds])
    truths = CENTER[:2] + step * rng.uniform(-0.5, 0.5, size=(500, 2))
    cells = [
        cell_rows(quadratic(2, truth), grid(2, step=step), seeds=seeds, noise=noise, rng=rng, N=1e6 + i)
        for i, truth in enumerate(truths)
    ]
    found = fit_responses(observe(cells, 2), n_bootstrap=200, rng=rng, band_fraction=0.03)
    assert len(found) == 500
    for j in range(2):
        held = [optimum.intervals[j].contains(truth[j]) for optimum, truth in zip(found, truths, strict=True)]
        assert 0.85 <= np.mean(held) <= 0.95, (HPS[j], np.mean(held))


def test_agrees_with_the_optimum_of_one_hyperparameter() -> None:
    """Within its interval in nearly all of 30 sweeps, though the two choose their points by different rules."""
    rng, held = np.random.default_rng(17), []
    for _ in range(30):
        surface = planted_surface(
            parabola(optimum=-7.3, curvature=0.03), np.arange(-10, -4, 0.5), noise=0.003, seeds=3, rng=rng
        )
        expected = fit_optimum(surface, band_nats=0.05, n_bootstrap=200, rng=rng)
        shape = (len(surface.log2_values), len(surface.seeds))
        rows = pd.DataFrame(
            {
                "series": "adamw",
                "N": 64.0,
                "lr": np.repeat(2.0 ** np.array(surface.log2_values), shape[1]),
                "seed": np.tile(surface.seeds, shape[0]),
                "loss": np.array(surface.losses, dtype=float).ravel(),
            }
        )
        found = fit_one(rows, 1, band_fraction=0.05 / 2.7)
        assert expected.interval is not None
        held.append(expected.interval.contains(found.log2_values[0]))
        assert found.hessian[0, 0] == pytest.approx(expected.curvature, rel=0.2)
    assert np.mean(held) >= 0.9


@needs_step_law
def test_equals_statsmodels_on_step_laws_runs() -> None:
    """Ordinary least squares on the same band, in raw log2 instead of centered."""
    api = pytest.importorskip("statsmodels.api")
    observations = step_law()
    found = fit_responses(observations, n_bootstrap=0, rng=np.random.default_rng(0))
    assert len(found) == 8
    cells = cells_of(observations, band_fraction=BAND_FRACTION)
    keys = cells.keys[["N", "D"]].itertuples(index=False)
    bands = {(("N", n), ("D", d)): band for (n, d), band in zip(keys, cells.band, strict=True)}
    for optimum in found:
        own = observations.frame
        for name, value in optimum.scales:
            own = own[own[name] == value]
        x, y = np.log2(own[["lr", "batch_tokens"]].to_numpy()).T
        loss = own["loss"].to_numpy()
        inside = loss <= max(loss.min() + bands[optimum.scales], np.sort(loss)[7])
        design = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])[inside]
        _, bx, by, xx, xy, yy = api.OLS(loss[inside], design).fit().params
        hessian = np.array([[2 * xx, xy], [xy, 2 * yy]])
        np.testing.assert_allclose(optimum.hessian, hessian, rtol=1e-5)
        np.testing.assert_allclose(optimum.log2_values, np.linalg.solve(hessian, [-bx, -by]), atol=1e-4)
        assert optimum.n_in_band == inside.sum()


def test_a_missing_run_does_not_shift_its_point_by_its_seeds_effect() -> None:
    rows = cell_rows(quadratic(1, CENTER[:1]), grid(1), seeds=3, noise=0.002)
    gap = rows.drop(index=10).reset_index(drop=True)  # a seed at the lowest point
    cells = cells_of(observe([gap], 1), band_fraction=1.0)
    losses = gap.pivot_table(index="lr", columns="seed", values="loss").to_numpy()
    layout = two_way(losses)
    np.testing.assert_allclose(cells.losses[0], np.sort(layout.filled.mean(axis=1)), atol=1e-9)
    assert layout.noise is not None
    assert cells.noise_df[0] == layout.noise.df
    assert cells.noise_sd[0] == pytest.approx(layout.noise.sd)


# --- flags


@pytest.mark.parametrize(("shift", "edge"), [(4.2, "high"), (-4.2, "low")])
def test_names_the_hyperparameter_at_an_edge(shift: float, edge: str) -> None:
    found = fit_one(cell_rows(quadratic(2, CENTER[:2] + np.array([0.1, shift])), grid(2), seeds=2, noise=0.001), 2)
    assert found.edges == (None, edge)
    assert ResponseFlag.EDGE in found.flags
    assert found.intervals[0] is not None
    assert found.intervals[1] is None
    assert found.log2_values[1] == pytest.approx(CENTER[1] + np.sign(shift) * 3)


def test_runs_that_diverged_are_a_bound_and_no_edge() -> None:
    rows = cell_rows(
        quadratic(2, CENTER[:2] + np.array([1.8, 0.0])), grid(2), diverges=lambda x: x[:, 0] > CENTER[0] + 1.5
    )
    found = fit_one(rows, 2)
    assert found.edges == (None, None)
    assert ResponseFlag.NEXT_TO_DIVERGED in found.flags
    assert found.log2_values[0] == pytest.approx(CENTER[0] + 1.8)
    far = cell_rows(
        quadratic(2, CENTER[:2] + np.array([5.0, 0.0])), grid(2), diverges=lambda x: x[:, 0] > CENTER[0] + 1.5
    )
    assert fit_one(far, 2).log2_values[0] == pytest.approx(CENTER[0] + 2)  # the first value at which all diverged


def saddle(x: np.ndarray) -> np.ndarray:
    off = x - CENTER[:2]
    return 2.6 + 0.004 * off[:, 0] ** 2 - 0.002 * off[:, 1] ** 2


def flat(x: np.ndarray) -> np.ndarray:
    return np.full(len(x), 2.6)


@pytest.mark.parametrize("loss", [saddle, flat])
def test_flags_what_has_no_minimum(loss: Loss) -> None:
    found = fit_one(cell_rows(loss, grid(2), seeds=1), 2)
    assert ResponseFlag.NOT_CONVEX in found.flags
    assert found.intervals == (None, None)
    assert np.linalg.eigvalsh(found.hessian)[0] <= 1e-9


def test_flags_two_basins_beyond_noise_and_not_one() -> None:
    def two(x: np.ndarray) -> np.ndarray:
        return np.minimum(quadratic(2, CENTER[:2] - 2.1)(x), quadratic(2, CENTER[:2] + 2.1, floor=2.61)(x))

    assert ResponseFlag.SEVERAL_MINIMA in fit_one(cell_rows(two, grid(2), seeds=2, noise=0.002), 2).flags
    rng = np.random.default_rng(12)
    cells = [cell_rows(quadratic(2, CENTER[:2]), grid(2), seeds=2, noise=0.01, rng=rng, N=1e6 + i) for i in range(100)]
    found = fit_responses(observe(cells, 2), n_bootstrap=0, rng=rng)
    assert sum(ResponseFlag.SEVERAL_MINIMA in optimum.flags for optimum in found) <= 10


def test_one_seed_without_spare_points_has_no_interval() -> None:
    few = fit_one(cell_rows(quadratic(1, CENTER[:1]), grid(1, reach=2)[:4]), 1)
    assert {ResponseFlag.ONE_SEED, ResponseFlag.TOO_FEW_POINTS} <= set(few.flags)
    bare = cell_rows(quadratic(2, CENTER[:2]), grid(2, reach=1)[:7])
    assert fit_one(bare, 2).covariance.shape == (2, 2)
    silent = fit_one(cell_rows(quadratic(2, CENTER[:2]), grid(2), seeds=1), 2, n_bootstrap=0)
    assert ResponseFlag.NO_INTERVAL in silent.flags
    assert silent.intervals == (None, None)
    assert np.isnan(silent.covariance).all()


@pytest.mark.parametrize("flag", ResponseFlag)
def test_every_flag_says_what_to_do(flag: ResponseFlag) -> None:
    assert any(f" {verb}" in f" {flag.advice}" for verb in ("Add", "add"))
    assert flag.advice.endswith(".")


# --- bad input


def test_refuses_cells_without_enough_points_that_converged() -> None:
    diverged = cell_rows(quadratic(2, CENTER[:2]), grid(2), diverges=lambda x: np.ones(len(x), dtype=bool))
    with pytest.raises(FitError, match=r"needs 7 points that converged.*the most are 0 of 49, at adamw, N 1e\+06"):
        fit_one(diverged, 2)
    some = cell_rows(quadratic(2, CENTER[:2]), grid(2), diverges=lambda x: x[:, 0] > CENTER[0] - 2.5, N=2e6)
    whole = cell_rows(quadratic(2, CENTER[:2]), grid(2), N=1e6)
    both = fit_responses(observe([diverged.assign(N=3e6), some, whole], 2), n_bootstrap=0, rng=np.random.default_rng(0))
    assert [dict(optimum.scales)["N"] for optimum in both] == [1e6, 2e6]


def test_refuses_a_band_that_is_not_positive() -> None:
    with pytest.raises(FitError, match="band_fraction must be above 0, got 0"):
        fit_one(cell_rows(quadratic(1, CENTER[:1]), grid(1)), 1, band_fraction=0.0)
