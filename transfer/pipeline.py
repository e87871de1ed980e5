"""The steps behind the commands: each reads and writes one results folder and returns records."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy_models.config import ModelConfig, RunConfig
from proxy_models.data import TokenData, load_data_once
from sweeps.calibration import this_machine
from sweeps.progress import RunningTrial, read_progress
from sweeps.run import SweepOutcome
from sweeps.spec import SweepSpec, TargetSpec, check_target, plan_trials
from sweeps.stages import planned_trials, read_stages
from sweeps.stopping import Stop, stopped_results
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult, TrialStatus, canonical_json
from transfer import folder as folders
from transfer.console import Progress, say
from transfer.engine_plans import device_of
from transfer.execution import Execution, run_trials
from transfer.horizons import horizons_note, over_width

if TYPE_CHECKING:
    from analysis.fit import SweepFit
    from analysis.scale_study import ScaleStudy
    from transfer.gate import Gate
    from transfer.plan import TransferPlan
    from transfer.verification import Verification

FIT_SEED = 20_240_229  # of the bootstrap; fixed, so that equal results give equal fits
BAND_NATS = 0.1  # near the minimum: in basins of 0.05 to 0.1 nats an octave squared, some three octaves wide


def load_tokens(spec: SweepSpec) -> TokenData:
    """The spec's data, checked against its vocabulary and sequence length. Read once a process."""
    model = ModelConfig(width=spec.run.widths[0], **spec.model)
    return load_data_once(spec.data_source(), vocab_size=model.vocab_size, seq_len=model.seq_len)


def default_folder(spec: SweepSpec) -> Path:
    return Path("results") / spec.name


def run_gate(spec: SweepSpec, folder: Path, *, processes: int) -> "Gate":
    """The coordinate check, from the folder's cache when it is the same check."""
    from transfer.gate import check_runs, coordinate_gate

    data = load_tokens(spec)
    with Progress("coordinate check", len(check_runs(spec))) as progress:
        return coordinate_gate(
            spec,
            data,
            folder,
            processes=processes,
            on_run=lambda done, of: progress.advance(1, f"{done} of {of} short runs"),
        )


def sweep(
    spec: SweepSpec, folder: Path, execution: Execution, *, fresh: bool = False, gate: bool = True
) -> SweepOutcome:
    """Check, then train what the folder does not hold yet.

    Raises:
        GateError: the coordinate check failed (with `gate`).
        TrialsFailed: some trials have no result after every attempt.
    """
    return run_prepared(spec, *prepare(spec, folder, execution, fresh=fresh, gate=gate), execution)


def run_prepared(spec: SweepSpec, store: ResultStore, trials: Sequence[Trial], execution: Execution) -> SweepOutcome:
    """Train what `prepare` gave and the store does not hold yet, and what a search plans from that.

    Raises TrialsFailed as `sweep`.
    """
    if spec.search.method == "grid":
        title = f"sweep {spec.name}"
        return run_trials(trials, store, spec, execution, title=title, stopping=spec.stopping_rule)
    from transfer.search import run_search

    outcome = run_search(spec, store, execution, trials[0].data_fingerprint, band_nats=BAND_NATS)
    if spec.search.method == "optuna":
        publish(store.folder)
    return outcome


def publish(folder: Path) -> Path:
    """Write the folder's results to an Optuna storage, optuna.log, whatever its search method; return that."""
    from transfer.optuna_storage import publish as write_storage

    spec = folders.read_spec(folder)
    recorded = read_recorded(folder, spec)
    return write_storage(folder, spec, recorded.results, recorded.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How far a sweep is."""

    sweep: str
    planned: int
    completed: int
    diverged: int
    stopped: int  # early
    missing: int
    failed_attempts: int  # of the missing trials, how many have a recorded failure
    train_seconds: float  # of all recorded trials, each on its worker
    running: tuple[RunningTrial, ...]  # as workers said in the last seconds

    def to_json(self) -> dict[str, Any]:
        """Of running trials without their curves."""
        running = [
            {"trial_id": one.trial_id, "step": one.step, "steps": one.steps, "training_loss": one.loss}
            for one in self.running
        ]
        counts = {field: getattr(self, field) for field in self.__slots__ if field != "running"}
        return {"schema_version": 1, **counts, "running": running}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A sweep's plan, and what its folder holds of it and besides."""

    planned: tuple[Trial, ...]
    results: tuple[TrialResult, ...]  # of planned trials, in the plan's order
    others: tuple[TrialResult, ...]  # such as a target's
    labels: Mapping[str, str]  # planned trial id -> the optimizer's name in the spec
    stopped: tuple[tuple[TrialResult, Stop], ...] = ()  # planned trials without a result of their own, and why
    elsewhere: tuple[TrialResult, ...] = ()  # of planned trials that are left out above, for their horizon or batch

    def over_width(self, spec: SweepSpec) -> "Recorded":
        """The trials that the fits over width are of: see `transfer.horizons.over_width`."""
        return replace(
            self,
            planned=tuple(trial for trial in self.planned if over_width(trial.run, spec)),
            results=tuple(result for result in self.results if over_width(result.trial.run, spec)),
            stopped=tuple(one for one in self.stopped if over_width(one[0].trial.run, spec)),
            elsewhere=tuple(result for result in self.results if not over_width(result.trial.run, spec)),
        )

    @property
    def ended(self) -> tuple[TrialResult, ...]:
        """Of planned trials: what they gave, and what was stopped."""
        return (*self.results, *(result for result, _ in self.stopped))


def read_recorded(folder: Path, spec: SweepSpec) -> Recorded:
    """Read every result once; damaged files are named and set aside."""
    store = ResultStore(folder.resolve())
    recorded, stops = store.read(warn=say), store.read_stops(warn=say)
    labeled = planned_trials(spec, read_stages(folder, spec), load_tokens(spec).fingerprint)
    labels = {trial.trial_id: label for label, trial in labeled}
    unknown = [trial for _, trial in labeled if trial.trial_id not in recorded]
    stopped = stopped_results(unknown, stops, spec.stopping_rule)
    return Recorded(
        planned=tuple(trial for _, trial in labeled),
        stopped=tuple((result, stops[trial_id]) for trial_id, result in stopped.items()),
        results=tuple(recorded.pop(trial_id) for trial_id in labels if trial_id in recorded),
        others=tuple(recorded.values()),
        labels=labels,
    )


def status(folder: Path) -> Status:
    """Count a sweep's trials by how they stand."""
    spec = folders.read_spec(folder)
    recorded = read_recorded(folder, spec)
    results = recorded.results
    missing = {trial.trial_id for trial in recorded.planned} - {result.trial_id for result in recorded.ended}
    return Status(
        sweep=spec.name,
        planned=len(recorded.planned),
        completed=sum(result.status is TrialStatus.COMPLETED for result in results),
        diverged=sum(result.status is TrialStatus.DIVERGED for result in results),
        stopped=len(recorded.stopped),
        missing=len(missing),
        failed_attempts=len(missing & set(ResultStore(folder.resolve()).last_errors())),
        train_seconds=sum(result.train_seconds for result in results),
        running=tuple(one for worker in read_progress(folder) for one in worker.running),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What a sweep says: over width, and over the scales beside it."""

    over_width: "SweepFit"
    recorded: Recorded  # the trials that `over_width` is of
    scales: "ScaleStudy | None"  # of the whole grid and its probes; None where nothing but width varies

    def to_json(self) -> dict[str, Any]:
        """That of `SweepFit`, and in `scales` that of the `ScaleStudy`, or null."""
        from analysis.scale_study_json import study_json

        return self.over_width.to_json() | {"scales": None if self.scales is None else study_json(self.scales)}


def fit(folder: Path) -> Fitted:
    """Fit the folder's sweep and write fits.json and losses.csv."""
    import numpy as np

    from analysis.fit import fit_sweep
    from analysis.interval import FitError

    spec = folders.read_spec(folder)
    everything = read_recorded(folder, spec)
    recorded = everything.over_width(spec)
    if not recorded.results:
        of = " at its longest horizon and reference batch" if recorded.elsewhere else ""
        raise FitError(f"{folder}: no results of the sweep '{spec.name}'{of} yet. Run `mutransfer sweep` first.")
    if note := horizons_note(spec):
        say(note)
    over_width = fit_sweep(
        recorded.ended,
        rng=np.random.default_rng(FIT_SEED),
        band_nats=BAND_NATS,
        labels=recorded.labels,
    )
    fitted = Fitted(over_width=over_width, recorded=recorded, scales=_study(folder, spec, everything))
    folders.write(folder, folders.FITS, json.dumps(fitted.to_json(), indent=1, sort_keys=True) + "\n")
    folders.write(folder, folders.LOSSES, losses_csv(everything.results, everything.labels))
    return fitted


def _study(folder: Path, spec: SweepSpec, everything: Recorded) -> "ScaleStudy | None":
    """What the sweep says of batch, tokens, depth and weight decay."""
    import numpy as np

    from analysis.scale_study import Measures, study_scales

    critical = spec.critical_batch
    branches = None if critical is None else critical.branches
    measures = Measures(
        steps_to_loss=critical is not None and "steps_to_loss" in critical.measure,
        target_losses=None if critical is None else critical.target_losses,
    )
    if branches is not None:
        measures = replace(measures, tolerance_nats=branches.tolerance_nats, lr_exponent=branches.lr_exponent)
    store, noise = ResultStore(folder.resolve()), {}
    for result in _followed(everything, spec) if spec.noise_every_steps is not None else ():
        frame = store.read_diagnostics(result.trial_id)
        if frame is not None:
            noise[result.trial_id] = frame
    return study_scales(
        everything.ended,
        rng=np.random.default_rng(FIT_SEED),
        measures=measures,
        band_nats=BAND_NATS,
        diagnostics=noise,
        labels=everything.labels,
    )


def _followed(everything: Recorded, spec: SweepSpec) -> Iterable[TrialResult]:
    """Of each optimizer and model, the best trial of those that the fits over width are of."""
    best: dict[tuple[str, ModelConfig], tuple[float, TrialResult]] = {}
    for result in everything.over_width(spec).results:
        loss, key = result.validation_loss, (everything.labels[result.trial_id], result.trial.run.model)
        if loss is not None and (key not in best or loss < best[key][0]):
            best[key] = (loss, result)
    return [result for _, result in best.values()]


_SIZES = ("width", "depth", "train_tokens", "batch_tokens", "batch_tokens_after")


def _sizes(run: RunConfig) -> dict[str, int | str]:
    change = run.batch_change
    after = "" if change is None else change.batch_tokens
    values = (run.model.width, run.model.depth, run.train_tokens, run.hparams.batch_tokens, after)
    return dict(zip(_SIZES, values, strict=True))


def losses_csv(results: Iterable[TrialResult], labels: Mapping[str, str]) -> str:
    """Every loss with what gave it and no times: two runs of one spec on one machine give the same bytes.

    Depths, horizons, batches, and batches from a probe's branch point on, in tokens, stand after the width where
    trials differ in them.
    """
    results = tuple(results)
    sizes = {r.trial_id: _sizes(r.trial.run) for r in results}
    columns = [name for name in _SIZES if name == "width" or len({own[name] for own in sizes.values()}) > 1]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial_id", "optimizer", *columns, "seed", "lr", "status", "validation_loss", "diverged_step"])
    for r in results:
        run = r.trial.run
        own = [sizes[r.trial_id][name] for name in columns]
        identity = [r.trial_id, labels[r.trial_id], *own, run.seed, repr(run.hparams.lr)]
        loss = "" if r.validation_loss is None else repr(r.validation_loss)
        writer.writerow([*identity, r.status.value, loss, "" if r.diverged_step is None else r.diverged_step])
    return out.getvalue()


def digest(results: Iterable[TrialResult]) -> str:
    """Hex SHA-256 over every trial id with its loss (null if it diverged), in the order of the ids."""
    losses = {result.trial_id: result.validation_loss for result in results}
    return hashlib.sha256(canonical_json(losses).encode()).hexdigest()


def transfer(folder: Path, target: TargetSpec) -> "TransferPlan":
    """Fit, plan for the target, and write plan.json."""
    from transfer.make_plan import make_plan
    from transfer.plan import PLAN_JSON

    spec = folders.read_spec(folder)
    check_target(target, spec)
    fitted = fit(folder)
    plan = make_plan(spec, target, fitted.over_width, digest=digest(fitted.recorded.results), scales=fitted.scales)
    folders.write(folder, folders.TARGET, target.text)
    folders.write(folder, folders.PLAN, PLAN_JSON.dump_json(plan, indent=1).decode() + "\n")
    return plan


def verify(plan: "TransferPlan", folder: Path, execution: Execution) -> "Verification":
    """Train the target at the planned lr and one octave either side; write verification.json."""
    from transfer import verification

    spec, target = folders.read_spec(folder), folders.read_target(folder)
    fingerprint = load_tokens(spec).fingerprint
    trials = verification.verification_trials(plan, fingerprint, target.seeds)
    title = f"target width {plan.target_width}"
    outcome = run_trials(trials, ResultStore(folder.resolve()), spec, execution, title=title)
    verified = verification.verify(plan, outcome.results, fingerprint, target.seeds)
    text = verification.VERIFICATION_JSON.dump_json(verified, indent=1).decode() + "\n"
    folders.write(folder, folders.VERIFICATION, text)
    return verified


def prepare(
    spec: SweepSpec, folder: Path, execution: Execution, *, fresh: bool, gate: bool
) -> tuple[ResultStore, tuple[Trial, ...]]:
    """Make the folder this sweep's, or find that it is, before anything else is written there; then the gate.

    Raises:
        DataError, SpecError, StoreError: the data cannot be read, the device is not there, or the folder holds
            another sweep; nothing was changed.
        GateError: the coordinate check failed (with `gate`).
    """
    device_of(spec, this_machine())
    fingerprint = load_tokens(spec).fingerprint
    store = ResultStore(folder.resolve())
    if fresh and (aside := store.set_aside_folder()):
        say(f"moved the earlier results to {aside.name}")
    trials = _planned(spec, store, fingerprint)
    store.bind(name=spec.name, spec_text=spec.text, planned_ids=[trial.trial_id for trial in trials])
    folders.write_origin(folder, spec)
    if gate:
        run_gate(spec, folder, processes=execution.processes).refuse_failure()
    return store, trials


def _planned(spec: SweepSpec, store: ResultStore, fingerprint: str) -> tuple[Trial, ...]:
    """What the spec plans, and what its search has planned so far."""
    if spec.search.method == "grid":
        return plan_trials(spec, fingerprint)
    from transfer.search import stages_so_far

    stages = stages_so_far(spec, store, fingerprint, band_nats=BAND_NATS)
    return tuple(trial for _, trial in planned_trials(spec, stages, fingerprint))
