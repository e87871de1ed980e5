"""What `mutransfer lab trajectory` prints, on stdout."""

import math
from typing import TYPE_CHECKING

from transfer.tables import new_table, print_table

if TYPE_CHECKING:
    from analysis.trajectory import TrajectoryStudy
    from transfer.labs.trajectory import Outcome


def show(outcome: "Outcome") -> None:
    """Every run and how nearly its parts add up, then the optima of fixed k, the selected k and the verdict."""
    _show_runs(outcome)
    _show_optima(outcome.study)
    for selection in outcome.study.selections:
        k = ", ".join(map(str, selection.k))
        print(f"width {selection.width} against {selection.largest}: k by lr {k}"
              f"{'' if selection.found else ' (does not satisfy the limits)'}")  # fmt: skip
    print(outcome.study.verdict)


def _show_runs(outcome: "Outcome") -> None:
    shown = new_table(
        f"trajectories of {outcome.optimizer}", "width", "log2 lr", "loss", "change", "parts' sum", "error"
    )
    for item, error in zip(outcome.decompositions, outcome.errors, strict=True):
        model, lr = item.run.model, item.run.hparams.lr
        losses = (f"{item.losses[-1]:.4f}", f"{item.change:.4f}", f"{item.linearized:.4f}", f"{error:+.4f}")
        shown.add_row(str(model.width), f"{math.log2(lr):g}", *losses)
    print_table(shown)
    for run in outcome.diverged:
        print(f"diverged: width {run.model.width}, lr {run.hparams.lr:.3g}, seed {run.seed}")


def _show_optima(study: "TrajectoryStudy") -> None:
    widths = (f"width {curves.width}" for curves in study.curves)
    shown = new_table("optima over log2 lr, for a k that is the same at every lr", "k", *widths, "spread, octaves")
    powers = [item for item in study.fixed if item.k is not None and item.k & (item.k - 1) == 0]
    for item in (*powers, study.total):
        places = (f"{place.log2_value:.2f}{' (edge)' if place.at_edge else ''}" for place in item.places)
        spread = "-" if item.spread_octaves is None else f"{item.spread_octaves:.2f}"
        shown.add_row("all" if item.k is None else str(item.k), *places, spread)
    print_table(shown)
