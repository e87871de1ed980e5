"""A trial, its identity, and its result."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from proxy_models.config import RunConfig
from proxy_models.mode import EAGER_LOOP, loss_tolerance, mode_from_name

# Raise when a change to the training code changes a trial's numbers: old results are then not reused.
NUMERICS_VERSION = 1


class TrialStatus(Enum):
    """How a trial ended."""

    COMPLETED = "completed"  # has a loss
    DIVERGED = "diverged"  # evidence about its hyperparameters: kept, never retried
    STOPPED = "stopped"  # early, as surely worse than others: no result of the ledger, its loss is not known
    FAILED = "failed"  # a lost worker, out of memory: evidence about nothing, retried, never fitted


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, shortest floats, NaN and infinity refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_hash(run: Mapping[str, Any], data_fingerprint: str, numerics_version: int) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of all that determines a trial's numbers.

    `run` is a `RunConfig.identity()`.
    """
    identity = {"run": run, "data": data_fingerprint, "numerics": numerics_version}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run on one data set. Paths, devices, pack sizes and names are not part of it."""

    run: RunConfig
    data_fingerprint: str

    @property
    def trial_id(self) -> str:
        """Sixteen hex digits; equal for equal runs on equal data, however their numbers were typed."""
        return identity_hash(self.run.identity(), self.data_fingerprint, NUMERICS_VERSION)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What a trial gave. Losses in nats per token; a missing loss is None, never NaN."""

    trial: Trial
    status: TrialStatus
    validation_loss: float | None = None
    validation_loss_se: float | None = None  # standard error over held-out sequences
    diverged_step: int | None = None
    curve_steps: tuple[int, ...] = ()
    curve_losses: tuple[float, ...] = ()  # smoothed training loss
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    flops: float = 0.0  # model FLOPs of the training steps taken
    flops_utilization: float = 0.0  # flops per second over this worker's measured matmul peak
    mode: str = EAGER_LOOP.name  # how its arithmetic was done: a Mode's name
    error: str = ""  # of a FAILED trial
    provenance: Mapping[str, str] | None = None  # versions and hardware of the worker

    def __post_init__(self) -> None:
        mode_from_name(self.mode)
        has_loss = self.validation_loss is not None and math.isfinite(self.validation_loss)
        if has_loss != (self.status is TrialStatus.COMPLETED):
            raise ValueError(f"a loss goes with COMPLETED and nothing else, got {self.status} {self.validation_loss}")
        if (self.diverged_step is not None) != (self.status is TrialStatus.DIVERGED):
            raise ValueError(
                f"a divergence step goes with DIVERGED and nothing else, got {self.status} {self.diverged_step}"
            )

    @property
    def trial_id(self) -> str:
        return self.trial.trial_id

    def same_numbers(self, other: "TrialResult") -> bool:
        """Whether both say the same about everything but speed and hardware.

        Bit for bit where both come from one mode that is a loop; else the losses, to within the modes' tolerance.
        """
        if self.mode == other.mode and mode_from_name(self.mode).executor == "loop":
            return self._same_bits(other)
        return self.status is other.status and (
            self.relative_difference(other) <= max(self.loss_tolerance, other.loss_tolerance)
        )

    @property
    def loss_tolerance(self) -> float:
        """How far its losses may lie from those of the eager loop, as a fraction of them."""
        return loss_tolerance(mode_from_name(self.mode))

    def relative_difference(self, other: "TrialResult") -> float:
        """Of the validation losses, as a fraction of this one's; 0 where neither has one, infinite where one has."""
        if self.validation_loss is None or other.validation_loss is None:
            return 0.0 if self.validation_loss is other.validation_loss else math.inf
        return abs(self.validation_loss - other.validation_loss) / abs(self.validation_loss)

    def _same_bits(self, other: "TrialResult") -> bool:
        return (
            self.status is other.status
            and self.validation_loss == other.validation_loss
            and self.validation_loss_se == other.validation_loss_se
            and self.diverged_step == other.diverged_step
            and self.curve_steps == other.curve_steps
            and self.curve_losses == other.curve_losses
        )
