"""Telescoping on planted losses: it ends at the optimum, with fewer trials, whatever the optimum does."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from analysis.interval import FitError
from analysis.surface import Surface
from sweeps.spec_models import SearchSection
from sweeps.stages import Stage
from transfer.telescope import MIN_SPACING, find, next_stage, shrink_rate

WIDTHS = (64, 128, 256, 512, 1024)
SEARCH = SearchSection(method="telescope")
Optimum = Callable[[int], float]  # width -> log2 lr


def grid(*, low: float = -11.0, high: float = -2.0, width: int = WIDTHS[0]) -> Stage:
    """One octave apart."""
    values = np.arange(low, high + 1)
    return Stage(
        optimizer="adamw", width=width, kind="grid", lrs=tuple(2.0**values), low=low, high=high, spacing=1.0, why="grid"
    )


def surface(
    width: int,
    lrs: Sequence[float],
    optimum: Optimum,
    *,
    noise: float = 0.0,
    diverges_above: float = math.inf,
    curvature: float = 0.11,
    cliff: float = 0.05,
) -> Surface:
    """A basin that is steeper to the right, two seeds; the noise of a trial depends on its width, lr and seed alone."""

    def loss(log2_lr: float, seed: int) -> float | None:
        if log2_lr > diverges_above:
            return None
        x = log2_lr - optimum(width)
        draw = np.random.default_rng([width, round(log2_lr * 64) + 10_000, seed]).standard_normal()
        return float(2.4 + curvature / 2 * x**2 + cliff / 6 * max(x, 0.0) ** 3 + noise * draw)

    values = tuple(math.log2(lr) for lr in sorted(lrs))
    rows = tuple(tuple(loss(value, seed) for seed in (3, 4)) for value in values)
    return Surface(optimizer="adamw", width=width, log2_values=values, seeds=(3, 4), losses=rows)


def telescope(
    optimum: Optimum,
    *,
    first: Stage | None = None,
    search: SearchSection = SEARCH,
    widths: Sequence[int] = WIDTHS,
    can_run: Callable[[int, float], bool] = lambda width, lr: True,
    **planted: float,
) -> tuple[list[Stage], dict[int, Surface]]:
    """All stages, with the results of each width."""
    stages, tried = [first or grid()], {}
    while True:
        last = stages[-1]
        tried.setdefault(last.width, set()).update(last.lrs)
        surfaces = {width: surface(width, list(lrs), optimum, **planted) for width, lrs in tried.items()}
        stage = next_stage(stages, surfaces, widths, search, band_nats=0.1, can_run=can_run)
        if stage is None:
            return stages, surfaces
        stages.append(stage)


def drifting(beta: float, amplitude: float) -> Optimum:
    return lambda width: -6.3 + amplitude * (width / WIDTHS[0]) ** -beta


@pytest.mark.parametrize("beta", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("amplitude", [-2.2, 0.4, 2.7])
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_finds_a_drifting_optimum_with_fewer_trials_than_a_grid_of_that_spacing(
    beta: float, amplitude: float, noise: float
) -> None:
    optimum = drifting(beta, amplitude)
    stages, surfaces = telescope(optimum, noise=noise)
    for width in WIDTHS:
        assert find(surfaces[width], 0.1).center == pytest.approx(optimum(width), abs=0.2)
        assert find(surfaces[width], 0.1).side is None
    trials = sum(len(stage.lrs) for stage in stages)
    assert trials < 0.6 * len(WIDTHS) * 10 + 10  # the grid, one octave apart, at every width
    assert trials < 0.5 * len(WIDTHS) * (9 / stages[-1].spacing + 1)  # and as fine as the last stage


@pytest.mark.parametrize("jump", [-3.0, 3.0])
@pytest.mark.parametrize("at", [256, 1024])
def test_a_jump_of_three_octaves_is_followed(jump: float, at: int) -> None:
    def optimum(width: int) -> float:
        return -6.3 + (jump if width >= at else 0.0)

    stages, surfaces = telescope(optimum, noise=0.002)
    assert find(surfaces[WIDTHS[-1]], 0.1).center == pytest.approx(optimum(WIDTHS[-1]), abs=0.15)
    again = [stage for stage in stages if stage.kind == "reexpansion"]
    assert [stage.width for stage in again] == [at] * len(again)
    assert 1 <= len(again) <= SEARCH.max_reexpansions
    assert ("high" if jump > 0 else "low") in again[0].why


def test_a_window_keeps_a_cell_of_the_last_spacing_and_never_grows_coarser() -> None:
    stages, _ = telescope(drifting(0.7, 2.0), widths=(64, 256, 320, 1280))
    windows = [stage for stage in stages if stage.kind == "window"]
    assert [stage.width for stage in windows] == [256, 320, 1280]
    for before, after in zip(stages, windows, strict=False):
        assert after.spacing <= before.spacing
        assert after.center is not None
        assert after.high - after.center >= before.spacing - 1e-12
        assert after.center - after.low >= before.spacing - 1e-12
        assert len(after.lrs) >= SEARCH.points
        assert np.diff(np.log2(after.lrs)) == pytest.approx(after.spacing)


def test_until_three_widths_are_known_the_lower_bound_shrinks_then_the_exponent() -> None:
    search = SearchSection(method="telescope", shrink_bounds=(0.2, 0.9))
    stages, _ = telescope(drifting(1.2, 2.7), search=search)
    spacings = [stage.spacing for stage in stages if stage.kind != "reexpansion"]
    assert spacings[1] == pytest.approx(2**-0.2, abs=1 / 128)
    assert spacings[2] == pytest.approx(spacings[1] * 2**-0.2, abs=1 / 128)
    assert spacings[3] / spacings[2] < 2**-0.3
    assert spacings[3] / spacings[2] >= 2**-0.9 - 0.01
    assert "fewer than 3 optima are known, 1" in stages[1].why
    assert "the exponent's lower bound" in stages[-1].why


@pytest.mark.parametrize(("beta", "low", "high"), [(0.4, 0.2, 0.45), (0.8, 0.55, 0.85), (1.6, 1.0, 1.0)])
def test_the_rate_is_a_lower_bound_of_the_planted_exponent_and_at_most_one(
    beta: float, low: float, high: float
) -> None:
    optimum = drifting(beta, 4.0)
    values = 2.0 ** np.arange(-9, 0.5, 0.5)
    optima = [find(surface(width, values, optimum, cliff=0.0), 0.1).optimum for width in WIDTHS]
    rate, _ = shrink_rate(optima, (0.0, 3.0))
    assert low <= rate <= high


def test_the_spacing_has_a_floor() -> None:
    stages, _ = telescope(
        lambda width: -6.3, search=SearchSection(method="telescope", shrink_bounds=(1.0, 1.0)), cliff=0.0,
        widths=tuple(64 * 2**k for k in range(7)),
    )  # fmt: skip
    assert [stage.spacing for stage in stages] == [1.0, 0.5, 0.25, 0.125, MIN_SPACING, MIN_SPACING, MIN_SPACING]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_reexpansions_are_bounded_and_then_the_edge_is_kept_in_the_window(most: int) -> None:
    search = SearchSection(method="telescope", max_reexpansions=most)
    stages, _ = telescope(lambda width: -40.0, search=search, widths=(64, 128), cliff=0.0)
    at_first = [stage for stage in stages if stage.width == 64]
    assert [len(stage.lrs) for stage in at_first[1:]] == [2 * 2**k for k in range(most)]
    assert [stage.reexpansions for stage in at_first] == list(range(most + 1))
    after = stages[len(at_first)]
    assert after.low <= at_first[-1].low - 1 < at_first[-1].low < after.high
    assert after.spacing == at_first[-1].spacing
    assert "the spacing is kept, for the optimum at width 64 is still at the low edge" in after.why


def test_a_diverged_neighbor_is_a_wall_and_not_an_edge() -> None:
    stages, surfaces = telescope(lambda width: -3.2, diverges_above=-3.5)
    assert not [stage for stage in stages if stage.kind == "reexpansion" and "high" in stage.why]
    assert find(surfaces[WIDTHS[-1]], 0.1).center == pytest.approx(-3.7, abs=0.5)


def test_a_window_that_diverged_is_widened_downwards() -> None:
    def optimum(width: int) -> float:
        return -6.0

    one = surface(64, 2.0 ** np.arange(-5, 0.0), optimum, diverges_above=-20.0)
    assert (find(one, 0.1).side, find(one, 0.1).optimum) == ("low", None)
    two = surface(64, 2.0 ** np.arange(-5, 0.0), optimum, diverges_above=-3.5)
    assert find(two, 0.1).side == "low"
    stages, surfaces = telescope(optimum, first=grid(low=-4, high=0), diverges_above=-3.5, widths=(64, 128))
    assert stages[1].kind == "reexpansion"
    assert find(surfaces[128], 0.1).center == pytest.approx(-6.0, abs=0.15)


def test_two_values_between_walls_give_the_lowest_of_them() -> None:
    walled = replace(
        surface(64, 2.0 ** np.arange(-8, -3.0), lambda width: -6.0),
        losses=((None, None), (2.6, 2.6), (2.5, 2.5), (None, None), (2.9, 2.9)),
    )
    assert (find(walled, 0.1).center, find(walled, 0.1).side) == (-6.0, None)
    opened = replace(walled, losses=((None, None), (2.6, 2.6), (None, None), (2.5, 2.5), (2.6, 2.6)))
    assert find(opened, 0.1).side == "high"


def test_what_cannot_run_is_a_wall() -> None:
    def can_run(width: int, lr: float) -> bool:
        return lr < 2.0**-1.5

    stages, _ = telescope(lambda width: -1.0, can_run=can_run)
    assert not [stage for stage in stages if stage.kind == "reexpansion" and stage.width == 64]
    assert all(can_run(stage.width, lr) for stage in stages for lr in stage.lrs)
    with pytest.raises(
        FitError, match=r"adamw: at width 128 no two of the learning rates around .* lower weight_decay"
    ):
        telescope(lambda width: -6.0, can_run=lambda width, lr: width == 64)


def test_equal_results_give_equal_stages_wherever_the_replay_starts() -> None:
    stages, surfaces = telescope(drifting(0.5, 2.0), noise=0.004)
    again, _ = telescope(drifting(0.5, 2.0), noise=0.004)
    assert again == stages
    for done in range(1, len(stages)):
        known = {width: one for width, one in surfaces.items() if width < stages[done].width}
        if stages[done].kind == "window":
            planned = next_stage(stages[:done], known, WIDTHS, SEARCH, band_nats=0.1, can_run=lambda width, lr: True)
            assert planned == stages[done]


def test_chosen_learning_rates_are_whole_sixty_fourths_of_an_octave() -> None:
    stages, _ = telescope(drifting(0.7, 1.7), noise=0.004)
    for stage in stages:
        steps = 64 * np.log2(stage.lrs)
        assert steps == pytest.approx(np.round(steps), abs=1e-9)
