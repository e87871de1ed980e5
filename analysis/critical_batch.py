"""Critical batch size from the tokens that each batch needs to reach a loss, always with its definition and unit.

The learning rate is re-tuned at every batch: at a fixed one, small batches look slow and the optimum of one batch
passes for a critical batch size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Literal

import numpy as np

from analysis.hyperbola import LEAST_BATCHES, ZHANG_OVERHEAD, Hyperbola, require_overhead
from analysis.interval import FitError, Floats, Interval, percentile_interval, robust_sd
from analysis.joint_hyperbola import PRIOR_POWER, PRIOR_POWER_SD, JointFit, fit_jointly
from analysis.tokens_to_loss import BatchCurve, CurveTokens, TokensToLoss, choose_target_losses, tokens_to_losses

RETUNED = "re-tuned at every batch"
# An interval whose ends are further apart than the two definitions (B_c and 0.2 B_c) does not measure either.
WIDEST_FACTOR = 1 / ZHANG_OVERHEAD
SPAN_FACTOR = (
    4.0  # batches should reach from B_c / 4, where tokens are 1.25 E_min, to 4 B_c, where steps are 1.25 S_min
)
MISFIT_SCATTER = 0.1  # sd of log tokens about the hyperbola: half of the 20 % overhead that is to be told apart
MOST_DRAWS = 200  # refitted: an interval's end is then known to a tenth of its half-width

Definition = Literal["hyperbola", "overhead"]


class Verdict(Enum):
    """What the data say about a critical batch."""

    MEASURED = "measured"
    ABOVE = "above"  # at least `at_least`; the batches do not reach past it
    BELOW = "below"  # at most `at_most`; the batches do not reach below it
    UNRESOLVED = "unresolved"


class CriticalFlag(Enum):
    """Why to read a critical batch with care."""

    NARROW_SPAN = "narrow_span"
    CENSORED = "censored"
    NO_DRAWS = "no_draws"
    MISFIT = "misfit"
    LEFT_OUT = "left_out"

    @property
    def advice(self) -> str:
        """What it means, then what to do."""
        return _ADVICE[self]


_ADVICE = {
    CriticalFlag.NARROW_SPAN: (
        f"The batches that reach the loss within their horizons do not span {SPAN_FACTOR:g} times below to "
        f"{SPAN_FACTOR:g} times above the critical batch, so it rests on the hyperbola's form. Add batches there."
    ),
    CriticalFlag.CENSORED: (
        "Some batches reach the loss before their shortest horizon or not by their longest: they enter as bounds. "
        "Add shorter or longer horizons there."
    ),
    CriticalFlag.NO_DRAWS: (
        "The losses have no bootstrap draws, so the interval rests on how far batches lie off the hyperbola. Add seeds."
    ),
    CriticalFlag.MISFIT: (
        "Tokens lie further off the hyperbola than their errors explain, by more than "
        f"{MISFIT_SCATTER:.0%}: the learning rates may be poorly tuned, or the form may not hold. Look at the figure."
    ),
    CriticalFlag.LEFT_OUT: (
        "Some horizons have their best learning rate at an edge of its grid and are left out. Extend the grids there."
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalBatch:
    """The critical batch of one optimizer at one width and one target loss. Batches and tokens are in tokens.

    `value` and `interval` are given only where the verdict is MEASURED; otherwise the bounds are. `min_tokens` is
    not given where B_c is below the batches, nor `min_steps` where it is above: nothing comes near them there.
    """

    optimizer: str
    width: int
    n_params: int  # non-embedding
    target_loss: float  # nats
    definition: Definition
    overhead: float | None  # a fraction of E_min, of the definition "overhead"
    seq_len: int
    verdict: Verdict
    value: float | None  # tokens
    interval: Interval | None  # tokens
    at_least: float | None  # tokens
    at_most: float | None  # tokens
    min_tokens: float | None  # E_min
    min_steps: float | None  # S_min
    draws: tuple[float, ...]  # tokens; whatever the verdict
    min_tokens_draws: tuple[float, ...]
    lr_policy: str
    flags: tuple[CriticalFlag, ...]

    @property
    def sequences(self) -> float | None:
        """The value in sequences of `seq_len` tokens."""
        return None if self.value is None else self.value / self.seq_len

    @property
    def named(self) -> str:
        """The definition in words."""
        return "hyperbola's B_c" if self.overhead is None else f"batch of {self.overhead:.0%} token overhead"

    @property
    def says(self) -> str:
        """The finding with its definition and unit."""
        about = f"{self.named} of {self.optimizer} at width {self.width} and loss {self.target_loss:.4g}"
        if self.value is not None and self.interval is not None:
            return (
                f"{about}: {self.value:.3g} tokens ({self.interval.low:.3g} to {self.interval.high:.3g}), "
                f"{self.value / self.seq_len:.3g} sequences of {self.seq_len}"
            )
        bounds = [f"at least {self.at_least:.3g}"] if self.at_least is not None else []
        bounds += [f"at most {self.at_most:.3g}"] if self.at_most is not None else []
        return f"{about}: not measured" + (f", {' and '.join(bounds)} tokens" if bounds else "")

    def at_overhead(self, overhead: float = ZHANG_OVERHEAD) -> "CriticalBatch":
        """The same finding as the largest batch with that token overhead on the hyperbola, overhead * B_c.

        Raises:
            FitError: an overhead not above 0, or a record that has an overhead already.
        """
        share = require_overhead(overhead)
        if self.definition != "hyperbola":
            raise FitError(f"an overhead is of the hyperbola's B_c, and this is the {self.named}")

        def scaled(value: float | None) -> float | None:
            return None if value is None else share * value

        interval = self.interval and Interval(
            low=share * self.interval.low, high=share * self.interval.high, level=self.interval.level
        )
        return replace(
            self,
            definition="overhead",
            overhead=overhead,
            value=scaled(self.value),
            interval=interval,
            at_least=scaled(self.at_least),
            at_most=scaled(self.at_most),
            draws=tuple(share * draw for draw in self.draws),
        )

    def to_json(self) -> dict[str, Any]:
        """Fields, and `sequences`, `unit`, `flags` as {name, advice}; draws are left out."""
        fields = {name: value for name, value in asdict(self).items() if not name.endswith("draws")}
        flags = [{"name": flag.value, "advice": flag.advice} for flag in self.flags]
        added = {"unit": "tokens", "sequences": self.sequences, "says": self.says}
        return fields | added | {"verdict": self.verdict.value, "flags": flags}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensPower:
    """q of B_c = const * E_min**q over the target losses of one fit, under a normal prior."""

    value: float
    interval: Interval
    prior_mean: float
    prior_sd: float
    draws: tuple[float, ...]

    @property
    def from_data(self) -> bool:
        """Whether the data narrow it to less than half of the prior: otherwise it is mostly the prior's."""
        return robust_sd(self.draws) < self.prior_sd / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalBatchFit:
    """What one optimizer's curves at one width say, for target losses from high to low."""

    optimizer: str
    width: int
    n_params: int
    records: tuple[CriticalBatch, ...]  # by the hyperbola, one a target
    overheads: tuple[CriticalBatch, ...]  # 20 % token overhead, one a target
    hyperbolas: tuple[Hyperbola, ...]  # one a target, drawn whether or not B_c is inside the batches
    points: tuple[TokensToLoss, ...]  # every batch at every target, censored ones too
    power: TokensPower
    scatter: float  # sd of log tokens around the hyperbolas, beyond what bootstrap draws explain
    targets_left_out: tuple[tuple[float, str], ...]  # target loss, reason
    curves_left_out: tuple[str, ...]  # horizons and batches that are not used, and why
    level: float

    @property
    def target_losses(self) -> tuple[float, ...]:
        return tuple(record.target_loss for record in self.records)

    @property
    def measured(self) -> tuple[CriticalBatch, ...]:
        return tuple(record for record in self.records if record.verdict is Verdict.MEASURED)

    @property
    def censored(self) -> tuple[str, ...]:
        """What each censored point says."""
        return tuple(point.says for point in self.points if point.censored)

    def to_json(self) -> dict[str, Any]:
        """A document for json.dumps: records with definition and unit, points with their censoring, q and its prior."""
        power = {name: value for name, value in asdict(self.power).items() if name != "draws"}
        return {
            "optimizer": self.optimizer,
            "width": self.width,
            "n_params": self.n_params,
            "unit": "tokens",
            "level": self.level,
            "critical_batches": [record.to_json() for record in (*self.records, *self.overheads)],
            "points": [{**asdict(point), "steps": point.steps} for point in self.points],
            "power": {**power, "from_data": self.power.from_data},
            "scatter": self.scatter,
            "targets_left_out": [{"target_loss": loss, "reason": reason} for loss, reason in self.targets_left_out],
            "curves_left_out": list(self.curves_left_out),
        }


def fit_critical_batch(
    curves: Sequence[BatchCurve],
    *,
    seq_len: int,
    rng: np.random.Generator,
    target_losses: Sequence[float] | None = None,
    level: float = 0.9,
) -> CriticalBatchFit:
    """The hyperbolas of several target losses, fitted jointly to one optimizer's curves at one width.

    Of at most `MOST_DRAWS` draws, each refitted. Where a curve has none, all draws are of the residuals. A value is
    given where the estimate is among the batches that measure the loss, and the interval too, or at least not wider
    than `WIDEST_FACTOR`; otherwise a bound is, at the batches' end or the interval's, whichever claims less.

    Raises:
        FitError: curves of several optimizers or widths, a batch twice, a batch that is not a multiple of `seq_len`,
            fewer than four batches, or no target loss that four batches reach within their horizons.
    """
    _check(curves, seq_len)
    left_out = tuple(said for curve in curves if (said := curve.left_out) is not None)
    usable = sorted((curve for curve in curves if curve.usable), key=lambda curve: curve.batch_tokens)
    if len(usable) < LEAST_BATCHES:
        raise FitError(
            f"a critical batch needs {LEAST_BATCHES} batches or more, got {[c.batch_tokens for c in usable]} tokens"
            + (f" ({'; '.join(left_out)})" if left_out else "")
            + "; run more, a factor of two or four apart, below and above the critical batch"
        )
    asked = sorted(target_losses if target_losses is not None else choose_target_losses(usable), reverse=True)
    with_draws = all(curve.draws for curve in usable)
    n_draws = min(MOST_DRAWS, *(len(curve.draws) for curve in usable)) if with_draws else MOST_DRAWS
    targets, targets_left_out = _reached(usable, asked)
    tokens = [tokens_to_losses(curve, targets, n_draws=n_draws if with_draws else 0) for curve in usable]
    fit = fit_jointly(tokens, n_draws=n_draws, rng=rng)
    always = [CriticalFlag.NO_DRAWS] if not with_draws else []
    always += [CriticalFlag.MISFIT] if fit.scatter > MISFIT_SCATTER else []
    always += [CriticalFlag.LEFT_OUT] if left_out else []
    records = tuple(_record(i, fit, tokens, seq_len, level, always) for i in range(len(targets)))
    first = usable[0]
    return CriticalBatchFit(
        optimizer=first.optimizer,
        width=first.width,
        n_params=first.n_params,
        records=records,
        overheads=tuple(record.at_overhead() for record in records),
        hyperbolas=tuple(_hyperbola(i, fit, tokens) for i in range(len(targets))),
        points=tuple(point for item in tokens for point in item.points(level)),
        power=TokensPower(
            value=float(fit.power[0]),
            interval=percentile_interval(fit.power[1:], level),
            prior_mean=PRIOR_POWER,
            prior_sd=PRIOR_POWER_SD,
            draws=tuple(fit.power[1:].tolist()),
        ),
        scatter=fit.scatter,
        targets_left_out=targets_left_out,
        curves_left_out=left_out,
        level=level,
    )


def _check(curves: Sequence[BatchCurve], seq_len: int) -> None:
    if seq_len < 1:
        raise FitError(f"seq_len must be 1 token or more, got {seq_len}")
    kinds = {(curve.optimizer, curve.width, curve.n_params) for curve in curves}
    if len(kinds) > 1:
        raise FitError(f"a critical batch is of one optimizer and one width, got {sorted(kinds)}; fit each alone")
    batches = [curve.batch_tokens for curve in curves]
    twice = sorted({batch for batch in batches if batches.count(batch) > 1})
    if twice:
        raise FitError(f"batches {twice} tokens have several curves; give one curve a batch")
    ragged = [batch for batch in batches if batch % seq_len]
    if ragged:
        raise FitError(f"batches {ragged} tokens are not whole sequences of {seq_len} tokens; is the unit tokens?")


def _reached(
    curves: Sequence[BatchCurve], asked: Sequence[float]
) -> tuple[tuple[float, ...], tuple[tuple[float, str], ...]]:
    """Targets that enough batches measure, and the others with the reason.

    Raises:
        FitError: none is left.
    """
    wrong = [target for target in asked if not 0 < target < float("inf")]
    if wrong or not asked:
        raise FitError(f"target losses must be above 0 (nats), one or more, got {list(asked)}")
    kept: list[float] = []
    left_out: list[tuple[float, str]] = []
    for target in asked:
        found = {curve.batch_tokens: float(tokens_to_losses(curve, [target], n_draws=0).values[0]) for curve in curves}
        late = [batch for batch, value in found.items() if value == np.inf]
        soon = [batch for batch, value in found.items() if value == -np.inf]
        if len(found) - len(late) - len(soon) >= LEAST_BATCHES:
            kept.append(target)
            continue
        todo = [f"train batches {late} tokens for longer"] if late else []
        todo += [f"train batches {soon} tokens for less too"] if soon else []
        left_out.append(
            (
                target,
                f"fewer than {LEAST_BATCHES} batches reach loss {target:.4g} within their horizons "
                f"({len(found) - len(late) - len(soon)} of {len(found)}): {', and '.join(todo) or 'add batches'}",
            )
        )
    if not kept:
        raise FitError("no target loss can be used: " + "; ".join(reason for _, reason in left_out))
    return tuple(kept), tuple(left_out)


def _measured_batches(tokens: Sequence[CurveTokens], target: int) -> list[float]:
    return [float(item.curve.batch_tokens) for item in tokens if np.isfinite(item.values[target])]


def _record(
    i: int, fit: JointFit, tokens: Sequence[CurveTokens], seq_len: int, level: float, always: Sequence[CriticalFlag]
) -> CriticalBatch:
    batches = _measured_batches(tokens, i)
    value, draws = float(np.exp(fit.log_critical[0, i])), np.exp(fit.log_critical[1:, i])
    min_tokens = np.exp(fit.log_min_tokens[:, i])
    interval = percentile_interval(draws, level)
    verdict, at_least, at_most = judge(value, interval, min(batches), max(batches))
    measured = verdict is Verdict.MEASURED
    narrow = min(batches) * SPAN_FACTOR > value or value * SPAN_FACTOR > max(batches)
    flags = [CriticalFlag.CENSORED] if len(batches) < len(tokens) else []
    flags += [CriticalFlag.NARROW_SPAN] if narrow else []
    curve = tokens[0].curve
    return CriticalBatch(
        optimizer=curve.optimizer,
        width=curve.width,
        n_params=curve.n_params,
        target_loss=tokens[0].target_losses[i],
        definition="hyperbola",
        overhead=None,
        seq_len=seq_len,
        verdict=verdict,
        value=value if measured else None,
        interval=interval if measured else None,
        at_least=at_least,
        at_most=at_most,
        min_tokens=float(min_tokens[0]) if verdict in (Verdict.MEASURED, Verdict.ABOVE) else None,
        min_steps=float(min_tokens[0]) / value if verdict in (Verdict.MEASURED, Verdict.BELOW) else None,
        draws=tuple(draws.tolist()),
        min_tokens_draws=tuple(min_tokens[1:].tolist()),
        lr_policy=RETUNED,
        flags=(*flags, *always),
    )


def judge(
    value: float, interval: Interval, smallest: float, largest: float
) -> tuple[Verdict, float | None, float | None]:
    """The verdict on a critical batch (tokens) given the batches that measure it, with its lower and upper bound."""
    inside = smallest <= value <= largest
    if inside and interval.high <= WIDEST_FACTOR * interval.low:
        return Verdict.MEASURED, None, None
    at_least = min(interval.low, largest) if interval.low >= smallest else None
    at_most = max(interval.high, smallest) if interval.high <= largest else None
    if at_least is not None and at_most is None:
        return Verdict.ABOVE, at_least, None
    if at_most is not None and at_least is None:
        return Verdict.BELOW, None, at_most
    return Verdict.UNRESOLVED, at_least, at_most


def _hyperbola(i: int, fit: JointFit, tokens: Sequence[CurveTokens]) -> Hyperbola:
    residuals: Floats = fit.residuals[:, i]
    return Hyperbola(
        min_tokens=float(np.exp(fit.log_min_tokens[0, i])),
        critical_batch_tokens=float(np.exp(fit.log_critical[0, i])),
        batch_tokens=tuple(_measured_batches(tokens, i)),
        log_residuals=tuple(residuals[np.isfinite(residuals)].tolist()),
        log_critical_error=robust_sd(fit.log_critical[1:, i]),
    )
