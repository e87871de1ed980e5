"""Optima: planted truth, flags, intervals that cover, and real sweeps."""

import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from analysis.basin import band, fit_quadratics
from analysis.bootstrap import SeedSpread, pool, two_way
from analysis.flags import Flag
from analysis.interval import FitError, Interval, percentile_interval
from analysis.optimum import Optimum, fit_optimum
from analysis.surface import Surface
from tests.analysis_helpers import parabola, planted_surface

GRID = np.arange(-3.0, 4.0)
STEP_LAW = Path(__file__).parents[2] / "shared" / "data" / "steplaw_dense_to_537m.csv"


def fit(surface: Surface, *, band_nats: float = 0.05, n_bootstrap: int = 200, **settings: Any) -> Optimum:
    rng = np.random.default_rng(13)
    return fit_optimum(surface, band_nats=band_nats, n_bootstrap=n_bootstrap, rng=rng, **settings)


@pytest.mark.parametrize("shift", [-7.0, 0.0, 3.3])  # log2 lr
@pytest.mark.parametrize("curvature", [0.02, 0.7])  # nats per octave squared
@pytest.mark.parametrize("floor", [2.1, 11.0])  # nats
@pytest.mark.parametrize("step", [1.0, 0.5])  # octaves
def test_recovers_a_planted_parabola(shift: float, curvature: float, floor: float, step: float) -> None:
    loss = parabola(optimum=shift, curvature=curvature, floor=floor)
    optimum = fit(planted_surface(loss, shift + step * (GRID + 0.37)))
    assert optimum.log2_value == pytest.approx(shift, abs=1e-7)
    assert optimum.value == pytest.approx(2**shift)
    assert optimum.loss == pytest.approx(floor, abs=1e-9)
    assert optimum.curvature == pytest.approx(curvature, rel=1e-6)
    assert optimum.method == "quadratic"
    assert optimum.spline_log2_value == pytest.approx(shift, abs=0.15 * step)
    assert optimum.edge is None
    assert optimum.step_octaves == pytest.approx(step)
    assert not {Flag.METHODS_DISAGREE, Flag.SEVERAL_MINIMA} & set(optimum.flags)


@given(
    shift=st.floats(-12, 5),
    curvature=st.floats(0.01, 2.0),
    floor=st.floats(0.5, 12.0),
    offset=st.floats(-0.49, 0.49),
    band_nats=st.floats(0.005, 1.0),
)
def test_a_parabola_is_recovered_whatever_the_band(
    shift: float, curvature: float, floor: float, offset: float, band_nats: float
) -> None:
    loss = parabola(optimum=shift, curvature=curvature, floor=floor)
    optimum = fit(planted_surface(loss, shift + GRID + offset, seeds=1), band_nats=band_nats)
    assert optimum.quadratic_log2_value == pytest.approx(shift, abs=1e-5)
    assert optimum.log2_value == optimum.quadratic_log2_value


def test_band_is_one_unbroken_run_with_both_neighbors() -> None:
    losses = np.array(
        [
            [2.55, 2.9, 2.58, 2.50, 2.54, 2.8, 2.51],  # the ends are low, but beyond higher points
            [2.9, 2.9, 2.9, 2.5, 2.9, 2.9, 2.9],
            [2.5, 2.9, 2.9, 2.9, 2.9, 2.9, 2.9],
            [2.9, 2.9, 2.9, 2.9, 2.9, 2.55, 2.5],
        ]
    )
    expected = [[0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(band(losses, 0.1), np.array(expected, dtype=bool))


def test_quadratic_equals_polyfit_within_the_band() -> None:
    x = np.array([-9.0, -8.5, -7.9, -7.0, -6.2, -5.5])
    y = np.array([3.1, 2.64, 2.60, 2.58, 2.63, 3.4])
    a, b, c = np.polyfit(x[1:5], y[1:5], 2)
    quadratic = fit_quadratics(x, y[None], 0.1)
    assert quadratic.curvature[0] == pytest.approx(2 * a)
    assert quadratic.vertex[0] == pytest.approx(-b / (2 * a))
    assert quadratic.loss[0] == pytest.approx(c - b**2 / (4 * a))


@pytest.mark.parametrize("optimum", [-7.3, -6.8])
def test_a_cliff_on_the_right_moves_neither_method_far(optimum: float) -> None:
    """Gentle on the left, 4 nats up two octaves right of the minimum, as in real sweeps."""
    left = parabola(optimum=optimum, curvature=0.03)
    found = fit(planted_surface(lambda x: 6.8 if x > optimum + 1.5 else left(x), np.arange(-11.0, -4.0)))
    assert found.log2_value == pytest.approx(optimum, abs=0.15)
    assert found.spline_log2_value == pytest.approx(optimum, abs=0.35)


@pytest.mark.parametrize("optimum", [-7.4, -6.7])
def test_an_asymmetric_basin_is_found_within_a_seventh_of_a_step(optimum: float) -> None:
    def lopsided(x: float) -> float:
        return 2.6 + (math.exp(0.6 * (x - optimum)) - 0.6 * (x - optimum) - 1) * 0.3

    found = fit(planted_surface(lopsided, np.arange(-10.0, -3.0)))
    assert found.log2_value == pytest.approx(optimum, abs=1 / 7)
    assert found.loss == pytest.approx(2.6, abs=0.005)


# --- divergence and edges


def test_an_optimum_next_to_divergence_is_bounded_and_not_at_the_edge() -> None:
    surface = planted_surface(parabola(optimum=-6.6), np.arange(-10.0, -3.0), diverges_above=-6.9)
    optimum = fit(surface)
    assert optimum.edge is None
    assert Flag.NEXT_TO_DIVERGED in optimum.flags
    assert -7 < optimum.log2_value < -6
    assert optimum.log2_value == pytest.approx(-6.6)
    assert optimum.interval is not None


def test_the_search_never_reaches_the_value_that_diverged() -> None:
    surface = planted_surface(parabola(optimum=-5.2), np.arange(-10.0, -3.0), diverges_above=-6.9)
    optimum = fit(surface)
    assert optimum.method == "spline"
    assert optimum.log2_value == -7.0
    assert Flag.NEXT_TO_DIVERGED in optimum.flags


def test_one_diverged_seed_bounds_like_two() -> None:
    surface = planted_surface(parabola(optimum=-6.6), np.arange(-10.0, -3.0), diverges_above=-6.9)
    lucky = tuple((2.9, *row[1:]) if row[0] is None else row for row in surface.losses)
    half = Surface(optimizer="adamw", width=64, log2_values=surface.log2_values, seeds=(3, 4), losses=lucky)
    assert fit(half).log2_value == fit(surface).log2_value


@pytest.mark.parametrize(("optimum", "edge"), [(-12.4, "low"), (-1.7, "high")])
def test_an_optimum_outside_the_grid_is_at_its_edge(optimum: float, edge: str) -> None:
    found = fit(planted_surface(parabola(optimum=optimum), np.arange(-10.0, -3.0), noise=0.001))
    assert found.edge == edge
    assert found.interval is None
    assert found.log2_value == (-10 if edge == "low" else -4)
    assert found.draws


def test_divergence_on_the_left_bounds_too() -> None:
    surface = planted_surface(parabola(optimum=-8.7), np.arange(-9.0, -3.0), noise=0.001)
    walled = Surface(
        optimizer="adamw",
        width=64,
        log2_values=(-10.0, *surface.log2_values),
        seeds=surface.seeds,
        losses=((None, None), *surface.losses),
    )
    assert fit(surface).edge == "low" or fit(surface).log2_value == pytest.approx(-8.7, abs=0.1)
    assert fit(walled).edge is None
    assert Flag.NEXT_TO_DIVERGED in fit(walled).flags


def test_values_beyond_a_divergence_are_another_basin() -> None:
    surface = planted_surface(parabola(optimum=-8.6), np.arange(-11.0, -5.0))
    far = Surface(
        optimizer="adamw",
        width=64,
        log2_values=(*surface.log2_values, -5.0, -4.0, -3.0),
        seeds=surface.seeds,
        losses=(*surface.losses, (None, None), (2.75, 2.75), (2.9, 2.9)),
    )
    assert fit(far).log2_value == pytest.approx(-8.6)
    assert Flag.SEVERAL_MINIMA in fit(far).flags


@pytest.mark.parametrize(("diverges_above", "n"), [(-8.5, 2), (-20.0, 0)])
def test_refuses_fewer_than_three_neighbors_that_converged(diverges_above: float, n: int) -> None:
    surface = planted_surface(parabola(optimum=-8.6), np.arange(-10.0, -3.0), diverges_above=diverges_above)
    with pytest.raises(FitError, match=rf"adamw at width 64.*three neighboring values of lr.*got {n} around"):
        fit(surface)


def test_refuses_a_band_that_is_not_positive() -> None:
    with pytest.raises(FitError, match="band_nats must be above 0, got 0"):
        fit(planted_surface(parabola(optimum=-7.2), GRID - 7), band_nats=0.0)


# --- the other flags


def two_basins(x: float) -> float:
    return 2.5 + min(0.2 * (x + 10.3) ** 2, 0.02 + 0.2 * (x + 6.2) ** 2)


def test_flags_two_basins_beyond_noise() -> None:
    grid = np.arange(-12.0, -4.0)
    assert Flag.SEVERAL_MINIMA in fit(planted_surface(two_basins, grid, noise=0.003)).flags
    assert Flag.SEVERAL_MINIMA not in fit(planted_surface(parabola(optimum=-8.4), grid, noise=0.003)).flags


def test_a_second_minimum_far_above_the_lowest_is_no_rival() -> None:
    wiggly_cliff = {-4.0: 6.8, -3.0: 6.3, -2.0: 6.9}
    basin = parabola(optimum=-7.4)
    surface = planted_surface(lambda x: wiggly_cliff.get(x, basin(x)), np.arange(-10.0, -1.0))
    assert Flag.SEVERAL_MINIMA not in fit(surface).flags


def test_noise_alone_seldom_looks_like_two_basins() -> None:
    rng = np.random.default_rng(21)
    loss = parabola(optimum=-7.2, curvature=0.05)
    noisy = [planted_surface(loss, GRID - 7, noise=0.03, rng=rng) for _ in range(100)]
    assert sum(Flag.SEVERAL_MINIMA in fit(surface, n_bootstrap=2).flags for surface in noisy) <= 5


def test_flags_too_few_points_near_the_minimum() -> None:
    surface = planted_surface(parabola(optimum=-7.0, curvature=0.2), GRID - 7)
    few, enough = fit(surface, band_nats=0.05), fit(surface, band_nats=0.5)
    assert (few.n_in_band, enough.n_in_band) == (3, 5)
    assert Flag.TOO_FEW_POINTS in few.flags
    assert Flag.TOO_FEW_POINTS not in enough.flags


def test_flags_methods_that_disagree() -> None:
    """A long slope on the left pulls a wide band's parabola away from the minimum beside the wall."""
    slope = {-10.0: 2.62, -9.0: 2.60, -8.0: 2.58, -7.0: 2.56, -6.0: 2.54, -5.0: 2.52, -4.0: 2.68}
    optimum = fit(planted_surface(lambda x: slope[x], np.arange(-10.0, -3.0)), band_nats=0.2)
    assert optimum.method == "spline"
    assert optimum.quadratic_log2_value is not None
    assert Flag.METHODS_DISAGREE in optimum.flags


def test_a_parabola_that_opens_downwards_leaves_the_spline() -> None:
    flat = {-8.0: 2.50, -7.0: 2.53, -6.0: 2.535, -5.0: 2.51, -4.0: 2.9}
    optimum = fit(planted_surface(lambda x: flat[x], np.arange(-8.0, -3.0)), band_nats=0.1)
    assert optimum.quadratic_log2_value is None
    assert optimum.curvature < 0
    assert optimum.method == "spline"


def test_flags_mostly_diverged_and_missing() -> None:
    mostly = planted_surface(parabola(optimum=-9.2), np.arange(-11.0, -4.0), diverges_above=-8.5)
    assert Flag.MOSTLY_DIVERGED in fit(mostly).flags
    whole = planted_surface(parabola(optimum=-7.2), GRID - 7, noise=0.002, seed_spread=0.3, seeds=3)
    row = whole.losses[3]
    gap = Surface(
        optimizer="adamw",
        width=64,
        log2_values=whole.log2_values,
        seeds=whole.seeds,
        losses=(*whole.losses[:3], (None, *row[1:]), *whole.losses[4:]),
        missing=((3, 0),),
    )
    assert Flag.MISSING_TRIALS in fit(gap).flags
    # the missing cell is filled with its seed's effect: the plain mean of the other two would be off by 0.1
    assert fit(gap).log2_value == pytest.approx(fit(whole).log2_value, abs=0.03)


def test_a_value_not_run_at_all_is_left_out() -> None:
    whole = planted_surface(parabola(optimum=-7.2), GRID - 7)
    empty = Surface(
        optimizer="adamw",
        width=64,
        log2_values=whole.log2_values,
        seeds=whole.seeds,
        losses=(*whole.losses[:5], (None, None), whole.losses[6]),
        missing=((5, 0), (5, 1)),
    )
    assert fit(empty).log2_value == pytest.approx(-7.2)


def test_one_seed_has_an_interval_from_misfit_only_with_points_enough() -> None:
    loss = parabola(optimum=-7.2, curvature=0.05)
    sparse = fit(planted_surface(loss, GRID - 7, seeds=1, noise=0.003))
    assert sparse.interval is None
    assert sparse.draws == ()
    assert {Flag.NO_INTERVAL, Flag.ONE_SEED} <= set(sparse.flags)
    dense = fit(planted_surface(loss, 0.25 * GRID - 7, seeds=1, noise=0.003))
    assert dense.interval is not None
    assert dense.interval.contains(dense.log2_value)
    assert dense.loss_interval is None
    assert Flag.NO_INTERVAL not in dense.flags


@pytest.mark.parametrize("flag", Flag)
def test_every_flag_says_what_to_do(flag: Flag) -> None:
    assert any(f" {verb}" in f" {flag.advice}" for verb in ("Add", "add", "Move", "Run"))
    assert flag.advice.endswith(".")


# --- intervals


def test_seed_effects_move_the_loss_but_not_the_optimum() -> None:
    loss = parabola(optimum=-7.2)
    calm = fit(planted_surface(loss, GRID - 7, noise=0.002, seed_spread=0.0))
    lifted = fit(planted_surface(loss, GRID - 7, noise=0.002, seed_spread=0.5))
    assert calm.interval is not None
    assert lifted.interval is not None
    assert lifted.interval.low == pytest.approx(calm.interval.low, abs=1e-6)
    assert lifted.interval.high == pytest.approx(calm.interval.high, abs=1e-6)
    assert calm.loss_interval is not None
    assert lifted.loss_interval is not None
    assert lifted.loss_interval.width > 5 * calm.loss_interval.width


def test_two_way_residuals_have_the_noise_of_the_cells() -> None:
    rng = np.random.default_rng(3)
    cells = rng.normal(2.5, 0.4, size=(40, 1)) + rng.normal(0, 0.7, size=3) + rng.normal(0, 0.02, size=(40, 3))
    layout = two_way(cells)
    assert layout.noise is not None
    assert layout.noise.df == 39 * 2
    assert layout.noise.sd == pytest.approx(0.02, rel=0.2)
    assert layout.seed_spread is not None
    expected = cells.mean(axis=0).var(ddof=1) - layout.noise.sd**2 / 40
    assert layout.seed_spread.sd == pytest.approx(float(np.sqrt(expected)))
    np.testing.assert_array_equal(layout.filled, cells)


def test_the_spread_between_seeds_does_not_count_the_noise_within_them() -> None:
    """Five values with noise of 0.03 leave 0.013 in a seed's mean, more than the planted spread of 0.01."""
    rng = np.random.default_rng(6)
    spreads = [
        two_way(rng.normal(0, 0.01, size=40) + rng.normal(0, 0.03, size=(5, 40))).seed_spread for _ in range(200)
    ]
    variances = [spread.sd**2 for spread in spreads if spread is not None]
    assert np.sqrt(np.mean(variances)) == pytest.approx(0.01, rel=0.1)


def test_seed_spreads_pool_by_variance_and_degrees_of_freedom() -> None:
    pooled = pool([SeedSpread(0.03, 1), None, SeedSpread(0.06, 2)])
    assert pooled == SeedSpread(pytest.approx(math.sqrt((0.0009 + 2 * 0.0036) / 3)), 3)
    assert pool([None]) is None


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(
    ("noise", "curvature", "step"), [(0.003, 0.1, 1.0), (0.03, 0.1, 1.0), (0.01, 0.25, 1.0), (0.01, 0.1, 0.5)]
)
def test_interval_covers_a_planted_optimum(seeds: int, noise: float, curvature: float, step: float) -> None:
    """A 90% interval holds the truth in about 90% of sweeps: binomial test at 0.1%."""
    rng, n_sweeps, covered = np.random.default_rng([2024, seeds]), 400, 0
    for _ in range(n_sweeps):
        truth = -7.3 + step * rng.uniform(-1, 1)
        surface = planted_surface(
            parabola(optimum=truth, curvature=curvature),
            -7.3 + step * GRID,
            seeds=seeds,
            noise=noise,
            seed_spread=0.02,
            rng=rng,
        )
        interval = fit_optimum(surface, band_nats=0.05, n_bootstrap=200, rng=rng).interval
        assert interval is not None
        covered += interval.contains(truth)
    assert binomtest(covered, n_sweeps, 0.9).pvalue > 0.001, f"{covered} of {n_sweeps}"


def test_loss_interval_covers_with_a_pooled_seed_spread() -> None:
    rng, n_sweeps, covered = np.random.default_rng(77), 300, 0
    for _ in range(n_sweeps):
        width_surfaces = [
            planted_surface(parabola(optimum=-7.3), GRID - 7, noise=0.006, seed_spread=0.02, rng=rng) for _ in range(3)
        ]
        spread = pool(two_way(np.array(surface.losses, dtype=float)).seed_spread for surface in width_surfaces)
        optimum = fit_optimum(width_surfaces[0], band_nats=0.05, n_bootstrap=200, rng=rng, seed_spread=spread)
        assert optimum.loss_interval is not None
        covered += optimum.loss_interval.contains(2.7)
    assert 0.85 <= covered / n_sweeps <= 0.96


def test_same_seed_same_optimum() -> None:
    surface = planted_surface(parabola(optimum=-7.2), GRID - 7, noise=0.004)
    assert fit(surface) == fit(surface)


def test_intervals_are_ordered_and_levels_are_levels() -> None:
    interval = percentile_interval(np.arange(101.0), 0.9)
    assert (interval.low, interval.high, interval.level) == pytest.approx((5.0, 95.0, 0.9))
    with pytest.raises(ValueError, match="ordered"):
        Interval(low=2.0, high=1.0, level=0.9)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        Interval(low=1.0, high=2.0, level=90)


# --- real sweeps


def step_law_surfaces() -> list[Surface]:
    """One surface for each (parameters, tokens, batch) of Step Law's dense models, arXiv:2503.04715."""
    cells: dict[tuple[str, str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    width = {}
    with STEP_LAW.open(newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row["N"], row["D"], row["bs"])
            width[key] = int(row["h"])
            cells[key][math.log2(float(row["lr"]))].append(float(row["smooth loss"]))
    return [
        Surface(
            optimizer="adamw",
            width=width[key],
            log2_values=tuple(sorted(cell)),
            seeds=(0,),
            losses=tuple((float(np.mean(cell[value])),) for value in sorted(cell)),
        )
        for key, cell in cells.items()
    ]


@pytest.mark.skipif(not STEP_LAW.exists(), reason=f"Step Law's published runs are not at {STEP_LAW}")
def test_methods_agree_on_step_laws_sweeps() -> None:
    optima = [fit(surface, band_nats=0.02) for surface in step_law_surfaces()]
    inner = [optimum for optimum in optima if optimum.edge is None]
    agree = [Flag.METHODS_DISAGREE not in optimum.flags for optimum in inner]
    print(f"{len(optima)} sweeps, {len(inner)} interior, {sum(agree)} agree")
    assert len(optima) > 100
    assert len(inner) >= 0.9 * len(optima)
    assert sum(agree) >= 0.85 * len(inner)
    assert np.median([optimum.curvature for optimum in inner]) == pytest.approx(0.02, rel=0.5)
