"""Muon's critical batch by theory: the form of a convergence bound, and how its minimizer moves. Shape only.

Sato, Naganuma and Iiduka (arXiv:2507.01598v5, Proposition 4.2) bound the mean gradient norm of Muon after T steps of b
examples at a fixed learning rate by X/T + Y/sqrt(b) + Z. With c = eps - Z, to bring it to eps takes

    T(b) = X sqrt(b) / (c sqrt(b) - Y)  steps, for b > (Y/c)^2,  and  b T(b) = X b^(3/2) / (c sqrt(b) - Y)  examples,

the stochastic first-order oracle complexity (SFO), which is lowest at b* = 9 Y^2 / (4 c^2). The constants are in
Cesista and Wen, "Critical Batch Size for Steepest Descent Under Arbitrary Norms"
(https://leloykun.github.io/ponder/steepest-descent-crit-bz/).

X, Y and Z hold a gradient variance, a smoothness and a target that nobody observes, so the theory never gives an
absolute critical batch, and its authors say so. What is here: the form, fitted to runs, and the *ratio* of two
minimizers that differ in momentum, Nesterov's step or weight decay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import lambertw
from scipy.stats import t as student

from analysis.hyperbola import fit_hyperbola
from analysis.interval import FitError, Floats, Interval, percentile_interval

SHAPE_ONLY = "shape only: the theory never gives an absolute critical batch"
MIN_BATCHES = 4  # that reach the target: two parameters, and at least two degrees of freedom for their error
OVERHEAD = 0.2  # of the examples: how Zhang et al. (arXiv:2410.21676) mark where a larger batch starts to cost

_BEST_U = 1.5  # c sqrt(b) / Y at the minimizer of u^3 / (u - 1)
# The profile runs over s = ln T(b_1)/T(inf) at the smallest batch that reached the target. At 8 this batch takes 3000
# times the steps of the largest: nobody runs that. Steps of 0.04 are refined by a parabola.
_LARGEST_S, _GRID_STEP = 8.0, 0.04
_HUBER = 1.345  # standard deviations: 95 % efficient on normal residuals (Huber 1964)
_LEAST_SCALE = 1e-3  # of ln steps, where a form goes through all points: finer than whole steps can tell
_LOCATION_ITERATIONS = 8  # of reweighting: then the location is known to a hundredth of the residuals' scale
_FAST_DECAY = 0.1  # of a weight in one step: past it, weights forget within ten steps


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundForm:
    """T(b) = steps_at_infinity sqrt(b) / (sqrt(b) - y): all of the bound that runs can tell, X/c and Y/c."""

    steps_at_infinity: float  # X/c, steps of an infinite batch
    y: float  # Y/c, in square roots of the batch's unit

    def steps(self, batch: float | Floats) -> Floats:
        """T(b); infinite for b <= y^2, where noise alone exceeds the target."""
        root = np.sqrt(np.asarray(batch, dtype=np.float64))
        with np.errstate(divide="ignore"):
            found: Floats = self.steps_at_infinity * root / np.maximum(root - self.y, 0.0)
        return found

    def sfo(self, batch: float | Floats) -> Floats:
        """b T(b), in the batch's unit."""
        found: Floats = batch * self.steps(batch)
        return found

    @property
    def smallest_batch(self) -> float:
        """(Y/c)^2: up to there the target is never reached at this learning rate."""
        return self.y**2

    @property
    def best_batch(self) -> float:
        """b* = 9 Y^2 / (4 c^2), the minimizer of b T(b)."""
        return (_BEST_U * self.y) ** 2

    @property
    def least_sfo(self) -> float:
        """27 X Y^2 / (4 c^3)."""
        return 27 / 4 * self.steps_at_infinity * self.y**2

    def band(self, overhead: float = OVERHEAD) -> tuple[float, float]:
        """The batches between which b T(b) is within `overhead` of its minimum."""
        low, high = overhead_band(overhead)
        return low * self.best_batch, high * self.best_batch


@cache
def overhead_band(overhead: float = OVERHEAD) -> tuple[float, float]:
    """b / b* at which b T(b) is 1 + `overhead` times its minimum, on either side.

    With u = c sqrt(b) / Y, b T(b) is u^3 / (u - 1) over 27/4 of its minimum. Unlike a hyperbola, which assumes a
    learning rate tuned at each batch and only rises, this form is U-shaped.

    Raises:
        FitError: `overhead` is not positive.
    """
    if not overhead > 0:
        raise FitError(f"an overhead must be above 0, got {overhead}; 0.2 means 20 % more examples than the least")

    def excess(u: float) -> float:
        return 4 / 27 * u**3 - (1 + overhead) * (u - 1)

    # excess >= 4/27 u^3 - (1 + overhead) u, which is positive from here on
    far = math.sqrt(27 / 4 * (1 + overhead))
    low, high = float(brentq(excess, 1.0, _BEST_U)), float(brentq(excess, _BEST_U, far))
    return (low / _BEST_U) ** 2, (high / _BEST_U) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundFit:
    """The bound's form fitted to runs at one fixed learning rate, one number of steps a batch."""

    form: BoundForm
    unit: str  # of a batch: "examples", "tokens"
    batches: tuple[float, ...]  # ascending, that reached the target
    steps: tuple[float, ...]
    never: tuple[float, ...]  # batches that did not reach it, ascending
    interval: Interval  # of b*
    draws: tuple[float, ...]  # of b*
    rms: float  # of ln steps around the form
    aic_over_hyperbola: float  # AIC of this form less a hyperbola's, on `batches`: below 0 this one describes better

    @property
    def bracketed(self) -> bool:
        """Whether a larger batch than b* was measured too; a smaller one always was, or there is no fit."""
        return self.form.best_batch < self.batches[-1]

    @property
    def sentence(self) -> str:
        b, i = self.form.best_batch, self.interval
        beyond = "" if self.bracketed else f", beyond the largest batch measured ({self.batches[-1]:g})"
        return (
            f"by the bound's form, at this fixed learning rate, the fewest {self.unit} to the target are needed at a "
            f"batch of {b:.3g} {self.unit} [{i.low:.3g}, {i.high:.3g}]{beyond}, and none up to "
            f"{self.form.smallest_batch:.3g} reaches it ({SHAPE_ONLY})"
        )


def fit_bound(
    batches: Sequence[float],
    steps: Sequence[float | None],
    budgets: Sequence[float] | None = None,
    *,
    unit: str,
    rng: np.random.Generator,
    n_draws: int = 400,
    level: float = 0.9,
) -> BoundFit:
    """Huber's fit of ln T(b) over the batch, at ONE learning rate for all batches.

    `steps` is None where the target was not reached in `budgets` steps (all that is known: T(b) is larger; without
    budgets, that no number of steps would do). Such a batch costs a fit that says otherwise, and nothing else.

    The interval is from a bootstrap of the residuals, times sqrt(n / (n - 2)) for the two parameters and, as that
    is an estimate from few batches, times the ratio of Student's quantile to the normal one.

    Raises:
        FitError: a batch twice, a number that is not positive, fewer than four batches that reached the target, or
            none of all the batches below b*: the steps then hardly depend on the batch, and Y/c can be anything
            small.
    """
    data = _Data.of(batches, steps, budgets)
    n = len(data.batches)
    profile = _Profile.of(data)
    scale = _scale(profile, data)
    log_steps, s = profile.best(np.log(data.steps)[None], data.log_budgets[None], scale)
    form = profile.form(float(log_steps[0]), float(s[0]))
    everything = np.concatenate([data.batches, data.never])
    if form.best_batch <= everything.min():
        raise FitError(
            f"the steps to the target do not tell where a smaller batch starts to cost: every batch from "
            f"{everything.min():g} {unit} on lies above the fitted minimizer; add smaller batches at the same "
            "learning rate, or aim at a lower target"
        )
    fitted = np.log(form.steps(data.batches))
    residuals = np.log(data.steps) - fitted
    df = n - 2
    stretch = math.sqrt(n / df) * _student_stretch(df, level)
    noise = stretch * rng.choice(residuals - residuals.mean(), size=(n_draws, n + len(data.never)))
    drawn = profile.best(fitted + noise[:, :n], data.log_budgets - noise[:, n:], scale)
    draws = (_BEST_U * profile.y(drawn[1])) ** 2
    return BoundFit(
        form=form,
        unit=unit,
        batches=tuple(data.batches.tolist()),
        steps=tuple(data.steps.tolist()),
        never=tuple(data.never.tolist()),
        interval=percentile_interval(draws, level),
        draws=tuple(draws.tolist()),
        rms=float(np.sqrt(np.sum(residuals**2) / df)),
        aic_over_hyperbola=n * math.log(_squares_of_bound(profile, data) / _squares_of_hyperbola(data)),
    )


def fit_form(
    batches: Sequence[float], steps: Sequence[float | None], budgets: Sequence[float] | None = None
) -> BoundForm:
    """`fit_bound`'s form alone: for draws, hence also where b* is below all batches.

    Raises:
        FitError: as `fit_bound`, except for that.
    """
    data = _Data.of(batches, steps, budgets)
    profile = _Profile.of(data)
    log_steps, s = profile.best(np.log(data.steps)[None], data.log_budgets[None], _scale(profile, data))
    return profile.form(float(log_steps[0]), float(s[0]))


def with_replicates(fit: BoundFit, best_batches: Sequence[float], n_replicates: int) -> BoundFit:
    """The fit with draws and interval that hold the scatter between replicates of the runs too.

    Residuals alone take all batches to be equally noisy, but near (Y/c)^2 steps scatter far more. `best_batches` are b*
    of bootstrap samples of `n_replicates` seeds; their deviations in log b*, times sqrt(n / (n - 1)) as a sample's are
    too small, are added to those of `fit.draws`. Both hold the noise of the runs, so this errs on the wide side.

    Raises:
        FitError: fewer than two replicates, or no samples.
    """
    if n_replicates < 2 or not best_batches:
        raise FitError(f"a scatter needs two replicates and samples of them, got {n_replicates}, {len(best_batches)}")
    off = np.log(best_batches) - math.log(fit.form.best_batch)
    off = np.resize(off, len(fit.draws)) * math.sqrt(n_replicates / (n_replicates - 1))
    draws = np.array(fit.draws) * np.exp(off)
    return replace(fit, draws=tuple(draws.tolist()), interval=percentile_interval(draws, fit.interval.level))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Data:
    batches: Floats  # (n,) ascending, reached
    steps: Floats  # (n,)
    never: Floats  # (m,) ascending, not reached
    log_budgets: Floats  # (m,)

    @classmethod
    def of(cls, batches: Sequence[float], steps: Sequence[float | None], budgets: Sequence[float] | None) -> "_Data":
        b = np.array(batches, dtype=np.float64)
        t = np.array([np.nan if step is None else step for step in steps], dtype=np.float64)
        limits = np.full(len(b), np.inf) if budgets is None else np.array(budgets, dtype=np.float64)
        if not len(b) == len(t) == len(limits):
            raise FitError(
                f"one number of steps (or None) and one budget a batch, got {len(b)}, {len(t)}, {len(limits)}"
            )
        reached = ~np.isnan(t)
        if not (np.all(b > 0) and np.all(np.isfinite(b)) and np.all(t[reached] > 0) and np.all(limits > 0)):
            raise FitError("batches, steps and budgets must be positive")
        if len(set(b.tolist())) < len(b):
            raise FitError("a batch stands twice: average the logarithm of its seeds' steps first")
        if reached.sum() < MIN_BATCHES:
            raise FitError(
                f"the target was reached at {reached.sum()} batches, a fit needs {MIN_BATCHES}; add batches, "
                "train longer, or aim at a higher target"
            )
        order, rest = np.argsort(b[reached]), np.argsort(b[~reached])
        return cls(
            batches=b[reached][order],
            steps=t[reached][order],
            never=b[~reached][rest],
            log_budgets=np.log(limits[~reached][rest]),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Profile:
    """ln T(b) - ln T(inf) for each s on the grid; the location ln T(inf) is fitted at each."""

    root: float  # square root of the smallest batch that reached the target
    s: Floats  # (grid,)
    reached: Floats  # (grid, n)
    never: Floats  # (grid, m): infinite where b <= y^2

    @classmethod
    def of(cls, data: _Data) -> "_Profile":
        root = math.sqrt(data.batches[0])
        s = np.arange(0.0, _LARGEST_S + _GRID_STEP / 2, _GRID_STEP)
        y = root * -np.expm1(-s)
        with np.errstate(divide="ignore"):
            reached, never = (-np.log(np.maximum(1 - y[:, None] / np.sqrt(b), 0.0)) for b in (data.batches, data.never))
        return cls(root=root, s=s, reached=reached, never=never)

    def y(self, s: Floats) -> Floats:
        return self.root * -np.expm1(-s)

    def form(self, log_steps: float, s: float) -> BoundForm:
        return BoundForm(steps_at_infinity=math.exp(log_steps), y=float(self.y(np.array(s))))

    def best(self, log_steps: Floats, log_budgets: Floats, scale: float) -> tuple[Floats, Floats]:
        """ln T(inf) and s of least loss, (draws,), for ln steps (draws, n), and ln budgets used up (draws, m)."""
        rest, bound = log_steps[:, None, :] - self.reached, log_budgets[:, None, :] - self.never
        locations, losses = _located(rest, bound, scale)  # (draws, grid)
        at = np.argmin(losses, axis=1)
        rows = np.arange(len(at))
        inner = np.clip(at, 1, len(self.s) - 2)
        left, middle, right = (losses[rows, inner + k] for k in (-1, 0, 1))
        bend = left - 2 * middle + right
        shift = np.where((at == inner) & (bend > 0), (left - right) / (2 * np.where(bend > 0, bend, 1.0)), at - inner)
        slopes = (locations[rows, inner + 1] - locations[rows, inner - 1]) / 2
        return locations[rows, inner] + shift * slopes, self.s[inner] + shift * _GRID_STEP


def _located(rest: Floats, bound: Floats, scale: float) -> tuple[Floats, Floats]:
    """ln T(inf) by reweighting, and Huber's loss there.

    `rest` (..., n) is what the form's shape leaves of ln steps; ln T(inf) costs where it is below `bound` (..., m).
    """
    location = np.median(rest, axis=-1)
    for _ in range(_LOCATION_ITERATIONS):
        weights = 1 / np.maximum(np.abs(rest - location[..., None]) / (_HUBER * scale), 1.0)
        total, sum_ = weights.sum(axis=-1), (weights * rest).sum(axis=-1)
        if bound.shape[-1]:
            lack = bound - location[..., None]
            pull = np.where(lack > 0, 1 / np.maximum(lack / (_HUBER * scale), 1.0), 0.0)
            total = total + pull.sum(axis=-1)
            sum_ = sum_ + (pull * np.where(pull > 0, bound, 0.0)).sum(axis=-1)
        location = sum_ / total
    losses = _huber((rest - location[..., None]) / scale).sum(axis=-1)
    losses = losses + _huber(np.maximum(bound - location[..., None], 0.0) / scale).sum(axis=-1)
    return location, losses


def _huber(residuals: Floats) -> Floats:
    size = np.abs(residuals)
    found: Floats = np.where(size <= _HUBER, size**2 / 2, _HUBER * (size - _HUBER / 2))
    return found


def _scale(profile: _Profile, data: _Data) -> float:
    """Of ln steps around the form, unbiased for normal noise: what Huber's loss calls an outlier rests on it."""
    log_steps, s = profile.best(
        np.log(data.steps)[None], data.log_budgets[None], _LARGEST_S
    )  # so wide that it is least squares
    form = profile.form(float(log_steps[0]), float(s[0]))
    residuals = np.abs(np.log(data.steps / form.steps(data.batches)))
    n = len(residuals)
    return max(float(np.median(residuals)) * 1.4826 * math.sqrt(n / (n - 2)), _LEAST_SCALE)


def _student_stretch(df: int, level: float) -> float:
    """Student's quantile over the normal one."""
    upper = (1 + level) / 2
    return float(student.ppf(upper, df) / student.ppf(upper, math.inf))


def _squares_of_bound(profile: _Profile, data: _Data) -> float:
    """Least sum of squares of ln steps: each form in its own best light."""
    rest = np.log(data.steps) - profile.reached
    return max(float(rest.var(axis=-1).min()), _LEAST_SCALE**2) * len(data.batches)


def _squares_of_hyperbola(data: _Data) -> float:
    """The same for S = S_min (1 + B_c / B)."""
    off = fit_hyperbola(data.batches.tolist(), (data.batches * data.steps).tolist()).log_residuals
    return max(float(np.mean(np.square(off))), _LEAST_SCALE**2) * len(data.batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredMinimizer:
    """Where b T(b) was lowest, without any form: the vertex of a parabola through the lowest point and its neighbors.

    With octaves between batches it is good to a third of one: b T(b) is steeper on the left.
    """

    batch: float
    sfo: float
    edge: bool  # the lowest point is the smallest or largest batch that reached the target: a bound, not a minimum


def measured_minimizer(batches: Sequence[float], steps: Sequence[float | None]) -> MeasuredMinimizer:
    """The least b T(b), in log-log. A batch that never reached the target counts as infinitely expensive.

    Raises:
        FitError: fewer than three batches reached the target.
    """
    pairs = sorted((b, t) for b, t in zip(batches, steps, strict=True) if t is not None)
    if len(pairs) < 3:
        raise FitError(f"a minimum needs three batches that reach the target, got {len(pairs)}; add batches")
    x = np.log([b for b, _ in pairs])
    y = x + np.log([t for _, t in pairs])
    at = int(np.argmin(y))
    if at in (0, len(pairs) - 1):
        return MeasuredMinimizer(batch=pairs[at][0], sfo=float(np.exp(y[at])), edge=True)
    parabola = np.polynomial.Polynomial.fit(x[at - 1 : at + 2], y[at - 1 : at + 2], 2)
    vertex = float(parabola.deriv().roots()[0]) if parabola.deriv().degree() else float(x[at])
    vertex = min(max(vertex, x[at - 1]), x[at + 1])
    return MeasuredMinimizer(batch=math.exp(vertex), sfo=float(np.exp(parabola(vertex))), edge=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonSetting:
    """What the theory tells apart: M <- momentum M + (1 - momentum) g, Nesterov's step, decoupled weight decay.

    Raises:
        FitError: momentum outside [0, 1), or a negative weight decay.
    """

    momentum: float
    nesterov: bool
    weight_decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise FitError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise FitError(f"weight_decay must be 0 or more, got {self.weight_decay}")

    @property
    def label(self) -> str:
        nesterov = "Nesterov" if self.nesterov else "no Nesterov"
        return f"momentum {self.momentum:g}, {nesterov}, weight decay {self.weight_decay:g}"


def noise_factor(setting: MuonSetting) -> float:
    """k(beta): what momentum leaves of one gradient's noise.

    sqrt((1 - beta) / (1 + beta)); with Nesterov's step beta times it, plus 1 - beta (Cesista and Wen, their bound for
    C = beta M + (1 - beta) g, a triangle inequality: the exact standard deviation of C is smaller).
    """
    beta = setting.momentum
    averaged = math.sqrt((1 - beta) / (1 + beta))
    return beta * averaged + (1 - beta) if setting.nesterov else averaged


def best_batch_without_decay(setting: MuonSetting, *, variance: float, target: float) -> float:
    """b* = 9 k^2 D sigma^2 / (eps - Z)^2, with `variance` = D sigma^2 and `target` = eps - Z. Shape only.

    Raises:
        FitError: with weight decay, where another formula holds.
    """
    if setting.weight_decay > 0:
        raise FitError("this formula holds without weight decay; use best_batch_with_decay")
    return 9 * noise_factor(setting) ** 2 * variance / target**2


def best_batch_with_decay(setting: MuonSetting, *, variance: float, target: float, initial_gap: float) -> float:
    """b* = (4 / lambda^2) k^2 (D sigma^2 / eps') (1 + 1/u*)^2, with `target` = sqrt(eps'). Shape only.

    The minimizer of b T(b) with T(b) = ln(X / (sqrt(eps') - Y / sqrt(b))) / (lambda eta), Y = (2 / lambda) k
    sqrt(D) sigma and X = f(W_0) - f* the `initial_gap`: of the newer derivation, for star-convex losses.

    Raises:
        FitError: without weight decay, or as `decayed_u`.
    """
    if setting.weight_decay == 0:
        raise FitError("this formula needs weight decay; use best_batch_without_decay")
    y = 2 / setting.weight_decay * noise_factor(setting) * math.sqrt(variance)
    return (y / target) ** 2 * (1 + 1 / decayed_u(initial_gap / target)) ** 2


def decayed_u(gap_over_target: float) -> float:
    """u* = -2 W(-(sqrt(eps') / 2X) e^(-1/2)) - 1, on the lower branch of Lambert's function.

    The root of (1 + u) e^(-u/2) = sqrt(eps') / X with u > 1.

    Raises:
        FitError: X is not above sqrt(eps'): the target is met before the first step.
    """
    if not gap_over_target > 1:
        raise FitError(f"the loss at the start must be above the target, got {gap_over_target:g} times the target")
    return float(-2 * lambertw(-math.exp(-0.5) / (2 * gap_over_target), k=-1).real - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedRatio:
    """b* of a setting over a reference's, at the same unobserved variance and target.

    The derivations disagree about weight decay, even in the sign, so both are given and none is chosen.
    """

    by_momentum: float  # k^2 over k^2: momentum and Nesterov's step
    by_decay_newer: float | None  # 1 / lambda^2 (Cesista and Wen): None between no decay and some, bounds of two things
    by_decay_older: float  # (2 beta + 1)(1 - beta) + lambda, in the setting's beta (an older version of the same)

    @property
    def newer(self) -> float | None:
        return None if self.by_decay_newer is None else self.by_momentum * self.by_decay_newer

    @property
    def older(self) -> float:
        return self.by_momentum * self.by_decay_older

    @property
    def contested(self) -> bool:
        """Whether the derivations differ about this ratio."""
        return self.newer != self.older

    @property
    def sentence(self) -> str:
        if not self.contested:
            return f"{self.older:.2f} times the reference's ({SHAPE_ONLY})"
        newer = "says nothing" if self.newer is None else f"says {self.newer:.2f} times"
        return (
            f"the derivations disagree: the newer {newer}, the older {self.older:.2f} times the reference's "
            f"({SHAPE_ONLY})"
        )


def predicted_ratio(setting: MuonSetting, reference: MuonSetting) -> PredictedRatio:
    """How b* is predicted to move from `reference` to `setting`.

    By momentum and Nesterov's step b* goes with k^2. By weight decay with 1 / lambda^2 in the newer derivation, whose
    (1 + 1/u*)^2 is taken as the same; without decay it bounds a gradient norm and with decay a loss, so that between
    the two it has no ratio. The older one has b* in proportion to (2 beta + 1)(1 - beta) + lambda.
    """
    old, new = reference.weight_decay, setting.weight_decay
    newer = 1.0 if old == new else (old / new) ** 2 if old > 0 and new > 0 else None
    kept = (2 * setting.momentum + 1) * (1 - setting.momentum)
    return PredictedRatio(
        by_momentum=(noise_factor(setting) / noise_factor(reference)) ** 2,
        by_decay_newer=newer,
        by_decay_older=(kept + new) / (kept + old),
    )


def check_decay(lr: float, weight_decay: float) -> str | None:
    """The theory's condition lr * weight_decay <= 1, on which its bounded weights rest. A warning, or None.

    Raises:
        FitError: the product is above 1: a step would turn a weight's sign.
    """
    shrinks = lr * weight_decay
    if not shrinks <= 1:
        raise FitError(
            f"lr * weight_decay must be at most 1, got {shrinks:.3g} at lr={lr:g}; "
            f"weight_decay can be at most {1 / lr:.3g} here"
        )
    if shrinks > _FAST_DECAY:
        return (
            f"lr * weight_decay is {shrinks:.3g}, above {_FAST_DECAY:g}: weights forget within {1 / shrinks:.0f} steps"
        )
    return None
