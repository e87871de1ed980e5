"""`mutransfer lab muon-digits`: the form of Muon's bound on digits, and what it predicts, next to what is measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfer.console import emit_json, exit_statuses, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transfer.labs.muon_digits import Study


def register(app: typer.Typer) -> None:
    """Add the command to the labs."""
    app.command("muon-digits")(muon_digits)


def muon_digits(
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Starts and orders of the images.")] = 4,
    batches: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Four or more, in examples.", show_default="1 to 256 in half octaves"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the numbers as JSON and the figure there.", show_default=False
        ),
    ] = None,
) -> None:
    """Muon's critical batch on digits: a bound's form and its predictions against measured. Two core minutes."""
    with exit_statuses():
        import os

        import numpy as np

        from transfer import lab_tables
        from transfer.console import Progress
        from transfer.labs import muon_digits as lab

        wanted = lab.BATCHES if batches is None else _batches(batches)
        with Progress("muon on digits", lab.total_work(wanted)) as progress:
            runs = lab.runs(
                wanted,
                n_seeds=seeds,
                workers=os.cpu_count() or 1,
                on_done=lambda done: progress.advance(done.work, f"lr {done.lr:g}, batch {done.batch}"),
            )
        study = lab.study(runs, rng=np.random.default_rng(0))
        document = {"schema_version": 1, **study.to_json()}
        if out is not None:
            import json as json_module

            from analysis import figures
            from transfer import folder as folders

            folders.write(out, "muon_digits.json", json_module.dumps(document, indent=1) + "\n")
            figures.save(_figure(study), out, "muon_digits")
            say(f"written to {out}")
        if json:
            emit_json(document)
        else:
            lab_tables.show_muon_digits(study)


def _batches(text: str) -> tuple[int, ...]:
    """Ascending, each once."""
    parts = text.split(",")
    found = sorted({int(part) for part in parts if part.strip().isdecimal()})
    if len(found) < max(len(parts), 4) or found[0] < 1:
        raise typer.BadParameter(
            f"--batches must be four or more different whole numbers from 1 on, with commas between, got {text!r}; "
            "try 16,32,64,128"
        )
    return tuple(found)


def _figure(study: "Study") -> "Figure":
    from analysis.figures.sfo_bound import Curve, Ratio, bound_study
    from transfer.labs import muon_digits as lab

    curves = [
        Curve(label=lab.short(part.setting), lr=part.lr, batches=part.batches, steps=part.steps, fit=part.fit)
        for part in study.fixed
    ]
    ratios = [
        Ratio(
            label=part.label,
            lr=part.lr,
            predicted=part.predicted,
            measured=part.measured,
            interval=part.interval,
            supported=part.supported,
        )
        for part in study.comparisons
    ]
    return bound_study(curves, shown=[lab.short(setting) for setting in lab.FOUR], lr=lab.SHOWN_LR, ratios=ratios)
