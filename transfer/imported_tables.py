"""What the commands print of runs made elsewhere: tables for people, on stdout."""

from typing import TYPE_CHECKING

from analysis.observed_fit import scatter, short
from transfer.tables import estimate, interval, new_table, print_table

if TYPE_CHECKING:
    from analysis.observed_fit import CellFit, ObservedFit, SeriesFit
    from analysis.scale_law import ScaleLaw
    from transfer.imported_plan import HparamPlan, ImportedPlan


def show_fit(fit: "ObservedFit") -> None:
    """Every cell's optimum, then the law over the scales, or why there is none."""
    for series in fit.series:
        shown = new_table(series.series, *optimum_columns(fit))
        for cell in series.cells:
            shown.add_row(*optimum_row(cell))
        print_table(shown)
        for line in law_lines(series):
            print(line)
        for reason in series.skipped:
            print(f"no optimum: {reason}")


def optimum_columns(fit: "ObservedFit") -> tuple[str, ...]:
    """Headings of `optimum_row`."""
    return (*fit.scales, *(f"{hp} [{fit.level:.0%} interval]" for hp in fit.hps), "loss", "points near", "flags")


def optimum_row(cell: "CellFit") -> tuple[str, ...]:
    """One cell's optimum as text."""
    places = [
        short(2.0**place) + ("" if low_high is None else f" [{short(2.0**low_high.low)}, {short(2.0**low_high.high)}]")
        for place, low_high in zip(cell.log2_values, cell.intervals, strict=True)
    ]
    flags = ", ".join([*(() if cell.in_law else ("left out",)), *(flag.value for flag in cell.flags)])
    near = f"{cell.alone.n_in_band} of {cell.alone.n_points}"
    return (*map(short, cell.scales.values()), *places, f"{cell.loss:.4f}", near, flags)


def law_lines(fit: "SeriesFit") -> tuple[str, ...]:
    """The law of each hyperparameter and the verdict, or why there are none."""
    if fit.law is None:
        return (f"no law over the scales: {fit.no_law}",)
    laws = [
        f"{hp} ~ {law_of(fit.law, hp)}, over {len(fit.fitted)} cells; optima scatter around it by {sd:.2f} octaves"
        for hp, sd in zip(fit.law.hps, scatter(fit.law), strict=True)
    ]
    return (*laws, fit.verdict.sentence if fit.verdict else f"No verdict on transfer: {fit.no_verdict}.")


def law_of(law: "ScaleLaw", hp: str) -> str:
    """The powers of the scales in one hyperparameter's law, with intervals."""
    powers = [power for power in law.powers if power.hp == hp]
    return " ".join(f"{power.scale}^({power.value:+.2f}{interval(power.interval, 2)})" for power in powers)


def show_plan(plan: "ImportedPlan") -> None:
    """Every series' hyperparameters with what to expect; what to doubt goes to stderr."""
    target = ", ".join(f"{name} {short(value)}" for name, value in plan.target.items())
    for series in plan.series:
        shown = new_table(f"{series.series} at {target}", "hyperparameter", "value", "optimum within", "law")
        for hparam in series.hparams:
            shown.add_row(hparam.name, short(hparam.value), span(hparam), hparam.law)
        print_table(shown)
        print(f"  expected loss {estimate(series.expected_loss, 4)}, expected excess over the target's own optimum "
              f"{estimate(series.expected_excess_loss, 4)} nats, from {series.cells} cells")  # fmt: skip


def span(hparam: "HparamPlan") -> str:
    """The interval of the optimum in the hyperparameter's own unit."""
    return f"{short(hparam.low)} to {short(hparam.high)}"
