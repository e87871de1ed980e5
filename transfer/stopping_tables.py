"""What early stopping dropped, for the report: from records alone."""

import math
from collections.abc import Mapping, Sequence

from analysis.fit import SweepFit
from analysis.surface import Series, fields_of
from proxy_models.accounting import training_flops
from sweeps.stopping import SURE_ERRORS, Stop
from sweeps.trial import TrialResult
from transfer.tables import power_of_two
from transfer.text_table import TextTable

Stopped = Sequence[tuple[TrialResult, Stop]]


def stopping_summary(results: Sequence[TrialResult], stopped: Stopped) -> str:
    """How many trials were stopped, what that saved, and what is known of them; empty where none was."""
    if not stopped:
        return ""
    saved = sum(training_flops(result.trial.run) - result.flops for result, _ in stopped)
    spent = sum(result.flops for result in results) + sum(result.flops for result, _ in stopped)
    kept = sorted({f"{stop.keep_nats:g}" for _, stop in stopped})
    return (
        f"{len(stopped)} trials were stopped early, which saved {saved / (spent + saved):.1%} of the model FLOPs. "
        "Their losses are not known and not fitted. They would have ended more than "
        f"{' or '.join(kept)} nats above the best, if no more of a gap is made up than in the sweeps that the rule was "
        "tried on."
    )


def stopping_table(stopped: Stopped, labels: Mapping[str, str], fit: SweepFit) -> TextTable | None:
    """One row a learning rate, its seeds together; None where nothing was stopped."""
    if not stopped:
        return None
    rows = {(stop.line_id, stop.lr): _row(result, stop, labels, fit) for result, stop in stopped}
    return TextTable(
        columns=(
            "optimizer",
            "width",
            "lr",
            "best lr then",
            "after step",
            "of",
            "gap in training loss",
            f"gap less {SURE_ERRORS} errors",
            "threshold",
        ),
        rows=tuple(rows.values()),
    )


def _row(result: TrialResult, stop: Stop, labels: Mapping[str, str], fit: SweepFit) -> tuple[str, ...]:
    run, label, fields = result.trial.run, labels[result.trial_id], fields_of(result)
    varying = sorted({name for surface in fit.surfaces if surface.optimizer == label for name, _ in surface.fixed})
    return (
        str(Series(label, tuple((name, fields[name]) for name in varying))),
        str(run.model.width),
        power_of_two(math.log2(stop.lr)),
        power_of_two(math.log2(stop.best_lr)),
        str(stop.step),
        str(run.steps),
        f"{stop.gap:.3f}",
        f"{stop.gap - SURE_ERRORS * stop.gap_se:.3f}",
        f"{stop.threshold:.3f}",
    )
