"""The ledger: written once, whole or absent, and nothing in it is ever lost."""

import errno
import getpass
import json
import math
import multiprocessing
import re
import resource
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.mode import Mode
from sweeps.files import create_if_absent, replace_file, replace_unsynced
from sweeps.provenance import provenance
from sweeps.rows import DamagedRowError, from_parquet, to_parquet
from sweeps.store import FolderHoldsAnotherSweepError, ResultStore, StoreError, StoreMismatchError
from sweeps.trial import Trial, TrialResult, TrialStatus
from tests.sweep_helpers import completed, diverged, trial


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def file_of(store: ResultStore, of: Trial) -> Path:
    return store.folder / "trials" / f"{of.trial_id}.parquet"


def test_a_committed_result_comes_back_whole(store: ResultStore) -> None:
    results = {result.trial_id: result for result in (completed(trial()), diverged(trial(seed=4, clip_norm=None)))}
    for result in results.values():
        assert store.commit(result)
    assert store.read() == results
    assert store.committed_ids() == set(results)
    assert store.read_one("0" * 16) is None


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    loss=finite,
    se=st.none() | finite,
    curve=st.lists(finite, max_size=20),
    seed=st.integers(0, 2**62),
    clip_norm=st.none() | st.floats(min_value=1e-6, max_value=1e6),
    mode=st.builds(Mode, executor=st.sampled_from(["loop", "stacked"]), compiled=st.booleans()),
)
def test_any_result_survives_its_row(
    loss: float, se: float | None, curve: list[float], seed: int, clip_norm: float | None, mode: Mode
) -> None:
    of = trial(seed=seed, clip_norm=clip_norm)
    result = replace(
        completed(of),
        validation_loss=loss,
        validation_loss_se=se,
        curve_steps=tuple(range(len(curve))),
        curve_losses=tuple(curve),
        mode=mode.name,
        provenance=None,
    )
    assert from_parquet(to_parquet(result)) == (of.trial_id, result)


def test_a_file_is_one_columnar_row_with_a_schema_version(store: ResultStore) -> None:
    store.commit(completed(trial(lr=0.5)))
    file = file_of(store, trial(lr=0.5))
    row = pq.read_table(file).to_pylist()[0]
    assert (row["optimizer"], row["width"], row["seed"], row["lr"], row["status"]) == ("muon", 32, 3, 0.5, "completed")
    assert row["curve_losses"] == [5.5, 4.0, 2.6]
    assert pq.ParquetFile(file).metadata.metadata[b"schema_version"] == b"2"
    assert file.stat().st_size < 8000


def test_a_file_from_before_modes_were_recorded_is_the_eager_loops(store: ResultStore) -> None:
    store.commit(completed(trial()))
    file = file_of(store, trial())
    table = pq.read_table(file).drop_columns(["mode"])
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"schema_version": "1"})
    assert store.read() == {trial().trial_id: completed(trial())}
    assert list(store.frame()["mode"]) == ["loop-eager-cpu-float32"]


def test_another_mode_may_differ_by_rounding_and_the_first_result_stays(store: ResultStore) -> None:
    stacked = replace(completed(trial(), 2.5), mode="stacked-eager-cpu-float32")
    assert store.commit(stacked)
    assert not store.commit(replace(completed(trial(), 2.5001), curve_losses=(5.5, 4.0, 2.7)))
    with pytest.raises(StoreMismatchError, match=r"2\.5 \(stacked-eager-cpu-float32\)"):
        store.commit(completed(trial(), 2.6))
    assert store.read() == {trial().trial_id: stacked}


def test_committing_an_equal_result_again_changes_nothing(store: ResultStore) -> None:
    result = completed(trial())
    assert store.commit(result)
    before = file_of(store, trial()).stat()
    assert not store.commit(replace(result, train_seconds=99.0))
    after = file_of(store, trial()).stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert store.read_one(result.trial_id) == result


def test_a_different_result_of_the_same_trial_is_refused_and_the_first_stays(store: ResultStore) -> None:
    store.commit(completed(trial(), 2.5))
    with pytest.raises(StoreMismatchError, match=r"loss 2\.5 .*, and running it again gave completed with 2\.6") as got:
        store.commit(completed(trial(), 2.6))
    assert str(file_of(store, trial())) in str(got.value)
    assert store.read()[trial().trial_id].validation_loss == 2.5


def test_a_failure_is_no_result(store: ResultStore) -> None:
    failed = TrialResult(trial=trial(), status=TrialStatus.FAILED, error="MemoryError")
    with pytest.raises(ValueError, match="a failed trial has no result to commit"):
        store.commit(failed)
    store.record_failure(trial(), "first", {"cpu": "x"})
    store.record_failure(trial(), "second", {"cpu": "x"})
    assert store.read() == {}
    assert store.last_errors() == {trial().trial_id: "second"}


def _race(folder: Path, loss: float, barrier: Any, queue: Any) -> None:
    barrier.wait()
    try:
        queue.put(ResultStore(folder).commit(completed(trial(), loss)))
    except StoreMismatchError:
        queue.put("mismatch")


@pytest.mark.parametrize(
    ("losses", "expected"), [([2.5] * 4, [True, False, False, False]), ([2.5, 2.6], [True, "mismatch"])]
)
def test_of_racing_commits_exactly_one_writes(store: ResultStore, losses: list[float], expected: list[object]) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(len(losses)), context.Queue()
    racers = [context.Process(target=_race, args=(store.folder, loss, barrier, queue)) for loss in losses]
    for racer in racers:
        racer.start()
    answers = [queue.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert Counter(answers) == Counter(expected)
    assert set(store.read()) == {trial().trial_id}
    assert [path.name for path in (store.folder / "trials").iterdir()] == [f"{trial().trial_id}.parquet"]


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"muon")] ^= 1
    file.write_bytes(content)


def _become_another_trial(file: Path) -> None:
    file.write_bytes(to_parquet(completed(trial(seed=77))))


def _become_a_foreign_table(file: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), file)


def _say_another_id(file: Path) -> None:
    _edit(file, trial_id="0" * 16)


def _say_another_status(file: Path) -> None:
    _edit(file, status="diverged")


def _edit(file: Path, **columns: object) -> None:
    table = pq.read_table(file)
    for name, value in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array([value], table.schema.field(name).type))
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"schema_version": "1"})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "not readable as Parquet"),
        (_empty, "not readable as Parquet"),
        (_flip_a_byte, "not readable as Parquet: .*checksum"),
        (_become_another_trial, f"holds trial {trial(seed=77).trial_id}"),
        (_become_a_foreign_table, "must be one row with a schema version, got 1 rows, version 0"),
        (_say_another_id, "does not hash to its trial id 0000000000000000"),
        (_say_another_status, "holds no valid result: ValueError: a loss goes with COMPLETED"),
    ],
)
def test_a_damaged_file_is_named_set_aside_and_its_trial_missing(
    store: ResultStore, damage: Callable[[Path], None], reason: str
) -> None:
    kept = completed(trial(seed=1))
    for result in (kept, completed(trial())):
        store.commit(result)
    file = file_of(store, trial())
    damage(file)
    damaged = file.read_bytes()
    warnings: list[str] = []
    assert store.read(warn=warnings.append) == {kept.trial_id: kept}
    assert len(warnings) == 1
    assert str(file) in warnings[0]
    assert re.search(reason, warnings[0]), warnings[0]
    [aside] = (store.folder / "set_aside").iterdir()
    assert aside.read_bytes() == damaged
    assert store.commit(completed(trial())), "its place is free again"
    assert len(store.read(warn=warnings.append)) == 2
    assert len(warnings) == 1


def test_a_commit_over_a_damaged_file_sets_it_aside(store: ResultStore) -> None:
    store.commit(completed(trial()))
    _truncate(file_of(store, trial()))
    assert store.commit(completed(trial(), 2.75))
    assert store.read()[trial().trial_id].validation_loss == 2.75
    assert len(list((store.folder / "set_aside").iterdir())) == 1


@given(cut=st.integers(0, 6000))
def test_no_truncation_passes_for_a_result(cut: int) -> None:
    content = to_parquet(completed(trial()))
    with pytest.raises(DamagedRowError):
        from_parquet(content[: min(cut, len(content) - 1)])


def test_what_a_killed_writer_left_is_ignored(store: ResultStore) -> None:
    store.commit(completed(trial()))
    (store.folder / "trials" / ".tmp-abc-1-ff").write_bytes(b"half")
    (store.folder / "trials" / ".tmp-abc.parquet").write_bytes(b"half")
    assert set(store.read()) == {trial().trial_id}
    assert not (store.folder / "set_aside").exists()


def test_a_result_of_a_newer_program_is_not_touched(store: ResultStore) -> None:
    store.commit(completed(trial()))
    file = file_of(store, trial())
    table = pq.read_table(file)
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"schema_version": "3"})
    with pytest.raises(StoreError, match=r"has schema version 3, this program knows up to 2\. Update the program"):
        store.read()
    assert file.exists()


def test_a_frame_has_stable_types_also_without_results(store: ResultStore) -> None:
    empty = store.frame()
    assert len(empty) == 0
    store.commit(diverged(trial(clip_norm=None)))
    store.commit(completed(trial(seed=4)))
    frame = store.frame().set_index("seed")
    assert frame.loc[4, "validation_loss"] == 2.5
    assert math.isnan(frame.loc[3, "validation_loss"])
    assert math.isnan(frame.loc[3, "clip_norm"])
    assert set(frame["status"]) == {"completed", "diverged"}
    assert frame["validation_loss"].dtype == empty["validation_loss"].dtype == "float64"
    assert "curve_losses" not in frame


def bind(store: ResultStore, ids: list[str], *, name: str = "tiny", text: str = "spec") -> None:
    store.bind(name=name, spec_text=text, planned_ids=ids)


def test_a_folder_belongs_to_one_sweep(store: ResultStore) -> None:
    bind(store, ["a", "b"], text="first")
    assert (store.folder / "spec.toml").read_text() == "first"
    bind(store, ["a", "b"], text="first")
    bind(store, ["a", "b", "c"], text="grown")
    assert (store.folder / "spec.toml").read_text() == "grown"
    with pytest.raises(FolderHoldsAnotherSweepError, match="holds the sweep 'tiny', not 'other'") as got:
        bind(store, ["a", "b", "c"], name="other", text="other")
    message = str(got.value)
    assert str(store.folder) in message
    assert "--out" in message
    assert "--fresh" in message
    assert (store.folder / "spec.toml").read_text() == "grown"


def test_recorded_results_must_stay_in_the_plan(store: ResultStore) -> None:
    done, never_run, target = (trial(seed=seed).trial_id for seed in (1, 2, 3))
    bind(store, [done, never_run])
    store.commit(completed(trial(seed=1)))
    store.commit(completed(trial(seed=3)))  # of a target: in no plan
    bind(store, [done])
    with pytest.raises(FolderHoldsAnotherSweepError, match="1 of 1 results are not in this plan"):
        bind(store, [never_run, target])
    assert len(store.read()) == 2


def test_results_without_a_plan_must_be_in_the_new_one(store: ResultStore) -> None:
    store.commit(completed(trial()))
    with pytest.raises(FolderHoldsAnotherSweepError, match="1 of 1 results are not in this plan"):
        bind(store, ["a"])
    bind(store, [trial().trial_id])


def test_paths_that_cannot_be_a_results_folder(store: ResultStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match=r"is a file, not a folder\. Choose another"):
        bind(ResultStore(file), [])
    imported = ResultStore(tmp_path / "imported")
    imported.folder.mkdir()
    (imported.folder / "observations.parquet").touch()
    with pytest.raises(StoreError, match=r"holds imported runs, not a sweep\. Choose another"):
        bind(imported, [])
    bind(store, [])
    (store.folder / "sweep.json").write_text("{")
    with pytest.raises(StoreError, match=r"sweep\.json is damaged\. Remove it"):
        bind(store, [])


def test_starting_fresh_renames_and_deletes_nothing(store: ResultStore) -> None:
    assert store.set_aside_folder() is None
    asides = []
    for _ in range(2):
        store.commit(completed(trial()))
        asides.append(store.set_aside_folder())
        assert not store.folder.exists()
    assert len(set(asides)) == 2
    for aside in asides:
        assert aside is not None
        assert aside.name.startswith("results.old-")
        assert len(ResultStore(aside).read()) == 1


def test_every_session_is_recorded(store: ResultStore) -> None:
    bind(store, [])
    store.record_start({"cpu": "one"})
    store.record_start({"cpu": "two"})
    assert json.loads((store.folder / "provenance.json").read_text()) == [{"cpu": "one"}, {"cpu": "two"}]


def test_provenance_names_versions_and_hardware_but_nobody() -> None:
    here = provenance()
    assert {"python", "torch", "ray", "numpy", "cpu", "cores", "platform", "start_time_utc"} <= set(here)
    assert all(isinstance(value, str) and value for value in here.values())
    text = json.dumps(dict(here))
    for secret in (str(Path(__file__).parents[1]), str(Path.home()), socket.gethostname(), getpass.getuser()):
        assert secret not in text


def _commit_on_a_full_disk(folder: Path, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # bytes a file
    try:
        ResultStore(folder).commit(completed(trial()))
    except OSError as error:
        queue.put(error.errno)


def test_a_full_disk_leaves_nothing_half_written(store: ResultStore) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_commit_on_a_full_disk, args=(store.folder, queue))
    process.start()
    assert queue.get(timeout=60) == errno.EFBIG
    process.join()
    assert list((store.folder / "trials").iterdir()) == []
    assert store.commit(completed(trial()))


def test_files_are_replaced_in_one_step_or_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    assert create_if_absent(file, b"one")
    assert not create_if_absent(file, b"two")
    assert file.read_bytes() == b"one"
    replace_file(file, b"three")
    assert file.read_bytes() == b"three"
    replace_unsynced(file, b"four")
    assert file.read_bytes() == b"four"
    assert [path.name for path in file.parent.iterdir()] == ["file"]
