"""What training a run gave: the record, its curve, and the peak that its speed is held against."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from proxy_models.diagnostics import Diagnostic
from proxy_models.mode import Device, Dtype, Mode

CURVE_POINTS = 100
CURVE_EMA_STEPS = 10  # averaging window of the smoothed curve


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOutcome:
    """What one run gave. Losses in nats per token.

    Times are seconds of the processes that trained it, a stacked member's its share; like the FLOPs they leave out
    what it took over from another run.
    """

    diverged_step: int | None
    stopped_step: int | None  # of a run that was halted: it has no validation loss
    validation_loss: float | None
    validation_loss_se: float | None  # standard error over held-out sequences
    curve_steps: tuple[int, ...]
    curve_losses: tuple[float, ...]  # training loss, averaged over about CURVE_EMA_STEPS steps
    train_seconds: float
    tokens_per_second: float
    flops: float  # model FLOPs of the steps taken
    flops_utilization: float  # model FLOP/s over this process's matmul peak
    mode: Mode
    diagnostics: tuple[Diagnostic, ...] = ()


def curve(losses: Sequence[float], steps: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """About CURVE_POINTS points of a run's training losses, smoothed: steps, from 1, and losses."""
    every, smooth = max(1, steps // CURVE_POINTS), Smoothed(CURVE_EMA_STEPS)
    points: dict[int, float] = {}
    for done, loss in enumerate(losses, start=1):
        smooth.add(loss)
        if done % every == 0 or done == steps:
            points[done] = smooth.value
    return tuple(points), tuple(points.values())


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


@cache
def matmul_peak(device: Device = "cpu", dtype: Dtype = "float32") -> float:
    """This process's matmul rate in FLOP/s: the best of a few square products, with its thread count."""
    n = 512 if device == "cpu" else 8192
    a, b = (torch.ones(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)
