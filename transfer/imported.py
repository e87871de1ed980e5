"""The steps behind the commands for runs made elsewhere: import, fit and transfer on one results folder."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from analysis.observations import Observations
from analysis.observed_fit import ObservedFit, SeriesFit, fit_observed, short
from analysis.scale_law import ScaleLaw
from sweeps.import_map import ImportMap, ImportTarget
from sweeps.importing import Import, read_import, read_runs, write_import
from sweeps.spec import SpecError
from sweeps.store import ResultStore
from transfer import folder as folders
from transfer.console import say
from transfer.imported_plan import IMPORTED_PLAN_JSON, SCHEMA_VERSION, HparamPlan, ImportedPlan, SeriesPlan
from transfer.imported_tables import law_of
from transfer.make_plan import PlanError
from transfer.pipeline import FIT_SEED
from transfer.plan import Estimate

_FAR = 4.0  # times the largest fitted scale, from which on extrapolation is a caveat of its own
_WIDE = 2.0  # octaves of an interval, from which on the optimum is called unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import took over."""

    name: str
    folder: str
    runs: int
    diverged: int
    rows: int  # of the table
    left_out: int
    series: tuple[str, ...]
    scales: dict[str, int]  # name -> distinct values
    hps: dict[str, int]

    def to_json(self) -> dict[str, object]:
        """A document for json.dumps."""
        return {"schema_version": 1} | {field: getattr(self, field) for field in self.__slots__}

    @property
    def sentence(self) -> str:
        """What came in, for people."""
        axes = ", ".join(f"{name} ({n} values)" for name, n in (*self.scales.items(), *self.hps.items()))
        left = f", {self.left_out} of {self.rows} rows left out" if self.left_out else ""
        return f"{self.name}: {self.runs} runs of {', '.join(self.series)} over {axes}; {self.diverged} diverged{left}"


def import_table(table: Path, columns: ImportMap, folder: Path, *, fresh: bool = False) -> Imported:
    """Read a table of runs and make the folder its import; the same again changes nothing.

    Raises:
        TableError, StoreError: a table that its map does not describe, or a folder of something else.
    """
    imported = read_runs(table, columns)
    frame = imported.frame
    if fresh and (aside := ResultStore(folder.resolve()).set_aside_folder()):
        say(f"moved the earlier results to {aside.name}")
    if not write_import(folder, imported):
        say(f"{folder} holds this import already")
    return Imported(
        name=imported.name,
        folder=str(folder),
        runs=len(frame),
        diverged=imported.diverged,
        rows=imported.rows,
        left_out=imported.left_out,
        series=tuple(sorted(set(frame["series"]))),
        scales={name: int(frame[name].nunique()) for name in imported.scales},
        hps={name: int(frame[name].nunique()) for name in imported.hps},
    )


def fit(folder: Path) -> ObservedFit:
    """Fit the folder's import and write fits.json.

    Raises:
        FitError: no cell has an optimum.
    """
    return _fit(folder, read_import(folder))


def _fit(folder: Path, imported: Import) -> ObservedFit:
    observations = Observations(scales=imported.scales, hps=imported.hps, frame=imported.frame)
    fitted = fit_observed(observations, rng=np.random.default_rng(FIT_SEED))
    folders.write(folder, folders.FITS, json.dumps(fitted.to_json(), indent=1, sort_keys=True) + "\n")
    return fitted


def transfer(folder: Path, target: ImportTarget) -> ImportedPlan:
    """Fit, plan for the target's scales, and write plan.json.

    Raises:
        SpecError: the target names other scales than the import.
        PlanError: no series has a law over the scales.
    """
    imported = read_import(folder)
    check_target(target, imported)
    fitted = _fit(folder, imported)
    plan = make_plan(fitted, target.scales, name=imported.name, digest=imported.digest)
    folders.write(folder, folders.TARGET, target.text)
    folders.write(folder, folders.PLAN, IMPORTED_PLAN_JSON.dump_json(plan, indent=1).decode() + "\n")
    return plan


def check_target(target: ImportTarget, imported: Import) -> None:
    """Raises SpecError unless the target names exactly the import's scales."""
    for name in target.scales:
        if name not in imported.scales:
            near = get_close_matches(name, imported.scales, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else "Remove it."
            raise SpecError(
                f"{target.file}: scales.{name}: is no scale of this import; its scales: {', '.join(imported.scales)}. "
                + hint
            )
    for name in imported.scales:
        if name not in target.scales:
            raise SpecError(f"{target.file}: scales.{name}: is missing. Add the target's {name}.")


def make_plan(fit: ObservedFit, target: Mapping[str, float], *, name: str, digest: str) -> ImportedPlan:
    """Plan every series that has a law over the scales: a pure function.

    Raises:
        PlanError: no series has.
    """
    plans = [_plan_series(series, series.law, target) for series in fit.series if series.law is not None]
    not_planned = [(series.series, _why_not(series)) for series in fit.series if series.law is None]
    if not plans:
        reasons = "; ".join(f"{series}: {why}" for series, why in not_planned)
        raise PlanError(f"no series can be transferred. {reasons}")
    return ImportedPlan(
        schema_version=SCHEMA_VERSION,
        name=name,
        target=dict(target),
        series=tuple(plans),
        not_planned=tuple(not_planned),
        inputs_digest=digest,
    )


def _why_not(fit: SeriesFit) -> str:
    return "; ".join([fit.no_law, *fit.skipped[:1]])


def _plan_series(fit: SeriesFit, law: ScaleLaw, target: Mapping[str, float]) -> SeriesPlan:
    predicted = law.predict(target, rng=np.random.default_rng(FIT_SEED))
    loss = fit.expected_loss(target, law.level)
    hparams = tuple(
        HparamPlan(
            name=hp,
            value=value,
            low=2.0**interval.low,
            high=2.0**interval.high,
            log2_optimum=Estimate(value=optimum, interval=interval),
            law=law_of(law, hp),
        )
        for hp, value, optimum, interval in zip(
            law.hps, predicted.values, predicted.optimum, predicted.intervals, strict=True
        )
    )
    largest = {name: max(cell.scales[name] for cell in fit.fitted) for name in law.scales}
    return SeriesPlan(
        series=fit.series,
        hparams=hparams,
        expected_loss=None if loss is None else Estimate(value=loss.value, interval=loss.interval),
        expected_excess_loss=Estimate(value=predicted.excess_loss, interval=predicted.excess_loss_interval),
        cells=len(fit.fitted),
        extrapolation={name: target[name] / largest[name] for name in law.scales},
        caveats=tuple(_caveats(fit, law, hparams, target)),
    )


def _caveats(
    fit: SeriesFit, law: ScaleLaw, hparams: Sequence[HparamPlan], target: Mapping[str, float]
) -> Iterator[str]:
    for name in law.scales:
        values = [cell.scales[name] for cell in fit.fitted]
        if target[name] >= _FAR * max(values):
            yield (
                f"The target's {name} is {target[name] / max(values):.1f} times the largest fitted: the law's form is "
                "not tested there. Cells between would test it."
            )
        if target[name] < min(values):
            yield f"The target's {name}, {short(target[name])}, is below the smallest fitted, {short(min(values))}."
    for hparam in hparams:
        width = math.log2(hparam.high / hparam.low)
        if width > _WIDE:
            yield f"{hparam.name} is known to {width:.1f} octaves only: add cells or seeds before a costly run."
    yield from (f"Left out: {reason}." for reason in law.left_out)
    for flag in dict.fromkeys(flag for cell in fit.fitted for flag in cell.flags):
        places = [cell.label for cell in fit.fitted if flag in cell.flags]
        where = "In every cell" if len(places) == len(fit.fitted) else f"In {len(places)} cells ({places[0]}, ...)"
        yield f"{where}: {flag.advice}"
