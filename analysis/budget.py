"""How to spend a tuning budget: widths, grid and seeds with the least expected excess, and the frontier over budgets.

A grid search at width n costs its runs; one final run at width M then uses what it found. Direct tuning has n = M,
transfer n < M. The error of the optimum (octaves) prices the outcome at curvature/2 * error**2 nats: a drift
B n^-beta - B M^-beta, a grid error in proportion to the spacing, and noise. Without noise, and with the final width
free at a loss gap A M^-alpha, the best designs follow the theorem on useful transfer of Ghosh, Wu and Bietti
(arXiv:2512.22768): excess falls with FLOPs F as in `direct_exponent` and `transfer_exponent`.

All tuned hyperparameters are taken to have one curvature, drift and range, and not to interact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.interval import Floats

Counts = NDArray[np.int64]
Kind = Literal["direct", "transfer"]
Source = Literal["measured", "given", "assumed"]

MIN_POINTS = 3  # a parabola has three coefficients


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A number the planner rests on, and where it comes from."""

    value: float
    source: Source  # measured in a sweep, given by the spec, or assumed
    why: str  # a sentence
    span: tuple[float, float] | None = None  # lowest and highest plausible value


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferRates:
    """What decides between designs. Octaves are of the hyperparameter; amplitudes hold at `reference_width`."""

    reference_width: float
    alpha: Rate  # loss gap ~ width**-alpha
    loss_amplitude: Rate  # nats
    beta: Rate  # distance of the optimum from its limit ~ width**-beta
    optimum_amplitude: Rate  # octaves
    curvature: Rate  # nats per octave squared
    gamma: Rate  # curvature ~ width**gamma
    noise: Rate  # standard deviation of one run's loss around its seed's curve, nats
    noise_octaves: Rate  # values closer than this share their noise within one seed
    grid_error: Rate  # octaves of error for an octave of spacing, root mean square
    range_octaves: Rate  # searched
    n_hps: Rate  # tuned together on a full grid
    band_nats: float = 0.1  # height above the minimum up to which the loss is a parabola

    def __post_init__(self) -> None:
        positive = ("alpha", "beta", "curvature", "range_octaves")
        for field in fields(self):
            rate = getattr(self, field.name)
            if not isinstance(rate, Rate):
                continue
            if not np.isfinite(rate.value) or (field.name in positive and rate.value <= 0):
                raise ValueError(f"{field.name} must be a finite number above 0, got {rate.value}")
            if field.name != "gamma" and rate.value < 0:
                raise ValueError(f"{field.name} must not be below 0, got {rate.value}")
        if self.n_hps.value < 1 or self.n_hps.value % 1:
            raise ValueError(f"n_hps must be a whole number from 1, got {self.n_hps.value}")
        if self.reference_width <= 0 or self.band_nats <= 0:
            raise ValueError(f"reference_width and band_nats must be above 0, got {self}")

    @property
    def named(self) -> tuple[tuple[str, Rate], ...]:
        """Every rate with its field's name."""
        rates = ((field.name, getattr(self, field.name)) for field in fields(self))
        return tuple((name, rate) for name, rate in rates if isinstance(rate, Rate))

    @property
    def useful(self) -> bool:
        """Whether transfer beats direct tuning at large budgets: beta > (alpha + gamma) / 2."""
        return self.beta.value > (self.alpha.value + self.gamma.value) / 2

    def loss_gap(self, width: Floats) -> Floats:
        """A M^-alpha, nats."""
        gap: Floats = self.loss_amplitude.value * (width / self.reference_width) ** -self.alpha.value
        return gap

    def optimum_gap(self, width: Floats) -> Floats:
        """B n^-beta, octaves."""
        gap: Floats = self.optimum_amplitude.value * (width / self.reference_width) ** -self.beta.value
        return gap

    def curvature_at(self, width: Floats) -> Floats:
        """Nats per octave squared."""
        curvature: Floats = self.curvature.value * (width / self.reference_width) ** self.gamma.value
        return curvature

    def basin_octaves(self, width: Floats) -> Floats:
        """How wide the loss is a parabola: up to `band_nats` above its minimum."""
        octaves: Floats = 2 * np.sqrt(2 * self.band_nats / self.curvature_at(width))
        return octaves


class Priced(NamedTuple):
    """A width and the FLOPs of one run there."""

    width: int
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The designs to choose from: every combination is tried."""

    proxies: tuple[Priced, ...]
    finals: tuple[Priced, ...]
    points: tuple[int, ...]  # grid points a hyperparameter
    seeds: tuple[int, ...]
    fixed_target: bool  # excess over the target's own optimum, and not over the limit of infinite width

    def __post_init__(self) -> None:
        for name in ("proxies", "finals", "points", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if min(self.points) < MIN_POINTS or min(self.seeds) < 1:
            raise ValueError(f"a grid needs {MIN_POINTS} points and a seed, got {min(self.points)} and {self.seeds}")
        if min(flops for _, flops in (*self.proxies, *self.finals)) <= 0:
            raise ValueError(f"runs must cost FLOPs, got {self.proxies} and {self.finals}")
        if self.fixed_target and len(self.finals) > 1:
            raise ValueError(f"a fixed target has one width, got {self.finals}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One way to spend a budget, and the excess loss expected of it by what causes it, in nats."""

    kind: Kind
    proxy_width: int
    final_width: int
    points: int  # a hyperparameter
    seeds: int
    n_hps: int
    spacing_octaves: float
    tuning_flops: float
    final_flops: float
    width_nats: float  # the final width is not infinite; 0 for a fixed target
    drift_nats: float
    grid_nats: float
    noise_nats: float

    @property
    def runs(self) -> int:
        """Of the grid."""
        return int(self.points**self.n_hps * self.seeds)

    @property
    def flops(self) -> float:
        return self.tuning_flops + self.final_flops

    @property
    def excess_nats(self) -> float:
        return self.width_nats + self.drift_nats + self.grid_nats + self.noise_nats


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """The designs of one kind that no cheaper one matches: FLOPs ascend, excess falls."""

    kind: Kind
    designs: tuple[Design, ...]

    def best(self, budget: float) -> Design | None:
        """Least excess within a budget in FLOPs; None where it covers no design."""
        return next((design for design in reversed(self.designs) if design.flops <= budget), None)

    def cheapest(self, excess_nats: float) -> Design | None:
        """Fewest FLOPs to an expected excess; None where no design reaches it."""
        return next((design for design in self.designs if design.excess_nats <= excess_nats), None)


def frontier(kind: Kind, rates: TransferRates, search: Search) -> Frontier:
    """Every design of one kind tried, those kept that no cheaper one matches.

    Direct tuning searches at each final width, at the final run's own FLOPs, and then trains there once more. Empty
    where no proxy is below a final width, or no grid is fine enough for the basin.
    """
    kept: list[_Tried] = []
    proxies = search.finals if kind == "direct" else search.proxies
    for proxy in proxies:
        finals = [final for final in search.finals if _allowed(kind, proxy.width, final.width)]
        if finals:
            kept.append(_try(proxy, finals, rates, search))
    if not kept:
        return Frontier(kind=kind, designs=())
    best = _Tried(*map(np.concatenate, zip(*kept, strict=True))).undominated()
    tuning, training = ({priced.width: priced for priced in widths} for widths in (proxies, search.finals))
    designs = [
        _design(kind, rates, search.fixed_target, tuning[proxy], training[final], points, seeds)
        for proxy, final, points, seeds in best.counts.tolist()
    ]
    return Frontier(kind=kind, designs=tuple(designs))


def best_design(frontiers: Sequence[Frontier], budget: float) -> Design | None:
    """Least excess within a budget in FLOPs, of all kinds; None where it covers no design."""
    found = [design for front in frontiers if (design := front.best(budget)) is not None]
    return min(found, key=lambda design: design.excess_nats, default=None)


def cheapest_design(frontiers: Sequence[Frontier], excess_nats: float) -> Design | None:
    """Fewest FLOPs to an expected excess, of all kinds; None where no design reaches it."""
    found = [design for front in frontiers if (design := front.cheapest(excess_nats)) is not None]
    return min(found, key=lambda design: design.flops, default=None)


def excess_span(design: Design, rates: TransferRates) -> tuple[float, float] | None:
    """Least and most excess (nats) expected of a design over the span of beta; None without one.

    Both ends, for a smaller beta is not always the worse: it also moves all finite widths less from one another.
    """
    if rates.beta.span is None:
        return None
    rest = design.excess_nats - design.drift_nats
    widths = (np.array([float(design.proxy_width)]), np.array([float(design.final_width)]))
    ends = [
        float(_drift_nats(replace(rates, beta=replace(rates.beta, value=beta)), *widths)[0])
        for beta in (*rates.beta.span, rates.beta.value)
    ]
    return rest + min(ends), rest + max(ends)


def direct_exponent(alpha: float, *, n_hps: int, cost_exponent: float) -> float:
    """x in excess ~ FLOPs**-x of direct tuning, where a run costs width**cost_exponent FLOPs (arXiv:2512.22768)."""
    return 2 * alpha / (n_hps * alpha + 2 * cost_exponent)


def transfer_exponent(alpha: float, beta: float, *, n_hps: int, cost_exponent: float) -> float:
    """x in excess ~ FLOPs**-x of transfer: the slower of the final run's and the tuning's (arXiv:2512.22768)."""
    return min(alpha / cost_exponent, 2 * beta / (n_hps * beta + cost_exponent))


def vertex_variance(
    spacing_octaves: Floats, points: Floats, *, noise: float, curvature: Floats, replicates: Floats
) -> Floats:
    """Variance (octaves squared) of the vertex of a least-squares parabola through evenly spaced points.

    With y = a + b x + c x**2 around the middle of the points, the vertex is -b / 2c and 2c is the curvature h.
    Slope and bend are independent; var b = noise**2 / sum(x**2), var c = noise**2 / sum((x**2 - mean)**2), and to
    first order var vertex = (var b + 4 vertex**2 var c) / h**2. The true vertex lies evenly within half a spacing of
    the middle. `replicates`: seeds, and the points on the grid's other axes, whose noise averages out.
    """
    m = points
    slope_term = 12 / (m * (m**2 - 1))
    variance: Floats = (noise / (curvature * spacing_octaves)) ** 2 / replicates * slope_term * (1 + 5 / (m**2 - 4))
    return variance


class _Tried(NamedTuple):
    """n designs as arrays."""

    counts: Counts  # (n, 4): proxy width, final width, points, seeds
    flops: Floats
    excess: Floats

    def undominated(self) -> "_Tried":
        kept = _undominated(self.flops, self.excess)
        return _Tried(self.counts[kept], self.flops[kept], self.excess[kept])


def _allowed(kind: Kind, proxy: int, final: int) -> bool:
    return proxy == final if kind == "direct" else proxy < final


def _try(proxy: Priced, finals: Sequence[Priced], rates: TransferRates, search: Search) -> _Tried:
    """All designs at one proxy width whose grid puts a parabola's three points into the basin.

    Only grids that no cheaper one beats are combined with final widths.
    """
    width = np.array([float(proxy.width)])
    points, seeds = (grid.ravel() for grid in np.meshgrid(search.points, search.seeds))
    fine = (MIN_POINTS - 1) * rates.range_octaves.value / points <= rates.basin_octaves(width)
    points, seeds = points[fine], seeds[fine]
    runs = points.astype(np.float64) ** rates.n_hps.value * seeds
    grid, noise = _search_errors(rates, width, points, seeds)
    good = _undominated(runs, grid + noise)
    points, seeds, runs, squared = points[good], seeds[good], runs[good], (grid + noise)[good]
    final, final_flops = (np.array(column, dtype=np.float64)[:, None] for column in zip(*finals, strict=True))
    prices = rates.curvature_at(final) / 2
    flops = runs * proxy.flops + final_flops
    excess = prices * squared + _drift_nats(rates, width, final) + _width_nats(rates, final, search.fixed_target)
    columns = (np.array([proxy.width]), np.array([[final.width] for final in finals]), points, seeds)
    counts = np.column_stack([np.broadcast_to(column, flops.shape).ravel() for column in columns])
    return _Tried(counts, flops.ravel(), excess.ravel()).undominated()


def _design(
    kind: Kind, rates: TransferRates, fixed_target: bool, proxy: Priced, final: Priced, points: int, seeds: int
) -> Design:
    narrow, wide = np.array([float(proxy.width)]), np.array([float(final.width)])
    grid, noise = _search_errors(rates, narrow, np.array([points]), np.array([seeds]))
    price = float(rates.curvature_at(wide)[0]) / 2
    n_hps = int(rates.n_hps.value)
    return Design(
        kind=kind,
        proxy_width=proxy.width,
        final_width=final.width,
        points=points,
        seeds=seeds,
        n_hps=n_hps,
        spacing_octaves=rates.range_octaves.value / points,
        tuning_flops=proxy.flops * points**n_hps * seeds,
        final_flops=final.flops,
        width_nats=float(_width_nats(rates, wide, fixed_target)[0]),
        drift_nats=float(_drift_nats(rates, narrow, wide)[0]),
        grid_nats=price * float(grid[0]),
        noise_nats=price * float(noise[0]),
    )


def _search_errors(rates: TransferRates, width: Floats, points: Floats, seeds: Floats) -> tuple[Floats, Floats]:
    """Squared error (octaves squared, all hyperparameters) from the grid's spacing and from noise.

    Each of the k points stands for its k-th of the range. The parabola goes through the points in the basin, at
    least three; points closer than `noise_octaves` count as one for the noise.
    """
    n_hps = rates.n_hps.value
    spacing = rates.range_octaves.value / points
    curvature = rates.curvature_at(width)
    apart = np.maximum(spacing, min(rates.noise_octaves.value, rates.range_octaves.value / MIN_POINTS))
    inside = np.clip(np.floor(rates.basin_octaves(width) / apart), MIN_POINTS, points)
    noise = vertex_variance(
        apart, inside, noise=rates.noise.value, curvature=curvature, replicates=seeds * inside ** (n_hps - 1)
    )
    blind = rates.range_octaves.value**2 / 12  # the variance of any value of the range
    return n_hps * (rates.grid_error.value * spacing) ** 2, n_hps * np.minimum(noise, blind)


def _drift_nats(rates: TransferRates, proxy: Floats, final: Floats) -> Floats:
    drift = rates.optimum_gap(proxy) - rates.optimum_gap(final)
    nats: Floats = rates.curvature_at(final) / 2 * rates.n_hps.value * drift**2
    return nats


def _width_nats(rates: TransferRates, final: Floats, fixed_target: bool) -> Floats:
    return np.zeros_like(final) if fixed_target else rates.loss_gap(final)


def _undominated(cost: Floats, value: Floats) -> Counts:
    """Indices by ascending cost of the entries whose value is below that of every cheaper one."""
    order = np.lexsort((value, cost))
    falling = value[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(falling)[:-1]])
    kept: Counts = order[falling < before]
    return kept
