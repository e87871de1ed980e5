"""`--check-pack`: recorded trials again, alone; what agrees passes, what does not is told, nothing is overwritten."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from proxy_models.mode import EAGER_LOOP, Mode, mode_from_name
from sweeps.pack import make_packs
from sweeps.progress import Reporter
from sweeps.rows import to_parquet
from sweeps.spec import load_spec, plan_trials
from sweeps.store import ResultStore
from sweeps.trial import TrialResult
from sweeps.worker import run_pack
from tests.sweep_helpers import completed, diverged, trial
from tests.transfer_helpers import invoke, write_tiny
from transfer import pipeline
from transfer.pack_check import PackCheck, chosen, modes_alone

STACKED = Mode(executor="stacked")


def test_shapes_take_turns_and_a_diverged_trial_is_among_them() -> None:
    small = [completed(trial(seed=seed), loss) for seed, loss in enumerate((2.7, 2.5, 2.6))]
    wide = [completed(trial(seed=seed, width=64), loss) for seed, loss in enumerate((2.2, 2.1))]
    late, early = diverged(trial(lr=9.0)), replace(diverged(trial(lr=99.0)), diverged_step=2)
    results = [*small, late, *wide, early]
    order = [small[1], early, wide[1], small[2], wide[0], small[0], late]
    for n in (1, 2, 5, 7, 99):
        assert chosen(results, n) == tuple(order[:n])
    assert chosen([late, early], 5) == (early, late)
    assert chosen([], 5) == ()


@pytest.mark.parametrize(
    ("recorded", "alone"),
    [
        ("loop-eager-cpu-float32", ["loop-eager-cpu-float32"]),
        ("loop-compiled-cpu-float32", ["loop-eager-cpu-float32", "loop-compiled-cpu-float32"]),
        ("stacked-eager-cpu-float32", ["loop-eager-cpu-float32"]),
        ("stacked-compiled-cuda-bfloat16", ["loop-eager-cuda-bfloat16"]),
    ],
)
def test_a_loop_is_also_checked_in_its_own_mode(recorded: str, alone: list[str]) -> None:
    assert [mode.name for mode in modes_alone(mode_from_name(recorded))] == alone


def test_bits_are_asked_for_within_a_loop_mode_and_closeness_between_modes() -> None:
    compiled = replace(completed(trial(), 2.5), mode="loop-compiled-cpu-float32")
    near = replace(compiled, validation_loss=2.5 + 1e-6)
    own = PackCheck(recorded=compiled, alone=near)
    eager = PackCheck(recorded=compiled, alone=replace(near, mode=EAGER_LOOP.name))
    lost = PackCheck(recorded=compiled, alone=replace(diverged(trial()), mode=EAGER_LOOP.name))
    assert (own.passed, own.tolerance) == (False, 0.0)
    assert eager.passed
    assert eager.tolerance > 0
    assert eager.to_json()["relative_difference"] == pytest.approx(1e-6 / 2.5, rel=1e-3)
    assert (lost.passed, lost.to_json()["relative_difference"]) == (False, None)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of which one shape was trained stacked, and the rest by the eager loop."""
    folder = tmp_path_factory.mktemp("swept")
    spec_file, _ = write_tiny(folder)
    spec_file.write_text(spec_file.read_text().replace('[engine]\nexecutor = "loop"\n', ""))
    spec = load_spec(spec_file)
    trials = plan_trials(spec, pipeline.load_tokens(spec).fingerprint)
    packs = make_packs(trials, 10)
    for i, pack in enumerate(packs):
        run_pack(
            replace(pack, mode=STACKED if i == 0 else EAGER_LOOP),
            data_source=spec.data_source(),
            store=ResultStore(folder / "out"),
            on_event=lambda event: None,
        )
    return folder


def sweep(folder: Path, *options: object) -> tuple[int, str, str]:
    arguments = ("--out", folder / "out", "--backend", "local", "--no-check", *options)
    done = invoke("sweep", folder / "spec.toml", *arguments)
    return done.exit_code, done.stdout, done.stderr


def files_of(folder: Path) -> Mapping[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "out" / "trials").iterdir()}


def test_trials_that_repeat_pass(swept: Path) -> None:
    before = files_of(swept)
    status, stdout, stderr = sweep(swept, "--check-pack", 6)
    assert status == 0, stderr
    assert "recorded trials, trained again alone" in stdout
    assert stdout.count(" ok") == 6
    assert len(re.findall("bitwise", stdout)) == 5, "but for the one that was stacked"
    assert files_of(swept) == before


def test_more_trials_than_there_are_is_all_of_them_as_json(swept: Path) -> None:
    status, stdout, stderr = sweep(swept, "--check-pack", 1000, "--json")
    assert status == 0, stderr
    document = json.loads(stdout)
    checks = document["check_pack"]
    assert document["planned"] == len(checks) == len({check["trial_id"] for check in checks}) == 60
    assert all(check["passed"] and check["alone"]["mode"] == EAGER_LOOP.name for check in checks)
    stacked = [check for check in checks if check["recorded"]["mode"] == STACKED.name]
    assert len(stacked) == 5 * 2
    assert all(check["tolerance"] > 0 for check in stacked)
    assert all(check["relative_difference"] == check["tolerance"] == 0 for check in checks if check not in stacked)


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_count_that_is_none_is_refused_before_anything_runs(tmp_path: Path, count: str) -> None:
    write_tiny(tmp_path)
    status, stdout, stderr = sweep(tmp_path, "--check-pack", count)
    assert (status, stdout) == (2, "")
    assert "--check-pack" in stderr
    assert not (tmp_path / "out").exists()


def _lie(result: TrialResult) -> TrialResult:
    assert result.validation_loss is not None
    return replace(result, validation_loss=result.validation_loss * 1.01)


def test_a_number_that_does_not_repeat_is_status_1_and_stays(swept: Path) -> None:
    store = ResultStore(swept / "out")
    spec = load_spec(swept / "spec.toml")
    planned = plan_trials(spec, pipeline.load_tokens(spec).fingerprint)
    results = store.read()
    honest = chosen([results[one.trial_id] for one in planned], 1)[0]
    file = swept / "out" / "trials" / f"{honest.trial_id}.parquet"
    whole = file.read_bytes()
    file.write_bytes(to_parquet(_lie(honest)))
    before = files_of(swept)
    try:
        status, stdout, stderr = sweep(swept, "--check-pack", 2)
        assert status == 1
        assert (stdout.count("OUTSIDE"), stdout.count(" ok")) == (1, 1)
        assert f"1 of 2 checked trials do not give alone what is recorded, among them {honest.trial_id}" in stderr
        assert "Traceback" not in stderr
        status, stdout, _ = sweep(swept, "--check-pack", 1, "--json")
        assert status == 1
        [check] = json.loads(stdout)["check_pack"]
        assert not check["passed"]
        assert check["relative_difference"] == pytest.approx(0.01 / 1.01)
        assert files_of(swept) == before
    finally:
        file.write_bytes(whole)


def test_a_whole_run_can_be_checked(swept: Path) -> None:
    options = ("--target", swept / "target.toml", "--out", swept / "out", "--backend", "local", "--no-check")
    done = invoke("run", swept / "spec.toml", *options, "--check-pack", 1)
    assert done.exit_code == 0, done.stderr
    assert "recorded trials, trained again alone" in done.stdout
    assert "trials alone" in done.stderr


def test_status_shows_what_runs(swept: Path) -> None:
    sweep(swept)
    assert json.loads(invoke("status", swept / "out", "--json").stdout)["running"] == []
    one = trial(seed=4)
    with Reporter(swept / "out", [one]) as reporter:
        reporter.due = 0.0
        reporter.begin([one])
        reporter.on_step(0, 7, 3.25)
        shown = invoke("status", swept / "out")
        document = json.loads(invoke("status", swept / "out", "--json").stdout)
    assert re.search(rf"{one.trial_id}\s+7\s+10\s+3\.250", shown.stdout)
    expected = {"trial_id": one.trial_id, "step": 7, "steps": 10, "training_loss": pytest.approx(3.25)}
    assert document["running"] == [expected]
