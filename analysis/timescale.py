"""Weight decay through the EMA timescale tau = B/(lr wd D) = 1/(lr wd steps), a fraction of the run.

AdamW's weights are an exponential average of its updates over 1/(lr wd) steps (arXiv:2405.13698); with the best tau
constant at equal tokens per parameter, the best wd follows batch, lr and tokens. Over tokens per parameter the best
tau falls as a power, tau = c TPP^m (arXiv:2505.13738): fitted here from a sweep with a weight-decay axis, or that
paper's law as it stands. lr is the peak of the hidden matrices at base width, and wd is multiplied by it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import norm

from analysis.interval import FitError, Floats, Interval
from analysis.observations import LOSS, SEED, SERIES, Observations
from analysis.posterior_line import LinePosterior, NormalPrior, Power, RestsOn, fit_line
from analysis.published_laws import TIMESCALE_OVER_TPP, law_of
from analysis.response import BAND_FRACTION, ResponseOptimum, fit_responses
from analysis.scale_law import SharedOptima, fit_shared_optima

LR, DECAY = "lr", "weight_decay"
BATCH, TOKENS, PARAMS = "batch_tokens", "train_tokens", "n_params"
# Scale of the prior of cells' scatter around the law, octaves: a judgement, which cells that scatter more outvote.
SCATTER_OCTAVES = 0.25
_CHINCHILLA = 20.0  # tokens a parameter: where the published law's height is known best
_PUBLISHED_SD_OCTAVES = 1.0  # of that height for another data set, schedule or optimizer: the basin is an octave wide


@dataclass(frozen=True, kw_only=True, slots=True)
class TimescaleOptimum:
    """The best tau of one cell. `bound` says that it lies beyond: the best wd is at the end of what was tried."""

    tokens_per_param: float
    scales: tuple[tuple[str, float], ...]
    tau: float
    interval: Interval | None  # None at a bound
    bound: Literal["at least", "at most"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TimescaleRuns:
    """Runs with weight decay as observations over (lr, weight_decay), a cell a size, horizon and batch."""

    observations: Observations
    left_out: tuple[str, ...]  # runs that have no tau, and why


@dataclass(frozen=True, kw_only=True, slots=True)
class TimescalePrediction:
    """The best tau at a number of tokens per parameter."""

    tokens_per_param: float
    tau: float
    interval: Interval
    rests_on: RestsOn


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TimescaleLaw:
    """log2 tau = log2 c + m log2 TPP."""

    series: str
    line: LinePosterior
    optima: tuple[TimescaleOptimum, ...]  # bounds among them, which the law does not rest on
    left_out: tuple[str, ...]
    reason: str  # why nothing was fitted, or nothing
    level: float

    @property
    def over_tokens_per_param(self) -> Power:
        """m."""
        return self.line.slope(0, level=self.level)

    @property
    def coefficient(self) -> float:
        """c: tau at one token a parameter."""
        mean = self.line.mean
        return float(2.0 ** (mean[0] - mean[1] * self.line.center[0]))

    @property
    def rests_on(self) -> RestsOn:
        """Of the law's height; `over_tokens_per_param.rests_on` says it of the exponent."""
        return "fitted here" if self.line.n_points else "published prior"

    def at(self, tokens_per_param: float) -> TimescalePrediction:
        """The best tau of a cell of its own there.

        Raises:
            FitError: tokens per parameter that are not above 0.
        """
        if not tokens_per_param > 0:
            raise FitError(f"tokens_per_param must be above 0, got {tokens_per_param}")
        mean, _, interval = self.line.at(np.log2([tokens_per_param]), level=self.level)
        tried = [found.tokens_per_param for found in self.optima if found.bound is None]
        beyond: RestsOn = "published prior" if not tried else self.over_tokens_per_param.rests_on
        inside = bool(tried) and min(tried) <= tokens_per_param <= max(tried)
        return TimescalePrediction(
            tokens_per_param=tokens_per_param,
            tau=float(2.0**mean),
            interval=Interval(low=float(2.0**interval.low), high=float(2.0**interval.high), level=interval.level),
            rests_on="measured here" if inside else beyond,
        )


def timescale(*, batch_tokens: float, lr: float, weight_decay: float, train_tokens: float) -> float:
    """tau = B/(lr wd D).

    Raises:
        FitError: a number that is not above 0; without weight decay there is no timescale.
    """
    _require_positive(batch_tokens=batch_tokens, lr=lr, weight_decay=weight_decay, train_tokens=train_tokens)
    return batch_tokens / (lr * weight_decay * train_tokens)


def weight_decay_for(tau: float, *, batch_tokens: float, lr: float, train_tokens: float) -> float:
    """The weight decay with this tau: B/(lr tau D).

    Raises:
        FitError: a number that is not above 0, or lr * wd above 1, which would flip the weights' sign at every step.
    """
    _require_positive(tau=tau, batch_tokens=batch_tokens, lr=lr, train_tokens=train_tokens)
    weight_decay = batch_tokens / (lr * tau * train_tokens)
    if lr * weight_decay > 1:
        raise FitError(
            f"tau {tau:.3g} of a run of {train_tokens / batch_tokens:.3g} steps needs lr * weight_decay = "
            f"{lr * weight_decay:.3g}, above 1: an average over less than one step. Use a larger tau or smaller batches"
        )
    return weight_decay


def timescale_runs(runs: pd.DataFrame) -> TimescaleRuns:
    """Observations of runs with columns series, n_params, train_tokens, batch_tokens, lr, weight_decay, seed, loss.

    Losses are only compared at equal size, horizon and batch. Runs without weight decay have no tau: they are left
    out and counted.

    Raises:
        FitError: a missing column, a value that is not allowed, or no run with weight decay.
    """
    needed = [SERIES, PARAMS, TOKENS, BATCH, LR, DECAY, SEED, LOSS]
    missing = [name for name in needed if name not in runs.columns]
    if missing:
        raise FitError(f"columns {missing} are missing; a timescale needs {', '.join(needed)}")
    without = runs[DECAY] == 0
    if without.all():
        raise FitError("no run has weight decay above 0, so none has a timescale; sweep weight_decay")
    left_out = (f"{int(without.sum())} of {len(runs)} runs without weight decay",) if without.any() else ()
    frame = runs.loc[~without, needed].reset_index(drop=True)
    return TimescaleRuns(
        observations=Observations(scales=(PARAMS, TOKENS, BATCH), hps=(LR, DECAY), frame=frame), left_out=left_out
    )


def fit_timescale_law(
    runs: TimescaleRuns, series: str, *, level: float = 0.9, band_fraction: float = BAND_FRACTION
) -> TimescaleLaw:
    """tau over tokens per parameter, from each cell's optimum over lr and weight decay together.

    The optimum is sought on the grid that was swept and turned into tau with its covariance: on a grid of tau and lr,
    sheared, no end of what was tried could be seen. Where lr takes one value it is over weight decay alone. The
    exponent has Power Lines' as its prior, the height none. Without any cell the law is Power Lines' as published.

    Raises:
        FitError: no such series, or an lr that is swept in some cells and fixed in others.
    """
    observations = runs.observations
    if series not in observations.series:
        raise FitError(f"there is no series {series!r}; there are {', '.join(observations.series)}")
    own = _of_series(observations, series)
    if own.frame[DECAY].nunique() == 1:
        reason = "weight_decay takes one value"
        return published_timescale_law(series, reason=reason, left_out=runs.left_out, level=level)
    bounds: tuple[TimescaleOptimum, ...] = ()
    try:
        bounds = _bounds(own, band_fraction)
        found = fit_shared_optima(own, series, band_fraction=band_fraction)
    except FitError as error:
        return published_timescale_law(series, reason=str(error), bounds=bounds, left_out=runs.left_out, level=level)
    y, covariance = _log2_tau(own, found)
    x = np.log2([_tokens_per_param(response) for response in found.responses])
    line = fit_line(x[:, None], y, covariance, [TIMESCALE_OVER_TPP], scatter_sd=SCATTER_OCTAVES)
    reach = float(norm.ppf((1 + level) / 2)) * np.sqrt(np.diag(covariance))
    optima = tuple(
        TimescaleOptimum(
            tokens_per_param=_tokens_per_param(response),
            scales=response.scales,
            tau=float(2.0**value),
            interval=Interval(low=float(2.0 ** (value - error)), high=float(2.0 ** (value + error)), level=level),
        )
        for value, error, response in zip(y, reach, found.responses, strict=True)
    )
    return TimescaleLaw(
        series=series,
        line=line,
        optima=tuple(sorted((*optima, *bounds), key=lambda optimum: optimum.tokens_per_param)),
        left_out=(*runs.left_out, *found.left_out),
        reason="",
        level=level,
    )


def published_timescale_law(
    series: str,
    *,
    reason: str = "nothing was swept",
    bounds: Sequence[TimescaleOptimum] = (),
    left_out: Sequence[str] = (),
    level: float = 0.9,
) -> TimescaleLaw:
    """Power Lines' law (arXiv:2505.13738) as it was published, known to an octave elsewhere."""
    center = np.log2([_CHINCHILLA])
    height = NormalPrior(
        mean=math.log2(law_of("timescale", "Power Lines").at(1.0, _CHINCHILLA)),
        sd=_PUBLISHED_SD_OCTAVES,
        source=TIMESCALE_OVER_TPP.source,
    )
    line = fit_line(
        np.empty((0, 1)), np.empty(0), np.empty((0, 0)), [TIMESCALE_OVER_TPP],
        scatter_sd=SCATTER_OCTAVES, intercept=height, center=center,
    )  # fmt: skip
    return TimescaleLaw(
        series=series, line=line, optima=tuple(bounds), left_out=tuple(left_out), reason=reason, level=level
    )


def _of_series(observations: Observations, series: str) -> Observations:
    """One series; lr is no hyperparameter to optimize where a cell holds one value of it."""
    frame = observations.frame[observations.frame[SERIES] == series].reset_index(drop=True)
    lrs = frame.groupby(list(observations.scales))[LR].nunique()
    if (lrs > 1).all():
        return Observations(scales=observations.scales, hps=observations.hps, frame=frame)
    if (lrs == 1).all():
        return Observations(scales=(*observations.scales, LR), hps=(DECAY,), frame=frame)
    raise FitError("lr is swept in some cells and fixed in others; fit them apart")


def _log2_tau(own: Observations, found: SharedOptima) -> tuple[Floats, Floats]:
    """log2 tau at the optima, (n,), and its covariance, (n, n)."""
    shape, k = found.shape, len(own.hps)
    scales = np.log2([[dict(response.scales)[name] for name in own.scales] for response in found.responses])
    column = {name: i for i, name in enumerate(own.scales)}
    y = scales[:, column[BATCH]] - scales[:, column[TOKENS]] - shape.log2_optima.sum(axis=1)
    if LR in column:
        y = y - scales[:, column[LR]]
    rate = -np.ones(k)  # of log2 tau over each log2 hyperparameter
    common = shape.common.transpose(0, 2, 1) @ rate
    return y, np.diag(np.einsum("i,nij,j->n", rate, found.covariances, rate)) + common @ common.T


def _bounds(own: Observations, band_fraction: float) -> tuple[TimescaleOptimum, ...]:
    """Cells whose best weight decay is at an end of what was tried."""
    responses = fit_responses(own, n_bootstrap=0, rng=np.random.default_rng(0), band_fraction=band_fraction)
    j = own.hps.index(DECAY)
    found = []
    for response in responses:
        end = response.edges[j]
        if end is None or any(response.edges[:j]):  # where lr ends too, tau may lie on either side
            continue
        scales = dict(response.scales)
        log2_tau = math.log2(scales[BATCH] / scales[TOKENS]) - float(response.log2_values.sum())
        log2_tau -= math.log2(scales[LR]) if LR in scales else 0.0
        found.append(
            TimescaleOptimum(
                tokens_per_param=_tokens_per_param(response),
                scales=response.scales,
                tau=2.0**log2_tau,
                interval=None,
                bound="at least" if end == "low" else "at most",
            )
        )
    return tuple(found)


def _tokens_per_param(response: ResponseOptimum) -> float:
    scales = dict(response.scales)
    return scales[TOKENS] / scales[PARAMS]


def _require_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise FitError(f"{name} must be above 0 and finite, got {value}")
