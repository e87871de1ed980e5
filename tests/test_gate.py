"""The gate checks what the spec says, whatever batch its check takes, and in however many processes."""

from pathlib import Path

import pytest

from proxy_models.config import first_steps
from sweeps.spec import load_spec
from tests.proxy_helpers import cyclic_data, tiny_run
from tests.transfer_helpers import write_tiny
from transfer import gate_processes
from transfer.gate import check_runs


def test_check_runs_cover_the_spec_and_a_contrast_at_the_lowest_lr(tmp_path: Path) -> None:
    """A batch that does not divide train_tokens (640), with a decay longer than the check."""
    spec_file, _ = write_tiny(tmp_path)
    spec_file.write_text(spec_file.read_text().replace("[check]", "[check]\nbatch_tokens = 48\nsteps = 3"))
    runs = check_runs(load_spec(spec_file))
    assert {(r.parametrization, name, r.model.width) for name, r in runs} == {
        (p, o, w) for p in ("mup", "standard") for o in ("adamw", "scale") for w in (16, 32, 64, 128)
    }
    assert {(r.hparams.lr, r.hparams.batch_tokens, r.train_tokens) for _, r in runs} == {(2.0**-10, 48, 144)}


def _measured(monkeypatch: pytest.MonkeyPatch, processes: int) -> tuple[list[object], int]:
    """Points of five runs, where any FLOPs are worth a process; and how many runs were told of."""
    monkeypatch.setattr(gate_processes, "FLOPS_OF_A_PROCESS", 1.0)
    runs = [(f"o{i}", first_steps(tiny_run(seed=i), steps=2, batch_tokens=64)) for i in range(5)]
    told: list[None] = []
    points = gate_processes.measure(
        runs, cyclic_data(), steps=2, processes=processes, on_run=lambda: told.append(None)
    )  # fmt: skip
    return list(points), len(told)


def test_points_are_the_same_from_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, told = _measured(monkeypatch, 1)
    assert [point.seed for point in alone[:: len(alone) // 5]] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]
    assert told == 5
    assert _measured(monkeypatch, 3) == (alone, 5)


def test_what_a_lost_process_owes_is_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _measured(monkeypatch, 1)
    start = gate_processes._Other.__enter__

    def lost(other: gate_processes._Other) -> gate_processes._Other:
        other.process.kill()
        return start(other)

    monkeypatch.setattr(gate_processes._Other, "__enter__", lost)
    assert _measured(monkeypatch, 2) == alone


def test_a_small_check_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_processes, "_Other", None)
    runs = [("o", first_steps(tiny_run(), steps=2, batch_tokens=64))]
    assert gate_processes.measure(runs, cyclic_data(), steps=2, processes=8, on_run=lambda: None)
