"""A results folder's ledger as an Optuna storage, which `optuna-dashboard DIR/optuna.log` opens.

An export: made from the ledger alone, for every search method, and made anew as often as wanted.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.files import TEMPORARY_PREFIX
from sweeps.spec import SweepSpec, axes_of
from sweeps.trial import TrialResult, TrialStatus

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

OPTUNA_LOG = "optuna.log"  # a journal: the same in SQLite took 18 times as long to write (97 s for 756 trials)


def study_name(spec: SweepSpec, optimizer: str, width: int, depth: int, train_tokens: int) -> str:
    """Of the study of one optimizer at one width and, where the sweep has several, one depth and horizon."""
    deep = f", depth {depth}" if len(spec.depths) > 1 else ""
    horizon = f", {train_tokens} tokens" if len(spec.run.train_tokens) > 1 else ""
    return f"{spec.name}, {optimizer}, width {width}{deep}{horizon}"


def publish(folder: Path, spec: SweepSpec, results: Iterable[TrialResult], labels: Mapping[str, str]) -> Path:
    """Write optuna.log, whole or not at all, and return it: one study for each optimizer, width, depth and horizon.

    A trial has the swept hyperparameters as params, its validation loss as value, and as user attributes `trial_id`,
    `seed`, `width` and `status`. A diverged one is PRUNED, with `diverged_step`. Probes of the critical batch are left
    out: their losses are undecayed, and not to be compared with the others.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    groups: dict[tuple[str, int, int, int], list[TrialResult]] = defaultdict(list)
    for result in results:
        run = result.trial.run
        if result.status is not TrialStatus.FAILED and run.batch_change is None:
            groups[labels[result.trial_id], run.model.width, run.model.depth, run.train_tokens].append(result)
    file = folder / OPTUNA_LOG
    temporary = folder / f"{TEMPORARY_PREFIX}{file.stem}-{secrets.token_hex(4)}"
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(temporary)))
        for (optimizer, width, depth, horizon), group in sorted(groups.items()):
            name = study_name(spec, optimizer, width, depth, horizon)
            study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
            for key, value in {"sweep": spec.name, "optimizer": optimizer, "width": width}.items():
                study.set_user_attr(key, value)
            study.add_trials(_trials(folder, group, sorted(axes_of(spec, optimizer))))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _trials(folder: Path, results: Sequence[TrialResult], axes: Sequence[str]) -> Iterable["FrozenTrial"]:
    """In the order of their commits, as Optuna numbers them."""
    from optuna.trial import FrozenTrial, TrialState

    params = [{axis: getattr(result.trial.run.hparams, axis) for axis in axes} for result in results]
    distributions = {axis: _distribution(axis, [one[axis] for one in params]) for axis in axes}
    timed = sorted(zip([_committed(folder, result) for result in results], results, params, strict=True), key=_when)
    for committed, result, values in timed:
        completed = result.status is TrialStatus.COMPLETED
        attributes = {"trial_id": result.trial_id, "seed": result.trial.run.seed, "width": result.trial.run.model.width}
        attributes |= {"status": result.status.value}
        yield FrozenTrial(
            number=-1,  # the storage gives numbers
            trial_id=-1,
            state=TrialState.COMPLETE if completed else TrialState.PRUNED,
            value=result.validation_loss,
            datetime_start=committed - timedelta(seconds=result.train_seconds),
            datetime_complete=committed,
            params=values,
            distributions=distributions,
            user_attrs=attributes if completed else {**attributes, "diverged_step": result.diverged_step},
            system_attrs={},
            intermediate_values=dict(zip(result.curve_steps, result.curve_losses, strict=True)),
        )


def _when(timed: tuple[datetime, TrialResult, dict[str, Any]]) -> tuple[datetime, str]:
    return timed[0], timed[1].trial_id


def _committed(folder: Path, result: TrialResult) -> datetime:
    """When a result was recorded, in local time as Optuna's own times are."""
    return datetime.fromtimestamp((folder / "trials" / f"{result.trial_id}.parquet").stat().st_mtime)


def _distribution(axis: str, values: Sequence[Any]) -> "BaseDistribution":
    """lr as a logarithmic range, every other axis as the choices it was given."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if axis == "lr":
        return FloatDistribution(min(values), max(values), log=True)
    return CategoricalDistribution(sorted(set(values), key=lambda value: (str(type(value)), value or 0)))
