"""What commands print: tables for people, on stdout."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from transfer.console import duration, emit_json

if TYPE_CHECKING:
    from analysis.fit import SweepFit
    from analysis.interval import Interval
    from analysis.scale_study import ScaleStudy
    from transfer.costs import MemoryRow, SweepCost
    from transfer.gate import Gate
    from transfer.labs.least_squares import Descent
    from transfer.labs.newton_schulz import ScheduleMap
    from transfer.labs.scale_memory import Total
    from transfer.pack_check import PackCheck
    from transfer.pipeline import Status
    from transfer.plan import Estimate, TransferPlan
    from transfer.verification import Verification


WIDTH = 120  # columns, where stdout is no terminal that knows its own


def print_table(table: Table) -> None:
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table)


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def power_of_two(log2_value: float) -> str:
    """0.0221 (2^-5.50): a learning rate as people write it and as the fits see it."""
    return f"{2.0**log2_value:.3g} (2^{log2_value:.2f})"


def estimate(value: "Estimate | None", digits: int = 3) -> str:
    """2.041 [2.010, 2.078], or a hyphen."""
    if value is None:
        return "-"
    return f"{value.value:.{digits}f}" + interval(value.interval, digits)


def interval(value: "Interval | None", digits: int) -> str:
    """` [low, high]`, or nothing."""
    return f" [{value.low:.{digits}f}, {value.high:.{digits}f}]" if value else ""


def flops(value: float) -> str:
    """3.2e14, in FLOPs."""
    return f"{value:.2e}"


def size(value: float) -> str:
    """Bytes as 3.4 GB, 12 MB, 1.2 MB or 340 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if value >= unit:
            return f"{value / unit:.{0 if value >= 10 * unit and name == 'MB' else 1}f} {name}"
    return f"{value / 1e3:.0f} kB"


def show_costs(sweep: str, cost: "SweepCost") -> None:
    columns = ("width", "depth", "trials", "mode", "pack", "FLOPs", "memory a pack", "time of one worker")
    table = new_table(f"sweep {sweep}", "optimizer", *columns)
    for row in cost.rows:
        sizes = (str(row.width), str(row.depth), str(row.trials), row.mode, str(row.pack_size))
        table.add_row(row.optimizer, *sizes, flops(row.flops), size(row.pack_bytes), duration(row.seconds))
    table.add_section()
    trials = sum(row.trials for row in cost.rows)
    total_flops, seconds = sum(row.flops for row in cost.rows), sum(row.seconds for row in cost.rows)
    table.add_row("all", "", "", str(trials), "", "", flops(total_flops), "", duration(seconds))
    print_table(table)
    if cost.flops_saved:
        share = cost.flops_saved / total_flops
        print(f"Saved by trunks, which train once what trials share: {flops(cost.flops_saved)} FLOPs, {share:.0%}.")
    for mode, why in dict.fromkeys((row.mode, row.why) for row in cost.rows):
        print(f"{mode}: {why}")
    workers = f"{cost.workers} worker{'s' if cost.workers > 1 else ''}"
    print(f"With {workers} about {duration(cost.wall_seconds)}, by steps that were measured on this machine.")


def gate_json(gate: "Gate") -> dict[str, Any]:
    """Slopes that are not a number (an activation that overflowed) become null."""
    return {
        "schema_version": 1,
        "parametrization": gate.parametrization,
        "passed": gate.passed,
        "tolerance": gate.check.tolerance,
        "slopes": [
            {field: getattr(slope, field) for field in ("optimizer", "parametrization", "axis", "tap", "step")}
            | {"slope": slope.slope if math.isfinite(slope.slope) else None}
            for slope in gate.check.slopes
        ],
    }


def show_gate(gate: "Gate") -> None:
    """Every slope under the spec's parametrization, step by step; then the verdicts, and the contrast's."""
    slopes = [slope for slope in gate.check.slopes if slope.parametrization == gate.parametrization]
    steps = sorted({slope.step for slope in slopes})
    for optimizer, axis in dict.fromkeys((slope.optimizer, slope.axis) for slope in slopes):
        here = [slope for slope in slopes if (slope.optimizer, slope.axis) == (optimizer, axis)]
        by_place = {(slope.tap, slope.step): slope.slope for slope in here}
        sizes = ", ".join(map(str, sorted({point.size for point in gate.check.points if point.axis == axis})))
        title = f"{optimizer}, {gate.parametrization}: d log RMS(activation) / d log {axis} over {axis}s {sizes}"
        table = new_table(title, "activation", *("at the start" if step == 0 else f"step {step}" for step in steps))
        for tap in dict.fromkeys(slope.tap for slope in here):
            cells = (by_place.get((tap, step)) for step in steps)
            table.add_row(tap, *("-" if slope is None else f"{slope:+.2f}" for slope in cells))
        print_table(table)
    judged = dict.fromkeys((s.optimizer, s.parametrization, s.axis) for s in gate.check.slopes)
    for optimizer, parametrization, axis in judged:
        failures = [s for s in gate.check.failures(parametrization, axis) if s.optimizer == optimizer]
        steepest = "".join(f", steepest {s.tap} {s.slope:+.2f} after {s.step} steps" for s in failures[:1])
        flat = f"{len(failures)} activations not flat" if failures else "flat"
        over = f", over {axis}" if len(gate.check.axes) > 1 else ""
        print(f"{optimizer}, {parametrization}{over}: {flat}{steepest}")
    verdict = "passed" if gate.passed else "FAILED"
    cached = ", from an earlier run of the same check" if gate.from_cache else ""
    print(f"coordinate check {verdict} under '{gate.parametrization}' (tolerance {gate.check.tolerance:g}{cached})")


def show_status(status: "Status", *, as_json: bool) -> None:
    if as_json:
        emit_json(status.to_json())
        return
    table = new_table(f"sweep {status.sweep}", "trials", "")
    for name in ("planned", "completed", "diverged", "missing"):
        table.add_row(name, str(getattr(status, name)))
    if status.stopped:
        table.add_row("stopped early", str(status.stopped))
    if status.failed_attempts:
        table.add_row("missing, with a recorded failure", str(status.failed_attempts))
    table.add_row("training time, all workers", duration(status.train_seconds))
    print_table(table)
    if status.running:
        running = new_table("running now", "trial", "step", "of", "training loss")
        for one in status.running:
            running.add_row(one.trial_id, str(one.step), str(one.steps), f"{one.loss:.3f}")
        print_table(running)


def show_pack_checks(checks: "Sequence[PackCheck]") -> None:
    table = new_table(
        "recorded trials, trained again alone",
        "trial", "recorded in", "loss", "alone in", "loss", "relative difference", "tolerance", "",
    )  # fmt: skip
    for check in checks:
        cells = []
        for result in (check.recorded, check.alone):
            loss = result.validation_loss
            cells += [result.mode, "diverged" if loss is None else f"{loss:.6f}"]
        difference = f"{check.recorded.relative_difference(check.alone):.1e}"
        tolerance = f"{check.tolerance:.0e}" if check.tolerance else "bitwise"
        table.add_row(check.recorded.trial_id, *cells, difference, tolerance, "ok" if check.passed else "OUTSIDE")
    print_table(table)


def show_fit(fit: "SweepFit") -> None:
    from analysis.surface import Series

    table = new_table("optima", "optimizer", "width", "lr", "90% interval, log2", "loss", "nats/octave²", "flags")
    for o in fit.optima:
        flags = ", ".join(flag.value for flag in o.flags)
        low_high = interval(o.interval, 2).strip() or "-"
        row = (str(o.width), power_of_two(o.log2_value), low_high, f"{o.loss:.3f}", f"{o.curvature:.3f}", flags)
        table.add_row(str(o.series), *row)
    print_table(table)
    for drift in fit.drifts:
        print(f"{drift.series}: the optimum drifts by {drift.slope:+.2f}{interval(drift.slope_interval, 2)} octaves "
              f"an octave of width, {'resolved' if drift.resolved else 'not resolved from 0'}; "
              f"range {drift.range_octaves:.2f} octaves")  # fmt: skip
    for transfer in fit.transfers:
        print(f"{transfer.series}: {transfer.sentence}")
    for skipped in fit.skipped:
        where = "" if skipped.width is None else f" at width {skipped.width}"
        print(f"{Series(skipped.optimizer, skipped.fixed)}{where}: no {skipped.what}: {skipped.reason}")


def show_scales(study: "ScaleStudy | None") -> None:
    """Nothing where only width varies."""
    from transfer import scale_tables

    found = {
        "critical batch by steps to a loss": scale_tables.critical_table(study),
        "critical batch by branches": scale_tables.branches_table(study),
        "lr over scales": scale_tables.powers_table(study),
        "tokens of one optimizer over another's": scale_tables.ratio_table(study),
    }
    for title, text in found.items():
        if text is not None:
            table = new_table(title, *text.columns)
            for row in text.rows:
                table.add_row(*row)
            print_table(table)
    for lines in (scale_tables.law_lines, scale_tables.ratio_lines, scale_tables.warmup_lines,
                  scale_tables.noise_lines, scale_tables.timescale_lines, scale_tables.unmeasured_lines):  # fmt: skip
        for line in lines(study):
            print(line)


def show_plan(plan: "TransferPlan") -> None:
    from transfer import scale_tables

    print(f"plan for width {plan.target_width} ({plan.width_mult:g} x base width), {plan.n_params:,} non-embedding "
          f"parameters, {flops(plan.train_flops)} FLOPs")  # fmt: skip
    if plan.residual_multiplier != 1:
        print(f"depth {plan.target_depth} ({plan.depth_mult:g} x base depth): every residual branch times "
              f"{plan.residual_multiplier:.4g}")  # fmt: skip
    for optimizer in plan.optimizers:
        title = (
            f"{optimizer.optimizer}: lr {power_of_two(optimizer.log2_lr.value)} at base width, "
            f"expected loss {estimate(optimizer.expected_loss)}, "
            f"expected excess {estimate(optimizer.expected_excess_loss)}"
        )
        table = new_table(title, "role", "effective lr", "weight decay", "init", "forward multiplier")
        for name, role in optimizer.named_roles:
            row = (f"{role.effective_lr:.4g}", f"{role.weight_decay:g}", role.init, f"{role.forward_multiplier:g}")
            table.add_row(name, *row)
        print_table(table)
        if optimizer.settings:
            settings = new_table("", "setting", "value", "interval", "rests on")
            for setting in optimizer.settings:
                settings.add_row(setting.name, *scale_tables.setting_cells(setting), setting.rests_on)
            print_table(settings)
        print(f"  rests on {optimizer.rests_on}")
        if warmup := scale_tables.warmup_line(optimizer):
            print(f"  {warmup}")
        if optimizer.fast_transfer is not None:
            print(f"  {optimizer.fast_transfer.sentence}")
        if (same := optimizer.excess_equivalent) is not None:
            print(f"  the expected excess is worth {100 * same.width_share.value:.1f} % of the width, "
                  f"{100 * same.compute_share.value:.1f} % of the FLOPs")  # fmt: skip
        for caveat in optimizer.caveats:
            print(f"  caveat: {caveat}")
    for name, why in plan.not_planned:
        print(f"{name}: not planned: {why}")


def show_memory(rows: "Sequence[MemoryRow]") -> None:
    columns = ("optimizer", "width", "depth", "weights", "gradients", "states", "total")
    table = new_table("memory but for activations", *columns)
    for row in rows:
        parts = (row.memory.weights, row.memory.gradients, row.memory.states, row.memory.total)
        table.add_row(row.optimizer, str(row.width), str(row.depth), *map(size, parts))
    print_table(table)


def show_descents(descents: "Sequence[Descent]") -> None:
    seeds = list(dict.fromkeys(descent.seed for descent in descents))
    table = new_table("iterations", "method", "published", *(f"seed {seed}" for seed in seeds))
    for method in dict.fromkeys(descent.method for descent in descents):
        mine = [descent for descent in descents if descent.method == method]
        cells = [
            f"not reached: {min(d.losses):.1e}" if d.deviation is None else f"{d.iterations} ({d.deviation:+.1%})"
            for d in mine
        ]
        table.add_row(method, str(mine[0].published_iterations), *cells)
    print_table(table)


def show_schedules(maps: "Sequence[ScheduleMap]") -> None:
    table = new_table(
        f"Newton-Schulz, {maps[0].n_steps} steps: the smallest singular value from which on all end at least at",
        "schedule", "slope at 0", "0.5", "0.7", "0.9", "at most",
    )  # fmt: skip
    for item in maps:
        lifted = ["never" if value is None else f"{value:.2e}" for value in item.smallest_lifted]
        table.add_row(item.schedule, f"{item.slope_at_zero:.4g}", *lifted, f"{item.largest:.2f}")
    print_table(table)


def show_totals(totals: "Sequence[Total]") -> None:
    table = new_table("weights and states in bfloat16, GB", "optimizer", "model", "parameters", "here", "published")
    for cell in totals:
        numbers = (f"{cell.parameters / 1e6:,.1f}M", f"{cell.stored_gb:.3f}", f"{cell.published_gb:.2f}")
        table.add_row(cell.optimizer, cell.model, *numbers)
    print_table(table)


def show_verification(verified: "Verification") -> None:
    table = new_table(
        f"measured at width {verified.target_width}",
        "optimizer", "lr x 1/2", "planned lr", "lr x 2", "optimum", "excess over the best", "in predicted interval",
    )  # fmt: skip
    for optimizer in verified.optimizers:
        losses = ["diverged" if point.mean_loss is None else f"{point.mean_loss:.3f}" for point in optimizer.measured]
        excess = "-" if optimizer.excess_loss is None else f"{optimizer.excess_loss:.3f} nats"
        inside = {True: "yes", False: "no", None: "-"}[optimizer.in_interval]
        optimum = "-" if optimizer.log2_optimum is None else f"2^{optimizer.log2_optimum:.2f}"
        table.add_row(optimizer.optimizer, *losses, optimum, excess, inside)
    print_table(table)
