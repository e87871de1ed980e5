"""The budget planner: the theorem's exponents, a simulated vertex, brute force, and designs that never get worse."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes

from analysis import budget
from analysis.budget import Design, Frontier, Priced, Rate, Search, TransferRates, frontier
from analysis.figures.budget import budget_frontier


def rates(**values: float) -> TransferRates:
    defaults = {
        "alpha": 0.6,
        "loss_amplitude": 1.1,
        "beta": 0.7,
        "optimum_amplitude": 0.9,
        "curvature": 0.15,
        "gamma": 0.0,
        "noise": 0.012,
        "noise_octaves": 0.5,
        "grid_error": 0.1,
        "range_octaves": 6.0,
        "n_hps": 1,
    }
    planted = {
        name: Rate(value=value, source="assumed", why="planted") for name, value in {**defaults, **values}.items()
    }
    return TransferRates(reference_width=64, **planted)  # type: ignore[arg-type]


def flops(width: int) -> float:
    """Of a run: not quite width squared."""
    return 3e7 * width**2 + 5e9 * width


def search(**changes: Any) -> Search:
    widths = (64, 96, 128, 192, 256, 384, 512, 768)
    priced = tuple(Priced(width, flops(width)) for width in widths)
    planted = {"proxies": priced, "finals": priced, "points": tuple(range(3, 15)), "seeds": (1, 2, 3, 5, 8)}
    return Search(**{**planted, "fixed_target": False, **changes})


def target(width: int) -> dict[str, Any]:
    return {"finals": (Priced(width, flops(width)),), "fixed_target": True}


def both(planted: TransferRates, wanted: Search) -> list[Frontier]:
    return [frontier(kind, planted, wanted) for kind in ("direct", "transfer")]


# Exponents of arXiv:2512.22768's theorem on useful transfer: its ReLU example, random features, Llama with Adam.
WORKED = [
    (0.742, 0.388, 1, 0.313, 0.325),
    (1.0, 1.0, 1, 0.400, 0.500),
    (0.52, 0.5, 1, 0.230, 0.260),
    (1.0, 1.0, 2, 0.333, 0.500),
]


@pytest.mark.parametrize(("alpha", "beta", "n_hps", "direct", "transfer"), WORKED)
def test_closed_exponents(alpha: float, beta: float, n_hps: int, direct: float, transfer: float) -> None:
    assert budget.direct_exponent(alpha, n_hps=n_hps, cost_exponent=2) == pytest.approx(direct, abs=1e-3)
    assert budget.transfer_exponent(alpha, beta, n_hps=n_hps, cost_exponent=2) == pytest.approx(transfer, abs=1e-3)


@pytest.mark.parametrize(("alpha", "beta", "n_hps", "direct", "transfer"), WORKED)
def test_best_designs_follow_the_theorem(alpha: float, beta: float, n_hps: int, direct: float, transfer: float) -> None:
    """Without noise and far out, the designs that the enumeration picks fall with the exponents that were proved.

    Transfer's excess is a sum of two powers. The slower is given the larger amplitude, or the sum would be seen to
    approach it only at budgets that no list of widths reaches.
    """
    slower_is_the_final_run = alpha / 2 < 2 * beta / (n_hps * beta + 2)
    widths = sorted({round(2 ** (i / 4)) for i in range(20, 160)})
    priced = tuple(Priced(width, float(width) ** 2) for width in widths)
    points = tuple(sorted({round(3 * 2 ** (i / 6)) for i in range(90)}))
    wide = Search(proxies=priced, finals=priced, points=points, seeds=(1,), fixed_target=False)
    planted = rates(
        alpha=alpha, beta=beta, n_hps=n_hps, noise=0.0, loss_amplitude=10.0 if slower_is_the_final_run else 0.1
    )
    ends = 1e15, 1e22
    for front, theory in zip(both(planted, wide), (direct, transfer), strict=True):
        first, last = (front.best(end) for end in ends)
        assert first is not None
        assert last is not None
        slope = -np.log(last.excess_nats / first.excess_nats) / np.log(ends[1] / ends[0])
        assert slope == pytest.approx(theory, abs=0.012)
        assert widths[0] < first.proxy_width < last.proxy_width < widths[-1]


@pytest.mark.parametrize(("n_hps", "proxy_exponent"), [(1, 1 / 2.6), (2, 1 / 3.2)])
def test_the_proxy_and_the_grid_grow_as_derived(n_hps: int, proxy_exponent: float) -> None:
    """For a given final run, n* ~ F^(1/(h beta + r)) and points ~ n^beta (arXiv:2512.22768); here beta .6, r 2.

    The target is so wide that its own gap is 0, and its cost is left out.
    """
    widths = sorted({round(2 ** (i / 12)) for i in range(50, 300)})
    priced = tuple(Priced(width, float(width) ** 2) for width in widths)
    points = tuple(sorted({round(3 * 2 ** (i / 24)) for i in range(300)}))
    far = Search(proxies=priced, finals=(Priced(10**16, 1e-9),), points=points, seeds=(1,), fixed_target=True)
    front = frontier("transfer", rates(beta=0.6, n_hps=n_hps, noise=0.0), far)
    budgets = np.geomspace(1e8, 1e14, 40)
    designs = [design for limit in budgets if (design := front.best(limit)) is not None]
    proxies, points_chosen = (np.log([getattr(d, name) for d in designs]) for name in ("proxy_width", "points"))
    assert np.polyfit(np.log(budgets), proxies, 1)[0] == pytest.approx(proxy_exponent, abs=0.01)
    assert np.polyfit(proxies, points_chosen, 1)[0] == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(
    ("alpha", "beta", "gamma", "useful"),
    [(0.5, 0.26, 0.0, True), (0.5, 0.24, 0.0, False), (0.5, 0.26, 0.1, False), (1.0, 0.45, -0.2, True)],
)
def test_useful_when_beta_exceeds_half_of_alpha(alpha: float, beta: float, gamma: float, useful: bool) -> None:
    planted = rates(alpha=alpha, beta=beta, gamma=gamma)
    assert planted.useful is useful
    if gamma == 0:
        exponents = [
            budget.transfer_exponent(alpha, beta, n_hps=1, cost_exponent=2),
            budget.direct_exponent(alpha, n_hps=1, cost_exponent=2),
        ]
        assert (exponents[0] > exponents[1]) is useful


@pytest.mark.parametrize(("points", "seeds"), [(3, 1), (3, 4), (4, 2), (5, 1), (8, 3)])
def test_vertex_variance_against_simulation(points: int, seeds: int) -> None:
    """Parabolas fitted by numpy to noisy points, the vertex anywhere within half a step of the middle."""
    rng = np.random.default_rng(points)
    spacing, curvature, noise, floor = 0.7, 0.31, 0.004, 2.9
    x = spacing * (np.arange(points) - (points - 1) / 2)
    vertex = spacing * rng.uniform(-0.5, 0.5, size=20_000)
    means = noise / np.sqrt(seeds) * rng.standard_normal((points, 20_000))
    losses = floor + curvature / 2 * (x[:, None] - vertex) ** 2 + means
    bend, slope, _ = np.polyfit(x, losses, 2)
    simulated = np.mean((-slope / (2 * bend) - vertex) ** 2)
    derived = budget.vertex_variance(
        np.array([spacing]),
        np.array([points]),
        noise=noise,
        curvature=np.array([curvature]),
        replicates=np.array([seeds]),
    )
    assert derived[0] == pytest.approx(simulated, rel=0.05)


def test_another_axis_averages_noise_out_as_a_seed_does() -> None:
    """A separable quadratic through a 3 x 3 grid: the variance along one axis is a third of that of one line."""
    rng = np.random.default_rng(2)
    x, y = (grid.ravel() for grid in np.meshgrid([-0.8, 0.0, 0.8], [-0.8, 0.0, 0.8]))
    vertices = rng.uniform(-0.4, 0.4, size=(2, 20_000))
    curvature, noise = 0.4, 0.005
    losses = curvature / 2 * ((x[:, None] - vertices[0]) ** 2 + (y[:, None] - vertices[1]) ** 2)
    losses = losses + noise * rng.standard_normal(losses.shape)
    design = np.column_stack([np.ones(9), x, x**2, y, y**2])
    fitted = np.linalg.lstsq(design, losses, rcond=None)[0]
    simulated = np.mean((-fitted[1] / (2 * fitted[2]) - vertices[0]) ** 2)
    derived = budget.vertex_variance(
        np.array([0.8]), np.array([3]), noise=noise, curvature=np.array([curvature]), replicates=np.array([3])
    )
    assert derived[0] == pytest.approx(simulated, rel=0.05)


def test_noise_that_neighbors_share_is_not_averaged_out_by_a_finer_grid() -> None:
    """Noise in blocks of half an octave: a parabola through 48 points is no better than one through 6 blocks."""
    rng = np.random.default_rng(4)
    curvature, noise, blocks, inside = 0.3, 0.004, 6, 8
    x = np.arange(blocks * inside) * 0.5 / inside
    x = x - x.mean()
    vertex = rng.uniform(-0.25, 0.25, size=20_000)
    shared = np.repeat(noise * rng.standard_normal((blocks, 20_000)), inside, axis=0)
    bend, slope, _ = np.polyfit(x, curvature / 2 * (x[:, None] - vertex) ** 2 + shared, 2)
    simulated = np.mean((-slope / (2 * bend) - vertex) ** 2)
    # range and basin both 3 octaves: band = curvature / 2 * 1.5**2
    planted = replace(
        rates(curvature=curvature, noise=noise, range_octaves=3.0001, grid_error=0.0, optimum_amplitude=0.0),
        band_nats=curvature / 2 * 1.50005**2,
    )
    fine = frontier("transfer", planted, search(points=(48,), seeds=(1,), **target(2048))).designs[0]
    coarse = frontier("transfer", planted, search(points=(6,), seeds=(1,), **target(2048))).designs[0]
    assert fine.noise_nats == pytest.approx(curvature / 2 * simulated, rel=0.1)
    assert fine.noise_nats == pytest.approx(coarse.noise_nats, rel=0.01)


def test_the_frontier_is_what_brute_force_finds() -> None:
    """Every combination priced on its own; for each kind no other is cheaper and no worse."""
    planted, wanted = rates(n_hps=2, gamma=0.1), search(points=(6, 7, 9, 12), seeds=(1, 2, 5))
    for kind in ("direct", "transfer"):
        singles: list[Design] = []
        for proxy, final, points, seeds in product(wanted.proxies, wanted.finals, wanted.points, wanted.seeds):
            if (proxy == final) if kind == "direct" else (proxy < final):
                one = search(proxies=(proxy,), finals=(final,), points=(points,), seeds=(seeds,))
                (design,) = frontier(kind, planted, one).designs  # type: ignore[arg-type]
                assert design.flops == pytest.approx(points**2 * seeds * proxy.flops + final.flops)
                singles.append(design)
        front = frontier(kind, planted, wanted)  # type: ignore[arg-type]
        for limit in np.geomspace(2e12, 4e16, 60):
            within = [design for design in singles if design.flops <= limit]
            best = front.best(limit)
            if not within:
                assert best is None
            else:
                assert best is not None
                assert best.excess_nats == pytest.approx(min(design.excess_nats for design in within), rel=1e-12)
        for excess in (0.9, 0.5, 0.35):
            reaching = [design for design in singles if design.excess_nats <= excess]
            cheapest = front.cheapest(excess)
            assert (cheapest is None) == (not reaching)
            if cheapest is not None:
                assert cheapest.flops == pytest.approx(min(design.flops for design in reaching), rel=1e-12)


def test_the_parts_of_the_excess() -> None:
    """By hand: 6 points over 6 octaves in a basin of 2 sqrt(2 * 0.1 / 0.15) = 2.31 octaves, so three count."""
    wanted = search(proxies=(Priced(128, flops(128)),), points=(6,), seeds=(2,), **target(512))
    (design,) = frontier("transfer", rates(), wanted).designs
    assert design.spacing_octaves == 1
    assert design.runs == 12
    assert design.tuning_flops == 12 * flops(128)
    assert design.final_flops == flops(512)
    assert design.width_nats == 0
    assert design.drift_nats == pytest.approx(0.075 * (0.9 * 2**-0.7 - 0.9 * 8**-0.7) ** 2)
    assert design.grid_nats == pytest.approx(0.075 * 0.01)
    assert design.noise_nats == pytest.approx(0.075 * (0.012 / 0.15) ** 2 / 2)  # three points: 12/24 * (1 + 5/5) = 1
    free = search(proxies=(Priced(128, flops(128)),), finals=(Priced(512, flops(512)),), points=(6,), seeds=(2,))
    (design,) = frontier("transfer", rates(), free).designs
    assert design.width_nats == pytest.approx(1.1 * 8**-0.6)
    assert design.excess_nats == pytest.approx(
        design.width_nats + design.drift_nats + design.grid_nats + design.noise_nats
    )


def test_a_curvature_that_grows_with_width_prices_at_the_final_one_and_resolves_at_the_proxy() -> None:
    wanted = search(proxies=(Priced(128, flops(128)),), points=(8,), seeds=(2,), **target(512))
    flat, grows = (frontier("transfer", rates(gamma=gamma), wanted).designs[0] for gamma in (0.0, 0.3))
    assert grows.grid_nats == pytest.approx(flat.grid_nats * 8**0.3)
    assert grows.noise_nats == pytest.approx(flat.noise_nats * 8**0.3 / 2**0.6)  # the proxy's curvature, squared


def test_seeds_are_bought_once_the_grid_is_as_fine_as_the_noise() -> None:
    """A finer grid averages noise too, and shrinks its own error; below `noise_octaves` only seeds do."""
    wanted = search(points=tuple(range(3, 60)), seeds=tuple(range(1, 30)), **target(768))
    one = 64 * flops(64) + flops(768)
    loud = frontier("transfer", rates(optimum_amplitude=0.0), wanted).best(one)
    quiet = frontier("transfer", rates(optimum_amplitude=0.0, noise=0.0), wanted).best(one)
    assert loud is not None
    assert quiet is not None
    assert loud.seeds > 1
    assert quiet.seeds == 1
    assert quiet.points > loud.points


def test_noise_cannot_place_the_optimum_outside_the_range() -> None:
    """A uniform draw from six octaves has a variance of 3."""
    wanted = search(proxies=(Priced(128, flops(128)),), points=(6,), seeds=(1,), **target(512))
    (design,) = frontier("transfer", rates(noise=5.0), wanted).designs
    assert design.noise_nats == pytest.approx(0.075 * 3)


def test_a_steep_drift_buys_wider_proxies() -> None:
    wanted = search(**target(2048))
    still, moving = (frontier("transfer", rates(optimum_amplitude=b), wanted).best(2.5e14) for b in (0.02, 3.0))
    assert still is not None
    assert moving is not None
    assert moving.proxy_width > still.proxy_width
    assert moving.excess_nats > still.excess_nats


@settings(max_examples=25)
@given(
    beta=st.floats(0.1, 2), noise=st.floats(0, 0.05), curvature=st.floats(0.02, 0.5), n_hps=st.integers(1, 3),
)  # fmt: skip
def test_more_money_never_hurts(beta: float, noise: float, curvature: float, n_hps: int) -> None:
    fronts = both(rates(beta=beta, noise=noise, curvature=curvature, n_hps=n_hps), search(**target(768)))
    for front in fronts:
        for cheap, dear in pairwise(front.designs):
            assert cheap.flops < dear.flops
            assert cheap.excess_nats > dear.excess_nats
        for design in front.designs[::7]:
            assert front.best(design.flops) == design
            assert front.cheapest(design.excess_nats) == design
    assert {design.kind for design in fronts[0].designs} == {"direct"}
    assert all(design.proxy_width == design.final_width == 768 for design in fronts[0].designs)
    assert all(design.proxy_width < 768 for design in fronts[1].designs)


def test_best_and_cheapest_of_both_kinds() -> None:
    direct, transfer = fronts = both(rates(), search(**target(768)))
    for limit in (5e13, 8e13, 2e14, 1e15):
        best = budget.best_design(fronts, limit)
        options = [design for front in fronts if (design := front.best(limit)) is not None]
        assert best in options
        assert best is not None
        assert best.excess_nats == min(design.excess_nats for design in options)
        cheapest = budget.cheapest_design(fronts, best.excess_nats)
        assert cheapest is not None
        reaching = [design for front in fronts if (design := front.cheapest(best.excess_nats)) is not None]
        assert cheapest.flops == min(design.flops for design in reaching)
    assert budget.best_design(fronts, 1.0) is None
    assert budget.cheapest_design(fronts, 1e-12) is None
    # six octaves, a basin of 2.31: three points fit in from six values on
    assert direct.designs[0].flops == pytest.approx(7 * flops(768))
    assert transfer.designs[0].flops == pytest.approx(6 * flops(64) + flops(768))


def test_a_basin_too_narrow_for_any_grid_has_no_designs() -> None:
    """Two spacings of 6/14 octaves span 0.857, the width of a basin of 1.089 nats an octave squared."""
    for curvature, found in ((1.08, True), (1.10, False)):
        for front in both(rates(curvature=curvature), search()):
            assert bool(front.designs) is found
            assert {design.points for design in front.designs} <= {14}


def test_no_proxy_below_the_target_leaves_direct_tuning_alone() -> None:
    front = frontier("transfer", rates(), search(**target(64)))
    assert front.designs == ()
    assert front.best(1e30) is None


def test_the_span_of_beta_spans_the_excess() -> None:
    wanted = search(proxies=(Priced(128, flops(128)),), points=(6,), seeds=(2,), **target(512))
    planted = rates()
    spanned = replace(planted, beta=replace(planted.beta, span=(0.3, 1.2)))
    (design,) = frontier("transfer", planted, wanted).designs
    assert budget.excess_span(design, planted) is None
    span = budget.excess_span(design, spanned)
    assert span is not None
    again = [frontier("transfer", rates(beta=beta), wanted).designs[0].excess_nats for beta in (0.3, 0.7, 1.2)]
    assert span == pytest.approx((min(again), max(again)))
    assert span[0] < span[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a finite number above 0, got 0.0"),
        ({"curvature": -0.1}, "curvature must be a finite number above 0"),
        ({"noise": float("nan")}, "noise must be a finite number"),
        ({"noise": -1e-3}, "noise must not be below 0"),
        ({"n_hps": 1.5}, "n_hps must be a whole number from 1, got 1.5"),
    ],
)
def test_rates_that_cannot_be(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(**values)


def test_widths_and_bands_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        replace(rates(), reference_width=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds must not be empty"),
        ({"points": (2, 3)}, "needs 3 points and a seed, got 2"),
        ({"proxies": (Priced(32, 0.0),)}, "must cost FLOPs"),
        ({"fixed_target": True}, "one width"),
    ],
)
def test_searches_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**changes)


def drawn(**options: Any) -> Axes:
    fronts = both(rates(), search(**options.pop("wanted", {})))
    (ax,) = budget_frontier(fronts, (1e13, 3e13, 1e14, 3e14, 1e15), **options).axes
    return ax


def test_the_figure_shows_both_frontiers_and_what_was_asked_for() -> None:
    best = frontier("transfer", rates(), search()).best(1e14)
    assert best is not None
    ax = drawn(chosen=(best,), budget=1e14, wanted_excess=0.5, fixed_target=False)
    curves = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    assert len(curves) == 2
    for line, front in zip(curves, both(rates(), search()), strict=True):
        flops_shown, excess = (np.asarray(values, dtype=float) for values in line.get_data())
        within = [design for design in front.designs if design.flops <= 1e15]
        assert flops_shown.tolist() == [*(design.flops for design in within), 1e15]
        assert excess.tolist() == [*(design.excess_nats for design in within), within[-1].excess_nats]
    (legend,) = ax.figure.legends
    assert f"tune {best.proxy_width}, train {best.final_width}" in [text.get_text() for text in legend.get_texts()]
    texts = [text.get_text() for text in ax.texts]
    assert str(frontier("transfer", rates(), search()).best(1e15).proxy_width) in texts  # type: ignore[union-attr]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [1e14]  # type: ignore[index]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0.5]  # type: ignore[index]
    assert "infinite width" in ax.get_title()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_a_single_width_is_not_written_at_every_mark() -> None:
    texts = [text.get_text() for text in drawn(wanted=target(768)).texts]
    assert "768" not in texts
    assert texts


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        budget_frontier((Frontier(kind="transfer", designs=()),), (1e13,))
