"""What workers are at: one small file each, `progress/<worker>.json`, replaced every few seconds.

For people who watch, not for the record: a file may be lost, stale or of a worker that was killed, and nothing that
counts is read from it. Imports torch only where it reports.
"""

import contextlib
import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.files import replace_unsynced
from sweeps.trial import Trial

if TYPE_CHECKING:
    from proxy_models.outcome import Smoothed

SCHEMA_VERSION = 1
WRITE_SECONDS = 2.0  # between a worker's reports, and before its first
STALE_SECONDS = 30.0
CURVE_POINTS = 100  # at most


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningTrial:
    """How far one trial is on a worker, and what it has shown there. Losses are smoothed, nats per token."""

    trial_id: str
    step: int  # updates done
    steps: int  # in all
    loss: float
    curve_steps: tuple[int, ...]
    curve_losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerProgress:
    """One worker's pack."""

    time: float  # of the report, seconds since 1970
    trial_ids: tuple[str, ...]  # of the whole pack
    running: tuple[RunningTrial, ...]


def read_progress(folder: Path, *, now: Callable[[], float] = time.time) -> tuple[WorkerProgress, ...]:
    """What the workers of a results folder are at, as of the last seconds. What cannot be read is left out."""
    found = [_read(file) for file in sorted((folder / "progress").glob("[!.]*.json"))]
    return tuple(one for one in found if one is not None and now() - one.time <= STALE_SECONDS)


def _read(file: Path) -> WorkerProgress | None:
    try:
        values = json.loads(file.read_bytes())
        running = tuple(_running(one) for one in values["running"])
        return WorkerProgress(time=float(values["time"]), trial_ids=tuple(values["trial_ids"]), running=running)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _running(values: dict[str, Any]) -> RunningTrial:
    return RunningTrial(
        trial_id=values["trial_id"],
        step=values["step"],
        steps=values["steps"],
        loss=values["loss"],
        curve_steps=tuple(values["curve_steps"]),
        curve_losses=tuple(values["curve_losses"]),
    )


@dataclass(slots=True, eq=False)
class _Curve:
    """One trial's losses as they come."""

    trial_id: str
    steps: int
    smooth: "Smoothed"
    every: int
    step: int = 0
    curve_steps: list[int] = field(default_factory=list)
    curve_losses: list[float] = field(default_factory=list)

    def add(self, done: int, loss: float) -> None:
        self.step = done
        self.smooth.add(loss)
        if done % self.every == 0:
            self.curve_steps.append(done)
            self.curve_losses.append(self.smooth.value)

    def to_json(self) -> dict[str, Any]:
        """The fields of a RunningTrial."""
        return {
            "trial_id": self.trial_id,
            "step": self.step,
            "steps": self.steps,
            "loss": self.smooth.value,
            "curve_steps": self.curve_steps,
            "curve_losses": self.curve_losses,
        }


class Reporter:
    """Writes this process's file while it trains a pack, and removes it at the end.

    A report that cannot be written is not written: training goes on.
    """

    def __init__(self, folder: Path, trials: Sequence[Trial], *, now: Callable[[], float] = time.time) -> None:
        self.file = folder / "progress" / f"{_worker_id()}.json"
        self.trial_ids, self.now = tuple(trial.trial_id for trial in trials), now
        self.due = now() + WRITE_SECONDS
        self.group: Sequence[Trial] = ()
        self.curves: dict[int, _Curve] = {}  # by member, of those that train

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)

    def begin(self, group: Sequence[Trial]) -> None:
        """From now on members are those of another group."""
        self.group = group
        self.curves.clear()

    def on_step(self, member: int, done: int, loss: float) -> None:
        """A member's loss. Called at every step of every member, so it does next to nothing."""
        curve = self.curves.get(member) or self._start(member)
        curve.add(done, loss)
        if self.now() >= self.due:
            self._write()

    def finish(self, member: int) -> None:
        """A member trains no more."""
        self.curves.pop(member, None)

    def _start(self, member: int) -> _Curve:
        from proxy_models.outcome import CURVE_EMA_STEPS, Smoothed

        trial = self.group[member]
        steps = trial.run.steps
        every = math.ceil(steps / CURVE_POINTS)
        self.curves[member] = _Curve(trial.trial_id, steps, Smoothed(CURVE_EMA_STEPS), every)
        return self.curves[member]

    def _write(self) -> None:
        running = [curve.to_json() for curve in self.curves.values() if math.isfinite(curve.smooth.value)]
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "time": self.now()}
        document |= {"trial_ids": self.trial_ids, "running": running}
        with contextlib.suppress(OSError):
            replace_unsynced(self.file, json.dumps(document).encode())
        self.due = self.now() + WRITE_SECONDS


@lru_cache(maxsize=1)
def _worker_id() -> str:
    """This process's, without naming the machine."""
    return secrets.token_hex(8)
