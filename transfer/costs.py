"""What a sweep costs: FLOPs and memory from the configs, time from a few steps taken here and now."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from proxy_models.accounting import Memory, memory, training_bytes, training_flops
from proxy_models.config import RunConfig
from proxy_models.data import TokenData
from sweeps.spec import SweepSpec, run_config
from sweeps.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What trials of one optimizer and width cost."""

    optimizer: str
    width: int
    trials: int
    flops: float
    bytes: int  # of one trial
    seconds: float  # of one core, measured here over a few steps

    def to_json(self) -> dict[str, str | int | float]:
        return {field: getattr(self, field) for field in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """What one optimizer takes at one width, but for activations."""

    optimizer: str
    width: int
    memory: Memory

    def to_json(self) -> dict[str, str | int]:
        parts = {name: int(getattr(self.memory, name)) for name in ("weights", "gradients", "states", "total")}
        return {"optimizer": self.optimizer, "width": self.width, **parts}


def memory_rows(spec: SweepSpec, widths: Sequence[int], *, bytes_per_float: int) -> list[MemoryRow]:
    """Every optimizer of a spec at every width, from the shapes alone.

    Raises:
        ConfigError: a width that is no model.
    """
    rows = []
    for name in spec.optimizers:
        for width in widths:
            run = run_config(spec, name, width=width, seed=0)
            counted = memory(run.model, run.optimizer, bytes_per_float=bytes_per_float)
            rows.append(MemoryRow(optimizer=name, width=width, memory=counted))
    return rows


def costs(trials: Sequence[tuple[str, Trial]], data: TokenData) -> list[Cost]:
    """Trials, FLOPs, memory and time for each optimizer, by its name in the spec, and width of a plan."""
    from sweeps.worker import prepare_process

    prepare_process()
    groups: dict[tuple[str, int], list[RunConfig]] = {}
    for name, trial in trials:
        groups.setdefault((name, trial.run.model.width), []).append(trial.run)
    return [
        Cost(
            optimizer=optimizer,
            width=width,
            trials=len(runs),
            flops=sum(map(training_flops, runs)),
            bytes=max(map(training_bytes, runs)),
            seconds=_seconds_per_flop(runs[0], data) * sum(map(training_flops, runs)),
        )
        for (optimizer, width), runs in groups.items()
    ]


def _seconds_per_flop(run: RunConfig, data: TokenData, *, steps: int = 4) -> float:
    """Fastest of a few training steps on one core, over its FLOPs. The first step warms up."""
    from proxy_models.training import Training

    training = Training([run], data)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        training.step()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) * run.steps / training_flops(run)
