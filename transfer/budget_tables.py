"""What `mutransfer plan --budget` prints and writes: rates with their sources, designs, the frontier."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.budget import Design, Frontier, excess_span
from transfer import folder as folders
from transfer.budget import BudgetPlan
from transfer.tables import flops, new_table, print_table

SCHEMA_VERSION = 1

_UNITS = {
    "alpha": "loss gap ~ width^-alpha",
    "loss_amplitude": "nats, loss gap",
    "beta": "optimum's distance from its limit ~ width^-beta",
    "optimum_amplitude": "octaves, that distance",
    "curvature": "nats/octave²",
    "gamma": "curvature ~ width^gamma",
    "noise": "nats, one run",
    "noise_octaves": "octaves, closer values share noise",
    "grid_error": "octaves of error an octave of spacing",
    "range_octaves": "octaves searched",
    "n_hps": "hyperparameters tuned together",
}
_AT_REFERENCE = ("loss_amplitude", "optimum_amplitude", "curvature")


def show_budget(plan: BudgetPlan) -> None:
    """All of it: the rates, the designs asked for, the frontier, what to paste, and what to doubt."""
    _show_rates(plan)
    _show_designs(plan)
    _show_frontier(plan)
    direct, transfer = plan.exponents
    over = "the limit of infinite width" if plan.target_width is None else f"width {plan.target_width}'s own optimum"
    print(f"Excess is the expected loss over {over}, at the optimum that the grid finds.")
    print(f"Far out, with the final width free: direct tuning ~ FLOPs^-{direct:.3f}, transfer ~ FLOPs^-{transfer:.3f} "
          "(arXiv:2512.22768).")  # fmt: skip
    for caveat in plan.caveats:
        print(f"caveat: {caveat}")
    for snippet in plan.snippets:
        print(f"\nto paste over the spec's own:\n\n{snippet}", end="")


def write_budget(plan: BudgetPlan, folder: Path) -> None:
    """budget.json, and the frontier as budget.svg and budget.png."""
    from analysis import figures
    from analysis.figures.budget import budget_frontier

    drawn = budget_frontier(
        (plan.direct, plan.transfer),
        plan.budgets,
        chosen=plan.designs,
        budget=plan.budget,
        wanted_excess=plan.wanted_excess,
        fixed_target=plan.target_width is not None,
    )
    folders.write(folder, "budget.json", json.dumps(to_json(plan), indent=1) + "\n")
    figures.save(drawn, folder, "budget")


def to_json(plan: BudgetPlan) -> dict[str, Any]:
    """A document for json.dumps. Losses in nats, costs in FLOPs, hyperparameters in octaves.

    Keys: `schema_version` 1; `sweep`, `optimizer`, `target_width`, `budget`, `wanted_excess` as asked (null where
    not); `rates` (each value, source, why, span; and `reference_width`, `band_nats`); `useful`; `exponents` of excess
    over FLOPs; `at_budget` and `cheapest`, a design with `runs`, `flops`, `excess_nats` and the `excess_span` over
    beta's, or null; `frontier`, for each budget the best design of either kind or null; `snippets`; `caveats`.
    """
    rates = {name: asdict(rate) for name, rate in plan.rates.named}
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(plan, name) for name in ("sweep", "optimizer", "target_width", "budget", "wanted_excess")},
        "rates": {**rates, "reference_width": plan.rates.reference_width, "band_nats": plan.rates.band_nats},
        "useful": plan.rates.useful,
        "exponents": dict(zip(("direct", "transfer"), plan.exponents, strict=True)),
        "at_budget": _design_json(plan.at_budget, plan),
        "cheapest": _design_json(plan.cheapest, plan),
        "frontier": [
            {"budget": budget} | {f.kind: _design_json(f.best(budget), plan) for f in (plan.direct, plan.transfer)}
            for budget in plan.budgets
        ],
        "snippets": list(plan.snippets),
        "caveats": list(plan.caveats),
    }


def _design_json(design: Design | None, plan: BudgetPlan) -> dict[str, Any] | None:
    if design is None:
        return None
    derived = {name: getattr(design, name) for name in ("runs", "flops", "excess_nats")}
    return {**asdict(design), **derived, "excess_span": excess_span(design, plan.rates)}


def _show_rates(plan: BudgetPlan) -> None:
    shown = new_table(f"{plan.sweep}, {plan.optimizer}: what the designs rest on", "rate", "value", "unit", "", "from")
    for name, rate in plan.rates.named:
        span = "" if rate.span is None else f" [{rate.span[0]:.2g}, {rate.span[1]:.2g}]"
        unit = _UNITS[name] + (f" at width {plan.rates.reference_width:g}" if name in _AT_REFERENCE else "")
        shown.add_row(name, f"{rate.value:.3g}{span}", unit, rate.source, rate.why)
    for column in shown.columns[2:]:
        column.justify = "left"
    print_table(shown)


def _show_designs(plan: BudgetPlan) -> None:
    labels = ["" if plan.budget is None else f"best at {plan.budget:.3g} FLOPs"]
    labels += ["" if plan.wanted_excess is None else f"cheapest to {plan.wanted_excess:g} nats"]
    asked = [(label, d) for label, d in zip(labels, (plan.at_budget, plan.cheapest), strict=True) if d is not None]
    shown = new_table("designs", "", *(label for label, _ in asked))
    rows = [_design_rows(design, plan) for _, design in asked]
    for name in rows[0]:
        shown.add_row(name, *(row[name] for row in rows))
    print_table(shown)


def _design_rows(design: Design, plan: BudgetPlan) -> dict[str, str]:
    span = excess_span(design, plan.rates)
    low_high = "" if span is None else f" [{span[0]:.2g}, {span[1]:.2g} over beta's span]"
    return {
        "kind": design.kind,
        "width tuned at": str(design.proxy_width),
        "final width": str(design.final_width),
        "values a hyperparameter": str(design.points),
        "spacing, octaves": f"{design.spacing_octaves:.2f}",
        "seeds": str(design.seeds),
        "runs of the grid": str(design.runs),
        "FLOPs, tuning": flops(design.tuning_flops),
        "FLOPs, final run": flops(design.final_flops),
        "FLOPs, both": flops(design.flops),
        "expected excess, nats": f"{design.excess_nats:.3g}{low_high}",
        "  of finite width": f"{design.width_nats:.2g}",
        "  of drift": f"{design.drift_nats:.2g}",
        "  of the grid's spacing": f"{design.grid_nats:.2g}",
        "  of noise": f"{design.noise_nats:.2g}",
    }


def _show_frontier(plan: BudgetPlan) -> None:
    shown = new_table(
        "frontier: least expected excess, nats", "budget, FLOPs",
        "direct", "width", "values x seeds", "transfer", "widths", "values x seeds",
    )  # fmt: skip
    for budget in plan.budgets:
        shown.add_row(f"{budget:.2e}", *_cells(plan.direct, budget), *_cells(plan.transfer, budget))
    print_table(shown)


def _cells(front: Frontier, budget: float) -> tuple[str, str, str]:
    design = front.best(budget)
    if design is None:
        return "-", "-", "-"
    widths = {"direct": f"{design.final_width}", "transfer": f"{design.proxy_width} -> {design.final_width}"}
    return f"{design.excess_nats:.3g}", widths[design.kind], f"{design.points} x {design.seeds}"
