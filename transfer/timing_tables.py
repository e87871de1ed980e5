"""Predicted and actual training time as the report's table."""

from collections.abc import Sequence

from analysis.timing import Timing
from transfer.console import duration
from transfer.text_table import TextTable


def timing_table(timings: Sequence[Timing]) -> TextTable | None:
    """One row an optimizer, width and mode; None without results."""
    if not timings:
        return None
    return TextTable(
        columns=("optimizer", "width", "mode", "trials", "predicted", "actual", "actual / predicted", "of matmul peak"),
        rows=tuple(_row(timing) for timing in timings),
        words=frozenset({0, 2}),
    )


def _row(timing: Timing) -> tuple[str, ...]:
    return (
        timing.optimizer,
        str(timing.width),
        timing.mode,
        str(timing.trials),
        "-" if timing.predicted_seconds is None else duration(timing.predicted_seconds),
        duration(timing.actual_seconds),
        "-" if timing.ratio is None else f"{timing.ratio:.2f}",
        f"{timing.flops_utilization:.0%}",
    )
