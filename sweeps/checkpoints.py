"""Where a trial goes on after a loss, and where others go on from it: states of members as safetensors files.

`checkpoints/<trial_id>.safetensors` is a trial's own latest state, `checkpoints/<trunk_id>-<step>.safetensors` a fork.
A state is used only for its own trial, in the mode in which it was made. Imports torch only where it reads or writes.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy_models.mode import Mode
from sweeps.files import replace_file, set_aside
from sweeps.pack import Fork

if TYPE_CHECKING:
    from torch import Tensor

    from proxy_models.member_state import MemberState

SCHEMA_VERSION = 1  # of the tensors' names and of the metadata
Warn = Callable[[str], None]
_log = logging.getLogger(__name__)
_DIGEST = "sha256"  # metadata: over all tensors and the rest of the metadata


class DamagedStateError(ValueError):
    """Bytes that are no state: truncated, altered, or in a form that this program does not know."""


def to_bytes(state: "MemberState", *, trial_id: str, mode: Mode) -> bytes:
    """The state as safetensors, with everything that is no tensor as JSON in the metadata."""
    from safetensors.torch import save

    optimizer = {name: list(tensors) for name, tensors in state.optimizer.items()}
    values = {
        "schema_version": SCHEMA_VERSION,
        "trial_id": trial_id,
        "mode": mode.name,
        "step": state.step,
        "births": dict(state.births),
        "phase": state.phase,
        "train_seconds": state.train_seconds,
        "inherited_steps": state.inherited_steps,
        "diagnostics": [asdict(diagnostic) for diagnostic in state.diagnostics],
        "optimizer": optimizer,  # the names of each parameter's states, for some have none
    }
    metadata = {key: json.dumps(value) for key, value in values.items()}
    tensors = {
        "losses": state.losses,
        **{f"weights/{name}": tensor for name, tensor in state.weights.items()},
        **{f"optimizer/{name}/{key}": state.optimizer[name][key] for name, keys in optimizer.items() for key in keys},
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content: bytes = save(tensors, metadata | {_DIGEST: _digest(tensors, metadata)})
    return content


def from_bytes(content: bytes) -> tuple[str, str, "MemberState"]:
    """Inverse of `to_bytes`: the trial's id, the mode's name and the state, bit for bit.

    Raises:
        DamagedStateError: not the bytes that were written, or written by a newer version of the program.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        digest = metadata.pop(_DIGEST)
        if digest != _digest(tensors, metadata):
            raise DamagedStateError("its contents do not hash to its digest")
        values = {key: json.loads(text) for key, text in metadata.items()}
        if values["schema_version"] > SCHEMA_VERSION:
            version = values["schema_version"]
            raise DamagedStateError(f"has schema version {version}, this program knows up to {SCHEMA_VERSION}")
        return values["trial_id"], values["mode"], _state_of(tensors, values)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DamagedStateError):
            raise
        raise DamagedStateError(f"not readable as a state: {type(error).__name__}: {error}") from error


def checkpoint_file(folder: Path, trial_id: str) -> Path:
    """Where a results folder keeps a trial's own latest state."""
    return folder / "checkpoints" / f"{trial_id}.safetensors"


def fork_file(folder: Path, fork: Fork) -> Path:
    """Where a results folder keeps the state at a fork."""
    return folder / "checkpoints" / f"{fork.trunk_id}-{fork.step}.safetensors"


def write_checkpoint(folder: Path, trial_id: str, mode: Mode, state: "MemberState") -> None:
    """Replace the trial's own state."""
    replace_file(checkpoint_file(folder, trial_id), to_bytes(state, trial_id=trial_id, mode=mode))


def read_checkpoint(folder: Path, trial_id: str, mode: Mode, *, warn: Warn = _log.warning) -> "MemberState | None":
    """The trial's own state; None, and a warning, where it cannot be used."""
    return _read(checkpoint_file(folder, trial_id), folder, trial_id, mode, warn)


def remove_checkpoint(folder: Path, trial_id: str) -> None:
    """Of a trial that has its result."""
    checkpoint_file(folder, trial_id).unlink(missing_ok=True)


def write_fork(folder: Path, fork: Fork, mode: Mode, state: "MemberState") -> None:
    """Keep the state of a trunk at a fork."""
    assert state.step == fork.step, f"a fork at step {fork.step} got a state at step {state.step}"
    replace_file(fork_file(folder, fork), to_bytes(state, trial_id=fork.trunk_id, mode=mode))


def read_fork(folder: Path, fork: Fork, mode: Mode, *, warn: Warn = _log.warning) -> "MemberState | None":
    """The state at a fork; None where there is none, and a warning where it cannot be used."""
    return _read(fork_file(folder, fork), folder, fork.trunk_id, mode, warn)


def remove_forks(folder: Path, keep: Collection[Fork]) -> None:
    """Remove every fork's state but these. Trials' own states stay."""
    kept = {fork_file(folder, fork).name for fork in keep}
    for file in (folder / "checkpoints").glob("[!.]*-*.safetensors"):
        if file.name not in kept:
            file.unlink(missing_ok=True)


def _read(file: Path, folder: Path, trial_id: str, mode: Mode, warn: Warn) -> "MemberState | None":
    try:
        stored_id, stored_mode, state = from_bytes(file.read_bytes())
    except FileNotFoundError:
        return None
    except DamagedStateError as error:
        if aside := set_aside(file, folder):
            warn(f"{file} is damaged: {error}. Moved to {aside}; training starts from the beginning.")
        return None
    if (stored_id, stored_mode) != (trial_id, mode.name):
        warn(
            f"{file} is the state of trial {stored_id} in mode {stored_mode}, not of {trial_id} in {mode.name}. "
            "It is not used; training starts from the beginning."
        )
        return None
    return state


def _state_of(tensors: "Mapping[str, Tensor]", values: Mapping[str, Any]) -> "MemberState":
    from proxy_models.diagnostics import Diagnostic
    from proxy_models.member_state import MemberState

    return MemberState(
        step=values["step"],
        losses=tensors["losses"],
        weights={
            name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")
        },
        optimizer={
            name: {key: tensors[f"optimizer/{name}/{key}"] for key in keys}
            for name, keys in values["optimizer"].items()
        },
        births=values["births"],
        phase=values["phase"],
        train_seconds=values["train_seconds"],
        inherited_steps=values["inherited_steps"],
        diagnostics=tuple(Diagnostic(**diagnostic) for diagnostic in values["diagnostics"]),
    )


def _digest(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> str:
    """safetensors itself has no check of its contents."""
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
