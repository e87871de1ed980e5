"""What training took against what was predicted from a few steps."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from proxy_models.accounting import forward_flops_per_token
from sweeps.shape_plans import Plans, shape_id_of
from sweeps.trial import TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Trials of one optimizer and width that were trained in one mode."""

    optimizer: str
    width: int
    mode: str
    trials: int
    predicted_seconds: float | None  # for the steps that were taken; None where nothing was predicted in this mode
    actual_seconds: float  # of training, all workers
    flops_utilization: float  # of the worker's measured matmul peak; the median over trials

    @property
    def ratio(self) -> float | None:
        """Actual over predicted."""
        return None if self.predicted_seconds is None else self.actual_seconds / self.predicted_seconds


def timings(results: Iterable[TrialResult], labels: Mapping[str, str], plans: Plans) -> tuple[Timing, ...]:
    """One for each optimizer, by its label where a trial has one, width and mode, in the order of the results."""
    groups: dict[tuple[str, int, str], list[TrialResult]] = defaultdict(list)
    for result in results:
        if result.flops > 0:
            run = result.trial.run
            label = labels.get(result.trial_id, run.optimizer.name)
            groups[label, run.model.width, result.mode].append(result)
    return tuple(
        Timing(
            optimizer=optimizer,
            width=width,
            mode=mode,
            trials=len(group),
            predicted_seconds=_predicted(group, mode, plans),
            actual_seconds=sum(result.train_seconds for result in group),
            flops_utilization=median(result.flops_utilization for result in group),
        )
        for (optimizer, width, mode), group in groups.items()
    )


def _predicted(group: Iterable[TrialResult], mode: str, plans: Plans) -> float | None:
    seconds = 0.0
    for result in group:
        plan = plans.get(shape_id_of(result.trial))
        if plan is None or plan.mode.name != mode:
            return None
        seconds += plan.seconds_per_step_member * _steps_taken(result)
    return seconds


def _steps_taken(result: TrialResult) -> float:
    """Fewer than planned where a trial diverged, was stopped, or went on from another's state."""
    run = result.trial.run
    return result.flops / (3 * forward_flops_per_token(run.model) * run.hparams.batch_tokens)
