"""The commands. Each reads its input, calls one step of `pipeline`, and shows what came of it.

Heavy imports stand inside the commands, so that `mutransfer --help` and shell completion answer at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfer.cli_labs import app as labs
from transfer.console import emit_json, exit_statuses, say

if TYPE_CHECKING:
    from transfer.execution import Execution

app = typer.Typer(
    name="mutransfer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Tune hyperparameters on small proxies, transfer them to a large target, with the evidence.

A sweep is one TOML file. The usual way through it:

- mutransfer plan SPEC: what would run, and what it costs

- mutransfer sweep SPEC --out DIR: run it; stopped at any time, the same command resumes

- mutransfer transfer DIR --target FILE: plan the target

- mutransfer verify DIR/plan.json DIR: try the plan at the target

- mutransfer report DIR: one page with every figure

- mutransfer run SPEC --target FILE: all of it at once

- mutransfer import TABLE --columns MAP: start from runs made elsewhere; then fit, transfer and report

Exit status: 0 done; 1 the work failed; 2 the input is wrong; 3 finished, but some trials failed;
130 or 143 interrupted (resumable).""",
)

app.add_typer(labs, name="lab")

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's TOML file.", show_default=False)]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A results folder, as `mutransfer sweep` writes it.", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Results folder.", show_default="results/<name of the spec>")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Backend = Annotated[str, typer.Option(help="Where trials run: `ray` (Ray Tune) or `local` (this process, no Ray).")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes of one core each.", show_default="one a core; 1 for local")
]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster, for example `auto`.", show_default=False)]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="GPUs of a worker; a fraction shares one between workers.",
        show_default="1 where the plan trains on GPUs, else none",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Rename an existing results folder and start anew. Deletes nothing.")
]
CheckPack = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=1,
        help="Then train K recorded trials again, alone by the eager loop; status 1 if one differs.",
        show_default=False,
    ),
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Run even where the coordinate check fails.")]


@app.command()
def plan(
    spec: Spec,
    budget: Annotated[
        float | None,
        typer.Option(metavar="FLOPS", help="The best design within it, tuning and final run.", show_default=False),
    ] = None,
    excess: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="The cheapest design that expects no more excess loss.", show_default=False),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The final run's TOML file.", show_default="the final width is free"),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="A finished sweep to take rates from.", show_default="assumed"),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", show_default="the spec's first")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write budget.json and the frontier there.", show_default=False),
    ] = None,
    backend: Backend = "ray",
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    json: Json = False,
) -> None:
    """Show what a sweep would run: trials, modes and packs, FLOPs, memory, and time by steps measured here once.

    With --budget or --excess instead: which proxy width, grid and seeds to spend FLOPs on, against direct tuning.
    """
    with exit_statuses():
        from sweeps.spec import SpecError, check_target, load_spec, load_target
        from transfer import pipeline, tables
        from transfer.costs import sweep_cost
        from transfer.search import expected_trials

        loaded = load_spec(spec)
        if budget is None and excess is None:
            extra = {"--target": target, "--from": measured, "--optimizer": optimizer, "--out": out}
            given = [option for option, value in extra.items() if value is not None]
            if given:
                raise SpecError(f"{', '.join(given)}: needs --budget or --excess. Add one of them.")
            trials = expected_trials(loaded, pipeline.load_tokens(loaded).fingerprint)
            cost = sweep_cost(trials, loaded, _execution(backend, workers, None, gpus_per_worker))
            if json:
                emit_json({"schema_version": 1, "sweep": loaded.name, **cost.to_json()})
            else:
                tables.show_costs(loaded.name, cost)
            return

        from transfer import budget_tables
        from transfer.budget import plan_budget
        from transfer.folder import read_spec

        final = None if target is None else load_target(target)
        if final is not None:
            check_target(final, loaded)
        planned = plan_budget(
            loaded,
            optimizer or next(iter(loaded.optimizers)),
            budget=budget,
            wanted_excess=excess,
            target=final,
            fit=None if measured is None else pipeline.fit(measured).over_width,
            fitted_spec=None if measured is None else read_spec(measured),
        )
        if out is not None:
            budget_tables.write_budget(planned, out)
            say(f"written to {out}")
        if json:
            emit_json(budget_tables.to_json(planned))
        else:
            budget_tables.show_budget(planned)


@app.command()
def memory(
    spec: Spec,
    target: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Count the target's size too.", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of weights, gradients and states: `float32` or `bfloat16`.")] = "float32",
    json: Json = False,
) -> None:
    """Bytes of weights, gradients and optimizer states of each optimizer at each size. Runs nothing."""
    with exit_statuses():
        from sweeps.spec import SpecError, load_spec, load_target
        from transfer import tables
        from transfer.costs import memory_rows

        sizes = {"float32": 4, "bfloat16": 2}
        if dtype not in sizes:
            raise SpecError(f"--dtype must be 'float32' or 'bfloat16', got {dtype!r}.")
        loaded = load_spec(spec)
        rows = memory_rows(loaded, None if target is None else load_target(target), bytes_per_float=sizes[dtype])
        if json:
            emit_json({"schema_version": 1, "dtype": dtype, "memory": [row.to_json() for row in rows]})
        else:
            tables.show_memory(rows)


@app.command()
def check(spec: Spec, out: Out = None, json: Json = False) -> None:
    """Coordinate check: does every activation keep its size as the model grows? Status 1 if not."""
    with exit_statuses():
        from sweeps.spec import load_spec
        from transfer import pipeline, tables
        from transfer.execution import Execution

        loaded = load_spec(spec)
        folder = out or pipeline.default_folder(loaded)
        gate = pipeline.run_gate(loaded, folder, processes=Execution().processes)
        if json:
            emit_json(tables.gate_json(gate))
        else:
            tables.show_gate(gate)
        gate.refuse_failure()


@app.command()
def sweep(
    spec: Spec,
    out: Out = None,
    backend: Backend = "ray",
    workers: Workers = None,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = None,
    fresh: Fresh = False,
    no_check: NoCheck = False,
    check_pack: CheckPack = None,
    json: Json = False,
) -> None:
    """Run a sweep's missing trials. Interrupted, killed or extended, the same command does what is left."""
    with exit_statuses():
        from sweeps.spec import load_spec
        from transfer import pipeline, tables

        loaded = load_spec(spec)
        folder = out or pipeline.default_folder(loaded)
        execution = _execution(backend, workers, address, gpus_per_worker)
        pipeline.sweep(loaded, folder, execution, fresh=fresh, gate=not no_check)
        if check_pack is None:
            tables.show_status(pipeline.status(folder), as_json=json)
        else:
            _check_pack(folder, check_pack, json)
        say(f"next: mutransfer transfer {folder} --target TARGET.toml")


@app.command()
def status(folder: Folder, json: Json = False) -> None:
    """Count a sweep's planned, done, diverged and missing trials."""
    with exit_statuses():
        from transfer import pipeline, tables

        tables.show_status(pipeline.status(folder), as_json=json)


@app.command("import")
def import_(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A CSV or Parquet file, one run a row.", show_default=False)
    ],
    columns: Annotated[
        Path, typer.Option(metavar="MAP", help="A TOML file: which column holds what.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Results folder.", show_default="results/<name of the map>"),
    ] = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Take over runs made elsewhere, so that fit, transfer and report work on them."""
    with exit_statuses():
        from sweeps.import_map import load_map
        from transfer import imported

        loaded = load_map(columns)
        folder = out or Path("results") / loaded.name
        summary = imported.import_table(table, loaded, folder, fresh=fresh)
        if json:
            emit_json(summary.to_json())
        else:
            print(summary.sentence)
        say(f"next: mutransfer fit {folder}")


@app.command()
def fit(folder: Folder, json: Json = False) -> None:
    """Fit optima, their drift with width and the loss law; write fits.json and losses.csv."""
    with exit_statuses():
        from transfer.folder import is_import

        if is_import(folder):
            _fit_import(folder, json)
            return
        from transfer import pipeline, tables

        fitted = pipeline.fit(folder)
        if json:
            emit_json(fitted.to_json())
        else:
            tables.show_fit(fitted.over_width)
            tables.show_scales(fitted.scales)


@app.command()
def transfer(
    folder: Folder,
    target: Annotated[Path, typer.Option(metavar="FILE", help="The target's TOML file.", show_default=False)],
    json: Json = False,
) -> None:
    """Plan the target: per role lr, weight decay, init and multiplier; expected loss; caveats. Writes plan.json."""
    with exit_statuses():
        from transfer.folder import is_import, sweep_folder

        if is_import(folder):
            _transfer_import(folder, target, json)
            return
        sweep_folder(folder)
        from sweeps.spec import load_target
        from transfer import pipeline, tables
        from transfer.plan import PLAN_JSON

        made = pipeline.transfer(folder, load_target(target))
        if json:
            emit_json(PLAN_JSON.dump_python(made, mode="json"))
        else:
            tables.show_plan(made)


@app.command()
def verify(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.", show_default=False)],
    folder: Folder,
    backend: Backend = "ray",
    workers: Workers = None,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = None,
    json: Json = False,
) -> None:
    """Train the target at the planned lr and one octave either side, and compare with the plan."""
    with exit_statuses():
        from transfer import pipeline, tables
        from transfer.folder import read_plan, refuse_import
        from transfer.verification import VERIFICATION_JSON

        refuse_import(folder)
        verified = pipeline.verify(read_plan(plan), folder, _execution(backend, workers, address, gpus_per_worker))
        if json:
            emit_json(VERIFICATION_JSON.dump_python(verified, mode="json"))
        else:
            tables.show_verification(verified)


@app.command()
def report(folder: Folder, json: Json = False) -> None:
    """Write report/index.html (one self-contained page), report.md, and every figure as SVG and PNG."""
    with exit_statuses():
        from transfer.folder import is_import

        if is_import(folder):
            from transfer.imported_report import write_report
        else:
            from transfer.report import write_report

        page = write_report(folder)
        if json:
            emit_json({"schema_version": 1, "report": str(page)})
        else:
            print(page)


@app.command()
def run(
    spec: Spec,
    target: Annotated[Path, typer.Option(metavar="FILE", help="The target's TOML file.", show_default=False)],
    out: Out = None,
    backend: Backend = "ray",
    workers: Workers = None,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = None,
    fresh: Fresh = False,
    no_check: NoCheck = False,
    check_pack: CheckPack = None,
) -> None:
    """Everything at once: check, sweep, fit, plan, measure at the target, report. Resumes like `sweep`."""
    with exit_statuses():
        from transfer import tables
        from transfer.folder import PLAN, read_plan, read_verification
        from transfer.run_all import run_all

        execution = _execution(backend, workers, address, gpus_per_worker)
        page = run_all(spec, target, out, execution, fresh=fresh, gate=not no_check, check_pack=check_pack)
        tables.show_plan(read_plan(page.parent.parent / PLAN))
        verified = read_verification(page.parent.parent)
        if verified is not None:
            tables.show_verification(verified)
        print(f"report: {page}")


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Results folders of sweeps.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Rates of several sweeps side by side: kappa, the laws' joint error, and the gap between their limits."""
    with exit_statuses():
        from analysis.interval import FitError
        from transfer import pipeline, rates_tables
        from transfer.folder import refuse_import

        for folder in folders:
            refuse_import(folder)
        unique = len({folder.resolve().name for folder in folders}) == len(folders)
        fits = {folder.resolve().name if unique else str(folder): pipeline.fit(folder).over_width for folder in folders}
        without = [name for name, fitted in fits.items() if not fitted.transfers]
        if without:
            raise FitError(
                f"{', '.join(without)}: no rates to compare: they take optima inside the grid at four widths or more. "
                "Add widths."
            )
        rows = rates_tables.compared(fits)
        if json:
            emit_json({"schema_version": 1, "series": rows})
        else:
            rates_tables.show_compared(rows)


@app.command()
def publish(folder: Folder) -> None:
    """Export a sweep's trials to DIR/optuna.log, an Optuna storage that `optuna-dashboard` opens."""
    with exit_statuses():
        from transfer import pipeline
        from transfer.folder import refuse_import

        refuse_import(folder)
        print(pipeline.publish(folder))


def _check_pack(folder: Path, n_trials: int, json: bool) -> None:
    from transfer import pack_check, pipeline, tables

    checks, status = pack_check.check_pack(folder, n_trials), pipeline.status(folder)
    if json:
        emit_json(status.to_json() | {"check_pack": [check.to_json() for check in checks]})
    else:
        tables.show_status(status, as_json=False)
        tables.show_pack_checks(checks)
    pack_check.refuse_failure(checks)


def _fit_import(folder: Path, json: bool) -> None:
    from transfer import imported, imported_tables

    fitted = imported.fit(folder)
    if json:
        emit_json(fitted.to_json())
    else:
        imported_tables.show_fit(fitted)


def _transfer_import(folder: Path, target: Path, json: bool) -> None:
    from sweeps.import_map import load_import_target
    from transfer import imported, imported_tables
    from transfer.imported_plan import IMPORTED_PLAN_JSON

    made = imported.transfer(folder, load_import_target(target))
    for caveat in made.all_caveats:
        say(f"caveat: {caveat}")
    if json:
        emit_json(IMPORTED_PLAN_JSON.dump_python(made, mode="json"))
    else:
        imported_tables.show_plan(made)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mutransfer {version('mutransfer')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself; its help is the app's."""


def _execution(backend: str, workers: int | None, address: str | None, gpus_per_worker: float | None) -> "Execution":
    from sweeps.spec import SpecError
    from transfer.execution import Execution

    if backend not in ("ray", "local"):
        raise SpecError(f"--backend must be 'ray' or 'local', got {backend!r}.")
    if backend == "local" and address is not None:
        raise SpecError("--address is a Ray cluster's, and --backend local uses no Ray. Remove one of the two.")
    if backend == "local" and workers not in (None, 1):
        raise SpecError(f"--workers must be 1 with --backend local, which is one process, got {workers}. Or use ray.")
    if address is not None and address.startswith("ray://"):
        raise SpecError(
            f"--address must not be a Ray Client's, got {address}: Ray Tune does not work well through it. Run this "
            "command on the cluster with --address auto."
        )
    if backend == "local" and gpus_per_worker is not None:
        raise SpecError("--gpus-per-worker is for Ray's workers, and --backend local is one process. Remove it.")
    if gpus_per_worker is not None and not (0 < gpus_per_worker < 1 or gpus_per_worker in range(1, 1025)):
        raise SpecError(
            f"--gpus-per-worker must be a fraction above 0 or a whole number, got {gpus_per_worker:g}. Without it a "
            "worker has one GPU where the plan trains on GPUs, else none."
        )
    return Execution(
        backend=backend,  # type: ignore[arg-type]
        workers=workers,
        address=address,
        gpus_per_worker=gpus_per_worker,
    )
