"""A two-layer ReLU network on the indicator of a ball, where muP transfers and yet is slow.

The setting of Ghosh, Wu and Bietti (arXiv:2512.22768): y = 1{||x||^2 > median} with x ~ N(0, I_64), logits
sum_i a_i relu(<w_i, x> + b_i), cross-entropy, Adam, batches of 256 fresh samples, muP's initialization and learning
rates. There, after 2^14 steps and at widths 181 to 16384, the loss falls with n^-0.742 and the optimum, which drifts
to the right, converges with n^-0.388: about half as fast, so that c_n falls no faster than a_n.

Fewer steps and widths up to 1024 here, for a CPU; below 181 the optimum is another one (after 4096 steps 2^-6.3 at
width 64, 2^-7.3 at 91, 2^-9 from 128 on). From 181 to 1024 the optimum moves a third of an octave to the right, too
little to tell beta from alpha/2 with three seeds: the published pair itself, kappa = -0.034, takes optima known to a
few thousandths of an octave over six doublings. The loss is the mean over the last eighth of the steps, of each batch
before it is trained on: every sample is new, so it is unbiased for those iterates, and at a constant learning rate
it differs between seeds a third as much as the last iterate's does on held-out samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from analysis.fast_transfer import FastTransfer, fast_transfer
from analysis.interval import FitError
from analysis.optimum import Optimum, fit_optimum
from analysis.surface import Surface
from transfer.labs.rates import rates_json

DIMENSIONS = 64
BATCH = 256
BASE_WIDTH = 128
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
# log2 of lr * steps: how far Adam can move a weight. Optima were at 2.4 (512 steps) to 3.4 (4096 steps, width 1024).
LOG2_REACHES = tuple(2 + k / 4 for k in range(11))
BAND_NATS = 0.01
_MEASURED = 8  # the last 1/8 of the steps
_STACK_UNITS = 1024  # hidden units trained side by side: 1 MB of activations, which stay in a core's cache


@dataclass(kw_only=True, slots=True)
class Stack:
    """Networks of one width, updated in place."""

    hidden: Tensor  # (members, n, d + 1): each unit's w, and its b at the end
    readout: Tensor  # (members, n)


class Gradients(NamedTuple):
    """Losses before the step (members,), and gradients in the shapes of `Stack`."""

    losses: Tensor
    hidden: Tensor
    readout: Tensor


class Adam:
    """Adam with a learning rate for each member."""

    def __init__(self, stack: Stack, lrs: Sequence[float]) -> None:
        self.lrs, self.steps = torch.tensor(lrs), 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (stack.hidden, stack.readout)]

    def step(self, stack: Stack, gradients: Gradients) -> None:
        self.steps += 1
        correction1, correction2 = 1 - BETA1**self.steps, math.sqrt(1 - BETA2**self.steps)
        pairs = ((stack.hidden, gradients.hidden), (stack.readout, gradients.readout))
        for (parameter, gradient), (first, second) in zip(pairs, self.moments, strict=True):
            first.lerp_(gradient, 1 - BETA1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            lrs = self.lrs.view(-1, *[1] * (parameter.dim() - 1))
            parameter.sub_((first * (lrs / correction1)).div_(second.sqrt().div_(correction2).add_(EPS)))


def initialize(width: int, members: int, seed: int) -> Stack:
    """Equal networks: muP with the readout's multiplier BASE_WIDTH / n, one learning rate for all parameters."""
    generator = torch.Generator().manual_seed(2 * seed)
    hidden = torch.zeros(width, DIMENSIONS + 1)
    hidden[:, :-1] = torch.randn(width, DIMENSIONS, generator=generator) / math.sqrt(DIMENSIONS)
    readout = torch.randn(width, generator=generator) / math.sqrt(BASE_WIDTH)
    return Stack(hidden=hidden.repeat(members, 1, 1), readout=readout.repeat(members, 1))


def gradients(stack: Stack, x: Tensor, y: Tensor) -> Gradients:
    """Of the mean cross-entropy on x (batch, d + 1) and y (batch,), in closed form."""
    members, width, _ = stack.hidden.shape
    multiplier = BASE_WIDTH / width
    units = (stack.hidden.flatten(0, 1) @ x.T).view(members, width, -1).clamp_(min=0)  # (members, n, batch)
    logits = multiplier * (stack.readout[:, None] @ units)[:, 0]
    losses = binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").mean(dim=1)
    pull = (logits.sigmoid() - y) * (multiplier / len(y))  # of the loss on sum_i a_i relu, (members, batch)
    readout = (units @ pull[..., None])[..., 0]
    on = units.sign_()
    return Gradients(losses, (on @ (pull[..., None] * x)).mul_(stack.readout[..., None]), readout)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (batch, d + 1), its last column 1 for the bias, and y (batch,)."""
    x = torch.ones(BATCH, DIMENSIONS + 1)
    x[:, :-1] = torch.randn(BATCH, DIMENSIONS, generator=generator)
    return x, (x[:, :-1].square().sum(dim=1) > _boundary()).float()


@cache
def _boundary() -> float:
    return float(chi2.median(DIMENSIONS))


def train(width: int, lrs: Sequence[float], *, seed: int, steps: int) -> tuple[float | None, ...]:
    """The loss of each learning rate, all from one start and on one seed's batches; None where it overflowed."""
    stack = initialize(width, len(lrs), seed)
    adam, samples = Adam(stack, lrs), torch.Generator().manual_seed(2 * seed + 1)
    total, n_measured = torch.zeros(len(lrs), dtype=torch.float64), max(steps // _MEASURED, 1)
    for step in range(steps):
        found = gradients(stack, *batch(samples))
        if step >= steps - n_measured:
            total += found.losses
        adam.step(stack, found)
    return tuple(loss if math.isfinite(loss) else None for loss in (total / n_measured).tolist())


class Done(NamedTuple):
    """A part of the work that is done, in units of hidden units trained."""

    width: int
    seed: int
    work: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    width: int
    seed: int
    log2_lrs: tuple[float, ...]

    @property
    def work(self) -> int:
        return self.width * len(self.log2_lrs)


def total_work(widths: Sequence[int], n_seeds: int) -> int:
    """The sum of all `Done.work`."""
    return sum(widths) * n_seeds * len(LOG2_REACHES)


def surfaces(
    widths: Sequence[int],
    *,
    n_seeds: int,
    steps: int,
    workers: int,
    on_done: Callable[[Done], None] = lambda done: None,
) -> list[Surface]:
    """Every width, seed and learning rate trained; one surface a width. The numbers do not depend on `workers`."""
    log2_lrs = tuple(reach - math.log2(steps) for reach in LOG2_REACHES)
    losses: dict[tuple[int, int, float], float | None] = {}
    # One thread a worker: with more, threads of one small matrix product wait for each other.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = {
            pool.submit(train, job.width, [2.0**x for x in job.log2_lrs], seed=job.seed, steps=steps): job
            for job in _jobs(widths, n_seeds, log2_lrs)
        }
        try:
            for future in as_completed(jobs):
                job = jobs[future]
                for x, loss in zip(job.log2_lrs, future.result(), strict=True):
                    losses[job.width, job.seed, x] = loss
                on_done(Done(job.width, job.seed, job.work))
        finally:
            pool.shutdown(cancel_futures=True)
    return [
        Surface(
            optimizer="adam",
            width=width,
            log2_values=log2_lrs,
            seeds=tuple(range(n_seeds)),
            losses=tuple(tuple(losses[width, seed, x] for seed in range(n_seeds)) for x in log2_lrs),
        )
        for width in widths
    ]


def _jobs(widths: Sequence[int], n_seeds: int, log2_lrs: tuple[float, ...]) -> Iterator[_Job]:
    """The widest first: the last ones to end are then short."""
    for width in sorted(widths, reverse=True):
        size = max(_STACK_UNITS // width, 1)
        for seed in range(n_seeds):
            for start in range(0, len(log2_lrs), size):
                yield _Job(width=width, seed=seed, log2_lrs=log2_lrs[start : start + size])


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Surfaces and optima over width, and the verdict or why there is none."""

    steps: int
    surfaces: tuple[Surface, ...]
    optima: tuple[Optimum, ...]
    transfer: FastTransfer | None
    no_verdict: str | None

    def to_json(self) -> dict[str, Any]:
        names = ("width", "log2_value", "interval", "loss", "loss_interval", "curvature", "method")
        optima = [asdict(optimum) for optimum in self.optima]
        return {
            "steps": self.steps,
            "surfaces": [
                {"width": s.width, "log2_lrs": s.log2_values, "seeds": s.seeds, "losses": s.losses}
                for s in self.surfaces
            ],
            "optima": [
                {name: values[name] for name in names} | {"flags": [flag.value for flag in optimum.flags]}
                for optimum, values in zip(self.optima, optima, strict=True)
            ],
            "transfer": None if self.transfer is None else rates_json(self.transfer),
            "no_verdict": self.no_verdict,
        }


def study(measured: Sequence[Surface], *, steps: int, rng: np.random.Generator) -> Study:
    """The fits of a sweep, on these surfaces.

    Raises:
        FitError: at some width fewer than three neighboring learning rates converged.
    """
    optima = tuple(fit_optimum(s, band_nats=BAND_NATS, n_bootstrap=500, rng=rng) for s in measured)
    transfer, reason = None, None
    try:
        transfer = fast_transfer(optima, rng=rng)
    except FitError as error:
        reason = str(error)
    return Study(steps=steps, surfaces=tuple(measured), optima=optima, transfer=transfer, no_verdict=reason)
