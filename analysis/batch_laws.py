"""Critical batch over tokens and parameters: ln B_c = a + q ln D + r ln N, from few points and published exponents.

A sweep measures B_c at a few D_min (tokens of the smallest batches, to a target loss), within a decade or so; the law
carries it to the target's D. Its exponents have named priors: what the points do not tell, the papers do, and the
law says which of the two each rests on. Batches are in tokens, of the hyperbola's definition inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.interval import FitError, Floats, Interval, robust_sd
from analysis.posterior_line import LinePosterior, NormalPrior, Power, RestsOn, fit_line
from analysis.published_laws import BATCH_OVER_PARAMS, BATCH_OVER_TOKENS, HYPERBOLA, OVERHEAD_20, BatchDefinition

# Scale of the prior of the points' scatter around the law, in ln, beyond their own errors. Power Lines' law leaves
# about as much (R^2 0.94; over two decades of tokens 0.15). Heavy tails: points that
# scatter more can say so.
SCATTER_LN = 0.15
N_SIZES, N_BUDGETS = 3, 3  # sizes with so many different D each, from which r is fitted
_LEAST_SD = 1e-3  # of a point, in ln: an error of 0 would make the law pass through it


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPoint:
    """One measured critical batch.

    Raises:
        FitError: a number that is not above 0 and finite.
    """

    min_tokens: float  # D: what the target loss takes with small batches
    n_params: float  # non-embedding
    critical_batch: float  # tokens
    log_sd: float  # of ln critical_batch
    definition: BatchDefinition = HYPERBOLA
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("min_tokens", "n_params", "critical_batch", "log_sd"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise FitError(f"a critical batch's {name} must be above 0 and finite, got {value}")

    @classmethod
    def of_draws(
        cls,
        draws: ArrayLike,
        *,
        min_tokens: float,
        n_params: float,
        definition: BatchDefinition = HYPERBOLA,
        label: str = "",
    ) -> "BatchPoint":
        """A point from draws of the critical batch, in tokens: their median, and the robust spread of their logarithm.

        Raises:
            FitError: a draw that is not above 0.
        """
        batches = np.asarray(draws, dtype=np.float64)
        if batches.size == 0 or not (batches > 0).all():
            raise FitError("draws of a critical batch must be above 0, at least one; leave out what was not bracketed")
        logs = np.log(batches)
        return cls(
            min_tokens=min_tokens,
            n_params=n_params,
            critical_batch=float(np.exp(np.median(logs))),
            log_sd=max(robust_sd(logs), _LEAST_SD),
            definition=definition,
            label=label,
        )

    def as_defined(self, definition: BatchDefinition) -> float:
        """The critical batch of another definition, tokens."""
        return self.critical_batch * self.definition.factor_to(definition)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPrediction:
    """A batch in tokens, at one D and N."""

    min_tokens: float
    n_params: float
    value: float  # median
    interval: Interval
    log_sd: float
    definition: BatchDefinition
    rests_on: RestsOn  # "measured here": D and N lie among the points


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CriticalBatchLaw:
    """ln B_c = a + q (ln D - mean) + r (ln N - mean), hyperbola's definition, tokens."""

    points: tuple[BatchPoint, ...]
    line: LinePosterior  # over ln D, and over ln N where r is fitted
    center: tuple[float, float]  # ln D, ln N
    params_prior: NormalPrior
    level: float

    @property
    def over_tokens(self) -> Power:
        """q: octaves of batch an octave of tokens."""
        return self.line.slope(0, level=self.level)

    @property
    def over_params(self) -> Power:
        """r: octaves of batch an octave of parameters at equal tokens; its prior where the points cannot tell it."""
        if self.fits_params:
            return self.line.slope(1, level=self.level)
        prior = self.params_prior
        return Power(value=prior.mean, sd=prior.sd, interval=prior.interval(self.level), data_share=0.0, prior=prior)

    @property
    def fits_params(self) -> bool:
        """Whether the points hold three sizes at three token budgets each, so that r is fitted."""
        return len(self.line.center) > 1

    def predict(
        self, min_tokens: float, n_params: float, *, definition: BatchDefinition = HYPERBOLA
    ) -> BatchPrediction:
        """The critical batch expected at D and N, as one more measurement there would find it.

        The interval holds the errors of the law, of exponents that rest on priors too, and the scatter around it.

        Raises:
            FitError: a number that is not above 0.
        """
        if not (min_tokens > 0 and n_params > 0):
            raise FitError(f"a batch needs min_tokens and n_params above 0, got {min_tokens} and {n_params}")
        line = self.line
        at = np.log([min_tokens, n_params])
        mean, sd, interval = line.at(at[: len(line.center)], level=self.level)
        if not self.fits_params:  # r is a prior: independent of what the points say
            away = float(at[1] - self.center[1])
            shift, widened = self.params_prior.mean * away, float(np.hypot(sd, self.params_prior.sd * away))
            low, high = (mean + shift + (end - mean) * widened / sd for end in (interval.low, interval.high))
            mean, sd, interval = mean + shift, widened, Interval(low=low, high=high, level=interval.level)
        factor = HYPERBOLA.factor_to(definition)
        return BatchPrediction(
            min_tokens=min_tokens,
            n_params=n_params,
            value=factor * float(np.exp(mean)),
            interval=Interval(
                low=factor * float(np.exp(interval.low)),
                high=factor * float(np.exp(interval.high)),
                level=interval.level,
            ),
            log_sd=sd,
            definition=definition,
            rests_on=self._rests_on(min_tokens, n_params),
        )

    def _rests_on(self, min_tokens: float, n_params: float) -> RestsOn:
        """`measured here` within the points' range; beyond, what the powers over the scales left rest on."""
        left = [
            power.rests_on
            for power, at, values in (
                (self.over_tokens, min_tokens, [point.min_tokens for point in self.points]),
                (self.over_params, n_params, [point.n_params for point in self.points]),
            )
            if not min(values) <= at <= max(values)
        ]
        return "published prior" if "published prior" in left else "fitted here" if left else "measured here"


def fit_critical_batch_law(
    points: Sequence[BatchPoint],
    *,
    tokens_prior: NormalPrior = BATCH_OVER_TOKENS,
    params_prior: NormalPrior = BATCH_OVER_PARAMS,
    scatter: float = SCATTER_LN,
    level: float = 0.9,
) -> CriticalBatchLaw:
    """The law through measured critical batches, a Bayesian line (`posterior_line`) with normal priors on q and r.

    One point is enough: then q is the prior's. r is fitted from three sizes on, each measured at three or more D:
    otherwise sizes and budgets move together, or one size's error would carry over to all larger ones. Until then it
    keeps its prior, whose width counts among the points' errors and in every prediction at another N.

    Raises:
        FitError: no point.
    """
    if not points:
        raise FitError("a law of the critical batch needs at least one measured critical batch; none was bracketed")
    logs = np.log([[point.min_tokens, point.n_params] for point in points])
    batches = np.log([point.as_defined(HYPERBOLA) for point in points])
    errors = np.array([max(point.log_sd, _LEAST_SD) for point in points])
    center = logs.mean(axis=0)
    covariance: Floats = np.diag(errors**2)
    priors = [tokens_prior, params_prior] if _tells_sizes(points) else [tokens_prior]
    if len(priors) == 1:
        away = logs[:, 1] - center[1]
        batches = batches - params_prior.mean * away
        covariance = covariance + params_prior.sd**2 * np.outer(away, away)
    line = fit_line(logs[:, : len(priors)], batches, covariance, priors, scatter_sd=scatter)
    return CriticalBatchLaw(
        points=tuple(points),
        line=line,
        center=(float(center[0]), float(center[1])),
        params_prior=params_prior,
        level=level,
    )


def batch_for(
    law: CriticalBatchLaw, min_tokens: float, n_params: float, *, overhead: float = OVERHEAD_20.overhead
) -> BatchPrediction:
    """The batch that costs `overhead` more tokens than the smallest batches do: overhead * B_c of the hyperbola.

    Raises:
        FitError: an overhead or a scale that is not above 0.
    """
    return law.predict(min_tokens, n_params, definition=BatchDefinition(overhead=overhead))


def _tells_sizes(points: Sequence[BatchPoint]) -> bool:
    budgets: dict[float, set[float]] = {}
    for point in points:
        budgets.setdefault(point.n_params, set()).add(point.min_tokens)
    return sum(len(tokens) >= N_BUDGETS for tokens in budgets.values()) >= N_SIZES
