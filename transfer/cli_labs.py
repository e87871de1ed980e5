"""`mutransfer lab NAME`: studies with a known answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.console import emit_json, exit_statuses, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a study with a known answer, and compare.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write the numbers as JSON and the figure there.", show_default=False),
]


@app.command("least-squares")
def least_squares(
    seeds: Annotated[int, typer.Option(min=1, max=10, help="Starts, from the published one on.")] = 3,
    json: Json = False,
    out: Out = None,
) -> None:
    """Muon and its relatives on a 500 x 500 quadratic, against published counts. About a minute a seed."""
    with exit_statuses():
        import os

        import torch

        from analysis.figures.labs import descents as draw
        from transfer import tables
        from transfer.console import Progress
        from transfer.labs import least_squares as lab

        torch.set_num_threads(os.cpu_count() or 1)
        starts = [lab.SEEDS[0] + i for i in range(seeds)]
        work = sum(method.published_iterations for method in lab.METHODS)
        with Progress("least squares", work * seeds) as progress:
            descents = list(
                lab.descend_all(
                    starts, on_done=lambda d: progress.advance(d.published_iterations, f"{d.method}, seed {d.seed}")
                )
            )
        ordered = [seed for seed in starts if lab.in_published_order(descents, seed)]
        document = {
            "schema_version": 1,
            "goal": lab.GOAL,
            "descents": [descent.to_json() for descent in descents],
            "seeds_in_published_order": ordered,
        }
        curves = {m.name: [d.losses for d in descents if d.method == m.name] for m in lab.METHODS}
        published = {method.name: method.published_iterations for method in lab.METHODS}
        _write(out, "least_squares", document, draw(curves, published, lab.GOAL))
        if json:
            emit_json(document)
        else:
            tables.show_descents(descents)
            print(f"S-Muon, F-Muon < NSGD < Muon < SignSGD: in {len(ordered)} of {len(starts)} starts")


@app.command("newton-schulz")
def newton_schulz(
    steps: Annotated[int, typer.Option(min=1, max=30, help="Newton-Schulz steps.")] = 5,
    json: Json = False,
    out: Out = None,
) -> None:
    """Which singular values each schedule lifts, and how far."""
    with exit_statuses():
        from analysis.figures.labs import singular_value_maps
        from transfer import tables
        from transfer.labs.newton_schulz import schedule_maps

        maps = schedule_maps(steps)
        document = {"schema_version": 1, "schedules": [item.to_json() for item in maps]}
        figure = singular_value_maps({item.schedule: (item.singular_values, item.mapped) for item in maps})
        _write(out, "newton_schulz", document, figure)
        if json:
            emit_json(document)
        else:
            tables.show_schedules(maps)


@app.command("scale-memory")
def scale_memory(json: Json = False, out: Out = None) -> None:
    """Bytes of weights and states on Llama models, against the totals published with SCALE."""
    with exit_statuses():
        from transfer import tables
        from transfer.labs.scale_memory import totals

        cells = totals()
        document = {"schema_version": 1, "totals": [cell.to_json() for cell in cells]}
        _write(out, "scale_memory", document, None)
        if json:
            emit_json(document)
        else:
            tables.show_totals(cells)


def _write(out: Path | None, stem: str, document: Mapping[str, Any], figure: "Figure | None") -> None:
    if out is None:
        return
    import json

    from analysis import figures
    from transfer import folder as folders

    folders.write(out, f"{stem}.json", json.dumps(document, indent=1) + "\n")
    if figure is not None:
        figures.save(figure, out, stem)
    say(f"written to {out}")
