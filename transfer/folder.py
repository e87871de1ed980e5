"""What a results folder holds beside its trials, and reading it back."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from sweeps.files import replace_file
from sweeps.import_map import OBSERVATIONS
from sweeps.spec import SweepSpec, TargetSpec, load_spec, load_target

if TYPE_CHECKING:
    from transfer.plan import TransferPlan
    from transfer.verification import Verification

SPEC, TARGET, FITS, LOSSES = "spec.toml", "target.toml", "fits.json", "losses.csv"
PLAN, VERIFICATION, TIMES, ORIGIN = "plan.json", "verification.json", "times.json", "origin.json"


class FolderError(ValueError):
    """A results folder or a file in it that cannot be used. The message says which, why and what to do."""


def is_import(path: Path) -> bool:
    """Whether a folder holds runs made elsewhere (`mutransfer import`) and not a sweep."""
    return (path / OBSERVATIONS).is_file()


def refuse_import(path: Path) -> None:
    """Raises FolderError if the folder holds an import."""
    if is_import(path):
        raise FolderError(
            f"{path}: holds runs that were made elsewhere, and no spec that says how to run them. "
            "Of an import there are `mutransfer fit`, `transfer` and `report`."
        )


def sweep_folder(path: Path) -> Path:
    """The folder of a sweep.

    Raises:
        FolderError: no folder, or one without a sweep.
    """
    if not path.is_dir():
        raise FolderError(f"{path}: there is no such folder. Give the folder that `mutransfer sweep` wrote.")
    refuse_import(path)
    if not (path / SPEC).is_file():
        raise FolderError(
            f"{path}: holds no sweep, for it has no {SPEC}. Give the folder that `mutransfer sweep` wrote."
        )
    return path


def write(folder: Path, name: str, text: str) -> None:
    """Write one file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / name, text.encode())


def write_origin(folder: Path, spec: SweepSpec) -> None:
    """Remember where the spec's relative data path starts from, as seen from the results folder."""
    relative = os.path.relpath(spec.data_folder.resolve(), folder.resolve())
    write(folder, ORIGIN, json.dumps({"data_folder": Path(relative).as_posix()}) + "\n")


def read_spec(folder: Path) -> SweepSpec:
    """The spec a sweep ran, from its folder."""
    spec = load_spec(sweep_folder(folder) / SPEC)
    try:
        relative = str(json.loads((folder / ORIGIN).read_bytes())["data_folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return spec
    return spec.with_data_folder(folder.resolve() / relative)


def read_target(folder: Path) -> TargetSpec:
    """The target of the folder's plan."""
    return load_target(folder / TARGET)


def read_plan(file: Path) -> "TransferPlan":
    """Read a plan.json.

    Raises:
        FolderError: no such file, or not a plan.
    """
    from transfer.plan import PLAN_JSON

    try:
        return PLAN_JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise FolderError(
            f"{file}: there is no such file. `mutransfer transfer DIR --target FILE` makes a plan."
        ) from None
    except IsADirectoryError:
        raise FolderError(f"{file}: is a folder. Give the {PLAN} in it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FolderError(f"{file}: is not a plan of this version: {where}: {first['msg']}. Make it anew.") from None


def read_verification(folder: Path) -> "Verification | None":
    """The folder's verification, None if there is none or it cannot be read."""
    from transfer.verification import VERIFICATION_JSON

    try:
        return VERIFICATION_JSON.validate_json((folder / VERIFICATION).read_bytes())
    except (OSError, ValidationError):
        return None


def read_times(folder: Path) -> dict[str, float]:
    """Seconds of each stage of the last `mutransfer run`, empty if there was none."""
    try:
        return {str(k): float(v) for k, v in json.loads((folder / TIMES).read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}
