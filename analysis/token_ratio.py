"""How many times the tokens one optimizer needs of another's, to the same loss at the same batch.

R_L(B) = T_L,AdamW(B) / T_L,Muon(B) of Essential AI 2025 (arXiv:2505.02222, section 3), who find it above 1 and not
falling with the batch. It needs no form for tokens over the batch, and no critical batch of either optimizer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np

from analysis.critical_batch import MOST_DRAWS, CriticalBatchFit, Verdict
from analysis.interval import FitError, Floats, Interval, percentile_interval
from analysis.joint_hyperbola import LEAST_ERROR
from analysis.tokens_to_loss import BatchCurve, CurveTokens, choose_target_losses, tokens_to_losses

# d log R / d log B that is as good as none: 1 % with each doubling of the batch. Over the seven doublings from 128 K to
# 16 M tokens of the paper that is 7 %, where AdamW needs 10 to 15 % more tokens than Muon.
NEGLIGIBLE_SLOPE = float(np.log2(1.01))
_LEAST_POINTS = 3  # batches: a line through two has nothing to check it

Bound = Literal["at_least", "at_most"]


class Growth(Enum):
    """Whether the ratio grows with the batch."""

    YES = "yes"
    NO = "no"
    NOT_RESOLVED = "not resolved"


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioPoint:
    """The ratio at one batch and loss. A `bound` says that a horizon ended before (or began after) the loss."""

    batch_tokens: int
    target_loss: float  # nats
    value: float | None  # None where both optimizers' tokens are bounded the same way: nothing is known
    bound: Bound | None
    interval: Interval | None  # None where it is a bound, or without draws


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioSlope:
    """d log R / d log B over batches of at least `from_tokens` (by target), each target with a level of its own."""

    where: str  # which batches
    from_tokens: tuple[float, ...]  # one a target
    value: float | None  # None where fewer than three batches are left
    interval: Interval | None
    n_points: int
    growth: Growth


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRatio:
    """Tokens of `numerator` over tokens of `denominator`, at equal loss, against batch."""

    numerator: str
    denominator: str
    width: int
    target_losses: tuple[float, ...]
    points: tuple[RatioPoint, ...]  # by target, then batch
    everywhere: RatioSlope
    past_critical: RatioSlope | None  # None without a critical batch
    with_draws: bool
    level: float

    @property
    def says(self) -> str:
        """The verdicts as a sentence."""
        slopes = [slope for slope in (self.everywhere, self.past_critical) if slope is not None]
        return "; ".join(
            f"tokens of {self.numerator} over {self.denominator} grow with batch {slope.where}: {slope.growth.value}"
            + (f" ({_slope_words(slope)})" if slope.value is not None else " (too few batches)")
            for slope in slopes
        )

    def to_json(self) -> dict[str, Any]:
        """Fields of the records; `growth` by its value."""

        def plain(slope: RatioSlope | None) -> dict[str, Any] | None:
            return None if slope is None else asdict(slope) | {"growth": slope.growth.value}

        slopes = {"everywhere": plain(self.everywhere), "past_critical": plain(self.past_critical)}
        return asdict(self) | slopes | {"says": self.says}


def _slope_words(slope: RatioSlope) -> str:
    said = f"{2**slope.value - 1:+.1%} a doubling" if slope.value is not None else ""
    if slope.interval is not None:
        said += f", {2**slope.interval.low - 1:+.1%} to {2**slope.interval.high - 1:+.1%}"
    return said


def fit_token_ratio(
    numerator: Sequence[BatchCurve],
    denominator: Sequence[BatchCurve],
    *,
    rng: np.random.Generator,
    critical: CriticalBatchFit | None = None,
    target_losses: Sequence[float] | None = None,
    level: float = 0.9,
) -> TokenRatio:
    """The ratio at every batch both have, and whether it grows past the numerator's critical batch.

    `critical` is the numerator's fit. "Past" is from the batch of 20 % token overhead on, where larger batches begin
    to cost tokens; between the losses of that fit it is interpolated, beyond them the nearest one's is taken. Slopes
    are least squares of log R on log B with a level for each target. Bounds do not enter them, and without draws of
    all curves the verdict is "not resolved". A scatter about the line beyond the draws' stretches the interval.

    Raises:
        FitError: curves of several widths or optimizers, a batch twice, no batch in common, a fit that is not the
            numerator's, or no loss that four curves reach within their horizons when no target is given.
    """
    names = _names(numerator, denominator, critical)
    tops, bottoms = ({c.batch_tokens: c for c in curves if c.usable} for curves in (numerator, denominator))
    batches = sorted(tops.keys() & bottoms.keys())
    if not batches:
        raise FitError(f"no batch has usable curves of both {' and '.join(names)}; train both at the same batches")
    curves = [*(tops[batch] for batch in batches), *(bottoms[batch] for batch in batches)]
    targets = tuple(target_losses if target_losses is not None else choose_target_losses(curves))
    n_draws = min(MOST_DRAWS, *(len(curve.draws) for curve in curves))
    tokens = [tokens_to_losses(curve, targets, n_draws=n_draws) for curve in curves]
    lows, highs = (np.array(part) for part in zip(*map(_ends, tokens), strict=True))  # (2 C, T)
    n = len(batches)
    ends = lows[:n] - highs[n:], highs[:n] - lows[n:]  # (C, T)
    draws = np.stack([_shuffled(item, rng) for item in tokens], axis=1)  # (draws, 2 C, T)
    log_draws = draws[:, :n] - draws[:, n:]
    log_ratios = np.where(ends[0] == ends[1], ends[0], np.nan)
    from_where = [("at all batches", (0.0,) * len(targets))] + ([_past(critical, targets)] if critical else [])
    slopes = [
        _slope(np.array(batches), log_ratios, log_draws, where=where, starts=starts, rng=rng, level=level)
        for where, starts in from_where
    ]
    return TokenRatio(
        numerator=names[0],
        denominator=names[1],
        width=curves[0].width,
        target_losses=targets,
        points=tuple(
            _point(batch, target, float(ends[0][b, t]), float(ends[1][b, t]), log_draws[:, b, t], level)
            for t, target in enumerate(targets)
            for b, batch in enumerate(batches)
        ),
        everywhere=slopes[0],
        past_critical=slopes[1] if critical is not None else None,
        with_draws=n_draws > 0,
        level=level,
    )


def _names(
    numerator: Sequence[BatchCurve], denominator: Sequence[BatchCurve], critical: CriticalBatchFit | None
) -> tuple[str, str]:
    widths = sorted({curve.width for curve in (*numerator, *denominator)})
    if len(widths) != 1:
        raise FitError(f"a token ratio compares two optimizers at one width, got widths {widths}")
    names = []
    for curves in (numerator, denominator):
        found = sorted({curve.optimizer for curve in curves})
        batches = [curve.batch_tokens for curve in curves]
        if len(found) != 1 or len(set(batches)) < len(batches):
            raise FitError(f"one curve a batch of one optimizer is needed, got {found} at batches {batches} tokens")
        names.append(found[0])
    if critical is not None and (critical.optimizer, [critical.width]) != (names[0], widths):
        raise FitError(
            f"the critical batch must be of {names[0]} at width {widths[0]}, got {critical.optimizer} at "
            f"width {critical.width}"
        )
    return names[0], names[1]


def _ends(item: CurveTokens) -> tuple[Floats, Floats]:
    """Between what log tokens lie: twice the value, or the horizon and infinity."""
    low = np.where(item.values == np.inf, item.log_longest, item.values)
    high = np.where(item.values == -np.inf, item.log_shortest, item.values)
    return low, high


def _shuffled(item: CurveTokens, rng: np.random.Generator) -> Floats:
    """Draws, cut at the horizons; curves are independent, whatever order their draws came in."""
    shuffled: Floats = np.clip(rng.permutation(item.draws), item.log_shortest, item.log_longest)
    return shuffled


def _point(batch: int, target: float, low: float, high: float, log_draws: Floats, level: float) -> RatioPoint:
    bound: Bound | None = None
    if low != high:
        bound = "at_least" if np.isfinite(low) else "at_most" if np.isfinite(high) else None
    value = low if np.isfinite(low) else high
    return RatioPoint(
        batch_tokens=batch,
        target_loss=target,
        value=float(np.exp(value)) if np.isfinite(value) else None,
        bound=bound,
        interval=percentile_interval(np.exp(log_draws), level) if low == high and len(log_draws) else None,
    )


def _past(critical: CriticalBatchFit, targets: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """Where tokens begin to cost at each target, and what that is called; infinite where it is not measured."""
    known = [record for record in critical.overheads if record.verdict is Verdict.MEASURED and record.value is not None]
    where = f"past {critical.optimizer}'s {critical.overheads[0].named}"
    if not known:
        return f"{where} (not measured)", (np.inf,) * len(targets)
    losses = np.log([record.target_loss for record in known])[::-1]  # records are from high to low loss
    starts = np.log([record.value or np.nan for record in known])[::-1]
    return where, tuple(np.exp(np.interp(np.log(targets), losses, starts)).tolist())


def _slope(
    batches: Floats,
    log_ratios: Floats,
    draws: Floats,
    *,
    where: str,
    starts: tuple[float, ...],
    rng: np.random.Generator,
    level: float,
) -> RatioSlope:
    """Least squares over the measured ratios (C, T) at batches from each target's start on."""
    used = np.isfinite(log_ratios) & (batches[:, None] >= np.array(starts))
    rows, targets = np.nonzero(used)
    n_batches = len(set(rows.tolist()))
    if n_batches < _LEAST_POINTS:
        return RatioSlope(
            where=where, from_tokens=starts, value=None, interval=None, n_points=len(rows), growth=Growth.NOT_RESOLVED
        )
    levels = np.eye(log_ratios.shape[1])[targets][:, sorted(set(targets.tolist()))]
    design = np.column_stack([np.log(batches[rows]), levels])
    solve = np.linalg.pinv(design)
    y, drawn = log_ratios[rows, targets], draws[:, rows, targets]
    value = float(solve[0] @ y)
    if not len(draws):
        return RatioSlope(
            where=where, from_tokens=starts, value=value, interval=None, n_points=len(rows), growth=Growth.NOT_RESOLVED
        )
    drawn = drawn + np.sqrt(2) * LEAST_ERROR * rng.standard_normal((len(drawn), len(batches)))[:, rows]
    df = len(rows) - design.shape[1]
    off = y - design @ (solve @ y)
    stretch = max(1.0, float(np.sqrt(off @ off / df / drawn.var(axis=0).mean()))) if df > 0 else 1.0
    interval = percentile_interval(value + stretch * (drawn @ solve[0] - value), level)
    growth = Growth.YES if interval.low > 0 else Growth.NO if interval.high < NEGLIGIBLE_SLOPE else Growth.NOT_RESOLVED
    return RatioSlope(
        where=where, from_tokens=starts, value=value, interval=interval, n_points=len(rows), growth=growth
    )
