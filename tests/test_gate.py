"""The gate checks what the spec says, whatever batch its check takes, and in however many processes."""

from pathlib import Path

import pytest

from proxy_models.config import first_steps
from proxy_models.coord_check import CoordCheck, CoordSlope
from sweeps.spec import load_spec
from tests.proxy_helpers import cyclic_data, tiny_run
from tests.transfer_helpers import write_tiny
from transfer import gate_processes
from transfer.gate import Gate, GateError, check_runs, read_check
from transfer.gate_processes import CheckRun

RESULTS = Path(__file__).parents[1] / "results"


def test_check_runs_cover_the_spec_and_a_contrast_at_the_lowest_lr(tmp_path: Path) -> None:
    """A batch that does not divide train_tokens (640), with a decay longer than the check."""
    spec_file, _ = write_tiny(tmp_path)
    spec_file.write_text(spec_file.read_text().replace("[check]", "[check]\nbatch_tokens = 48\nsteps = 3"))
    runs = check_runs(load_spec(spec_file))
    assert {(r.run.parametrization, r.optimizer, r.run.model.width) for r in runs} == {
        (p, o, w) for p in ("mup", "standard") for o in ("adamw", "scale") for w in (16, 32, 64, 128)
    }
    lengths = {(r.run.hparams.lr, r.run.hparams.batch_tokens, r.run.train_tokens, r.axis) for r in runs}
    assert lengths == {(2.0**-10, 48, 144, "width")}


def test_complete_p_is_checked_over_depth_too_in_contrast_to_mup(tmp_path: Path) -> None:
    spec_file, _ = write_tiny(tmp_path, parametrization="complete_p")
    text = spec_file.read_text().replace("base_width", "base_depth = 2\nbase_width", 1)
    spec_file.write_text(text.replace("depth = 1\n", "depth = 2\n", 1))
    runs = check_runs(load_spec(spec_file))
    assert {(r.run.parametrization, r.run.model.width, r.run.model.depth) for r in runs if r.axis == "width"} == {
        (p, w, 2) for p in ("complete_p", "standard") for w in (16, 32, 64, 128)
    }
    deep = [r.run for r in runs if r.axis == "depth"]
    assert {(r.parametrization, r.base_depth, r.model.width, r.model.depth) for r in deep} == {
        (p, b, 16, d) for p, b in (("complete_p", 2), ("mup", None)) for d in (2, 4, 8, 16)
    }


def test_a_failure_names_its_axis() -> None:
    slopes = (
        CoordSlope(optimizer="sgd", parametrization="mup", tap="last_block.mlp", step=4, slope=0.5, axis="depth"),
        CoordSlope(optimizer="sgd", parametrization="mup", tap="logits", step=4, slope=0.1),
    )
    check = CoordCheck(points=(), slopes=slopes, tolerance=0.2)
    assert check.failures("mup", "width") == ()
    with pytest.raises(
        GateError, match=r"1 activations change with depth by more than depth\^\+-0\.2 \(sgd last_block"
    ):
        Gate(parametrization="mup", check=check, from_cache=False).refuse_failure()


@pytest.mark.parametrize("name", ["quickstart", "optimizers"])
def test_a_check_written_before_depth_was_an_axis_is_read(name: str) -> None:
    check = read_check(RESULTS / name)
    assert check is not None
    assert check.axes == ("width",)
    assert {point.size for point in check.points} == {32, 64, 128, 256}


def _measured(monkeypatch: pytest.MonkeyPatch, processes: int) -> tuple[list[object], int]:
    """Points of five runs, where any FLOPs are worth a process; and how many runs were told of."""
    monkeypatch.setattr(gate_processes, "FLOPS_OF_A_PROCESS", 1.0)
    runs = [CheckRun(optimizer=f"o{i}", run=first_steps(tiny_run(seed=i), steps=2, batch_tokens=64)) for i in range(5)]
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
    runs = [CheckRun(optimizer="o", run=first_steps(tiny_run(), steps=2, batch_tokens=64))]
    assert gate_processes.measure(runs, cyclic_data(), steps=2, processes=8, on_run=lambda: None)
