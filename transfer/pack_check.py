"""What `--check-pack` asks: do recorded trials, trained again alone by the eager loop, give what is recorded?

Trains in this process and records nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy_models.accounting import training_flops
from proxy_models.mode import Mode, mode_from_name
from sweeps.pack import shape_of
from sweeps.trial import Trial, TrialResult
from transfer import folder as folders
from transfer.console import Progress
from transfer.pipeline import load_tokens, read_recorded

if TYPE_CHECKING:
    from proxy_models.data import TokenData


class PackCheckError(RuntimeError):
    """Trials whose recorded numbers are not those of the trials alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackCheck:
    """A recorded trial, and what it gives alone."""

    recorded: TrialResult
    alone: TrialResult

    @property
    def passed(self) -> bool:
        return self.recorded.same_numbers(self.alone)

    @property
    def tolerance(self) -> float:
        """Of the loss, as a fraction of it; 0 asks for the same bits, of the curve too."""
        if self.recorded.mode == self.alone.mode and mode_from_name(self.alone.mode).executor == "loop":
            return 0.0
        return max(self.recorded.loss_tolerance, self.alone.loss_tolerance)

    def to_json(self) -> dict[str, Any]:
        """Losses in nats per token, null where a trial diverged, and their difference null where one did."""
        one, other = self.recorded.validation_loss, self.alone.validation_loss
        return {
            "trial_id": self.recorded.trial_id,
            "recorded": {"mode": self.recorded.mode, "status": self.recorded.status.value, "validation_loss": one},
            "alone": {"mode": self.alone.mode, "status": self.alone.status.value, "validation_loss": other},
            "relative_difference": (
                None if (one is None) != (other is None) else self.recorded.relative_difference(self.alone)
            ),
            "tolerance": self.tolerance,
            "passed": self.passed,
        }


def check_pack(folder: Path, n: int) -> tuple[PackCheck, ...]:
    """Train so many of a sweep's recorded trials again, each alone, in every mode that says something of it."""
    from sweeps.worker import prepare_process

    spec = folders.read_spec(folder)
    data = load_tokens(spec)
    prepare_process()
    todo = [
        (recorded, mode)
        for recorded in chosen(read_recorded(folder, spec).results, n)
        for mode in modes_alone(mode_from_name(recorded.mode))
    ]
    checks = []
    with Progress("trials alone", sum(training_flops(recorded.trial.run) for recorded, _ in todo)) as progress:
        for recorded, mode in todo:
            checks.append(PackCheck(recorded=recorded, alone=_train_alone(recorded.trial, mode, data)))
            progress.advance(training_flops(recorded.trial.run), f"{len(checks)} of {len(todo)}")
    return tuple(checks)


def chosen(results: Sequence[TrialResult], n: int) -> tuple[TrialResult, ...]:
    """So many results, the same ones each time: one of each shape in turn, and after the first one that diverged.

    The lowest losses and the earliest divergences come first: what decides, and what rounding decides least.
    """
    diverged = sorted((r for r in results if r.diverged_step is not None), key=lambda r: r.diverged_step or 0)
    shapes: dict[Trial, list[TrialResult]] = {}
    for result in results:
        if result.validation_loss is not None:
            shapes.setdefault(shape_of(result.trial), []).append(result)
    ranked = [sorted(group, key=lambda result: result.validation_loss or 0.0) for group in shapes.values()]
    completed = [result for turn in zip_longest(*ranked) for result in turn if result is not None]
    return (*completed[:1], *diverged[:1], *completed[1:], *diverged[1:])[:n]


def modes_alone(recorded: Mode) -> tuple[Mode, ...]:
    """The eager loop on the same device, and where the trial was in another loop, that too, for its bits."""
    eager = replace(recorded, executor="loop", compiled=False)
    return (eager,) if recorded.executor == "stacked" or recorded == eager else (eager, recorded)


def refuse_failure(checks: Sequence[PackCheck]) -> None:
    """Raises PackCheckError if a check did not pass."""
    failed = [check for check in checks if not check.passed]
    if failed:
        raise PackCheckError(
            f"{len(failed)} of {len(checks)} checked trials do not give alone what is recorded, among them "
            f"{failed[0].recorded.trial_id} ({failed[0].recorded.mode}). What is recorded stays. Far above the "
            "best learning rate training is chaotic, and rounding alone moves a loss so far. If it is not that, and "
            "this machine trained them, choose another mode in the spec's [engine], and start anew with --fresh."
        )


def _train_alone(trial: Trial, mode: Mode, data: "TokenData") -> TrialResult:
    from proxy_models.train import Job, train
    from sweeps.worker import result_of

    [(_, outcome)] = train([Job(run=trial.run)], data, mode=mode)
    return result_of(trial, outcome)
