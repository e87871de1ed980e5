"""What the labs about fast transfer print, on stdout."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfer.tables import interval, new_table, power_of_two, print_table

if TYPE_CHECKING:
    from analysis.fast_transfer import FastTransfer
    from transfer.labs.linear_network import Outcome
    from transfer.labs.relu_ball import Study
    from transfer.labs.rf_ridge import Row, Window


def show_rf_ridge(rows: "Sequence[Row]", limit: "tuple[float, float]", windows: "Sequence[Window]") -> None:
    """Every width's optimum and gaps, then the verdicts; `limit` is penalty and risk at infinite width."""
    shown = new_table(
        "random-features ridge", "psi2", "best penalty", "risk", "a, loss gap", "b, of the penalty", "c, cost"
    )
    for row in rows:
        gaps = (f"{gap:.3e}" for gap in (row.loss_gap, row.hp_gap, row.transfer_gap))
        shown.add_row(str(row.width), f"{row.penalty:.6f}", f"{row.risk:.6f}", *gaps)
    shown.add_row("infinite", f"{limit[0]:.6f}", f"{limit[1]:.6f}", "", "", "")
    print_table(shown)
    for window in windows:
        a, b, c = window.true_slopes
        print(f"psi2 {window.first} to {window.last}: slopes a {a:+.3f}, b {b:+.3f}, c {c:+.3f}, "
              f"beta - alpha/2 = {a / 2 - b:+.2f}")  # fmt: skip
        print(f"  a sweep's fits there: {_exponents(window.transfer)}")
        print(f"  {window.transfer.sentence}")


def show_linear_networks(outcomes: "Sequence[Outcome]") -> None:
    for outcome in outcomes:
        case, gaps = outcome.case, outcome.transfer.gaps
        title = f"{case.name}, T = {case.steps}: medians of {outcome.a.shape[1]} draws"
        shown = new_table(title, "width", "a, loss gap", "b, octaves", "c, cost", "c/a")
        for gap, ratio in zip(gaps, outcome.ratios, strict=True):
            values = (f"{part.value:.3e}" for part in (gap.loss, gap.hp, gap.transfer))
            shown.add_row(f"{gap.width:.0f}", *values, f"{ratio:.3f}")
        shown.add_row("slope", *(f"{slope:+.2f}" for slope in outcome.slopes), "")
        shown.add_row("expected", *(f"{slope:+.2f}" for slope in case.expected), "")
        print_table(shown)
        print(f"{outcome.transfer.sentence}")


def show_relu_ball(study: "Study") -> None:
    title = f"two-layer ReLU network on a ball's indicator, {study.steps} steps"
    shown = new_table(title, "width", "best lr", "90% interval, log2", "loss", "nats/octave²", "flags")
    for o in study.optima:
        flags = ", ".join(flag.value for flag in o.flags)
        row = (
            power_of_two(o.log2_value),
            interval(o.interval, 2).strip() or "-",
            f"{o.loss:.4f}",
            f"{o.curvature:.4f}",
        )
        shown.add_row(str(o.width), *row, flags)
    print_table(shown)
    if study.transfer is None:
        print(f"no verdict: {study.no_verdict}")
    else:
        print(f"{_exponents(study.transfer)}; published at 2^14 steps: alpha 0.742, beta 0.388")
        print(f"{study.transfer.sentence}")


def _exponents(found: "FastTransfer") -> str:
    return ", ".join(
        f"{name} {part.value:.2f}{interval(part.interval, 2)}"
        for name, part in (("alpha", found.alpha), ("beta", found.beta), ("kappa", found.kappa))
    )
