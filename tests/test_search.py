"""Searches that adapt, on real files: planned from results, stopped and resumed, nothing trained twice."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from sweeps.basin import Basin, objective
from sweeps.run import BackendError
from sweeps.spec import SpecError, SweepSpec, axes_of, load_spec, plan_trials
from sweeps.stages import STAGES, can_run, planned_trials, read_stages, trials_at, write_stages
from sweeps.store import FolderHoldsAnotherSweepError, ResultStore, StoreError
from sweeps.trial import TrialResult
from tests.sweep_helpers import completed, diverged, write_words
from transfer import pipeline, search
from transfer.execution import Execution
from transfer.search_tables import stages_table

SPEC = """
name = "tiny"
[data]
source = "text"
path = "text.txt"
validation_frac = 0.2
[model]
depth = 1
head_dim = 8
seq_len = 16
[run]
base_width = 16
widths = [16, 32, 64]
seeds = [0, 1]
train_tokens = 128
validation_tokens = 64
[hparams]
batch_tokens = 32
[search]
{search}
[optimizers.adamw]
axes.lr = [0.01, 0.03, 0.1, 0.3]
[optimizers.muon]
axes.lr = {{ log2_from = -6, log2_to = 0, log2_step = 2 }}
"""
TELESCOPE = 'method = "telescope"\npoints = 3\nmax_reexpansions = 1'
OPTUNA = 'method = "optuna"\ntrials = 2\nsampler_seed = 7'
TWO_WIDTHS = ("[16, 32, 64]", "[16, 32]")
LOCAL = Execution(backend="local")


def write(folder: Path, search: str, *edits: tuple[str, str]) -> Path:
    """The spec's file, with its text."""
    write_words(folder)
    text = SPEC.format(search=search)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (folder / "spec.toml").write_text(text)
    return folder / "spec.toml"


def trials(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "trials").iterdir()}


@pytest.fixture(scope="module")
def telescoped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole telescoped sweep, beside its spec."""
    folder = tmp_path_factory.mktemp("telescoped")
    pipeline.sweep(load_spec(write(folder, TELESCOPE)), folder / "out", LOCAL, gate=False)
    return folder


def test_a_telescoped_sweep_trains_every_stage_it_wrote_down(telescoped: Path) -> None:
    out = telescoped / "out"
    spec = load_spec(telescoped / "spec.toml")
    stages = read_stages(out, spec)
    assert {(stage.optimizer, stage.width) for stage in stages} == {
        (o, w) for o in spec.optimizers for w in (16, 32, 64)
    }
    assert len(trials(out)) == 2 * sum(len(stage.lrs) for stage in stages)
    status = pipeline.status(out)
    assert (status.planned, status.missing) == (len(trials(out)), 0)
    assert status.completed + status.diverged == status.planned
    assert set(json.loads((out / "sweep.json").read_text())["trial_ids"]) == {name[:-8] for name in trials(out)}
    for stage in stages:
        assert stage.why
        assert stage.low <= math.log2(min(stage.lrs)) + 1e-9 < math.log2(max(stage.lrs)) <= stage.high + 1e-9
    fitted = pipeline.fit(out)
    assert len(fitted.recorded.results) == status.planned
    assert fitted.scales is None
    assert {surface.width for surface in fitted.over_width.surfaces} == {16, 32, 64}


def test_again_trains_nothing(telescoped: Path) -> None:
    before, stages = trials(telescoped / "out"), (telescoped / "out" / STAGES).read_bytes()
    spec = load_spec(telescoped / "spec.toml")
    outcome = pipeline.sweep(spec, telescoped / "out", LOCAL, gate=False)
    assert outcome.reused == len(outcome.results) == len(before)
    (telescoped / "out" / STAGES).unlink()  # the stages follow from the results
    pipeline.sweep(spec, telescoped / "out", LOCAL, gate=False)
    assert trials(telescoped / "out") == before
    assert (telescoped / "out" / STAGES).read_bytes() == stages


@pytest.mark.parametrize("lost", [1, 30])
def test_a_search_that_stopped_anywhere_ends_alike(telescoped: Path, tmp_path: Path, lost: int) -> None:
    """As if killed after some trial: what the ledger lacks is trained, in the stage that it belongs to."""
    spec = load_spec(write(tmp_path, TELESCOPE))
    whole = ResultStore(telescoped / "out").read()
    planned = search.stages_so_far(spec, ResultStore(telescoped / "out"), _fingerprint(whole), band_nats=0.1)
    in_order = [trial.trial_id for _, trial in planned_trials(spec, planned, _fingerprint(whole))]
    kept = in_order[:-lost]
    store = ResultStore(tmp_path / "out")
    for trial_id in kept:
        store.commit(whole[trial_id])
    before = trials(tmp_path / "out") if kept else {}
    outcome = pipeline.sweep(spec, tmp_path / "out", LOCAL, gate=False)
    assert trials(tmp_path / "out").items() >= before.items()
    assert set(outcome.results) == set(whole)
    assert (tmp_path / "out" / STAGES).read_bytes() == (telescoped / "out" / STAGES).read_bytes()


def _fingerprint(results: Mapping[str, TrialResult]) -> str:
    return next(iter(results.values())).trial.data_fingerprint


def test_another_search_in_the_folder_is_refused_and_a_grown_one_goes_on(telescoped: Path, tmp_path: Path) -> None:
    shutil.copytree(telescoped / "out", tmp_path / "out")
    file = write(tmp_path, f"{TELESCOPE}\nshrink_bounds = [1, 1]")
    with pytest.raises(FolderHoldsAnotherSweepError, match="results are not in this plan"):
        pipeline.sweep(load_spec(file), tmp_path / "out", LOCAL, gate=False)
    file = write(tmp_path, TELESCOPE, ("[16, 32, 64]", "[16, 32, 48, 64]"))
    with pytest.raises(FolderHoldsAnotherSweepError, match="results are not in this plan"):
        pipeline.sweep(load_spec(file), tmp_path / "out", LOCAL, gate=False)
    before = trials(tmp_path / "out")
    outcome = pipeline.sweep(
        load_spec(write(tmp_path, TELESCOPE, ("[16, 32, 64]", "[16, 32, 64, 72]"))), tmp_path / "out", LOCAL, gate=False
    )
    assert outcome.reused == len(before)
    new = [result for result in outcome.results.values() if f"{result.trial_id}.parquet" not in before]
    assert {result.trial.run.model.width for result in new} == {72}


def test_a_damaged_record_of_stages_is_named(telescoped: Path, tmp_path: Path) -> None:
    shutil.copytree(telescoped / "out", tmp_path / "out")
    (tmp_path / "out" / STAGES).write_text('{"schema_version": 1}')
    with pytest.raises(StoreError, match=r"stages\.json is not a record of stages of this version .*remove the file"):
        pipeline.status(tmp_path / "out")


def test_the_stages_of_another_method_or_optimizer_are_not_read(telescoped: Path, tmp_path: Path) -> None:
    for method in ('method = "grid"', OPTUNA):
        assert read_stages(telescoped / "out", load_spec(write(tmp_path, method))) == ()
    renamed = load_spec(write(tmp_path, TELESCOPE, ("[optimizers.muon]", "[optimizers.nsgd]")))
    assert {stage.optimizer for stage in read_stages(telescoped / "out", renamed)} == {"adamw"}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole sweep that Optuna refined, beside its spec."""
    folder = tmp_path_factory.mktemp("refined")
    pipeline.sweep(load_spec(write(folder, OPTUNA, TWO_WIDTHS)), folder / "out", LOCAL, gate=False)
    return folder


def test_optuna_refines_every_basin_with_every_seed(refined: Path) -> None:
    out, spec = refined / "out", load_spec(refined / "spec.toml")
    stages = read_stages(out, spec)
    assert [(stage.optimizer, stage.width) for stage in stages] == list(product(spec.optimizers, (16, 32)))
    recorded = ResultStore(out).read()
    data = _fingerprint(recorded)
    losses = {
        (optimizer, width, lr): objective(recorded[one.trial_id] for one in trials_at(spec, optimizer, width, lr, data))
        for optimizer in spec.optimizers
        for width in (16, 32)
        for lr in axes_of(spec, optimizer)["lr"]
    }
    for stage in stages:
        grid = {lr: loss for (o, w, lr), loss in losses.items() if (o, w) == (stage.optimizer, stage.width)}
        best = min(grid, key=lambda lr: math.inf if grid[lr] is None else grid[lr])
        assert stage.center == math.log2(best)
        assert stage.low < math.log2(best) < stage.high
        assert len(stage.lrs) == 2
        for lr in stage.lrs:
            assert stage.low <= math.log2(lr) <= stage.high
            assert 64 * math.log2(lr) == pytest.approx(round(64 * math.log2(lr)), abs=1e-9)
            assert all(one.trial_id in recorded for one in trials_at(spec, stage.optimizer, stage.width, lr, data))
    status = pipeline.status(out)
    assert (status.planned, status.missing) == (len(recorded), 0)
    assert (out / "optuna.log").exists()


def test_a_refined_sweep_again_trains_nothing_and_more_trials_go_on(refined: Path, tmp_path: Path) -> None:
    shutil.copytree(refined / "out", tmp_path / "out")
    before, stages = trials(tmp_path / "out"), (tmp_path / "out" / STAGES).read_bytes()
    outcome = pipeline.sweep(load_spec(write(tmp_path, OPTUNA, TWO_WIDTHS)), tmp_path / "out", LOCAL, gate=False)
    assert outcome.reused == len(outcome.results) == len(before)
    assert (tmp_path / "out" / STAGES).read_bytes() == stages
    more = load_spec(write(tmp_path, OPTUNA.replace("trials = 2", "trials = 3"), TWO_WIDTHS))
    pipeline.sweep(more, tmp_path / "out", LOCAL, gate=False)
    assert trials(tmp_path / "out").items() >= before.items()
    assert [len(stage.lrs) for stage in read_stages(tmp_path / "out", more)] == [3] * 4


def test_equal_seeds_suggest_alike_and_a_stop_in_the_middle_is_resumed(refined: Path, tmp_path: Path) -> None:
    """The grid alone was trained, and one suggestion was written down that never ran."""
    spec = load_spec(write(tmp_path, OPTUNA, TWO_WIDTHS))
    whole, data = ResultStore(refined / "out").read(), pipeline.load_tokens(spec).fingerprint
    store = ResultStore((tmp_path / "out").resolve())
    for trial in plan_trials(spec, data):
        store.commit(whole[trial.trial_id])
    before = trials(tmp_path / "out")
    stages = read_stages(refined / "out", spec)
    write_stages(tmp_path / "out", spec.search, [replace(stages[0], lrs=stages[0].lrs[:1])])
    outcome = pipeline.sweep(spec, tmp_path / "out", LOCAL, gate=False)
    assert trials(tmp_path / "out").items() >= before.items()
    assert len(outcome.results) == len(trials(tmp_path / "out"))
    resumed = read_stages(tmp_path / "out", spec)
    assert resumed[0].lrs[0] == stages[0].lrs[0]
    assert [len(stage.lrs) for stage in resumed] == [2] * 4
    assert resumed[1:] == stages[1:]
    everyone = {trial.trial_id for _, trial in planned_trials(spec, resumed, data)}
    assert {name.removesuffix(".parquet") for name in trials(tmp_path / "out")} == everyone


@pytest.mark.ray
@pytest.mark.slow
def test_ray_refines_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = load_spec(write(tmp_path, OPTUNA, ("[16, 32, 64]", "[16]"), ("train_tokens = 128", "train_tokens = 1600")))
    command = [sys.executable, "-c", "from transfer.cli import app; app()", "sweep", str(spec.file), "--out", str(out)]
    command += ["--workers", "2", "--no-check"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True) as process:
        while not any(stage.lrs for stage in (read_stages(out, spec) if out.exists() else ())):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    time.sleep(3)  # workers outlive a killed driver by a little
    before, suggested = trials(out), [stage.lrs for stage in read_stages(out, spec)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert trials(out).items() >= before.items()
    stages = read_stages(out, spec)
    assert [len(stage.lrs) for stage in stages] == [2] * 2
    assert all(stage.lrs[: len(lrs)] == lrs for stage, lrs in zip(stages, suggested, strict=False))
    everyone = {trial.trial_id for _, trial in planned_trials(spec, stages, pipeline.load_tokens(spec).fingerprint)}
    assert {name.removesuffix(".parquet") for name in trials(out)} == everyone
    assert (out / "optuna.log").exists()


def basin_of(spec: SweepSpec, fingerprint: str, *, known_log2_lr: float, n_suggestions: int) -> Basin:
    """AdamW's at width 16, of whose three known learning rates one diverged and one lies outside."""
    return Basin(
        optimizer="adamw",
        width=16,
        low=-6.0,
        high=-4.0,
        templates=trials_at(spec, "adamw", 16, 0.01, fingerprint),
        known=((known_log2_lr, 2.5), (-4.5, None), (-2.0, 2.6)),
        n_suggestions=n_suggestions,
        sampler_seed=0,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_ray_stops_where_a_worker_has_other_data(tmp_path: Path) -> None:
    from sweeps.ray_backend import RayBackend

    spec = load_spec(write(tmp_path, OPTUNA))
    basin = basin_of(spec, "0123", known_log2_lr=-5.0, n_suggestions=1)
    suggested: list[float] = []
    with pytest.raises(BackendError, match=r"a worker cannot go on: DataError: .* were planned for 0123"):
        RayBackend().refine(
            [basin],
            store=ResultStore(tmp_path / "out"),
            data_source=spec.data_source(),
            workers=1,
            on_event=lambda event: None,
            on_suggest=lambda of, log2_lr: suggested.append(log2_lr),
        )
    assert len(suggested) == 1
    assert -6.0 <= suggested[0] <= -4.0


def test_what_is_known_of_a_basin_is_told_at_whole_steps(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, OPTUNA))
    basin = basin_of(spec, "data", known_log2_lr=math.log2(0.05), n_suggestions=3)
    told = basin.study().trials
    assert [(one.params["log2_lr"], one.value, one.state.name) for one in told] == [
        (round(64 * math.log2(0.05)) / 64, 2.5, "COMPLETE"),
        (-4.5, None, "PRUNED"),
    ]
    assert basin.pack_at(-5.25).trials == trials_at(spec, "adamw", 16, 2.0**-5.25, "data")
    first = basin.study().ask(dict(basin.space())).params
    assert basin.study().ask(dict(basin.space())).params == first
    assert replace(basin, sampler_seed=1).study().ask(dict(basin.space())).params != first
    assert replace(basin, width=32).study().ask(dict(basin.space())).params != first


def test_a_basin_around_an_edge_reaches_beyond_and_one_that_diverged_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(write(tmp_path, OPTUNA))
    losses: dict[str, list[float | None]] = {"adamw": [2.5, 2.6, 2.7, None], "muon": [None, None, None, 2.4]}
    results = {}
    for optimizer, row in losses.items():
        for width in (16, 32):
            for lr, loss in zip(axes_of(spec, optimizer)["lr"], row, strict=True):
                for trial in trials_at(spec, optimizer, width, lr, "data"):
                    results[trial.trial_id] = diverged(trial) if loss is None else completed(trial, loss)
    for lr in axes_of(spec, "adamw")["lr"]:
        for trial in trials_at(spec, "adamw", 64, lr, "data"):
            results[trial.trial_id] = diverged(trial)
    stages = {(s.optimizer, s.width): s for s in search.basin_stages(spec, (), results, "data")}
    low = stages["adamw", 16]
    assert low.low == pytest.approx(math.log2(0.01) - (math.log2(0.1) - math.log2(0.03)), abs=0.2)
    assert low.high == pytest.approx(math.log2(0.03), abs=1 / 128)
    assert (stages["muon", 32].low, stages["muon", 32].high) == (-2, 2)
    assert ("adamw", 64) not in stages
    assert "adamw at width 64: every value of the grid diverged, so there is no basin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("search_text", "edits", "message"),
    [
        ('method = "telescop"', (), r"search\.method: must be one of .*Did you mean 'telescope'\?"),
        (
            'method = "telescope"\npoint = 5',
            (),
            r"search\.point: unknown key, got the value 5.*Did you mean 'points'\?",
        ),
        ("points = 5", (), r'search: points goes with method = "telescope", got method = "grid"\. Remove points\.'),
        (
            'method = "optuna"\nshrink_bounds = [0.5, 1]',
            (),
            r'shrink_bounds goes with method = "telescope", got method',
        ),
        ('method = "telescope"\ntrials = 5', (), r'trials goes with method = "optuna", got method = "telescope"'),
        ('method = "telescope"\npoints = 4', (), r"search: points must be odd, .* got 4\. Add one"),
        ('method = "telescope"\npoints = 1', (), r"search\.points: must be at least 3, got 1"),
        ('method = "telescope"\nshrink_bounds = [1, 0.5]', (), r"shrink_bounds must be \[low, high\] .* got \[1"),
        (
            OPTUNA,
            (("axes.lr = [0.01, 0.03, 0.1, 0.3]", "axes = { lr = [0.01, 0.03, 0.1], weight_decay = [0.1, 0.2] }"),),
            r'search\.method: must be "grid" where weight_decay is an axis \(optimizers\.adamw\.axes\.weight_decay\)',
        ),
        (
            TELESCOPE,
            (("[optimizers.muon]", '[optimizers.adamw_2]\nkind = "adamw"'),),
            r"optimizers\.adamw_2: must differ from optimizers\.adamw in more than its lr",
        ),
    ],
)
def test_bad_search_sections_are_named(
    tmp_path: Path, search_text: str, edits: tuple[tuple[str, str], ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(write(tmp_path, search_text, *edits))


def test_a_stage_is_checked(telescoped: Path) -> None:
    stage = read_stages(telescoped / "out", load_spec(telescoped / "spec.toml"))[0]
    with pytest.raises(ValueError, match="low < high and a spacing above 0"):
        replace(stage, spacing=0.0)


def test_a_planned_learning_rate_that_the_spec_no_longer_runs_is_named(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, TELESCOPE, ("batch_tokens = 32\n", "batch_tokens = 32\nweight_decay = 0.5\n")))
    assert can_run(spec, "adamw", 16, 0.5)
    assert not can_run(spec, "adamw", 16, 4.0)
    with pytest.raises(SpecError, match=r"optimizers\.adamw: weight_decay times the effective lr"):
        trials_at(spec, "adamw", 16, 4.0, "data")


@pytest.mark.parametrize(("text", "n"), [(TELESCOPE, 2 * (4 + 3 + 3)), (OPTUNA, 2 * 3 * (4 + 2)), ("", 2 * 3 * 4)])
def test_expected_trials_count_every_stage(tmp_path: Path, text: str, n: int) -> None:
    labeled = search.expected_trials(load_spec(write(tmp_path, text)), "data")
    assert len(labeled) == 2 * n
    assert len({trial.trial_id for _, trial in labeled}) == 2 * n


def test_the_reports_table_has_a_row_for_every_stage(telescoped: Path) -> None:
    stages = read_stages(telescoped / "out", load_spec(telescoped / "spec.toml"))
    table = stages_table(stages)
    assert table is not None
    assert [row[:2] for row in table.rows] == [(stage.optimizer, str(stage.width)) for stage in stages]
    assert table.rows[0][2:] == (
        "grid",
        "4",
        "0.01 (2^-6.64)",
        "0.3 (2^-1.74)",
        "1.58",
        "the spec's grid at the smallest width",
    )
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert stages_table(()) is None
