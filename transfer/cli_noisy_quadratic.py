"""`mutransfer lab noisy-quadratic`: critical batches in closed form, and a noise scale that is not one of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfer.console import emit_json, exit_statuses, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transfer.labs.noisy_quadratic import Study


def register(app: typer.Typer) -> None:
    """Add the command to the labs."""
    app.command("noisy-quadratic")(noisy_quadratic)


def noisy_quadratic(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the numbers as JSON and the figure there.", show_default=False
        ),
    ] = None,
) -> None:
    """Steps to a loss against batch in closed form: hyperbola, best lr, noise scale. Seconds."""
    with exit_statuses():
        from transfer import lab_tables
        from transfer.console import Progress
        from transfer.labs import noisy_quadratic as lab

        studies = []
        with Progress("noisy quadratic", len(lab.TARGETS)) as progress:
            for target in lab.TARGETS:
                studies.append(lab.study(target))
                progress.advance(1, f"loss {target:g}")
        document = {"schema_version": 1, "studies": [study.to_json() for study in studies]}
        if out is not None:
            _write(out, document, studies)
        if json:
            emit_json(document)
        else:
            lab_tables.show_noisy_quadratic(studies)


def _write(out: Path, document: dict[str, object], studies: "Sequence[Study]") -> None:
    import json

    from analysis import figures
    from analysis.figures.noisy_quadratic import BatchCurves
    from analysis.figures.noisy_quadratic import noisy_quadratic as draw
    from transfer import folder as folders

    folders.write(out, "noisy_quadratic.json", json.dumps(document, indent=1) + "\n")
    curves = [
        BatchCurves(
            target=study.target,
            batches=tuple(float(cell.batch) for cell in study.cells),
            steps=tuple(cell.steps for cell in study.cells),
            lrs=tuple(cell.lr for cell in study.cells),
            noise_scales=tuple(cell.noise_scale for cell in study.cells),
            hyperbola=study.hyperbola,
            overhead_batch=study.overhead_batch,
            slopes=(study.slope_below, study.slope_above),
        )
        for study in studies
    ]
    figures.save(draw(curves), out, "noisy_quadratic")
    say(f"written to {out}")
