"""The report on runs made elsewhere: one self-contained page, the same in Markdown, and every figure as SVG and PNG."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.figures import imported as figures
from analysis.figures import save
from analysis.observed_fit import CellFit, ObservedFit, SeriesFit, short
from sweeps.importing import Import, read_import
from transfer import folder as folders
from transfer import imported, imported_tables
from transfer.console import say
from transfer.imported_plan import IMPORTED_PLAN_JSON, ImportedPlan, SeriesPlan
from transfer.report import REPORT, _environment, inline_svg
from transfer.report_figures import Drawn
from transfer.tables import estimate
from transfer.text_table import TextTable

_MOST_MAPS = 6  # loss maps, of the largest cells


def write_report(folder: Path) -> Path:
    """Write report/ from what the folder holds, and return the page. Fits anew; plans nothing.

    Raises:
        FitError, StoreError: nothing to fit, or no import.
    """
    read = read_import(folder)
    fit = imported.fit(folder)
    plan = read_plan(folder, read)
    out = folder / REPORT
    groups = [_group(series, fit, plan, out, stem) for series, stem in zip(fit.series, stems(fit), strict=True)]
    context = {**_context(read, fit, plan), "series": groups}
    for name, template, autoescape in (
        ("index.html", "imported.html.j2", True),
        ("report.md", "imported.md.j2", False),
    ):
        folders.write(out, name, _environment(autoescape=autoescape).get_template(template).render(context))
    return out / "index.html"


def read_plan(folder: Path, read: Import) -> ImportedPlan | None:
    """The folder's plan; one of other runs than these is left out, and said so."""
    file = folder / folders.PLAN
    try:
        plan = IMPORTED_PLAN_JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        say(f"{file} is not a plan of this version: left out. Run `mutransfer transfer`.")
        return None
    if plan.inputs_digest != read.digest:
        say(f"{file} was made from other runs than these: left out. Run `mutransfer transfer`.")
        return None
    return plan


def _context(read: Import, fit: ObservedFit, plan: ImportedPlan | None) -> dict[str, Any]:
    """Everything the templates need but the series' own."""
    cells = sum(len(series.cells) + len(series.skipped) for series in fit.series)
    return {
        "name": read.name,
        "target": None if plan is None else ", ".join(f"{name} {short(value)}" for name, value in plan.target.items()),
        "level": f"{fit.level:.0%}",
        "summary": (
            f"{len(read.frame)} runs of {', '.join(series.series for series in fit.series)}, made elsewhere, in "
            f"{cells} combinations of {' and '.join(fit.scales)}; {read.diverged} diverged."
        ),
        "headline": [] if plan is None else [_headline(series) for series in plan.series],
        "plan_table": None if plan is None else _plan_table(plan),
        "caveats": () if plan is None else plan.all_caveats,
        "provenance_table": TextTable(
            columns=("what", "value"),
            rows=(
                ("table of runs", read.source),
                ("SHA-256 of the table", read.source_sha256),
                ("rows, and left out of them", f"{read.rows}, {read.left_out}"),
                ("digest of table and map", read.digest),
                ("bootstrap draws of each cell", str(fit.n_bootstrap)),
            ),
            words=frozenset({0, 1}),
        ),
        "map_text": read.map_text,
    }


def _headline(plan: SeriesPlan) -> str:
    values = ", ".join(f"{h.name} {short(h.value)} (optimum within {imported_tables.span(h)})" for h in plan.hparams)
    return f"{plan.series}: {values}; expected excess {estimate(plan.expected_excess_loss, 4)} nats."


def _plan_table(plan: ImportedPlan) -> TextTable:
    rows = [
        (series.series, hparam.name, short(hparam.value), imported_tables.span(hparam), hparam.law)
        for series in plan.series
        for hparam in series.hparams
    ]
    return TextTable(
        columns=("series", "hyperparameter", "value", "optimum within", "law"),
        rows=tuple(rows),
        words=frozenset({0, 1, 4}),
    )


def stems(fit: ObservedFit) -> list[str]:
    """A file name's beginning for each series, none twice."""
    stems = [re.sub(r"[^A-Za-z0-9._-]+", "_", series.series) for series in fit.series]
    return [stem if stems.count(stem) == 1 else f"{stem}_{i}" for i, stem in enumerate(stems)]


def _group(series: SeriesFit, fit: ObservedFit, plan: ImportedPlan | None, out: Path, stem: str) -> dict[str, Any]:
    """One series' section, with its figures written to `out`."""
    planned = next((p for p in plan.series if p.series == series.series), None) if plan else None
    drawn = list(_draw(series, fit, planned, plan, stem)) if series.cells else []
    svgs = [(d, save(d.figure, out, d.stem)) for d in drawn]
    return {
        "name": series.series,
        "law_lines": imported_tables.law_lines(series),
        "optima_table": TextTable(
            columns=imported_tables.optimum_columns(fit),
            rows=tuple(imported_tables.optimum_row(cell) for cell in series.cells),
            words=frozenset({len(fit.scales) + len(fit.hps) + 2}),
        ),
        "flags": [*_flags(series.cells), *series.skipped],
        "figures": [{"stem": d.stem, "caption": d.caption, "svg": inline_svg(svg.read_text())} for d, svg in svgs],
    }


def _flags(cells: tuple[CellFit, ...]) -> Iterator[str]:
    """Each flag once, with the cells that have it."""
    for flag in dict.fromkeys(flag for cell in cells for flag in cell.flags):
        where = [cell.label for cell in cells if flag in cell.flags]
        yield ("Every cell" if len(where) == len(cells) else "; ".join(where)) + f": {flag.advice}"


def _draw(
    series: SeriesFit, fit: ObservedFit, planned: SeriesPlan | None, plan: ImportedPlan | None, stem: str
) -> Iterator[Drawn]:
    cells, target = series.cells, None
    if planned is not None and plan is not None:
        target = figures.PlannedPoint(
            scales=plan.target,
            log2_values=tuple(math.log2(hparam.value) for hparam in planned.hparams),
            intervals=tuple(hparam.log2_optimum.interval for hparam in planned.hparams),
        )
    yield Drawn(
        section="optima",
        stem=f"{stem}_optima",
        caption="The optimum of every cell against each scale, with the law fitted to all of them"
        + (" and the plan." if target else "."),
        figure=figures.optima_over_scales(fit.hps, cells, series.at if series.law else None, target),
    )
    if len(fit.hps) > 1:
        yield Drawn(
            section="optima",
            stem=f"{stem}_loss_maps",
            caption=f"Loss above the optimum's over {fit.hps[0]} and {fit.hps[1]}, at the largest cells.",
            figure=figures.loss_maps(fit.hps, cells[-_MOST_MAPS:]),
        )
    yield Drawn(
        section="optima",
        stem=f"{stem}_excess",
        caption="What missing the optimum of one hyperparameter costs, the others at the best value tried with it.",
        figure=figures.excess_curves(fit.hps, cells),
    )
