"""A member's state survives its file bit for bit, and is used for its own trial, in its own mode, or not at all."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from proxy_models.diagnostics import Diagnostic
from proxy_models.member_state import MemberState
from proxy_models.mode import EAGER_LOOP, Mode
from sweeps.checkpoints import (
    DamagedStateError,
    checkpoint_file,
    fork_file,
    from_bytes,
    read_checkpoint,
    read_fork,
    remove_checkpoint,
    remove_forks,
    to_bytes,
    write_checkpoint,
    write_fork,
)
from sweeps.pack import Fork

TRIAL, OTHER = "0123456789abcdef", "fedcba9876543210"
STACKED = Mode(executor="stacked")


def member_state(step: int = 3) -> MemberState:
    """With the values that a text format would lose: NaNs, negative zeros, subnormals, infinities."""
    odd = torch.tensor([math.nan, -0.0, 1e-45, math.inf, 0.1])
    generator = torch.Generator().manual_seed(7)
    return MemberState(
        step=step,
        losses=torch.linspace(5.5, 4.1, step, dtype=torch.float64),
        weights={"readout": torch.randn(4, 3, generator=generator).T, "blocks.0.gain": odd},
        optimizer={
            "readout": {"momentum": torch.randn(3, 4, generator=generator).bfloat16(), "count": torch.tensor(3)},
            "blocks.0.gain": {},
        },
        births={"readout": 0, "blocks.0.gain": 2},
        phase=1,
        train_seconds=0.1 + 0.2,
        inherited_steps=2,
        diagnostics=(Diagnostic(step=1, depth=0, kind="mlp.up", quantity="update_rms", value=1 / 3),),
    )


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_state(one: MemberState, other: MemberState) -> bool:
    plain = ("step", "births", "phase", "train_seconds", "inherited_steps", "diagnostics")
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and bits(one.losses) == bits(other.losses)
        and {k: bits(t) for k, t in one.weights.items()} == {k: bits(t) for k, t in other.weights.items()}
        and {k: {n: bits(t) for n, t in s.items()} for k, s in one.optimizer.items()}
        == {k: {n: bits(t) for n, t in s.items()} for k, s in other.optimizer.items()}
    )


def test_a_state_comes_back_bit_for_bit() -> None:
    trial_id, mode, state = from_bytes(to_bytes(member_state(), trial_id=TRIAL, mode=STACKED))
    assert (trial_id, mode) == (TRIAL, STACKED.name)
    assert same_state(state, member_state())
    assert asdict(state.diagnostics[0])["value"] == 1 / 3


def test_a_file_is_safetensors_by_parameter() -> None:
    tensors = load(to_bytes(member_state(), trial_id=TRIAL, mode=EAGER_LOOP))
    assert set(tensors) == {
        "losses",
        "weights/readout",
        "weights/blocks.0.gain",
        "optimizer/readout/momentum",
        "optimizer/readout/count",
    }


@given(data=st.data())
def test_no_damage_passes_for_a_state(data: st.DataObject) -> None:
    content = bytearray(to_bytes(member_state(), trial_id=TRIAL, mode=EAGER_LOOP))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    try:
        trial_id, mode, state = from_bytes(bytes(content))
    except DamagedStateError:
        return
    # spaces around JSON and an order of names may change without harm
    assert (trial_id, mode) == (TRIAL, EAGER_LOOP.name)
    assert same_state(state, member_state())


def test_a_checkpoint_is_replaced_read_and_removed(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, TRIAL, EAGER_LOOP, warn=pytest.fail) is None
    for step in (3, 5):
        write_checkpoint(tmp_path, TRIAL, EAGER_LOOP, member_state(step))
    state = read_checkpoint(tmp_path, TRIAL, EAGER_LOOP, warn=pytest.fail)
    assert state is not None
    assert same_state(state, member_state(5))
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [f"{TRIAL}.safetensors"]
    for _ in range(2):
        remove_checkpoint(tmp_path, TRIAL)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_forks_stand_apart_from_checkpoints_and_go_when_nobody_needs_them(tmp_path: Path) -> None:
    forks = [Fork(trunk_id=TRIAL, step=step) for step in (3, 5)]
    write_checkpoint(tmp_path, TRIAL, EAGER_LOOP, member_state(4))
    for fork in forks:
        write_fork(tmp_path, fork, EAGER_LOOP, member_state(fork.step))
    for fork in forks:
        state = read_fork(tmp_path, fork, EAGER_LOOP, warn=pytest.fail)
        assert state is not None
        assert state.step == fork.step
    remove_forks(tmp_path, [forks[1]])
    assert read_fork(tmp_path, forks[0], EAGER_LOOP, warn=pytest.fail) is None
    assert fork_file(tmp_path, forks[1]).is_file()
    remove_forks(tmp_path, [])
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [f"{TRIAL}.safetensors"]


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip_a_weight(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _become_foreign(file: Path) -> None:
    file.write_bytes(save({"a": torch.ones(2)}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "not readable as a state"),
        (_empty, "not readable as a state"),
        (_flip_a_weight, "its contents do not hash to its digest"),
        (_become_foreign, "not readable as a state: KeyError"),
    ],
)
def test_a_damaged_checkpoint_is_named_once_and_set_aside(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    write_checkpoint(tmp_path, TRIAL, EAGER_LOOP, member_state())
    file = checkpoint_file(tmp_path, TRIAL)
    damage(file)
    damaged = file.read_bytes()
    warnings: list[str] = []
    for _ in range(2):
        assert read_checkpoint(tmp_path, TRIAL, EAGER_LOOP, warn=warnings.append) is None
    assert len(warnings) == 1
    assert str(file) in warnings[0]
    assert reason in warnings[0]
    [aside] = (tmp_path / "set_aside").iterdir()
    assert aside.read_bytes() == damaged


def test_a_state_of_another_mode_or_trial_is_not_used(tmp_path: Path) -> None:
    warnings: list[str] = []
    write_checkpoint(tmp_path, TRIAL, EAGER_LOOP, member_state())
    assert read_checkpoint(tmp_path, TRIAL, STACKED, warn=warnings.append) is None
    checkpoint_file(tmp_path, TRIAL).rename(checkpoint_file(tmp_path, OTHER))
    assert read_checkpoint(tmp_path, OTHER, EAGER_LOOP, warn=warnings.append) is None
    assert [f"the state of trial {TRIAL} in mode {EAGER_LOOP.name}, not of" in text for text in warnings] == [True] * 2
    assert checkpoint_file(tmp_path, OTHER).is_file()


def test_a_state_of_a_newer_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.checkpoints.SCHEMA_VERSION", 2)
    content = to_bytes(replace(member_state(), phase=0), trial_id=TRIAL, mode=EAGER_LOOP)
    monkeypatch.undo()
    with pytest.raises(DamagedStateError, match="has schema version 2, this program knows up to 1"):
        from_bytes(content)
