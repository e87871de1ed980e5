"""Is transfer fast? How quickly optima converge with width, against how quickly the loss does.

With the loss gap a_n = phi*(n) - phi*(inf) ~ n^-alpha, the hyperparameter gap b_n = |nu*(n) - nu*(inf)| ~ n^-beta (in
log2) and a curvature ~ n^gamma, using the optimum of width n in the limit costs c_n = (h/2) b_n^2. Transfer is fast
when c_n vanishes faster than a_n (Ghosh, Wu and Bietti, arXiv:2512.22768, section 3: beta > alpha/2 at constant
curvature), that is when kappa = alpha - 2 beta + gamma < 0 (Kalra and Barkeshli, arXiv:2605.21486).

Exponents from the smallest widths mislead: in the solvable random-features example of arXiv:2512.22768 the optimum
first moves away from its limit, and four doublings from the smallest width give beta - alpha/2 the wrong sign. A
verdict therefore has to hold with and without the smallest width, and the law has to describe the data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from analysis.interval import FitError, Floats, Interval
from analysis.located import Located, locate
from analysis.optimum import Optimum
from analysis.surface import Series, Setting
from analysis.width_laws import LawDraws, Quantity, WidthLaws, fit_laws, quantity

# kappa below which c_n counts as falling faster than a_n. At 0 the two fall together and transfer gains nothing, yet
# a coin would decide the sign; with one hyperparameter and FLOPs ~ n^2 this much is worth some 10 % of the exponent
# of loss against budget (arXiv:2512.22768, theorem on useful transfer).
USEFUL_KAPPA = -0.1
MIN_WIDTHS = 4  # a law of three parameters goes through any three
_SURE = 0.9  # probability from which a verdict is given
_UNRESOLVED_P = 0.05  # of a chi-squared test that the optimum does not move at all
_MISFIT = 3.0  # Birge ratio from which the optimum is said not to follow a power law


class Verdict(Enum):
    """Whether optima converge faster than the loss."""

    FAST = "fast"
    SLOW = "slow"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaps:
    """What one width is away from the limit."""

    width: float
    loss: Quantity  # a_n, nats
    hp: Quantity  # b_n, octaves
    transfer: Quantity  # c_n = (h/2) b_n**2, nats, with the curvature h of the widest


@dataclass(frozen=True, kw_only=True, slots=True)
class FastTransfer:
    """Rates of one series over width, and the verdict."""

    optimizer: str
    fixed: tuple[Setting, ...]
    widths: tuple[float, ...]  # ascending
    alpha: Quantity
    beta: Quantity
    gamma: Quantity  # what kappa leaves for it where c_n itself was measured
    kappa: Quantity
    kappa_without_smallest: Quantity | None  # None with fewer than four widths left
    laws: WidthLaws | None  # None where the limits were known and not fitted
    gaps: tuple[Gaps, ...]
    joint_error: float | None = None  # nats, see `width_laws.joint_error`
    verdict: Verdict
    probability_fast: float  # of kappa < USEFUL_KAPPA, where it is closest to 1/2: over all widths or without the first
    reasons: tuple[str, ...]  # why it is inconclusive, or what weakens it

    @property
    def series(self) -> Series:
        return Series(self.optimizer, self.fixed)

    @property
    def local_slopes(self) -> tuple[tuple[float, float, float], ...]:
        """Of a, b and c between neighboring widths: log(gap ratio) / log(width ratio)."""
        values = np.log([[g.loss.value, g.hp.value, g.transfer.value] for g in self.gaps])
        steps = np.diff(values, axis=0) / np.diff(np.log(self.widths))[:, None]
        return tuple((float(a), float(b), float(c)) for a, b, c in steps)

    @property
    def kappa_in_words(self) -> str:
        """The value and its interval."""
        return f"kappa {self.kappa.value:+.2f} ({self.kappa.interval.low:+.2f} to {self.kappa.interval.high:+.2f})"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        kappa = self.kappa_in_words
        match self.verdict:
            case Verdict.FAST:
                return (
                    "Transfer is fast: what a proxy's optimum costs a wide model vanishes faster with width than the "
                    f"loss itself improves, {kappa}, probability {self.probability_fast:.2f}. Small proxies pay off."
                )
            case Verdict.SLOW:
                return (
                    "Transfer is slow: what a proxy's optimum costs a wide model vanishes no faster with width than "
                    f"the loss itself improves, {kappa}, probability of fast {self.probability_fast:.2f}. Tune at the "
                    "widest proxy you can afford, or tune the target's own lr."
                )
            case Verdict.INCONCLUSIVE:
                return f"Inconclusive: {'; '.join(self.reasons)}."


def fast_transfer(optima: Sequence[Optimum], *, rng: np.random.Generator, level: float = 0.9) -> FastTransfer:
    """Rates and verdict of one hyperparameter, with fitted limits.

    Raises:
        FitError: fewer than four widths, an optimum at an edge, or one without draws.
    """
    located = locate(optima, rng=rng)
    return rates(located, Series(optima[0].optimizer, optima[0].fixed), level=level)


def rates(located: Located, series: Series, *, level: float = 0.9) -> FastTransfer:
    """Rates and verdict of one or several hyperparameters; each law is fitted again to every draw.

    The optimum's law is nu*(n) = v + B n^-beta with one beta for all hyperparameters. Where a law misses its data
    beyond chance, all deviations of the draws are stretched by the Birge ratio sqrt(chi2 / df).

    Raises:
        FitError: fewer than four widths.
    """
    n = len(located.widths)
    if n < MIN_WIDTHS:
        raise FitError(
            f"rates need optima at {MIN_WIDTHS} widths or more, for a limit, a size and an exponent go through any "
            f"three; got widths {[round(width) for width in located.widths]}"
        )
    whole = fit_laws(located)
    part = fit_laws(located.without_smallest()) if n > MIN_WIDTHS else None
    probabilities = [_probability_fast(fit.kappa) for fit in (whole, part) if fit is not None]
    doubts = tuple(_doubts(whole))
    verdict, why = _judge(probabilities, doubts)
    laws = whole.summary(level)
    return FastTransfer(
        optimizer=series.optimizer,
        fixed=series.fixed,
        widths=tuple(located.widths.tolist()),
        alpha=laws.alpha,
        beta=laws.beta,
        gamma=laws.gamma,
        kappa=quantity(whole.kappa, level),
        kappa_without_smallest=None if part is None else quantity(part.kappa, level),
        laws=laws,
        gaps=tuple(_gaps(whole, located, i, level) for i in range(n)),
        verdict=verdict,
        probability_fast=_weakest(probabilities),
        reasons=(*doubts, *why),
    )


def fast_transfer_from_gaps(
    widths: Sequence[float], a: Floats, b: Floats, c: Floats, *, rng: np.random.Generator, level: float = 0.9
) -> FastTransfer:
    """Rates and verdict where the limits are known, and so each draw's gaps: `a`, `b`, `c` (widths, draws), positive.

    Medians over draws, straight lines in log-log, and a bootstrap over draws. c_n is used itself, not (h/2) b_n**2: at
    a vanishing curvature the two differ.

    Raises:
        FitError: fewer than four widths, or gaps that are not positive.
    """
    if len(widths) < MIN_WIDTHS:
        raise FitError(f"rates need {MIN_WIDTHS} widths or more, got {list(widths)}")
    if not all((gaps > 0).all() for gaps in (a, b, c)):
        raise FitError("gaps must be above 0 for their logarithms")
    medians = np.stack([_bootstrap_medians(np.stack(draws), rng) for draws in zip(a, b, c, strict=True)], axis=1)
    log_n, logs = np.log(np.asarray(widths, dtype=np.float64)), np.log(medians)  # (rows, n, 3)
    whole, part = _slopes(log_n, logs), _slopes(log_n[1:], logs[:, 1:])  # (rows, 3)
    alpha, beta, kappa = -whole[:, 0], -whole[:, 1], whole[:, 2] - whole[:, 0]
    kappas = [kappa, part[:, 2] - part[:, 0]]
    probabilities = [_probability_fast(draws) for draws in kappas]
    verdict, why = _judge(probabilities, ())
    return FastTransfer(
        optimizer="",
        fixed=(),
        widths=tuple(float(width) for width in widths),
        alpha=quantity(alpha, level),
        beta=quantity(beta, level),
        gamma=quantity(kappa - alpha + 2 * beta, level),
        kappa=quantity(kappa, level),
        kappa_without_smallest=quantity(kappas[1], level),
        laws=None,
        gaps=tuple(
            Gaps(
                width=float(width),
                loss=quantity(medians[:, i, 0], level),
                hp=quantity(medians[:, i, 1], level),
                transfer=quantity(medians[:, i, 2], level),
            )
            for i, width in enumerate(widths)
        ),
        verdict=verdict,
        probability_fast=_weakest(probabilities),
        reasons=why,
    )


def _gaps(laws: LawDraws, located: Located, i: int, level: float) -> Gaps:
    """Of the measured optimum and loss at the i-th width to the fitted limits."""
    losses = np.concatenate([located.losses[None], located.loss_draws])[:, i]
    places = np.concatenate([located.places[None], located.place_draws])[:, i]
    hessians = np.concatenate([located.hessians[None], located.hessian_draws])[:, -1]
    away = places - laws.optimum.limit
    return Gaps(
        width=float(located.widths[i]),
        loss=quantity(np.abs(losses - laws.loss.limit[:, 0]), level),
        hp=quantity(np.linalg.norm(away, axis=1), level),
        transfer=quantity(np.maximum(np.einsum("ri,rij,rj->r", away, hessians, away), 0.0) / 2, level),
    )


def _doubts(laws: LawDraws) -> Iterator[str]:
    """Reasons why exponents say nothing, whatever their draws."""
    if laws.loss.amplitude[0, 0] <= 0:
        yield "the loss does not fall with width, so there is no loss gap to compare with; find out why first"
    if laws.unmoved_p > _UNRESOLVED_P:
        yield (
            "the optimum does not move with width beyond its errors, so how fast it converges cannot be measured; its "
            "cost at the target is bounded by the expected excess, and more seeds would resolve it"
        )
    if laws.optimum_birge > _MISFIT:
        yield (
            f"the optimum does not follow one power law over these widths (it misses it by {laws.optimum_birge:.1f} "
            "errors); leave out the smallest widths, or add larger ones"
        )


def _judge(probabilities: Sequence[float], doubts: tuple[str, ...]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict that every probability of `fast` supports, and why there is none."""
    if doubts:
        return Verdict.INCONCLUSIVE, ()
    if min(probabilities) >= _SURE:
        return Verdict.FAST, ()
    if max(probabilities) <= 1 - _SURE:
        return Verdict.SLOW, ()
    whole, *part = probabilities
    without = f" and {part[0]:.2f} without the smallest width" if part else ""
    why = f"the probability that transfer is fast is {whole:.2f}{without}; add widths or seeds"
    return Verdict.INCONCLUSIVE, (why,)


def _probability_fast(kappa: Floats) -> float:
    return float((kappa[1:] < USEFUL_KAPPA).mean())


def _weakest(probabilities: Sequence[float]) -> float:
    """The one closest to 1/2."""
    return min(probabilities, key=lambda probability: abs(probability - 0.5))


def _bootstrap_medians(draws: Floats, rng: np.random.Generator, rows: int = 500) -> Floats:
    """Medians of (kinds, draws) over draws and over resamples of them, (1 + rows, kinds). Kinds stay paired."""
    chosen = rng.integers(draws.shape[1], size=(rows, draws.shape[1]))
    return np.concatenate([np.median(draws, axis=1)[None], np.median(draws[:, chosen], axis=2).T])


def _slopes(x: Floats, y: Floats) -> Floats:
    """Least-squares slopes of (rows, n, kinds) over x, (rows, kinds)."""
    centered = x - x.mean()
    slopes: Floats = np.einsum("n,rnk->rk", centered, y) / (centered @ centered)
    return slopes


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitGap:
    """How far one series' loss at infinite width lies above the lowest of them, in nats."""

    series: Series
    limit: Quantity
    gap: Quantity


def limit_gaps(transfers: Sequence[FastTransfer]) -> tuple[LimitGap, ...]:
    """The irreducible gap of each parametrization or optimizer (Kalra and Barkeshli, arXiv:2605.21486, R(inf)).

    A parametrization whose optima transfer cannot do worse in the limit than another whose do (Ghosh, Wu and Bietti,
    arXiv:2512.22768): a gap above 0 is lost at any width. The interval adds both limits' in quadrature.
    """
    known = [(t, t.laws.loss_limit) for t in transfers if t.laws is not None]
    if not known:
        return ()
    lowest = min((limit for _, limit in known), key=lambda limit: limit.value)
    return tuple(LimitGap(series=t.series, limit=limit, gap=_difference(limit, lowest)) for t, limit in known)


def _difference(one: Quantity, other: Quantity) -> Quantity:
    value, level = one.value - other.value, one.interval.level
    if one is other:
        return Quantity(value=0.0, interval=Interval(low=0.0, high=0.0, level=level))
    below = float(np.hypot(one.value - one.interval.low, other.interval.high - other.value))
    above = float(np.hypot(one.interval.high - one.value, other.value - other.interval.low))
    return Quantity(value=value, interval=Interval(low=value - below, high=value + above, level=level))
