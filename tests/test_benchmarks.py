"""The benchmarks' pieces at the smallest size: they compare like with like, and say what they should. No timings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import mfu, orchestration, scaling, sweep_throughput
from benchmarks.support import document
from benchmarks.support.engine import with_engine
from benchmarks.support.idle_sweep import measure
from benchmarks.support.plain_torch import trial, with_optuna
from benchmarks.support.scaling_figure import TITLES, figure_of
from benchmarks.support.workload import Workload, write_tokens
from proxy_models.data import DataSource, TokenData, load_data
from sweeps.local_backend import LocalBackend
from sweeps.spec_models import EngineSection


@pytest.fixture(scope="module")
def data() -> TokenData:
    return load_data(DataSource(), vocab_size=256, seq_len=128)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    tokens = tmp_path_factory.mktemp("workload") / "tokens.npy"
    write_tokens(tokens)
    whole = Workload(tokens_file=str(tokens), batch_tokens=256, steps=10)
    assert len(whole.grid) == 64
    return replace(whole, widths=(16, 32), lrs=(2.0**-7,), seeds=(1,))


def test_plain_torch_and_the_engine_train_the_same_trials(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = with_engine(workload, LocalBackend(), workers=1, engine=EngineSection(compile=False))
    losses = [one["loss"] for one in ours["trials"]]
    assert losses == pytest.approx([trial(workload, place)["loss"] for place in workload.grid], rel=1e-5)
    assert losses == pytest.approx([one["loss"] for one in with_optuna(workload)], rel=1e-5)
    assert len(set(losses)) == len(losses)
    assert len(ours["plan"]) == 2
    assert sum(ours["modes"].values()) == len(losses)


def test_a_way_is_summed_up_by_its_median_and_its_share_of_arithmetic() -> None:
    def run(seconds: float, loss: float) -> sweep_throughput.Repetition:
        trials = [{"loss": loss, "train_seconds": 3.0}, {"loss": 1.0, "train_seconds": 5.0}]
        return sweep_throughput.Repetition(seconds=seconds, outcome={"trials": trials})

    runs = [run(40.0, 2.0), run(8.0, 2.5), run(10.0, 2.0)]
    summary = sweep_throughput.summary("mutransfer", runs, [2.0, 1.0])
    assert summary["median_seconds"] == 10.0
    assert summary["first_seconds"] == 40.0
    assert summary["trials_per_hour"] == 720.0
    assert summary["arithmetic"] == 8.0 / 20.0
    assert summary["largest_loss_difference"] == 0.5
    assert sweep_throughput.summary("optuna", runs, [2.0, 1.0])["arithmetic"] == 8.0 / 10.0


def test_the_best_setting_is_held_against_every_other_way() -> None:
    seconds = {"mutransfer": 100.0, "ray_process_a_trial": 300.0, "ray_reused_actors": 120.0, "optuna": 200.0}
    assert sweep_throughput.best(seconds, {})["way"] == "mutransfer"
    best = sweep_throughput.best(seconds, {"mutransfer_compiled_loop": {"median_seconds": 80.0}})
    assert best["way"] == "mutransfer_compiled_loop"
    assert best["trials_per_hour_over"] == {"ray_process_a_trial": 3.75, "ray_reused_actors": 1.5, "optuna": 2.5}


def test_idle_trials_are_real_trials(tmp_path: Path) -> None:
    row = measure(3, 2, "local", tmp_path)
    assert row["trials"] == 3
    assert 0 < row["seconds_to_first_result"] < row["seconds"]
    assert row["peak_bytes"] > 1e7
    assert len(list((tmp_path / "results" / "trials").iterdir())) == 3


def test_costs_of_further_trials_leave_the_start_out() -> None:
    def run(size: int, seconds: float, peak_bytes: int) -> dict[str, float]:
        times = {"seconds_to_first_result": 9.0, "step_seconds_a_trial": 0.002}
        return {"trials": size, "seconds": seconds, "peak_bytes": peak_bytes, **times}

    runs = {
        500: [run(500, 15.0, 200_000_000)],
        2000: [run(2000, 30.0, 215_000_000)],
        10_000: [run(10_000, 126.0, 400_000_000)],
    }
    rows = orchestration.summarized(runs)
    assert [row["ms_a_trial"] for row in rows] == pytest.approx([30.0, 15.0, 12.6])
    assert rows[1]["marginal_ms_a_trial"] == pytest.approx(10.0)
    goals = orchestration.goals(rows)
    assert goals["ms_a_trial_at_2000"] == {"at_most": 20.0, "value": pytest.approx(15.0), "met": True}
    assert goals["driver_bytes_a_trial_to_2000"]["value"] == pytest.approx(10e3)
    assert goals["driver_bytes_a_trial_to_largest"] == {
        "at_most": 20e3,
        "value": pytest.approx(200e6 / 9500),
        "met": False,
    }
    assert goals["linear"]["value"] == pytest.approx(1.2)
    assert orchestration.goals(orchestration.summarized({20: runs[500]}))["linear"]["met"] is None


def test_utilization_counts_every_member_of_a_pack(data: TokenData) -> None:
    run = mfu.run_of(mfu.OPTIMIZERS["adamw"], 16)
    one, three = (mfu.Training([run] * n, data, scaling.STACKED) for n in (1, 3))
    assert mfu.step_flops(three) == 3 * mfu.step_flops(one)
    rows = [{"width": 128, "optimizer": "adamw", "mode": mfu.COMPILED_LOOP.name, "utilization": 0.62}]
    goals = mfu.goals(rows, {"measured": False})
    assert goals["cpu_width_128"] == {"at_least": 0.6, "value": 0.62, "met": True}
    assert goals["gpu_width_256"]["met"] is None


def test_every_axis_of_scaling_is_a_panel(data: TokenData) -> None:
    rows = scaling.quick_rows(data)
    assert all(row["seconds_a_trial"] > 0 for row in rows)
    figure = figure_of([*rows, {"axis": "workers", "value": 2, "line": "eager loop", "seconds_a_trial": 1.0}])
    assert [ax.get_xlabel() for ax in figure.axes] == list(TITLES.values())
    assert [len(ax.lines[0].get_xdata()) for ax in figure.axes] == [2, 2, 2, 2, 1]


def test_a_document_is_printed_and_saved_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    found = {"benchmark": "mfu", "machine": document.machine(), "goals": {"a": document.goal(2.0, at_most=1.0)}}
    document.publish(found, save=False)
    assert json.loads(capsys.readouterr().out) == found
    assert not list(tmp_path.iterdir())
    document.publish(found, save=True)
    assert json.loads((tmp_path / "mfu.json").read_text()) == found
    assert {"cpu", "torch", "load_averages"} <= found["machine"].keys()
    assert found["goals"]["a"]["met"] is False
    assert document.goal(None, at_least=3.0) == {"at_least": 3.0, "value": None, "met": None}
    assert document.goal(0.0, at_least=3.0)["met"] is False
