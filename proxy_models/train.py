"""The training loop: runs in, outcomes out. Knows nothing of sweeps, results on disk or ray."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from proxy_models.accounting import forward_flops_per_token
from proxy_models.config import RunConfig
from proxy_models.data import TokenData, batch, validation_windows
from proxy_models.diagnostics import Diagnostic, diagnose
from proxy_models.optimizers import Observe, make_optimizer
from proxy_models.schedule import schedule_factor
from proxy_models.stacks import build_model, initialize, layout, parameters_of
from proxy_models.transformer import Tap

# A training loss this many times the first one is not coming back to anything worth fitting.
DIVERGENCE_FACTOR = 2.0
CURVE_POINTS = 100
CURVE_EMA_STEPS = 10  # averaging window of the smoothed curve
_VALIDATION_BATCH = 32  # sequences

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOutcome:
    """What one run gave. Losses in nats per token; times in seconds of this process."""

    diverged_step: int | None
    validation_loss: float | None
    validation_loss_se: float | None  # standard error over held-out sequences
    curve_steps: tuple[int, ...]
    curve_losses: tuple[float, ...]  # training loss, averaged over about CURVE_EMA_STEPS steps
    train_seconds: float
    tokens_per_second: float
    flops: float  # model FLOPs of the steps taken
    flops_utilization: float  # model FLOP/s over this process's matmul peak
    diagnostics: tuple[Diagnostic, ...] = ()


class Training:
    """One run's weights and optimizer, advanced a step at a time. Bitwise reproducible on one machine."""

    def __init__(self, run: RunConfig, data: TokenData) -> None:
        self.run, self.data = run, data
        self.model = build_model(run)
        self.layouts = layout(self.model)
        self.weights = [initialize(stack, [run]).requires_grad_() for stack in self.layouts]
        self.optimizer = make_optimizer(self.layouts, self.weights, [run])

    def step(self, observe: Observe | None = None) -> float:
        """One update, which `observe` sees for each stack; returns the loss before it, in nats per token."""
        step = self.optimizer.step_count
        loss, gradients = self.gradients(self.windows(step), self.weights)
        self.optimizer.step(gradients, torch.tensor([schedule_factor(self.run, step)]), observe)
        return loss.item()

    def gradients(self, windows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mean loss of some windows, and its gradients, by any weights that require them."""
        loss = self._losses(windows, weights).mean()
        return loss, torch.autograd.grad(loss, weights)

    def windows(self, step: int) -> Tensor:
        """The step's training windows, (B, T + 1)."""
        run = self.run
        return torch.from_numpy(
            batch(
                self.data,
                seed=run.seed,
                step=step,
                batch_tokens=run.hparams.batch_tokens,
                seq_len=run.model.seq_len,
            )
        )

    def forward(self, tokens: Tensor, tap: Tap | None = None, weights: Sequence[Tensor] | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T), by other weights if given; `tap` sees every named activation."""
        parameters = parameters_of(self.layouts, self.weights if weights is None else weights, 0)
        return functional_call(self.model, parameters, (tokens,) if tap is None else (tokens, tap))

    def _losses(self, windows: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        """Mean loss of each sequence, (B,)."""
        logits = self.forward(windows[:, :-1], weights=weights)  # (B, T, V)
        targets = windows[:, 1:]  # (B, T)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.unflatten(0, targets.shape).mean(1)

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean held-out loss and its standard error over sequences."""
        windows = torch.from_numpy(
            validation_windows(self.data, validation_tokens=self.run.validation_tokens, seq_len=self.run.model.seq_len)
        )
        losses = torch.cat([self._losses(part) for part in windows.split(_VALIDATION_BATCH)]).double()
        return losses.mean().item(), (losses.std() / math.sqrt(len(losses))).item()


# Sees every iterate of a run: before the first update, with 0 updates done, and after each.
Follow = Callable[[Training, int], None]


def train(
    runs: Sequence[RunConfig],
    data: TokenData,
    *,
    on_step: OnStep | None = None,
    diagnose_every: int | None = None,
    follow: Follow | None = None,
) -> Iterator[TrainOutcome]:
    """Train a pack, member after member; yields each outcome as soon as it is known.

    `on_step(member, steps done)` is called after every update. With `diagnose_every`, diagnostics of the first
    update and of every so many after it; they change no other number, and nor may `follow`.
    """
    for member, run in enumerate(runs):
        yield _train_one(
            run,
            data,
            lambda done, member=member: on_step(member, done) if on_step else None,
            diagnose_every,
            follow or (lambda training, done: None),
        )


def _train_one(
    run: RunConfig, data: TokenData, on_step: Callable[[int], None], diagnose_every: int | None, follow: Follow
) -> TrainOutcome:
    training = Training(run, data)
    follow(training, 0)
    diagnostics: list[Diagnostic] = []
    places = training.model.places()
    every = max(1, run.steps // CURVE_POINTS)
    smooth, first_loss = Smoothed(CURVE_EMA_STEPS), math.nan
    steps: list[int] = []
    losses: list[float] = []
    diverged_step: int | None = None
    start = time.perf_counter()
    done = 0
    while done < run.steps and diverged_step is None:
        asked = diagnose_every is not None and done % diagnose_every == 0
        done += 1
        loss = training.step(
            (lambda update, at=done: diagnostics.extend(diagnose(update, step=at, places=places))) if asked else None
        )
        first_loss = loss if done == 1 else first_loss
        if not loss <= DIVERGENCE_FACTOR * first_loss:  # also catches NaN
            diverged_step = done
        else:
            smooth.add(loss)
            if done % every == 0 or done == run.steps:
                steps.append(done)
                losses.append(smooth.value)
        follow(training, done)
        on_step(done)
    seconds = time.perf_counter() - start
    validation: tuple[float, float] | None = None
    if diverged_step is None:
        validation = training.validate()
        if not validation[0] < first_loss:
            diverged_step, validation = done, None
    tokens = done * run.hparams.batch_tokens
    flops = 3 * forward_flops_per_token(run.model) * tokens
    return TrainOutcome(
        diverged_step=diverged_step,
        validation_loss=validation[0] if validation else None,
        validation_loss_se=validation[1] if validation else None,
        curve_steps=tuple(steps),
        curve_losses=tuple(losses),
        train_seconds=seconds,
        tokens_per_second=tokens / seconds,
        flops=flops,
        flops_utilization=flops / seconds / matmul_peak(),
        diagnostics=tuple(diagnostics),
    )


class Smoothed:
    """An exponential average of about `window` values, corrected for its start."""

    def __init__(self, window: int) -> None:
        self.keep, self.total, self.weight = 1 - 1 / window, 0.0, 0.0

    def add(self, value: float) -> None:
        self.total = self.keep * self.total + (1 - self.keep) * value
        self.weight = self.keep * self.weight + (1 - self.keep)

    @property
    def value(self) -> float:
        return self.total / self.weight


@lru_cache(maxsize=1)
def matmul_peak() -> float:
    """This process's float32 matmul rate in FLOP/s: the best of a few 512 x 512 products, with its thread count."""
    n = 512
    a, b = torch.ones(n, n), torch.ones(n, n)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)
