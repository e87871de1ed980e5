"""Tokens that a batch needs to reach a loss, read off runs of several lengths; what lies outside them is a bound.

Each horizon is a run of its own, decayed to its end, at the learning rate that is best for it: losses along one run
say nothing about a shorter run, whose schedule has ended. Between horizons log loss is interpolated over log tokens
by a monotone cubic (PCHIP, Fritsch and Butland 1984) after isotonic regression, since more tokens at a re-tuned
learning rate cannot do harm and a rise is noise. On L = L0 + A D**-0.3, L0 / A = 4/3, with horizons a factor of four
apart that misses log tokens by at most 0.004; a cubic of the loss itself misses by 0.013, straight lines by 0.072.
Past the critical batch, where loss falls twice as steeply, it misses by up to 0.035.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from analysis.hyperbola import LEAST_BATCHES
from analysis.interval import FitError, Floats, Interval, percentile_interval

DEFAULT_TARGETS = 4
# Of the losses that four batches reach: the least share that targets are spread over. A level more batches reach,
# but only within a sliver of losses, would repeat one target several times.
_LEAST_SPREAD = 0.25
_BISECTIONS = 50  # of a piece between two horizons, until rounding

# Reached before the shortest horizon (fewer tokens), or not by the longest (more tokens).
Censoring = Literal["fewer", "more"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCurve:
    """Loss (nats) over training tokens at one batch: decayed runs, one a horizon, each at its re-tuned learning rate.

    `draws` are bootstrap draws of the losses, (draws, horizons), or none. `at_edge` says at which horizons the best
    learning rate was at an edge of its grid (none if empty): such a loss is an upper bound and is not used.

    Raises:
        FitError: tokens that do not ascend, a batch larger than a run, losses not above 0, or lengths that differ.
    """

    optimizer: str
    width: int
    n_params: int  # non-embedding
    batch_tokens: int
    train_tokens: tuple[int, ...]
    losses: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...] = ()
    at_edge: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.train_tokens)
        lengths = {len(self.losses), *map(len, self.draws), *([len(self.at_edge)] if self.at_edge else [])}
        if not n or lengths != {n}:
            raise FitError(f"{self.name}: {n} horizons need as many losses, draws and edges, got {sorted(lengths)}")
        if self.batch_tokens <= 0 or min(self.train_tokens) < self.batch_tokens:
            raise FitError(
                f"{self.name}: a run needs at least one step of a batch above 0, got train_tokens {self.train_tokens}"
            )
        if any(later <= sooner for sooner, later in zip(self.train_tokens, self.train_tokens[1:], strict=False)):
            raise FitError(f"{self.name}: train_tokens must ascend, got {self.train_tokens}")
        for losses in (self.losses, *self.draws):
            if not all(0 < loss < float("inf") for loss in losses):
                raise FitError(
                    f"{self.name}: losses must be finite and above 0 (nats), got {losses}; leave out horizons "
                    "at which every learning rate diverged"
                )

    @property
    def name(self) -> str:
        return f"{self.optimizer}, width {self.width}, batch {self.batch_tokens} tokens"

    @property
    def usable(self) -> tuple[int, ...]:
        """Horizons whose best learning rate was inside its grid, as indices."""
        edges = self.at_edge or (False,) * len(self.losses)
        return tuple(i for i, edge in enumerate(edges) if not edge)

    @property
    def left_out(self) -> str | None:
        """Which horizons are not used, as a sentence."""
        edges = [self.train_tokens[i] for i in range(len(self.losses)) if i not in self.usable]
        if not edges:
            return None
        return (
            f"{self.name}: at horizons {edges} tokens the best learning rate is at an edge of its grid, so the loss "
            "is only an upper bound and is left out; extend the grid there"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensToLoss:
    """Tokens that one batch needs to reach `target_loss` (nats)."""

    batch_tokens: int
    target_loss: float
    tokens: float  # the horizon the bound is at, where censored
    censored: Censoring | None
    interval: Interval | None  # tokens, of the bootstrap draws; it ends at the horizons

    @property
    def steps(self) -> float:
        return self.tokens / self.batch_tokens

    @property
    def says(self) -> str:
        """The bound in words, empty where the tokens are measured."""
        if self.censored is None:
            return ""
        where = "before the shortest horizon" if self.censored == "fewer" else "by the longest horizon"
        reached = "reached" if self.censored == "fewer" else "not reached"
        return f"batch {self.batch_tokens} tokens: loss {self.target_loss:.4g} {reached} {where} ({self.tokens:.3g})"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CurveTokens:
    """Log tokens of one curve to each of T losses: -inf where reached before `log_shortest`, inf past `log_longest`."""

    curve: BatchCurve
    target_losses: tuple[float, ...]
    log_shortest: float
    log_longest: float
    values: Floats  # (T,)
    draws: Floats  # (draws, T)

    def points(self, level: float) -> tuple[TokensToLoss, ...]:
        clipped = np.exp(np.clip(self.values, self.log_shortest, self.log_longest))
        draws = np.exp(np.clip(self.draws, self.log_shortest, self.log_longest))
        return tuple(
            TokensToLoss(
                batch_tokens=self.curve.batch_tokens,
                target_loss=target,
                tokens=float(clipped[i]),
                censored=_censoring(float(self.values[i])),
                interval=percentile_interval(draws[:, i], level)
                if len(draws) and np.isfinite(self.values[i])
                else None,
            )
            for i, target in enumerate(self.target_losses)
        )


def _censoring(log_tokens: float) -> Censoring | None:
    if np.isfinite(log_tokens):
        return None
    return "more" if log_tokens > 0 else "fewer"


def tokens_to_losses(curve: BatchCurve, target_losses: Sequence[float], *, n_draws: int | None = None) -> CurveTokens:
    """Tokens to each loss, for the losses as measured and for the first `n_draws` draws (all of them if None).

    Never extrapolated: a loss outside what the usable horizons reach is censored at the shortest or the longest.

    Raises:
        FitError: no horizon is usable.
    """
    usable = list(curve.usable)
    if not usable:
        raise FitError(f"{curve.left_out}; no horizon is left")
    log_tokens = np.log(np.array(curve.train_tokens, dtype=np.float64)[usable])
    rows = [curve.losses, *curve.draws[:n_draws]]
    log_targets = np.log(np.array(target_losses, dtype=np.float64))
    found = _log_tokens(log_tokens, np.log(np.array(rows)[:, usable]), log_targets)
    return CurveTokens(
        curve=curve,
        target_losses=tuple(float(target) for target in target_losses),
        log_shortest=float(log_tokens[0]),
        log_longest=float(log_tokens[-1]),
        values=found[0],
        draws=found[1:],
    )


def _falling(log_losses: Floats) -> Floats:
    """Isotonic regression of each row."""
    return np.array([isotonic_regression(row, increasing=False).x for row in log_losses])


def _log_tokens(log_tokens: Floats, log_losses: Floats, log_targets: Floats) -> Floats:
    """Where each row's curve (R, H) first is as low as each target, (R, T)."""
    cleaned = _falling(log_losses)
    next_knot = (cleaned[:, :, None] > log_targets).sum(axis=1)  # (R, T): the first as low as the target
    found = np.where(next_knot == len(log_tokens), np.inf, -np.inf)
    rows, targets = np.nonzero((next_knot > 0) & (next_knot < len(log_tokens)))
    found[(next_knot == 0) & (cleaned[:, :1] == log_targets)] = log_tokens[0]
    if len(rows):
        piece = next_knot[rows, targets] - 1
        cubic = PchipInterpolator(log_tokens, cleaned, axis=1).c[:, piece, rows]  # of the distance to the piece's start
        low, high = np.zeros(len(rows)), np.diff(log_tokens)[piece]
        for _ in range(_BISECTIONS):  # the curve falls, so a root is bracketed
            middle = (low + high) / 2
            above = ((cubic[0] * middle + cubic[1]) * middle + cubic[2]) * middle + cubic[3] > log_targets[targets]
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        found[rows, targets] = log_tokens[piece] + high
    return found


def choose_target_losses(curves: Sequence[BatchCurve], n: int = DEFAULT_TARGETS) -> tuple[float, ...]:
    """Losses (nats, falling) that as many batches as possible reach within their horizons, evenly spread in log.

    Of the losses that at least k batches reach, those of the highest k are taken that span a quarter or more of what
    four batches reach.

    Raises:
        FitError: no loss is reached by four batches within their horizons.
    """
    rows = [np.log([[curve.losses[i] for i in curve.usable]]) for curve in curves if curve.usable]
    ends = np.array([_falling(row)[0, [0, -1]] for row in rows]).reshape(-1, 2)
    edges = np.unique(ends)  # between two of them the number of batches does not change
    middles = (edges[:-1] + edges[1:]) / 2
    counts = ((ends[:, :1] >= middles) & (middles >= ends[:, 1:])).sum(axis=0)
    spans = {k: _longest(edges, counts >= k) for k in range(LEAST_BATCHES, len(ends) + 1)}
    spans = {k: (low, high) for k, (low, high) in spans.items() if high > low}
    if not spans:
        raise FitError(
            f"no loss is reached within the horizons of {LEAST_BATCHES} batches or more: {_reached(curves)}. Train the "
            "batches with the highest losses for more tokens, and those with the lowest for fewer"
        )
    wanted = _LEAST_SPREAD * np.ptp(spans[LEAST_BATCHES])
    low, high = spans[max(k for k, span in spans.items() if np.ptp(span) >= wanted)]
    shares = (np.arange(n) + 0.5) / n
    return tuple(np.exp(high - (high - low) * shares).tolist())


def _longest(edges: Floats, inside: NDArray[np.bool_]) -> tuple[float, float]:
    """The longest stretch of neighboring intervals that are inside: its ends."""
    best = start = (float(edges[0]), float(edges[0]))
    for i in range(len(inside)):
        start = (start[0], float(edges[i + 1])) if inside[i] else (float(edges[i + 1]),) * 2
        best = max(best, start, key=lambda span: span[1] - span[0])
    return best


def _reached(curves: Sequence[BatchCurve]) -> str:
    return "; ".join(
        f"batch {curve.batch_tokens}: " + (f"{max(found):.4g} to {min(found):.4g}" if found else "all at an edge")
        for curve in curves
        for found in [[curve.losses[i] for i in curve.usable]]
    )
