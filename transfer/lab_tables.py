"""What the labs about fast transfer print, on stdout."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfer.tables import interval, new_table, power_of_two, print_table

if TYPE_CHECKING:
    from analysis.fast_transfer import FastTransfer
    from analysis.interval import Interval
    from transfer.labs import muon_digits, noisy_quadratic
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


def show_noisy_quadratic(studies: "Sequence[noisy_quadratic.Study]") -> None:
    """Batches in examples; every batch's noise scale over B_c, then what each target's curve says."""
    shown = new_table(
        "noisy quadratic, 500 dimensions: examples are tokens", "loss", "batch", "best lr", "steps", "examples",
        "noise scale", "over B_c",
    )  # fmt: skip
    for study in studies:
        for cell, ratio in zip(study.cells, study.noise_ratios, strict=True):
            numbers = (f"{cell.lr:.4f}", f"{cell.steps:,.1f}", f"{cell.examples:,.0f}", f"{cell.noise_scale:,.0f}")
            shown.add_row(f"{study.target:g}", str(cell.batch), *numbers, f"{ratio:.1f}")
        shown.add_section()
    print_table(shown)
    for study in studies:
        critical, ratios = study.critical_batch, study.noise_ratios
        print(
            f"loss {study.target:g}: B_c {critical:.1f} examples (hyperbola: twice E_min), "
            f"log residuals up to {study.largest_log_residual:.3f}"
        )
        print(
            f"  20 % above the hyperbola's E_min at {study.overhead_batch / critical:.2f} B_c (on the hyperbola 0.20), "
            f"above the fewest examples measured at {study.overhead_batch_measured / critical:.2f} B_c"
        )
        print(
            f"  slope of log lr over log batch {study.slope_below:.2f} below B_c/8, {study.slope_above:.2f} above 8 B_c"
        )
        print(f"  tr(Sigma)/|G|^2 is {min(ratios):.1f} to {max(ratios):.1f} times B_c: not an absolute critical batch")


def show_muon_digits(study: "muon_digits.Study") -> None:
    """b* at each fixed learning rate, the hyperbola at tuned ones, then ratios predicted and measured."""
    from transfer.labs.muon_digits import short

    shown = new_table(
        f"Muon on digits, one lr for all batches: the batch with the fewest examples ({study.n_seeds} seeds)",
        "setting", "lr", "fitted b*", "measured", "nothing up to", "AIC - hyperbola's",
    )  # fmt: skip
    for part in study.fixed:
        row = ["-", "-", "-", "-"]
        if part.measured is not None:
            edge = " (edge)" if part.measured.edge else interval(part.measured_interval, 1)
            row[1] = f"{part.measured.batch:.1f}{edge}"
        if part.fit is not None:
            fit = part.fit
            row[0] = f"{fit.form.best_batch:.1f}{interval(fit.interval, 1)}"
            row[2:] = [f"{fit.form.smallest_batch:.1f}", f"{fit.aic_over_hyperbola:+.1f}"]
        shown.add_row(short(part.setting), f"{part.lr:g}", *row)
    print_table(shown)
    without: dict[str, list[str]] = {}
    for part in study.fixed:
        if part.no_fit is not None:
            without.setdefault(part.no_fit, []).append(f"{short(part.setting)}, lr {part.lr:g}")
    for reason, parts in without.items():
        print(f"no fit ({'; '.join(parts)}): {reason}")
    _show_tuned(study)
    _show_ratios(study)
    print("What agrees, what does not, what is not resolved:")
    for sentence in study.sentences:
        print(f"  {sentence}")
    print(study.caveat.capitalize())


def _show_tuned(study: "muon_digits.Study") -> None:
    from transfer.labs.muon_digits import short

    shown = new_table(
        "lr tuned at each batch: the hyperbola's B_c, where examples are twice their minimum",
        "setting", "B_c", "20% more at", "batches", "lr exponent",
    )  # fmt: skip
    for part in study.tuned:
        row = ["-", "-"]
        if part.fit is not None:
            value = f"{part.fit.critical_batch_tokens:.3g}{_wide(part.interval)}"
            row = [value, f"{part.fit.overhead_batch():.3g}"] if part.resolved else ["not resolved", "-"]
        used = f"{part.batches[0]} to {part.batches[-1]}" if part.batches else "none"
        exponent = "-" if part.lr_exponent is None else f"{part.lr_exponent:.2f}"
        shown.add_row(short(part.setting), *row, used, exponent)
    print_table(shown)
    print("(batches where the best lr is inside the grid; the theory's lr exponent is 0.5)")


def _show_ratios(study: "muon_digits.Study") -> None:
    shown = new_table("b* over the reference's", "change", "lr", "predicted", "measured", "better form")
    for part in study.comparisons:
        predicted = f"{part.predicted.older:.2f}"
        if part.predicted.contested:
            newer = "-" if part.predicted.newer is None else f"{part.predicted.newer:.2f}"
            predicted = f"newer {newer}, older {predicted}"
        measured = "-" if part.measured is None else f"{part.measured:.2f}{interval(part.interval, 2)}"
        form = "" if part.measured is None else "the bound's" if part.supported else "hyperbola"
        shown.add_row(part.label, f"{part.lr:g}", predicted, measured, form)
    print_table(shown)


def _wide(value: "Interval | None") -> str:
    """An interval over orders of magnitude."""
    return "" if value is None else f" [{value.low:.3g}, {value.high:.3g}]"


def _exponents(found: "FastTransfer") -> str:
    return ", ".join(
        f"{name} {part.value:.2f}{interval(part.interval, 2)}"
        for name, part in (("alpha", found.alpha), ("beta", found.beta), ("kappa", found.kappa))
    )
