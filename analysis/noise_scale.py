"""The gradient noise scale of a run, B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 2018, arXiv:1812.06162).

G is the true gradient and Sigma the covariance over tokens of what one token adds to it, so that the mean gradient of B
tokens has E|G_B|^2 = |G|^2 + tr(Sigma) / B. Two batch sizes of the same step give both (their appendix A.1):

    |G|^2     = (B_batch |G_batch|^2 - B_micro |G_micro|^2) / (B_batch - B_micro)
    tr(Sigma) = (|G_micro|^2 - |G_batch|^2) / (1 / B_micro - 1 / B_batch)

Both are averaged over steps, apart, and only then divided: the mean of the steps' own ratios is biased, since a step's
|G|^2 is noisy and can come out at 0 or below.

It says how the critical batch moves during training, not where it is. The two agree where the Hessian is a multiple of
the identity; on a noisy quadratic with a spread of curvatures the noise scale is 2 to 28 times the critical batch at
one loss, depending on how a run came there (`mutransfer lab noisy-quadratic`), and on language models it was off by
orders of magnitude (Merrill et al. 2025, arXiv:2505.23971). So nothing here is called a critical batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from analysis.interval import FitError, Floats, Interval

KIND, DEPTH = "all", 0  # proxy_models.diagnostics: where a trial's diagnostics hold what belongs to no single layer
MICRO_SQ, BATCH_SQ = "gradient_sq_micro", "gradient_sq_batch"
MICRO_TOKENS, BATCH_TOKENS = "micro_tokens", "batch_tokens"
CAVEAT = "a trend, not a critical batch"

_LEAST_STEPS = 4  # for an interval: three degrees of freedom
_BLOCKS = 10  # of neighboring steps, which correlate: long ones, and still nine degrees of freedom
_LEAST_IN_WINDOW = 8  # steps: two a window's end, on which a drift inside it could be seen
_LEAST_WINDOWS = 3  # for a trend: two lie on any line

Direction = Literal["rises", "falls", "not resolved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisePoints:
    """What the steps of one run measured, ascending in tokens; each part (steps,).

    Raises:
        FitError: parts of different lengths, no step, tokens that do not ascend, a norm below 0 or not finite, or
            microbatches that are not smaller than the batch.
    """

    tokens: Floats  # trained when the step was taken, its own batch included
    micro_sq: Floats  # mean over microbatches of the squared norm of their mean gradients
    batch_sq: Floats  # squared norm of the mean gradient of the whole batch, the same step's
    micro_tokens: Floats  # in a microbatch
    batch_tokens: Floats

    def __post_init__(self) -> None:
        parts = (self.tokens, self.micro_sq, self.batch_sq, self.micro_tokens, self.batch_tokens)
        lengths = [len(part) for part in parts]
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise FitError(f"a noise scale needs one value or more a step in each part, got lengths {lengths}")
        if not all(np.isfinite(part).all() for part in parts):
            raise FitError("what a noise scale is made from must be finite: leave out the steps where a run diverged")
        if self.tokens[0] <= 0 or (np.diff(self.tokens) <= 0).any():
            raise FitError("tokens of a noise scale's steps must ascend from above 0: one run at a time, sorted")
        if min(self.micro_sq.min(), self.batch_sq.min()) < 0:
            raise FitError("squared norms of gradients must be 0 or more")
        small = (self.micro_tokens <= 0) | (self.micro_tokens >= self.batch_tokens)
        if small.any():
            first = int(np.flatnonzero(small)[0])
            raise FitError(
                "a noise scale needs microbatches smaller than their batch, got "
                f"{self.micro_tokens[first]:g} of {self.batch_tokens[first]:g} tokens: split it in two or more"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def gradient_sq(self) -> Floats:
        """Unbiased for |G|^2 at each step; it can be below 0."""
        big, small = self.batch_tokens, self.micro_tokens
        estimate: Floats = (big * self.batch_sq - small * self.micro_sq) / (big - small)
        return estimate

    @property
    def noise_trace(self) -> Floats:
        """Unbiased for tr(Sigma) at each step, times tokens."""
        estimate: Floats = (self.micro_sq - self.batch_sq) / (1 / self.micro_tokens - 1 / self.batch_tokens)
        return estimate

    def part(self, chosen: slice) -> "NoisePoints":
        return NoisePoints(
            tokens=self.tokens[chosen],
            micro_sq=self.micro_sq[chosen],
            batch_sq=self.batch_sq[chosen],
            micro_tokens=self.micro_tokens[chosen],
            batch_tokens=self.batch_tokens[chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScale:
    """tr(Sigma) / |G|^2 over some steps, in tokens. A trend is what it is good for, not a critical batch.

    Where |G|^2 is not told from 0 there is no value. `at_least` is then the lower end that the noise still allows, or
    None if it allows none.
    """

    value: float | None
    interval: Interval | None
    at_least: float | None
    gradient_sq: float  # mean over the steps
    noise_trace: float  # the same, times tokens
    n_steps: int
    from_tokens: float  # trained at the first step and at the last
    to_tokens: float
    level: float

    @property
    def resolved(self) -> bool:
        return self.value is not None

    @property
    def sentence(self) -> str:
        where = f"over {self.n_steps} steps from {self.from_tokens:.3g} to {self.to_tokens:.3g} tokens trained"
        if self.value is None or self.interval is None:
            bound = "" if self.at_least is None else f"; it is at least {self.at_least:.3g} tokens"
            return f"gradient noise scale: no value, |G|^2 is not told from 0 {where}{bound}"
        return (
            f"gradient noise scale tr(Sigma)/|G|^2 = {self.value:.3g} tokens ({self.level:.0%} interval "
            f"{self.interval.low:.3g} to {self.interval.high:.3g}) {where}: {CAVEAT}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseTrend:
    """The noise scale in windows of a run, and how it moves: d ln(noise scale) / d ln(tokens trained).

    Without an exponent there were fewer than three windows with a value.
    """

    windows: tuple[NoiseScale, ...]  # in the order of training
    exponent: float | None
    interval: Interval | None

    @property
    def direction(self) -> Direction:
        if self.interval is None or self.interval.contains(0.0):
            return "not resolved"
        return "rises" if self.interval.low > 0 else "falls"

    @property
    def sentence(self) -> str:
        if self.exponent is None or self.interval is None:
            known = sum(window.resolved for window in self.windows)
            return (
                f"trend of the gradient noise scale: inconclusive, {known} of {len(self.windows)} windows have a value "
                f"and {_LEAST_WINDOWS} are needed: measure it at more steps"
            )
        return (
            f"gradient noise scale over training: {self.direction}, as tokens^{self.exponent:.2f} "
            f"({self.interval.level:.0%} interval {self.interval.low:.2f} to {self.interval.high:.2f}): {CAVEAT}"
        )


def noise_points(frame: pd.DataFrame) -> NoisePoints:
    """The steps of one trial's diagnostics: columns step, depth, kind, quantity and value, one number a row.

    The quantities are gradient_sq_micro (mean over microbatches of the squared norm of their gradient),
    gradient_sq_batch (squared norm of the gradients' mean), micro_tokens and batch_tokens, of kind "all" and depth 0.
    Steps that lack one of them are left out: a gradient that is not a number leaves no row. Tokens trained are
    steps times batch; between two measured steps the batch is taken to be the later one's.

    Raises:
        FitError: a missing column or quantity, two values for one, or what `NoisePoints` refuses.
    """
    columns = ("step", "depth", "kind", "quantity", "value")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise FitError(f"columns {missing} of the diagnostics are missing; the table has {list(frame.columns)}")
    wanted = (MICRO_SQ, BATCH_SQ, MICRO_TOKENS, BATCH_TOKENS)
    rows = frame[(frame["kind"] == KIND) & (frame["depth"] == DEPTH) & frame["quantity"].isin(wanted)]
    absent = sorted(set(wanted) - set(rows["quantity"]))
    if absent:
        raise FitError(
            f"these diagnostics hold no {', '.join(absent)} (kind {KIND!r}, depth {DEPTH}): train with microbatches "
            "and with diagnostics of the noise scale"
        )
    if rows.duplicated(["step", "quantity"]).any():
        raise FitError("two values for one step in the diagnostics: pass one trial at a time")
    table = rows.pivot(index="step", columns="quantity", values="value").dropna().sort_index()
    if table.empty:
        raise FitError(f"no step of these diagnostics has all of {', '.join(wanted)}")
    steps = table.index.to_numpy(dtype=np.float64)
    values = {name: table[name].to_numpy(dtype=np.float64) for name in wanted}
    return NoisePoints(
        tokens=np.cumsum(np.diff(steps, prepend=0.0) * values[BATCH_TOKENS]),
        micro_sq=values[MICRO_SQ],
        batch_sq=values[BATCH_SQ],
        micro_tokens=values[MICRO_TOKENS],
        batch_tokens=values[BATCH_TOKENS],
    )


def noise_scale(points: NoisePoints, *, level: float = 0.9) -> NoiseScale:
    """Mean tr(Sigma) over mean |G|^2, with Fieller's interval from blocks of neighboring steps.

    All r with |mean(tr(Sigma) - r |G|^2)| within Student's t standard errors of 0 (Fieller 1954), the errors from the
    means of at most ten consecutive blocks. Unlike the delta method it knows when the denominator may be 0: the set of
    such r is then unbounded, and there is no value. It covers as often as it says where steps a block apart no longer
    correlate: of 200 steps whose correlation fell by 5 % a step, 90 % intervals covered 68 %.

    Raises:
        FitError: fewer than four steps.
    """
    if len(points) < _LEAST_STEPS:
        raise FitError(f"a noise scale needs {_LEAST_STEPS} measured steps or more, got {len(points)}")
    both = np.stack([points.noise_trace, points.gradient_sq])
    blocks = np.array_split(both, min(len(points), _BLOCKS), axis=1)
    n = len(blocks)
    weights = np.array([block.shape[1] for block in blocks]) / len(points)
    means = np.stack([block.mean(axis=1) for block in blocks], axis=1)  # (2, blocks)
    trace, square = (means @ weights).tolist()
    deviations = (means - means @ weights[:, None]) * weights
    covariance = deviations @ deviations.T * n / (n - 1) * t.ppf((1 + level) / 2, n - 1) ** 2
    low, high = _fieller(trace, square, covariance)
    return NoiseScale(
        value=None if high is None else max(trace / square, 0.0),
        interval=None if high is None else Interval(low=low or 0.0, high=high, level=level),
        at_least=low if high is None else None,
        gradient_sq=square,
        noise_trace=trace,
        n_steps=len(points),
        from_tokens=float(points.tokens[0]),
        to_tokens=float(points.tokens[-1]),
        level=level,
    )


def noise_scale_trend(points: NoisePoints, *, ratio: float = 2.0, level: float = 0.9) -> NoiseTrend:
    """The noise scale in windows of tokens, each `ratio` times the one before, counted from the end of training.

    The first window holds all before the second: there the steps are too few for one of its own. The exponent is a
    line through ln(value) over ln(tokens), weighted by the windows' intervals and stretched by sqrt(chi2 / df) where
    they lie further off it than those allow.

    Raises:
        FitError: fewer than four steps.
        ValueError: a ratio that is not above 1.
    """
    if not ratio > 1:
        raise ValueError(f"each window must be longer than the one before: ratio must be above 1, got {ratio}")
    edges = _window_edges(points.tokens, ratio)
    windows = tuple(noise_scale(points.part(slice(first, last)), level=level) for first, last in pairwise(edges))
    slope = _slope(windows, level)
    return NoiseTrend(windows=windows, exponent=slope and slope[0], interval=slope and slope[1])


def _fieller(trace: float, square: float, covariance: Floats) -> tuple[float | None, float | None]:
    """Ends of {r >= 0: (trace - r square)^2 <= (1, -r) covariance (1, -r)'}; no upper end where r has no bound."""
    a = square**2 - covariance[1, 1]
    b = trace * square - covariance[0, 1]
    c = trace**2 - covariance[0, 0]
    root = float(np.sqrt(max(b**2 - a * c, 0.0)))
    if a > 0 and square > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    return (b - root) / a if c > 0 > a else None, None  # of two rays the one above 0


def _window_edges(tokens: Floats, ratio: float) -> list[int]:
    """Indices where windows begin, and the number of steps."""
    edges, end = [len(tokens)], float(tokens[-1])
    while True:
        end /= ratio
        first = int(np.searchsorted(tokens, end, side="right"))
        if edges[0] - first < _LEAST_IN_WINDOW or first < _LEAST_IN_WINDOW:
            return [0, *edges]
        edges.insert(0, first)


def _slope(windows: Sequence[NoiseScale], level: float) -> tuple[float, Interval] | None:
    places, values, errors = [], [], []
    for window in windows:
        if window.value is not None and window.interval is not None and window.interval.low > 0:
            places.append(np.log(window.from_tokens * window.to_tokens) / 2)
            values.append(np.log(window.value))
            errors.append(np.log(window.interval.high / window.interval.low) / 2)
    if len(values) < _LEAST_WINDOWS:
        return None
    quantile = float(norm.ppf((1 + level) / 2))
    sigma = np.array(errors) / quantile
    design = np.column_stack([np.ones(len(values)), places])
    solve = np.linalg.pinv(design / sigma[:, None]) / sigma
    coefficients = solve @ values
    chi2 = float(np.sum(((values - design @ coefficients) / sigma) ** 2))
    stretch = max(1.0, np.sqrt(chi2 / (len(values) - 2)))
    reach = quantile * stretch * float(np.sqrt(np.sum((solve[1] * sigma) ** 2)))
    slope = float(coefficients[1])
    return slope, Interval(low=slope - reach, high=slope + reach, level=level)
