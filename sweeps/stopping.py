"""Which learning rates need no training to the end, judged at rungs by curves that share their data order.

A gap at a rung is not the gap at the end: a low learning rate catches up with the steps that are left, a high one with
the decay that is left. In the committed sweeps at least `KEPT_SHARE` of `kept_frac` of a gap was left at the end,
whatever the optimizer and the width, so only a gap that stays large after that is dropped. Early in a run, and above
the best learning rate before the decay, that is none. Pure; `benchmarks/early_stopping.py` has the evidence.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from proxy_models.accounting import training_flops
from proxy_models.config import RunConfig
from proxy_models.schedule import schedule_factor
from sweeps.trial import Trial, TrialResult, TrialStatus

Floats = NDArray[np.float64]

# Of 414 gaps below the best and 331 above it, beyond its neighbors and from 0.15 nats up, at least 0.88 and 0.89 of
# `kept_frac` was left.
KEPT_SHARE = 0.8
SURE_ERRORS = 2  # standard errors that a gap is taken smaller by
NEIGHBORS = 2  # of the best learning rate, to each side, that are never dropped: the optimum may still move
SMOOTHING_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """When learning rates are compared, and how much worse than the best one must end to be dropped."""

    rungs: tuple[float, ...] = (0.25, 0.5, 0.75)  # shares of a run's steps
    keep_nats: float = 0.15

    def steps(self, run: RunConfig) -> tuple[int, ...]:
        """The rungs of a run in steps: ascending, none twice, none at its end."""
        return tuple(sorted({round(rung * run.steps) for rung in self.rungs} & set(range(1, run.steps))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why a learning rate was dropped. Losses in nats per token, smoothed training losses."""

    step: int
    lr: float
    best_lr: float
    gap: float  # mean over seeds, above the best
    gap_se: float
    threshold: float  # which gap - SURE_ERRORS * gap_se exceeded
    keep_nats: float
    line_id: str  # what `line_of` gives for its trials, as an id


def line_of(trial: Trial) -> Trial:
    """The trial with its learning rate and its seed erased: trials of one line are compared."""
    return replace(trial, run=replace(trial.run, seed=0, hparams=replace(trial.run.hparams, lr=1.0)))


def lines(trials: Sequence[Trial]) -> dict[Trial, list[Trial]]:
    """Trials by their line."""
    grouped: dict[Trial, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(line_of(trial), []).append(trial)
    return grouped


def stopped_results(
    trials: Sequence[Trial], stops: Mapping[str, Stop], stopping: Stopping | None
) -> dict[str, TrialResult]:
    """Of the trials that are stopped for good, by id; none without `stopping`."""
    valid = {} if stopping is None else in_force(stops, stopping)
    return {trial.trial_id: stopped_result(trial, valid[trial.trial_id]) for trial in trials if trial.trial_id in valid}


def stopped_result(trial: Trial, stop: Stop) -> TrialResult:
    """What there is to say of a stopped trial, with the FLOPs of the steps that it took."""
    flops = training_flops(trial.run) * stop.step / trial.run.steps
    return TrialResult(trial=trial, status=TrialStatus.STOPPED, flops=flops)


def in_force(stops: Mapping[str, Stop], stopping: Stopping) -> dict[str, Stop]:
    """Without those of a rule that kept less than is asked for now."""
    return {trial_id: stop for trial_id, stop in stops.items() if stop.keep_nats >= stopping.keep_nats}


def kept_frac(run: RunConfig, step: int, *, below: bool) -> float:
    """Least share of a gap after so many steps that is left at the end, before `KEPT_SHARE`; 0: there is no telling.

    Below the best learning rate it is the share of the steps since the warmup that are done. Above, it is also at
    most the share of the decay that is done. Before the last optimizer of a switched one nothing is known.
    """
    hp = run.hparams
    warmup = hp.warmup_tokens / hp.batch_tokens
    if step <= warmup or step < run.phases[-1][0]:
        return 0.0
    done = (step - warmup) / (run.steps - warmup)
    to_decay = schedule_factor(run, step) - hp.final_lr_frac
    return done if below or hp.final_lr_frac == 1.0 else min(done, 1 - to_decay / (1 - hp.final_lr_frac))


def to_stop(losses: Mapping[float, Floats], line: Trial, *, keep_nats: float) -> dict[float, Stop]:
    """The learning rates of a line to drop now, by training losses (seeds, steps done) of those that still train.

    From the outside of the grid inwards, so that what is left is one interval; at most half of them, the farthest
    from the best first; never the best or its neighbors, `NEIGHBORS` to each side. The standard error of a gap is
    over seeds, and no less than the line's typical one; with one seed, the scatter of single steps.
    """
    lrs = sorted(losses)
    smooth = {lr: _smoothed(losses[lr]) for lr in lrs}
    best = min(range(len(lrs)), key=lambda index: smooth[lrs[index]].mean())
    gaps = {lr: smooth[lr] - smooth[lrs[best]] for lr in lrs}
    errors = _errors(losses, gaps, lrs[best])
    stops: list[Stop] = []
    for side in (lrs[: max(0, best - NEIGHBORS)], lrs[: best + NEIGHBORS : -1]):
        judged = (
            Stop(
                step=losses[lr].shape[1],
                lr=lr,
                best_lr=lrs[best],
                gap=float(gaps[lr].mean()),
                gap_se=errors[lr],
                threshold=_threshold(line.run, losses[lr].shape[1], keep_nats, below=lr < lrs[best]),
                keep_nats=keep_nats,
                line_id=line.trial_id,
            )
            for lr in side
        )
        stops += itertools.takewhile(lambda stop: stop.gap - SURE_ERRORS * stop.gap_se > stop.threshold, judged)
    stops.sort(key=lambda stop: -abs(lrs.index(stop.lr) - best))
    return {stop.lr: stop for stop in stops[: len(lrs) // 2]}


def _threshold(run: RunConfig, step: int, keep_nats: float, *, below: bool) -> float:
    """The gap of which at least keep_nats is left at the end."""
    frac = KEPT_SHARE * kept_frac(run, step, below=below)
    return keep_nats / frac if frac > 0 else math.inf


def _smoothed(losses: Floats) -> Floats:
    """The last value of an exponential average over about SMOOTHING_STEPS steps, of each seed."""
    weights = (1 - 1 / SMOOTHING_STEPS) ** np.arange(losses.shape[1])[::-1]
    smooth: Floats = losses @ (weights / weights.sum())
    return smooth


def _errors(losses: Mapping[float, Floats], gaps: Mapping[float, Floats], best: float) -> dict[float, float]:
    n_seeds = len(gaps[best])
    if n_seeds == 1:
        return {lr: float((losses[lr] - losses[best])[0, -SMOOTHING_STEPS:].std()) for lr in losses}
    variances = {lr: float(gap.var(ddof=1)) for lr, gap in gaps.items()}
    typical = sum(variances.values()) / max(1, len(variances) - 1)  # the best has none to itself
    return {lr: (max(variance, typical) / n_seeds) ** 0.5 for lr, variance in variances.items()}
