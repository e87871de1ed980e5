"""The ledger of a sweep: one file a result, written once, never overwritten, never deleted.

`trials/<trial_id>.parquet` holds what was learned, `diagnostics/<trial_id>.parquet` what the optimizer did where
that was asked for; `stopped/<trial_id>.json` why a trial was stopped early, which is no result; `failures/` what went
wrong; `set_aside/` damaged files.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.files import create_if_absent, replace_file, set_aside
from sweeps.rows import (
    DamagedRowError,
    NewerSchemaError,
    diagnostics_from_parquet,
    diagnostics_to_parquet,
    from_parquet,
    scalar_table,
    to_parquet,
)
from sweeps.stopping import Stop
from sweeps.trial import Trial, TrialResult, TrialStatus

if TYPE_CHECKING:
    import pandas as pd

    from proxy_models.diagnostics import Diagnostic

Warn = Callable[[str], None]
_log = logging.getLogger(__name__)


class StoreError(ValueError):
    """A results folder that cannot be used. The message names the folder, what is wrong and what to do."""


class StoreMismatchError(StoreError):
    """One trial gave two different numbers."""


class FolderHoldsAnotherSweepError(StoreError):
    """The folder's results belong to a sweep that the new plan does not contain."""


@dataclass(frozen=True, slots=True)
class ResultStore:
    """A results folder. Holds no open files, so it can be sent to workers; make `folder` absolute for that."""

    folder: Path

    def commit(self, result: TrialResult) -> bool:
        """Record a result durably; False if an equal one was there already.

        Raises:
            StoreMismatchError: another result of this trial is recorded, with other numbers. It stays.
            ValueError: a FAILED or STOPPED trial, of which nothing is known that lasts.
        """
        if result.status in (TrialStatus.FAILED, TrialStatus.STOPPED):
            raise ValueError(
                f"a {result.status.value} trial has no result to commit, got {result.trial_id}; "
                "use record_failure or record_stop"
            )
        file = self._file(result.trial_id)
        content = to_parquet(result)
        while not create_if_absent(file, content):
            recorded = self.read_one(result.trial_id)
            if recorded is not None:  # else damaged, now set aside
                _refuse_mismatch(recorded, result, file)
                return False
        return True

    def read(self, *, warn: Warn = _log.warning) -> dict[str, TrialResult]:
        """All results by trial id. A damaged file is reported to `warn`, set aside, and counts as missing.

        Raises:
            StoreError: written by a newer version of the program.
        """
        found = {trial_id: self.read_one(trial_id, warn=warn) for trial_id in sorted(self.committed_ids())}
        return {trial_id: result for trial_id, result in found.items() if result is not None}

    def read_one(self, trial_id: str, *, warn: Warn = _log.warning) -> TrialResult | None:
        """One trial's result, or None; see `read`."""
        file = self._file(trial_id)
        try:
            stored_id, result = from_parquet(file.read_bytes())
            if stored_id != trial_id:
                raise DamagedRowError(f"holds trial {stored_id}")
        except FileNotFoundError:
            return None
        except NewerSchemaError as error:
            raise StoreError(f"{file} {error}. Update the program.") from None
        except DamagedRowError as error:
            self._set_aside(file, str(error), warn)
            return None
        return result

    def is_committed(self, trial_id: str) -> bool:
        """Whether the trial has a file, read or not."""
        return self._file(trial_id).exists()

    def committed_ids(self) -> set[str]:
        """Ids of the trials with a file, read or not."""
        return {file.stem for file in (self.folder / "trials").glob("[!.]*.parquet")}

    def frame(self, *, warn: Warn = _log.warning) -> "pd.DataFrame":
        """All results, one row each in the order of their ids, without curves."""
        frame: pd.DataFrame = scalar_table(self.read(warn=warn)).to_pandas()
        return frame

    def record_failure(self, trial: Trial, error: str, provenance: Mapping[str, str]) -> None:
        """Keep what went wrong with an attempt. Not a result: the trial still counts as missing."""
        now = time.time_ns()
        record = {"trial_id": trial.trial_id, "error": error, "time_ns": now, "provenance": dict(provenance)}
        file = self.folder / "failures" / f"{trial.trial_id}-{now}-{os.getpid()}.json"
        create_if_absent(file, json.dumps(record | {"config": trial.run.to_dict()}, indent=1).encode())

    def record_diagnostics(self, trial_id: str, diagnostics: "Sequence[Diagnostic]") -> None:
        """Keep what an optimizer did during a trial. A second recording of a trial changes nothing."""
        create_if_absent(self._diagnostics_file(trial_id), diagnostics_to_parquet(diagnostics))

    def read_diagnostics(self, trial_id: str) -> "pd.DataFrame | None":
        """Columns step, depth, kind, quantity and value; None where none were recorded."""
        file = self._diagnostics_file(trial_id)
        return diagnostics_from_parquet(file.read_bytes()) if file.exists() else None

    def _diagnostics_file(self, trial_id: str) -> Path:
        return self.folder / "diagnostics" / f"{trial_id}.parquet"

    def record_stop(self, trial: Trial, stop: Stop) -> None:
        """Keep why a trial was stopped early. Not a result: it depends on the trial's pack. The latest stays."""
        record = {"trial_id": trial.trial_id, **asdict(stop), "config": trial.run.to_dict()}
        replace_file(self._stop_file(trial.trial_id), json.dumps(record, indent=1).encode())

    def read_stops(self, *, warn: Warn = _log.warning) -> dict[str, Stop]:
        """Why trials were stopped early, by trial id. A damaged file is handled as `read` handles one."""
        ids = sorted(file.stem for file in (self.folder / "stopped").glob("[!.]*.json"))
        return {trial_id: stop for trial_id in ids if (stop := self.read_stop(trial_id, warn=warn)) is not None}

    def read_stop(self, trial_id: str, *, warn: Warn = _log.warning) -> Stop | None:
        """Why one trial was stopped early, or None; see `read_stops`."""
        file = self._stop_file(trial_id)
        try:
            record = json.loads(file.read_bytes())
            return Stop(**{field.name: record[field.name] for field in fields(Stop)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            self._set_aside(file, f"holds no reason to stop: {type(error).__name__}: {error}", warn)
            return None

    def _stop_file(self, trial_id: str) -> Path:
        return self.folder / "stopped" / f"{trial_id}.json"

    def last_errors(self) -> dict[str, str]:
        """The latest recorded failure of each trial that ever failed."""
        records = [json.loads(file.read_bytes()) for file in (self.folder / "failures").glob("[!.]*.json")]
        return {record["trial_id"]: record["error"] for record in sorted(records, key=lambda r: r["time_ns"])}

    def bind(self, *, name: str, spec_text: str, planned_ids: Collection[str]) -> None:
        """Make this the folder of a sweep, or check that it is.

        A grid may grow, or lose points that were never run. Results outside of every plan (of a target) are free.

        Raises:
            FolderHoldsAnotherSweepError: another name, or recorded results that the plan does not contain.
            StoreError: the path is a file, or the folder holds imported runs.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file, not a folder. Choose another output folder.")
        if (self.folder / "observations.parquet").exists():
            raise StoreError(f"{self.folder} holds imported runs, not a sweep. Choose another folder with --out.")
        held = self._held_plan()
        committed = self.committed_ids()
        ours = committed if held is None else committed & set(held["trial_ids"])
        orphans = ours - set(planned_ids)
        held_name = name if held is None else held["name"]
        if held_name != name or orphans:
            raise FolderHoldsAnotherSweepError(_other_sweep(self.folder, held_name, name, len(orphans), len(ours)))
        plan = {"name": name, "trial_ids": sorted(planned_ids)}
        _update(self.folder / "spec.toml", spec_text)
        _update(self.folder / "sweep.json", json.dumps(plan, indent=1))

    def record_start(self, provenance: Mapping[str, str]) -> None:
        """Add where and when the sweep runs now to provenance.json, a list."""
        file = self.folder / "provenance.json"
        before = json.loads(file.read_bytes()) if file.exists() else []
        _update(file, json.dumps([*before, dict(provenance)], indent=1))

    def set_aside_folder(self) -> Path | None:
        """Rename the folder to <folder>.old-<UTC time>, and return that; None if there is no folder."""
        if not self.folder.exists():
            return None
        aside = self.folder.with_name(f"{self.folder.name}.old-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        return self.folder.rename(aside)

    def _file(self, trial_id: str) -> Path:
        return self.folder / "trials" / f"{trial_id}.parquet"

    def _held_plan(self) -> dict[str, Any] | None:
        file = self.folder / "sweep.json"
        try:
            plan = json.loads(file.read_bytes())
            return {"name": str(plan["name"]), "trial_ids": list(plan["trial_ids"])}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{file} is damaged. Remove it; the results are checked against the plan.") from None

    def _set_aside(self, file: Path, reason: str, warn: Warn) -> None:
        target = set_aside(file, self.folder)
        if target is None:  # another reader was faster
            return
        warn(f"{file} is damaged: {reason}. Moved to {target}; its trial counts as missing and will run again.")


def _update(file: Path, text: str) -> None:
    if not file.exists() or file.read_bytes() != text.encode():
        replace_file(file, text.encode())


def _refuse_mismatch(recorded: TrialResult, result: TrialResult, file: Path) -> None:
    if not recorded.same_numbers(result):
        raise StoreMismatchError(
            f"{file}: trial {result.trial_id} is recorded as {recorded.status.value} with validation loss "
            f"{recorded.validation_loss} ({recorded.mode}), and running it again gave {result.status.value} with "
            f"{result.validation_loss} ({result.mode}). The recorded result stays. Numbers that do not repeat "
            "come from another machine, another torch, or a change of the training code without a new NUMERICS_VERSION."
        )


def _other_sweep(folder: Path, held: str, name: str, orphans: int, results: int) -> str:
    reason = (
        f"the sweep '{held}', not '{name}'"
        if held != name
        else f"a sweep '{held}' of which {orphans} of {results} results are not in this plan, "
        "because the spec, the data or the numerics changed"
    )
    return (
        f"{folder} holds {reason}. Nothing was changed. "
        "Choose another folder with --out, or rename this one and start anew with --fresh."
    )
