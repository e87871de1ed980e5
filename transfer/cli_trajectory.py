"""`mutransfer lab trajectory`: whether a few directions carry the optimum, and whether theirs stays put over width."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfer.console import emit_json, exit_statuses, say

if TYPE_CHECKING:
    from proxy_models.config import RunConfig
    from transfer.labs.trajectory import Outcome

QUICKSTART = Path(__file__).parents[1] / "sweeps" / "specs" / "quickstart.toml"


def register(app: typer.Typer) -> None:
    """Add the command to the labs."""
    app.command("trajectory")(trajectory)


def trajectory(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A sweep's spec: its widths and its grid of lr.", show_default=False)
    ] = QUICKSTART,
    optimizer: Annotated[str, typer.Option(help="One of the spec's.")] = "adamw",
    seeds: Annotated[int, typer.Option(min=1, help="The first of the spec's.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the numbers as JSON and the figure there.", show_default=False
        ),
    ] = None,
) -> None:
    """Take the falls of the loss of a sweep's runs apart. Without SPEC the quick start's, in a few minutes."""
    with exit_statuses():
        import os

        from proxy_models.data import load_data
        from proxy_models.trajectory import Following
        from sweeps.spec import load_spec
        from transfer import trajectory_tables
        from transfer.console import Progress
        from transfer.labs import trajectory as lab

        loaded, following = load_spec(spec), Following()
        runs = lab.plan(loaded, optimizer, seeds)
        model = runs[0].model
        data = load_data(loaded.data_source(), vocab_size=model.vocab_size, seq_len=model.seq_len)
        with Progress("trajectories", sum(lab.work(run, following) for run in runs)) as progress:
            outcomes = lab.decompose_all(
                runs,
                data,
                following=following,
                workers=min(workers or os.cpu_count() or 1, len(runs)),
                on_done=lambda done: progress.advance(lab.work(done[0], following), _note(done[0])),
            )
        outcome = lab.assemble(optimizer, following, outcomes)
        if out is not None:
            _write(out, outcome)
        if json:
            emit_json(outcome.to_json())
        else:
            trajectory_tables.show(outcome)


def _note(run: "RunConfig") -> str:
    return f"width {run.model.width}, lr {run.hparams.lr:.3g}, seed {run.seed}"


def _write(out: Path, outcome: "Outcome") -> None:
    import json

    from analysis import figures
    from analysis.figures.trajectory import trajectory_decomposition
    from transfer import folder as folders
    from transfer.labs.trajectory import kinds

    folders.write(out, "trajectory.json", json.dumps(outcome.to_json(), indent=1) + "\n")
    best = outcome.best
    label = f"width {best.run.model.width}, lr {best.run.hparams.lr:.3g}"
    figures.save(
        trajectory_decomposition(outcome.study, kinds(best), optimizer=outcome.optimizer, spectrum_of=label),
        out,
        "trajectory",
    )
    say(f"written to {out}")
