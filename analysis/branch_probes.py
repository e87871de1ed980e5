"""The critical batch along a run, by branches of its trunk at several times its batch (Merrill et al. 2025).

At a checkpoint the run goes on for a window of tokens with k times the batch and f(k) times the learning rate (f is
the square root for Adam, arXiv:2505.23971, section 3). The local critical batch is k* B, the largest branch whose
held-out loss at the window's end is within a tolerance of every smaller branch's, walking k upward until one is not.

This is a definition of its own. It is not the hyperbola's B_c, nor a 20 % token overhead: it depends on the tolerance,
the window and f, and factors tell no more than the grid of k does. Losses are undecayed, and a branch with too low a lr
gains from that alone, as a decay does: without f(k) above 1 it measures this and not a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import Noise, draw_mean_noise, two_way
from analysis.interval import FitError, Floats, Interval

TOLERANCE_NATS = 0.01  # arXiv:2505.23971
DEFINITION = "largest branch within {tolerance:g} nats"
ADAM_LR_EXPONENT = 0.5  # lr goes as batch to this: arXiv:2505.23971, for Adam
_GROWTH = 2  # of the batch at a stage of the warm-up, same source

Bound = Literal["value", "at least", "at most"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One branch: `factor` times the trunk's batch from `at_tokens` on, for `window_tokens`."""

    optimizer: str
    width: int
    at_tokens: float  # trained by the trunk
    batch_tokens: float  # of the trunk
    factor: float  # k; 1 is the trunk going on
    lr_ratio: float  # f(k): lr of the branch over the trunk's
    window_tokens: float
    seed: int
    loss: float | None  # held-out at the window's end, nats; None: diverged


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCriticalBatch:
    """k* B at one branch point. "at least": even the largest k was within tolerance; "at most": none but 1 was."""

    optimizer: str
    width: int
    at_tokens: float
    trunk_batch_tokens: float
    tolerance: float  # nats
    window_tokens: float
    n_seeds: int
    factors: tuple[float, ...]  # ascending from 1
    lr_ratios: tuple[float, ...]
    losses: tuple[float | None, ...]  # means over seeds, nats; None where a seed diverged
    loss_error: float | None  # standard error of a mean less what seeds share; None with one seed
    factor: float  # k*
    probabilities: tuple[float, ...] | None  # that k* is each of `factors`; None with one seed
    interval: Interval | None  # of k* B, tokens; its ends are among the branches tried

    @property
    def definition(self) -> str:
        return DEFINITION.format(tolerance=self.tolerance)

    @property
    def batch_tokens(self) -> float:
        """k* B."""
        return self.factor * self.trunk_batch_tokens

    @property
    def next_factor(self) -> float | None:
        """The smallest k that was worse: between k* and it nothing was tried."""
        later = [factor for factor in self.factors if factor > self.factor]
        return later[0] if later else None

    @property
    def bound(self) -> Bound:
        if self.next_factor is None:
            return "at least"
        return "at most" if self.factor == self.factors[0] else "value"

    @property
    def sentence(self) -> str:
        name = f"{self.optimizer}, width {self.width}, at {self.at_tokens:.3g} tokens: local critical batch"
        size = f"{self.factor:g} x {self.trunk_batch_tokens:.3g} = {self.batch_tokens:.3g} tokens ({self.definition})"
        match self.bound:
            case "at least":
                found = f"{name} at least {size}: no branch was worse, try a larger one"
            case "at most":
                found = f"{name} at most {size}: {self.next_factor:g} x is worse already"
            case _:
                found = f"{name} {size}; {self.next_factor:g} x is worse"
        if self.interval is None:
            found += "; one seed, so no interval"
        else:
            found += f"; {self.interval.level:.0%} interval {self.interval.low:.3g} to {self.interval.high:.3g}"
        flat = any(ratio <= 1 for k, ratio in zip(self.factors, self.lr_ratios, strict=True) if k > 1)
        return found + ("; lr was not raised with the batch, which lowers the loss by itself" if flat else "")


class BatchStage(NamedTuple):
    """From `from_tokens` trained on, until the next stage."""

    from_tokens: float
    batch_tokens: float
    lr_ratio: float  # of the first stage's lr


def local_critical_batches(
    probes: Iterable[Probe],
    *,
    rng: np.random.Generator,
    tolerance: float = TOLERANCE_NATS,
    level: float = 0.9,
    n_draws: int = 2000,
) -> tuple[LocalCriticalBatch, ...]:
    """One for each optimizer, width, trunk's batch and branch point, in this order; k* from the means over seeds.

    Seeds are paired: all branches of a seed leave one trunk, and what it adds to all of them cancels. Probabilities are
    from draws of the noise that is left (`analysis.bootstrap`). A branch of which a seed diverged ends the walk.

    Raises:
        FitError: no probe, a branch point without k = 1 or without a larger k, with a seed that lacks a branch or has
            it twice, or with two windows or two lr_ratio for one k; or a tolerance that is not above 0.
    """
    if not tolerance > 0:
        raise FitError(f"the tolerance is in nats and must be above 0, got {tolerance}")
    ordered = sorted(probes, key=_point)
    if not ordered:
        raise FitError("there are no probes: branch a trunk at two factors of its batch or more")
    return tuple(
        _local(list(group), tolerance=tolerance, level=level, n_draws=n_draws, rng=rng)
        for _, group in groupby(ordered, key=_point)
    )


def batch_warmup(
    found: Sequence[LocalCriticalBatch], start_batch: float, *, lr_exponent: float = ADAM_LR_EXPONENT
) -> tuple[BatchStage, ...]:
    """Double the batch where the local critical batch exceeds twice it, and the lr by 2**lr_exponent.

    Stages begin at branch points: between two of them nothing was measured. The batch never falls again. A local
    critical batch that is a lower bound can only delay a stage.

    Raises:
        FitError: no branch point, several optimizers or widths, one branch point twice, or a start not above 0.
    """
    if not start_batch > 0:
        raise FitError(f"a batch warm-up starts from a batch above 0 tokens, got {start_batch}")
    if len({(local.optimizer, local.width) for local in found}) != 1:
        raise FitError("a batch warm-up needs the local critical batches of one optimizer at one width")
    ordered = sorted(found, key=lambda local: local.at_tokens)
    places = [local.at_tokens for local in ordered]
    if len(set(places)) < len(places):
        raise FitError(f"one local critical batch at each branch point, got them at {places} tokens")
    stages = [BatchStage(0.0, start_batch, 1.0)]
    for local in ordered:
        batch = stages[-1].batch_tokens
        while local.batch_tokens > _GROWTH * batch:
            batch *= _GROWTH
        if batch > stages[-1].batch_tokens:
            stages.append(BatchStage(local.at_tokens, batch, (batch / start_batch) ** lr_exponent))
    return tuple(stages)


def _point(probe: Probe) -> tuple[str, int, float, float]:
    return probe.optimizer, probe.width, probe.batch_tokens, probe.at_tokens


def _local(
    probes: Sequence[Probe], *, tolerance: float, level: float, n_draws: int, rng: np.random.Generator
) -> LocalCriticalBatch:
    first = probes[0]
    factors, lr_ratios, losses = _table(probes)
    alive = int(np.cumprod(np.isfinite(losses).all(axis=1)).sum())  # branches before the first that diverged
    noise = two_way(losses[:alive]).noise if alive else None
    means = losses.mean(axis=1)
    factor = factors[int(_walk(means[None], tolerance)[0])]
    probabilities, interval = None, None
    n_seeds = losses.shape[1]
    if n_seeds > 1:
        drawn = _walk(_draws(means, noise, n_seeds=n_seeds, n_draws=n_draws, rng=rng), tolerance)
        probabilities = tuple(np.bincount(drawn, minlength=len(factors)) / n_draws)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        interval = Interval(
            low=factors[int(low)] * first.batch_tokens, high=factors[int(high)] * first.batch_tokens, level=level
        )
    return LocalCriticalBatch(
        optimizer=first.optimizer,
        width=first.width,
        at_tokens=first.at_tokens,
        trunk_batch_tokens=first.batch_tokens,
        tolerance=tolerance,
        window_tokens=first.window_tokens,
        n_seeds=n_seeds,
        factors=factors,
        lr_ratios=lr_ratios,
        losses=tuple(float(mean) if np.isfinite(mean) else None for mean in means),
        loss_error=None if noise is None else noise.sd / float(np.sqrt(n_seeds)),
        factor=factor,
        probabilities=probabilities and tuple(map(float, probabilities)),
        interval=interval,
    )


def _table(probes: Sequence[Probe]) -> tuple[tuple[float, ...], tuple[float, ...], Floats]:
    """Factors, their lr ratios, and losses (factors, seeds), infinite where a branch diverged."""
    name = f"{probes[0].optimizer}, width {probes[0].width}, at {probes[0].at_tokens:g} tokens"
    factors = tuple(sorted({probe.factor for probe in probes}))
    seeds = sorted({probe.seed for probe in probes})
    if factors[0] != 1 or len(factors) < 2:
        raise FitError(f"{name}: branches at k = 1 and at a larger k are needed, got k = {list(factors)}")
    if len({probe.window_tokens for probe in probes}) > 1:
        raise FitError(f"{name}: branches are compared after one window of tokens, got several")
    ratios = {probe.factor: probe.lr_ratio for probe in probes}
    if any(ratios[probe.factor] != probe.lr_ratio for probe in probes):
        raise FitError(f"{name}: one lr_ratio for each k is needed; pass one rule for the lr at a time")
    cells = {(probe.factor, probe.seed): np.inf if probe.loss is None else probe.loss for probe in probes}
    if len(cells) < len(probes):
        raise FitError(f"{name}: a seed has one branch twice")
    lacking = [(k, seed) for k in factors for seed in seeds if (k, seed) not in cells]
    if lacking:
        raise FitError(f"{name}: seeds are paired, and these (k, seed) are missing: {lacking}; run them or drop the k")
    losses = np.array([[cells[k, seed] for seed in seeds] for k in factors])
    if np.isnan(losses).any() or np.isneginf(losses).any():
        raise FitError(f"{name}: losses must be finite, or None where a branch diverged")
    if not np.isfinite(losses[0]).all():
        raise FitError(f"{name}: the trunk going on (k = 1) diverged: there is nothing to compare with")
    return factors, tuple(ratios[k] for k in factors), losses


def _walk(losses: Floats, tolerance: float) -> NDArray[np.int64]:
    """Index of k*, (draws,), of losses (draws, factors)."""
    lowest = np.minimum.accumulate(losses, axis=1)[:, :-1]
    within = losses[:, 1:] <= lowest + tolerance
    steps: NDArray[np.int64] = np.cumprod(within, axis=1, dtype=np.int64).sum(axis=1)
    return steps


def _draws(means: Floats, noise: Noise | None, *, n_seeds: int, n_draws: int, rng: np.random.Generator) -> Floats:
    """Means over seeds anew, (draws, factors). Without noise there is one branch alive, and one answer."""
    shape = n_draws, len(means)
    if noise is None:
        return np.broadcast_to(means, shape)
    return means + draw_mean_noise(noise, shape=shape, n_seeds=n_seeds, rng=rng)
