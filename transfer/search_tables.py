"""The stages of a search as the report's table."""

from collections.abc import Sequence

from sweeps.stages import Stage
from transfer.tables import power_of_two
from transfer.text_table import TextTable


def stages_table(stages: Sequence[Stage]) -> TextTable | None:
    """One row a stage, in the order of optimizers and then of planning; None where nothing was planned from results.

    Windows are of lr at base width, the spacing is in octaves.
    """
    if not stages:
        return None
    return TextTable(
        columns=("optimizer", "width", "stage", "learning rates", "from", "to", "spacing", "why"),
        rows=tuple(_row(stage) for stage in stages),
        words=frozenset({0, 2, 7}),
    )


def _row(stage: Stage) -> tuple[str, ...]:
    window = (power_of_two(stage.low), power_of_two(stage.high))
    return (
        stage.optimizer,
        str(stage.width),
        stage.kind,
        str(len(stage.lrs)),
        *window,
        f"{stage.spacing:.3g}",
        stage.why,
    )
