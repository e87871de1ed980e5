"""Reading somebody else's table of runs: transforms, refusals with their row, and a folder that stays its own."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeps.import_cells import TableError
from sweeps.import_map import OBSERVATIONS, load_import_target, load_map
from sweeps.importing import Import, read_import, read_runs, write_import
from sweeps.spec_errors import SpecError
from sweeps.store import StoreError

MAP = """
name = "elsewhere"
[loss]
column = "val loss"
[series]
column = "optimizer"
[scales.n_params]
column = "N"
multiply = 1e6
[scales.train_tokens]
column = "log2 D"
holds = "log2"
[hps.lr]
column = "log10_lr"
holds = "log10"
[hps.batch_tokens]
column = "bs"
multiply = 2048
[seed]
column = "seed"
"""
ROWS = (
    {"optimizer": "muon", "N": 20, "log2 D": 30, "log10_lr": -2.5, "bs": 16, "seed": 1, "val loss": 2.25, "wd": 0.1},
    {"optimizer": "adamw", "N": 10, "log2 D": 31, "log10_lr": -3.5, "bs": 8, "seed": 2, "val loss": 2.5, "wd": 0.1},
    {"optimizer": "adamw", "N": 10, "log2 D": 31, "log10_lr": -3.0, "bs": 8, "seed": 2, "val loss": 2.75, "wd": 0.1},
)


def table(folder: Path, rows: Any = ROWS, *, name: str = "runs.csv") -> Path:
    file = folder / name
    frame = pd.DataFrame(rows)
    if name.endswith(".parquet"):
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False)
    return file


def read(folder: Path, rows: Any = ROWS, *, columns: str = MAP, name: str = "runs.csv") -> Import:
    (folder / "columns.toml").write_text(columns)
    return read_runs(table(folder, rows, name=name), load_map(folder / "columns.toml"))


def changed(index: int, **cells: Any) -> list[dict[str, Any]]:
    """ROWS with some cells of one row (from 0) changed; `val_loss` is `val loss`."""
    named = {name.replace("val_loss", "val loss").replace("log2_D", "log2 D"): cell for name, cell in cells.items()}
    return [{**row, **(named if i == index else {})} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet", "runs.csv.gz"])
def test_a_table_becomes_observations(tmp_path: Path, name: str) -> None:
    imported = read(tmp_path, name=name)
    assert (imported.scales, imported.hps) == (("n_params", "train_tokens"), ("lr", "batch_tokens"))
    assert (imported.name, imported.source, imported.rows, imported.left_out) == ("elsewhere", name, 3, 0)
    frame = imported.frame
    assert list(frame.columns) == ["series", "n_params", "train_tokens", "lr", "batch_tokens", "seed", "loss"]
    assert frame["series"].tolist() == ["adamw", "adamw", "muon"]
    assert frame["n_params"].tolist() == [1e7, 1e7, 2e7]
    assert frame["train_tokens"].tolist() == [2.0**31, 2.0**31, 2.0**30]
    np.testing.assert_allclose(frame["lr"], [10**-3.5, 1e-3, 10**-2.5], rtol=1e-12)
    assert frame["batch_tokens"].tolist() == [8 * 2048, 8 * 2048, 16 * 2048]
    assert frame["seed"].tolist() == [2, 2, 1]
    assert frame["loss"].tolist() == [2.5, 2.75, 2.25]


def test_the_order_of_rows_and_equal_rows_do_not_matter(tmp_path: Path) -> None:
    shuffled = read(tmp_path, [*ROWS[::-1], ROWS[1]])
    pd.testing.assert_frame_equal(shuffled.frame, read(tmp_path).frame)
    assert shuffled.rows == 4


@pytest.mark.parametrize(
    ("unit", "cell", "nats"),
    [("nats", 2.25, 2.25), ("bits", 3.0, 3 * math.log(2)), ("perplexity", 20.5, math.log(20.5))],
)
def test_losses_become_nats(tmp_path: Path, unit: str, cell: float, nats: float) -> None:
    columns = MAP.replace('column = "val loss"', f'column = "val loss"\nunit = "{unit}"')
    assert read(tmp_path, changed(0, val_loss=cell), columns=columns).frame["loss"].iloc[2] == pytest.approx(nats)


def test_natural_logarithms_and_one_series_without_seeds(tmp_path: Path) -> None:
    columns = MAP.replace('holds = "log10"', 'holds = "ln"').split("[seed]")[0]
    columns = columns.replace('[series]\ncolumn = "optimizer"\n', "")
    frame = read(tmp_path, columns=columns).frame
    np.testing.assert_allclose(sorted(frame["lr"]), np.exp([-3.5, -3.0, -2.5]))
    assert set(frame["series"]) == {"elsewhere"}
    assert set(frame["seed"]) == {0}
    named = read(tmp_path, columns=columns + '[series]\nvalue = "lion"\n')
    assert set(named.frame["series"]) == {"lion"}


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_divergence_is_data_and_a_crash_is_not(tmp_path: Path, name: str) -> None:
    rows = [
        {**ROWS[0], "val loss": float("inf"), "state": "finished"},
        {**ROWS[1], "val loss": 9.5, "state": "exploded"},
        {**ROWS[1], "val loss": None, "state": "exploded", "seed": 3},
        {**ROWS[2], "val loss": None, "state": "crashed"},
        {**ROWS[2], "val loss": 2.5, "state": "finished", "seed": 7},
    ]
    status = '[status]\ncolumn = "state"\ndiverged = ["exploded"]\nleave_out = ["crashed"]\n'
    imported = read(tmp_path, rows, columns=MAP + status, name=name)
    assert (imported.rows, imported.left_out, imported.diverged) == (5, 1, 3)
    assert imported.frame["loss"].dropna().tolist() == [2.5]


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_an_empty_loss_must_be_explained(tmp_path: Path, name: str) -> None:
    rows = changed(1, val_loss=None)
    with pytest.raises(TableError, match=r"val loss.*must be a loss, got .* in row 2\. Say what an empty cell means"):
        read(tmp_path, rows, name=name)
    for means, kept, diverged in (("diverged", 3, 1), ("leave_out", 2, 0)):
        columns = MAP.replace('column = "val loss"', f'column = "val loss"\nempty = "{means}"')
        imported = read(tmp_path, rows, columns=columns, name=name)
        assert (len(imported.frame), imported.diverged, imported.left_out) == (kept, diverged, 3 - kept)


def test_a_loss_that_says_nan_has_diverged(tmp_path: Path) -> None:
    file = table(tmp_path, changed(0, val_loss="NaN"))
    assert "NaN" in file.read_text()
    assert read(tmp_path, changed(0, val_loss="NaN")).diverged == 1


@pytest.mark.parametrize(
    ("condition", "kept"),
    [("optimizer = 'adamw'", 2), ("N = 20", 1), ("N = 10\nbs = 8", 2), ("'log10_lr' = -3.5", 1), ("tied = true", 2)],
)
@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_a_filter_keeps_equal_rows(tmp_path: Path, condition: str, kept: int, name: str) -> None:
    rows = [{**row, "tied": i != 1} for i, row in enumerate(ROWS)]
    imported = read(tmp_path, rows, columns=f"{MAP}[filter]\n{condition}\n", name=name)
    assert (len(imported.frame), imported.left_out) == (kept, 3 - kept)


def test_mixed_data_is_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    rows = [{**row, "data": data} for row, data in zip(ROWS, ("c4", "pile", "c4"), strict=True)]
    required = MAP + '[require_equal]\ncolumns = ["data"]\n'
    with pytest.raises(TableError, match=r"'data' must hold one value.*got 'c4' \(2 rows\), 'pile' \(1 rows\)"):
        read(tmp_path, rows, columns=required)
    assert len(read(tmp_path, rows, columns=required + '[filter]\ndata = "c4"\n').frame) == 2
    many = [{**ROWS[0], "data": f"set {i}", "seed": i} for i in range(9)]
    with pytest.raises(TableError, match=r"and 4 more\. Their losses"):
        read(tmp_path, many, columns=required)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"N": "ten"}, r"'N' \(scales.n_params.column\): must be a number, got 'ten' in row 2\."),
        ({"N": 0}, r"must be a finite number above 0, got '?0'? in row 2"),
        ({"bs": -8}, r"'bs' \(hps.batch_tokens.column\): must be a finite number above 0, got '-8' in row 2"),
        ({"bs": None}, r"hps.batch_tokens.*got '' in row 2"),
        ({"log2_D": 1e6}, r"must be the log2 of a finite number above 0, got '1000000.0' in row 2"),
        ({"log10_lr": "nan"}, r"must be the log10 of .*, got 'nan' in row 2"),
        ({"seed": 1.5}, r"'seed' \(seed.column\): must be a whole number, got '1.5' in row 2"),
        ({"optimizer": " "}, r"'optimizer' \(series.column\): must be a name, got ' ' in row 2"),
        ({"val_loss": -0.5}, r"must be above 0 \(nats\), got '-0.5' in row 2"),
        ({"val_loss": "2,5"}, r"'val loss' \(loss.column\): must be a number, got '2,5' in row 2"),
    ],
)
def test_a_bad_cell_is_refused_with_its_row(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(tmp_path, changed(1, **cells))


def test_rows_are_those_of_the_table_whatever_was_filtered_out(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="in row 3 "):
        read(tmp_path, [ROWS[0], *changed(0, bs=-1)[:1], *[{**ROWS[1], "bs": -b} for b in (1, 2)]],
             columns=MAP + "[filter]\noptimizer = 'adamw'\n")  # fmt: skip
    columns = MAP.replace('column = "val loss"', 'column = "val loss"\nunit = "perplexity"')
    with pytest.raises(TableError, match=r"must be above 1 \(perplexity\), got '0.5' in row 3\."):
        read(tmp_path, changed(2, val_loss=0.5), columns=columns)


def test_a_late_word_in_a_long_column_is_found(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "seed": i} for i in range(5000)]
    rows[4321] = {**rows[4321], "bs": "sixteen"}
    with pytest.raises(TableError, match="got 'sixteen' in row 4322"):
        read(tmp_path, rows)


def test_two_losses_for_one_run_are_refused_with_what_tells_them_apart(tmp_path: Path) -> None:
    twin = {**ROWS[2], "val loss": 2.875}
    with pytest.raises(TableError, match=r"rows 3 and 4 are one run .*loss 2.75 and loss 2.875.*add a seed column"):
        read(tmp_path, [*ROWS, twin])
    with pytest.raises(TableError, match=r"They differ in 'wd': map it"):
        read(tmp_path, [*ROWS, {**twin, "wd": 0.2}])
    with pytest.raises(TableError, match=r"loss 2.75 and diverged"):
        read(tmp_path, [*ROWS, {**twin, "val loss": "nan"}])
    mapped = MAP + '[hps.weight_decay]\ncolumn = "wd"\n'
    assert len(read(tmp_path, [*ROWS, {**twin, "wd": 0.2}], columns=mapped).frame) == 4


def test_without_other_columns_a_disagreement_is_still_refused(tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in row.items() if name != "wd"} for row in ROWS]
    with pytest.raises(TableError, match="Nothing else tells them apart"):
        read(tmp_path, [*rows, {**rows[0], "val loss": 1.0}])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('column = "bs"', 'column = "b_s"', r"no column 'b_s', which hps.batch_tokens.column .*its columns: opt.*'bs'"),
        ('column = "val loss"', 'column = "zzz"', r"no column 'zzz', which loss.column of .*Correct the map\."),
        ('name = "elsewhere"', 'name = "else where"', r"name: must be letters, digits"),
        ("[hps.lr]", "[hsp.lr]", r"hsp: unknown key.*Did you mean 'hps'"),
        ("multiply = 2048", "multply = 2048", r"hps.batch_tokens.multply: unknown key.*Did you mean 'multiply'"),
        ("multiply = 2048", "multiply = 0", r"hps.batch_tokens.multiply: must be above 0"),
        ('holds = "log2"', 'holds = "log3"', r"scales.train_tokens.holds: must be one of .*Did you mean 'log2'"),
        ('[series]\ncolumn = "optimizer"', "[series]", r"series: must have either a column or a value"),
        ("[scales.train_tokens]", "[scales.lr]", r"lr must be a scale or a hyperparameter, got both"),
        ("[scales.train_tokens]", "[scales.loss]", r"no scale or hyperparameter may be called loss"),
        ("[seed]\n", '[status]\ndiverged = ["a"]\nleave_out = ["a"]\n', r"must not share a value, got 'a' in both"),
        ("[seed]\n", '[filter]\noptimizer = "lion"\n[seed]\n', r"none of its 3 rows is left by .*optimizer = 'lion'"),
        ('[hps.lr]\ncolumn = "log10_lr"\nholds = "log10"\n[hps.batch_tokens]\ncolumn = "bs"\nmultiply = 2048\n', "",
         r"hps: is missing"),
    ],
)  # fmt: skip
def test_a_bad_map_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MAP
    with pytest.raises(SpecError, match=message):
        read(tmp_path, columns=MAP.replace(old, new))


def _csv(text: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(text) and None


def _nested(file: Path) -> None:
    pq.write_table(pa.table({name: [[1.0]] for name in ROWS[0]}), file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_csv(b""), "cannot be read as CSV .*Empty CSV"),
        (_csv(b"optimizer,N,log2 D,log10_lr,bs,seed,val loss\n"), "no rows below its header"),
        (_csv(b"optimizer,N,log2 D,log10_lr,bs,seed,val loss\na,1,2\n"), "cannot be read as CSV .*Expected 7 columns"),
        (_csv(b"optimizer,N,N,log2 D,log10_lr,bs,seed,val loss\n"), r"column 'N' .*more than once"),
        (_csv(b"PAR1 but no Parquet"), "cannot be read as CSV .*Parquet"),
        (_nested, r"column 'val loss' holds a list<.*> a row"),
        (lambda file: file.mkdir(), "is a folder"),
        (lambda file: None, "no such file"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    (tmp_path / "columns.toml").write_text(MAP)
    write(tmp_path / "runs")
    with pytest.raises(TableError, match=message):
        read_runs(tmp_path / "runs", load_map(tmp_path / "columns.toml"))


def test_words_in_a_parquet_dictionary_and_decimals(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS).astype({"optimizer": "category"})
    cells = pa.Table.from_pandas(frame)
    cells = cells.set_column(1, "N", cells.column("N").cast(pa.decimal128(25, 2)))
    pq.write_table(cells, tmp_path / "runs.parquet")
    (tmp_path / "columns.toml").write_text(MAP)
    again = read_runs(tmp_path / "runs.parquet", load_map(tmp_path / "columns.toml"))
    pd.testing.assert_frame_equal(again.frame, read(tmp_path).frame)


# --- the folder


def test_a_folder_keeps_what_was_imported(tmp_path: Path) -> None:
    imported = read(tmp_path, changed(0, val_loss="nan"))
    folder = tmp_path / "results" / "elsewhere"
    assert write_import(folder, imported)
    back = read_import(folder)
    pd.testing.assert_frame_equal(back.frame, imported.frame)
    assert (back.digest, back.scales, back.hps) == (imported.digest, imported.scales, imported.hps)
    assert (back.rows, back.left_out, back.source, back.name) == (3, 0, "runs.csv", "elsewhere")
    assert (folder / "import.toml").read_text() == MAP


def test_importing_the_same_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_import(folder, read(tmp_path))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    assert not write_import(folder, read(tmp_path))
    with pytest.raises(StoreError, match=r"out holds the import 'elsewhere' of runs.csv: another table\. Nothing"):
        write_import(folder, read(tmp_path, ROWS[:2]))
    with pytest.raises(StoreError, match="the same table under another map"):
        write_import(folder, read(tmp_path, columns=MAP.replace("2048", "1024")))
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    imported = read(tmp_path)
    with pytest.raises(StoreError, match="is a file, not a folder"):
        write_import(tmp_path / "runs.csv", imported)
    (tmp_path / "sweep" / "trials").mkdir(parents=True)
    with pytest.raises(StoreError, match="holds a sweep"):
        write_import(tmp_path / "sweep", imported)
    with pytest.raises(StoreError, match="holds no import"):
        read_import(tmp_path / "sweep")


def test_damaged_and_newer_observations_are_refused(tmp_path: Path) -> None:
    write_import(tmp_path / "out", read(tmp_path))
    file = tmp_path / "out" / OBSERVATIONS
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(StoreError, match=r"observations.parquet is damaged"):
        read_import(tmp_path / "out")
    cells = pq.read_table(pa.BufferReader(whole))
    said = json.loads(cells.schema.metadata[b"mutransfer_import"])
    for change, message in (({"schema_version": 2}, "newer than this program"), ({"hps": ["momentum"]}, "damaged")):
        pq.write_table(cells.replace_schema_metadata({b"mutransfer_import": json.dumps(said | change).encode()}), file)
        with pytest.raises(StoreError, match=message):
            read_import(tmp_path / "out")


# --- the unit of a batch


@pytest.mark.parametrize(
    ("declared", "tokens"),
    [
        ('quantity = "batch"\nunit = "sequences"\nseq_len = 512', 8 * 512),
        ('quantity = "batch"\nunit = "tokens"', 8),
        ('quantity = "batch"\nunit = "tokens"\nmultiply = 1024', 8 * 1024),
        ("multiply = 2048", 8 * 2048),  # a map that declares no batch reads as before
    ],
)
def test_a_batch_becomes_tokens(tmp_path: Path, declared: str, tokens: float) -> None:
    columns = MAP.replace("multiply = 2048", declared)
    assert read(tmp_path, columns=columns).frame["batch_tokens"].min() == tokens
    declares = "quantity" in declared
    assert load_map(tmp_path / "columns.toml").batch == ("batch_tokens" if declares else None)


def test_a_logarithm_of_sequences_becomes_tokens(tmp_path: Path) -> None:
    rows = [{**row, "bs": math.log2(row["bs"])} for row in ROWS]
    columns = MAP.replace("multiply = 2048", 'holds = "log2"\nquantity = "batch"\nunit = "sequences"\nseq_len = 512')
    assert read(tmp_path, rows, columns=columns).frame["batch_tokens"].tolist() == [8 * 512, 8 * 512, 16 * 512]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ('quantity = "batch"', r"hps.batch_tokens: must say in which unit the batch is, for it is not guessed"),
        ('quantity = "batch"\nunit = "sequences"', r"hps.batch_tokens: must have the tokens of a sequence, seq_len"),
        ('quantity = "batch"\nunit = "tokens"\nseq_len = 512', r"seq_len must be left out of a batch in tokens"),
        ('quantity = "batch"\nunit = "sequences"\nseq_len = 512\nmultiply = 512', r"multiply must be left out"),
        ('unit = "tokens"', r"unit is of a batch, and quantity does not say that this is one"),
        ("seq_len = 512", r"seq_len is of a batch"),
        ('quantity = "batch"\nunit = "examples"', r"hps.batch_tokens.unit: must be one of 'tokens' or 'sequences'"),
        (
            'quantity = "batches"',
            r"hps.batch_tokens.quantity: must be .*Did you mean 'batch'|quantity: must be 'batch'",
        ),
        ('quantity = "batch"\nunit = "sequences"\nseq_len = 0', r"hps.batch_tokens.seq_len: must be above 0"),
    ],
)
def test_a_batch_without_its_unit_is_refused(tmp_path: Path, declared: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read(tmp_path, columns=MAP.replace("multiply = 2048", declared))


def test_two_batches_are_refused(tmp_path: Path) -> None:
    declared = 'quantity = "batch"\nunit = "tokens"'
    columns = MAP.replace("multiply = 2048", declared).replace("multiply = 1e6", declared)
    with pytest.raises(SpecError, match='only one column may have quantity = "batch", got n_params and batch_tokens'):
        read(tmp_path, columns=columns)


# --- the target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[scales]\nn_params = -1\n", r"scales.n_params: must be above 0.0, got -1"),
        ("[scales]\n", r"scales: must name at least one"),
        ("[scale]\nn_params = 1\n", r"scale: unknown key.*Did you mean 'scales'"),
        ('[scales]\nn_params = "1e9"\n', r"scales.n_params: must be a number"),
    ],
)
def test_a_bad_target_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "target.toml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_import_target(tmp_path / "target.toml")
