"""Whether a few directions carry the optimum of the learning rate, and whether their optimum stays put over width.

The top-k loss phi^k of a run is what its loss changed by along the k directions of every matrix that moved it most
(`proxy_models.trajectory`), the residual what the others add. Ghosh, Wu and Bietti (arXiv:2512.22768) conjecture that
transfer is fast where, for some k(nu), the top-k loss is convex, depends little on the width, and leaves a flat
residual. Losses are changes in nats per token, learning rates log2, so slopes are nats per octave.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.basin import Smoother, find_minima
from analysis.interval import FitError, Floats

Ints = NDArray[np.int64]

MIN_VALUES = 4  # learning rates: a convexity error needs more than one second difference
# The weights of the residuals' slopes that are tried, in octaves.
TAUS = (0.0, *(4.0**i for i in range(-3, 4)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a selection must satisfy."""

    convexity_error: float = 0.25  # share of a top-k loss's inner points that bend down
    shift_octaves: float = 0.5  # of an optimum; half a step of the usual grid
    band_nats: float = 0.05  # around a minimum, where a parabola is fitted


@dataclass(frozen=True, kw_only=True, slots=True)
class TopLosses:
    """Top-k losses of one width: a row a learning rate, a column k = 1 to the width, where nothing is left out."""

    width: int
    log2_values: Floats  # (m,) ascending
    top: Floats  # (m, width)

    def __post_init__(self) -> None:
        if self.top.shape != (len(self.log2_values), self.width):
            raise ValueError(f"top must be ({len(self.log2_values)}, {self.width}), got {self.top.shape}")

    @property
    def total(self) -> Floats:
        return self.top[:, -1]

    @property
    def residuals(self) -> Floats:
        """What the directions beyond the k-th add, (m, width)."""
        return self.total[:, None] - self.top

    def at(self, log2_values: Floats) -> "TopLosses":
        """The same at some of its learning rates."""
        kept = np.isin(self.log2_values, log2_values)
        return TopLosses(width=self.width, log2_values=self.log2_values[kept], top=self.top[kept])


class Place(NamedTuple):
    """Where a curve is lowest. At an edge of the grid it is a bound, not a value."""

    log2_value: float
    at_edge: bool


def place(log2_values: Floats, losses: Floats, *, band_nats: float) -> Place:
    """As `analysis.optimum` finds it: a parabola near the lowest point, or a spline."""
    bounds = (float(log2_values[0]), float(log2_values[-1]))
    minimum = find_minima(log2_values, losses[None], band_nats, Smoother.over(log2_values), bounds)
    return Place(float(minimum.log2_value[0]), int(losses.argmin()) in (0, len(losses) - 1))


def convexity_error(log2_values: Floats, losses: Floats) -> float:
    """ConvErr: the share of inner points where the second difference of three neighbors is negative."""
    return float((_curvatures(log2_values, losses) < 0).mean())


def steepest(log2_values: Floats, losses: Floats) -> Floats:
    """Lip: the largest |slope| between neighbors, over the last axis."""
    slopes: Floats = np.abs(np.diff(losses, axis=-1) / np.diff(log2_values)).max(axis=-1)
    return slopes


def _curvatures(log2_values: Floats, losses: Floats) -> Floats:
    """Second derivatives of the parabolas through three neighbors."""
    slopes = np.diff(losses) / np.diff(log2_values)
    curvatures: Floats = np.diff(slopes) / ((log2_values[2:] - log2_values[:-2]) / 2)
    return curvatures


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """k(nu) for one width against the largest, and what it gives. `failures` is empty where it satisfies the limits."""

    width: int
    largest: int  # width
    taus: tuple[float, float]
    k: tuple[int, ...]  # by learning rate
    top: Floats  # (m,): the top-k loss of the width
    largest_top: Floats  # of the largest width, with the same k
    residual: Floats
    largest_residual: Floats
    place: Place  # of the top-k losses
    largest_place: Place
    invariance_gap: float  # largest |difference| of the two top-k losses, nats
    slopes: tuple[float, float]  # Lip of the two residuals
    bound_octaves: float | None  # on the shift of the total's optimum; None where a curve bends down
    failures: tuple[str, ...]

    @property
    def found(self) -> bool:
        return not self.failures

    @property
    def shift_octaves(self) -> float:
        """Of the top-k optimum, from the width to the largest."""
        return self.largest_place.log2_value - self.place.log2_value

    def to_json(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "largest_width": self.largest,
            "found": self.found,
            "failures": list(self.failures),
            "taus": list(self.taus),
            "k": list(self.k),
            "top": self.top.tolist(),
            "largest_top": self.largest_top.tolist(),
            "residual": self.residual.tolist(),
            "largest_residual": self.largest_residual.tolist(),
            "log2_optimum": self.place._asdict(),
            "largest_log2_optimum": self.largest_place._asdict(),
            "shift_octaves": self.shift_octaves,
            "invariance_gap": self.invariance_gap,
            "residual_slopes": list(self.slopes),
            "bound_octaves": self.bound_octaves,
        }


def select(small: TopLosses, large: TopLosses, *, limits: Limits) -> Selection:
    """The paper's selection of k at each learning rate, of one width against the largest.

    J(k; tau) = mean_i |phi_n^k(nu_i) - phi_N^k(nu_i)| + tau_1 Lip(residual_n) + tau_2 Lip(residual_N) is minimized by
    coordinate descent from k = n/2. The smallest tau_1 + tau_2 is taken at which both top-k losses are convex and have
    their optimum near the total's. Where none is, what fails least is returned, with its failures.
    """
    tried: list[Selection] = []
    for taus in sorted(itertools.product(TAUS, TAUS), key=lambda pair: (sum(pair), abs(pair[0] - pair[1]))):
        selection = _judge(small, large, descend(small, large, taus), taus, limits)
        if selection.found:
            return selection
        tried.append(selection)
    return min(tried, key=lambda selection: len(selection.failures))


def descend(small: TopLosses, large: TopLosses, taus: tuple[float, float]) -> Ints:
    """k at each learning rate, 1 to n, at a minimum of J that no change of one k lowers; (m,)."""
    n, m = small.width, len(small.log2_values)
    distances = np.abs(small.top - large.top[:, :n])
    residuals = (small.residuals, large.residuals[:, :n])
    column, indices = np.full(m, n // 2 - 1), np.arange(m)
    changed = True
    while changed:
        changed = False
        for i in range(m):
            trial = np.tile(column, (n, 1))  # (n, m): every value of the i-th, the others as they are
            trial[:, i] = np.arange(n)
            objective = distances[indices, trial].mean(axis=1)
            for tau, residual in zip(taus, residuals, strict=True):
                objective = objective + tau * steepest(small.log2_values, residual[indices, trial])
            best = int(objective.argmin())
            if objective[best] < objective[column[i]]:
                column[i], changed = best, True
    return column + 1


def _judge(small: TopLosses, large: TopLosses, k: Ints, taus: tuple[float, float], limits: Limits) -> Selection:
    x, rows = small.log2_values, np.arange(len(k))
    tops = small.top[rows, k - 1], large.top[rows, k - 1]
    residuals = small.total - tops[0], large.total - tops[1]
    places = [place(x, top, band_nats=limits.band_nats) for top in tops]
    slopes = [float(steepest(x, residual)) for residual in residuals]
    return Selection(
        width=small.width,
        largest=large.width,
        taus=taus,
        k=tuple(k.tolist()),
        top=tops[0],
        largest_top=tops[1],
        residual=residuals[0],
        largest_residual=residuals[1],
        place=places[0],
        largest_place=places[1],
        invariance_gap=float(np.abs(tops[0] - tops[1]).max()),
        slopes=(slopes[0], slopes[1]),
        bound_octaves=_bound(x, tops, (small.total, large.total), slopes),
        failures=tuple(
            failure
            for curves, top, where in zip((small, large), tops, places, strict=True)
            for failure in _failures(curves, top, where, limits)
        ),
    )


def _failures(curves: TopLosses, top: Floats, where: Place, limits: Limits) -> Iterator[str]:
    x, of = curves.log2_values, f"of width {curves.width}"
    error = convexity_error(x, top)
    if error > limits.convexity_error:
        of_total = convexity_error(x, curves.total)
        yield f"the top-k loss {of} bends down at {error:.0%} of its inner points (the total at {of_total:.0%})"
    shift = where.log2_value - place(x, curves.total, band_nats=limits.band_nats).log2_value
    if abs(shift) > limits.shift_octaves:
        yield f"the top-k optimum {of} is {shift:+.2f} octaves from the total's"


def _bound(
    x: Floats, tops: tuple[Floats, Floats], totals: tuple[Floats, Floats], slopes: Sequence[float]
) -> float | None:
    """2 sqrt(eps_inv) + eps_flat, with the least second difference of a curve for its strong convexity.

    eps_inv = sup |difference of the top-k losses| / the larger convexity of the two; eps_flat = the sum over both
    widths of Lip(residual) / the total's convexity.
    """
    of_tops = max(float(_curvatures(x, top).min()) for top in tops)
    of_totals = [float(_curvatures(x, total).min()) for total in totals]
    if of_tops <= 0 or min(of_totals) <= 0:
        return None
    invariance = float(np.abs(tops[0] - tops[1]).max()) / of_tops
    return float(2 * invariance**0.5 + sum(slope / mu for slope, mu in zip(slopes, of_totals, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """How far optima move over the widths, in octaves; None where one is at an edge of the grid."""

    k: int | None  # None: the total
    places: tuple[Place, ...]  # by width

    @property
    def spread_octaves(self) -> float | None:
        values = [place.log2_value for place in self.places]
        return None if any(place.at_edge for place in self.places) else max(values) - min(values)

    def to_json(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "log2_optima": [place._asdict() for place in self.places],
            "spread_octaves": self.spread_octaves,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryStudy:
    """Everything above for some widths."""

    limits: Limits
    curves: tuple[TopLosses, ...]  # by width, all at the same learning rates
    dropped: tuple[float, ...]  # log2 learning rates at which some width diverged
    total: Stability
    fixed: tuple[Stability, ...]  # k = 1 to the smallest width
    selections: tuple[Selection, ...]  # of every width but the largest

    @property
    def verdict(self) -> str:
        """One sentence a finding."""
        return " ".join((_total_sentence(self), *(_selection_sentence(s, self.limits) for s in self.selections)))

    @property
    def stable_k(self) -> tuple[int, ...]:
        """Every k that, the same at every learning rate, has an optimum which stays put over the widths."""
        return tuple(item.k for item in self.fixed if item.k is not None and _within(item, self.limits))

    def to_json(self) -> dict[str, Any]:
        """Losses in nats, `top` and `residual` by learning rate; the arrays of every k are left out."""
        return {
            "limits": {name: getattr(self.limits, name) for name in Limits.__slots__},
            "widths": [item.width for item in self.curves],
            "log2_values": self.curves[0].log2_values.tolist(),
            "dropped_log2_values": list(self.dropped),
            "totals": [item.total.tolist() for item in self.curves],
            "total": self.total.to_json(),
            "fixed_k": [item.to_json() for item in self.fixed],
            "stable_k": list(self.stable_k),
            "selections": [item.to_json() for item in self.selections],
            "verdict": self.verdict,
        }


def study(curves: Iterable[TopLosses], *, limits: Limits | None = None) -> TrajectoryStudy:
    """Compare every width with the largest, at the learning rates that all of them have.

    Raises:
        FitError: fewer than two widths, or fewer than `MIN_VALUES` learning rates in common.
    """
    limits = limits or Limits()
    curves = sorted(curves, key=lambda item: item.width)
    if len(curves) < 2:
        raise FitError(f"a comparison over width needs at least two widths, got {[item.width for item in curves]}")
    every = np.unique(np.concatenate([item.log2_values for item in curves]))
    shared = every[np.all([np.isin(every, item.log2_values) for item in curves], axis=0)]
    if len(shared) < MIN_VALUES:
        raise FitError(
            f"only {len(shared)} learning rates converged at every width, and {MIN_VALUES} are needed; "
            "lower or refine the grid of lr"
        )
    *small, large = kept = [item.at(shared) for item in curves]
    return TrajectoryStudy(
        limits=limits,
        curves=tuple(kept),
        dropped=tuple(np.setdiff1d(every, shared).tolist()),
        total=Stability(k=None, places=tuple(_place(item, item.width, limits) for item in kept)),
        fixed=tuple(
            Stability(k=k, places=tuple(_place(item, k, limits) for item in kept)) for k in range(1, kept[0].width + 1)
        ),
        selections=tuple(select(item, large, limits=limits) for item in small),
    )


def _place(curves: TopLosses, k: int, limits: Limits) -> Place:
    return place(curves.log2_values, curves.top[:, k - 1], band_nats=limits.band_nats)


def _within(stability: Stability, limits: Limits) -> bool:
    return stability.spread_octaves is not None and stability.spread_octaves <= limits.shift_octaves


def _total_sentence(found: TrajectoryStudy) -> str:
    widths = f"widths {found.curves[0].width} to {found.curves[-1].width}"
    spread = found.total.spread_octaves
    if spread is None:
        return f"Over {widths} the total loss has an optimum at an edge of the grid: extend it."
    stable = "stays put" if _within(found.total, found.limits) else "moves"
    return f"Over {widths} the optimum of the total loss {stable} ({spread:.2f} octaves)."


def _selection_sentence(selection: Selection, limits: Limits) -> str:
    pair = f"width {selection.width} against {selection.largest}"
    if not selection.found:
        return f"No k found for {pair}: {'; '.join(selection.failures)}."
    low, high = min(selection.k), max(selection.k)
    k = f"k = {low}" if low == high else f"k = {low} to {high}"
    if selection.place.at_edge or selection.largest_place.at_edge:
        return f"For {pair}, {k}: the top-k optimum is at an edge of the grid."
    stable = "width-stable" if abs(selection.shift_octaves) <= limits.shift_octaves else "not width-stable"
    return (
        f"For {pair}, {k}: the top-k optimum is {stable} ({selection.shift_octaves:+.2f} octaves); the top-k losses "
        f"differ by up to {selection.invariance_gap:.3f} nats, the residuals slope by up to "
        f"{max(selection.slopes):.3f} nats an octave."
    )
