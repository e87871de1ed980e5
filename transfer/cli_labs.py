"""`mutransfer lab NAME`: studies with a known answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer import cli_muon_digits, cli_noisy_quadratic, cli_trajectory
from transfer.console import emit_json, exit_statuses, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a study with a known answer, and compare.",
)

cli_trajectory.register(app)
cli_noisy_quadratic.register(app)
cli_muon_digits.register(app)

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


@app.command("rf-ridge")
def rf_ridge(json: Json = False, out: Out = None) -> None:
    """Random-features ridge regression, solved exactly: fast transfer, and small widths that would mislead."""
    with exit_statuses():
        import math
        from dataclasses import asdict

        import numpy as np

        from analysis.figures.fast_labs import GapPanel, gaps_against_width
        from transfer import lab_tables
        from transfer.labs import rf_ridge as lab

        rows, limit, rng = lab.rows(), lab.best(math.inf), np.random.default_rng(0)
        windows = [lab.window(first, last, rng=rng) for first, last in lab.WINDOWS]
        document = {
            "schema_version": 1,
            "limit": {"penalty": limit[0], "risk": limit[1], "curvature": lab.curvature_in_the_limit()},
            "rows": [asdict(row) for row in rows],
            "windows": [window.to_json() for window in windows],
        }
        panels = [
            GapPanel(
                title=f"fitted over psi2 {window.first} to {window.last}: {window.transfer.verdict.value}",
                widths=tuple(row.width for row in rows),
                gaps=tuple(zip(*((row.loss_gap, row.hp_gap, row.transfer_gap) for row in rows), strict=True)),
                slopes=window.true_slopes,
                first=window.first,
                last=window.last,
            )
            for window in windows
        ]
        figure = gaps_against_width(panels, width_label="width, psi2 = features / dimensions", hp_unit="the penalty")
        _write(out, "rf_ridge", document, figure)
        if json:
            emit_json(document)
        else:
            lab_tables.show_rf_ridge(rows, limit, windows)


@app.command("linear-network")
def linear_network(
    draws: Annotated[int, typer.Option(min=20, max=100_000, help="Initializations a width.")] = 1000,
    json: Json = False,
    out: Out = None,
) -> None:
    """A shallow linear network with known limits: fast transfer, and data on which it is not."""
    with exit_statuses():
        import numpy as np

        from analysis.figures.fast_labs import GapPanel, gaps_against_width
        from transfer import lab_tables
        from transfer.console import Progress
        from transfer.labs import linear_network as lab

        outcomes = []
        with Progress("linear network", len(lab.CASES)) as progress:
            for case in lab.CASES:
                outcomes.append(lab.study(case, draws=draws, rng=np.random.default_rng(0)))
                progress.advance(1, case.name)
        document = {"schema_version": 1, "draws": draws, "outcomes": [outcome.to_json() for outcome in outcomes]}
        panels = [
            GapPanel(
                title=f"{outcome.case.name}, T = {outcome.case.steps}: {outcome.transfer.verdict.value}",
                widths=outcome.transfer.widths,
                gaps=outcome.medians,
                slopes=outcome.slopes,
                first=outcome.case.widths[0],
                last=outcome.case.widths[-1],
            )
            for outcome in outcomes
        ]
        _write(out, "linear_network", document, gaps_against_width(panels, width_label="width", hp_unit="octaves"))
        if json:
            emit_json(document)
        else:
            lab_tables.show_linear_networks(outcomes)


@app.command("relu-ball")
def relu_ball(
    widths: Annotated[str, typer.Option(metavar="N,N,...", help="Four or more.")] = "181,256,362,512,724,1024",
    seeds: Annotated[int, typer.Option(min=2, max=100, help="Starts and data orders.")] = 3,
    steps: Annotated[int, typer.Option(min=8, max=2**17, help="Optimizer steps, of 256 samples.")] = 4096,
    json: Json = False,
    out: Out = None,
) -> None:
    """A ReLU network on a ball's indicator, trained here: an optimum that converges slowly. Twelve core minutes."""
    with exit_statuses():
        import os

        import numpy as np

        from analysis.figures.fast_labs import losses_and_optima
        from transfer import lab_tables
        from transfer.console import Progress
        from transfer.labs import relu_ball as lab

        wanted = _widths(widths)
        with Progress("ball", lab.total_work(wanted, seeds)) as progress:
            surfaces = lab.surfaces(
                wanted,
                n_seeds=seeds,
                steps=steps,
                workers=os.cpu_count() or 1,
                on_done=lambda done: progress.advance(done.work, f"width {done.width}, seed {done.seed}"),
            )
        study = lab.study(surfaces, steps=steps, rng=np.random.default_rng(0))
        document = {"schema_version": 1, **study.to_json()}
        label = "loss, last eighth of the steps (nats)"
        _write(out, "relu_ball", document, losses_and_optima(surfaces, study.optima, study.transfer, loss_label=label))
        if json:
            emit_json(document)
        else:
            lab_tables.show_relu_ball(study)


def _widths(text: str) -> tuple[int, ...]:
    """Ascending, each once."""
    parts = text.split(",")
    widths = sorted({int(part) for part in parts if part.strip().isdecimal()})
    if len(widths) < max(len(parts), 4) or widths[0] < 1:
        raise typer.BadParameter(
            f"--widths must be four or more different whole numbers from 1 on, with commas between, got {text!r}; "
            "try 128,256,512,1024"
        )
    return tuple(widths)


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
