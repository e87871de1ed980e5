"""Somebody else's runs: a CSV or Parquet table and its column map become the observations of a results folder.

`observations.parquet` has one row a run: `series`, every scale, every hyperparameter, `seed` and `loss` (nats, NaN
where the run diverged), sorted. Its metadata say what it was made from; `import.toml` is the map as it was written.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeps.files import replace_file
from sweeps.import_cells import Bools, Cells, Floats, TableError, column_names, one_line, read_cells, read_columns
from sweeps.import_map import IMPORT_MAP, LOSS, OBSERVATIONS, SEED, SERIES, Cell, Holds, ImportMap, NumberColumn
from sweeps.store import StoreError
from sweeps.trial import canonical_json

SCHEMA_VERSION = 1  # of the columns and the metadata

_MOST_NAMED = 5  # values, in a message
_NATS_PER_BIT = float(np.log(2.0))
_METADATA_KEY = b"mutransfer_import"


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """Runs from elsewhere, one a row of `frame`, and what they were read from."""

    name: str
    scales: tuple[str, ...]
    hps: tuple[str, ...]
    frame: pd.DataFrame  # columns series, scales, hps, seed, loss; sorted by all but the loss
    source: str  # the table's file name, without its folder
    source_sha256: str
    rows: int  # of the table
    left_out: int  # of them: filtered, or said to be no result
    map_text: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that tell runs apart."""
        return (SERIES, *self.scales, *self.hps, SEED)

    @property
    def diverged(self) -> int:
        """Runs without a loss."""
        return int(self.frame[LOSS].isna().sum())

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what the observations are a function of: the table and its map."""
        return hashlib.sha256(canonical_json([self.source_sha256, self.map_text]).encode()).hexdigest()


def read_runs(source: Path, columns: ImportMap) -> Import:
    """Read a table of runs as its column map says. Columnar: a million rows take seconds.

    Rows are counted from 1, below the header. Equal rows count once.

    Raises:
        TableError: no such table, a missing column, a cell that is no such value (with its row), columns that
            must hold one value and hold several, no row left, or two losses for one run.
    """
    cells = read_cells(source, columns)
    n_rows = len(cells.rows)
    cells = _filtered(cells, columns)
    _refuse_mixed(cells, columns)
    losses = _losses(cells, columns)
    frame = pd.DataFrame(
        {
            SERIES: _series(cells, columns),
            **{name: _positive(cells, f"scales.{name}", scale) for name, scale in columns.scales.items()},
            **{name: _positive(cells, f"hps.{name}", hp) for name, hp in columns.hps.items()},
            SEED: _seeds(cells, columns),
            LOSS: losses,
        }
    )
    kept = _one_row_a_run(frame, cells)
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Import(
        name=columns.name,
        scales=tuple(columns.scales),
        hps=tuple(columns.hps),
        frame=kept,
        source=source.name,
        source_sha256=digest,
        rows=n_rows,
        left_out=n_rows - len(frame),
        map_text=columns.text,
    )


def write_import(folder: Path, imported: Import) -> bool:
    """Make this the folder of an import; False, and nothing changed, if it is that already.

    Raises:
        StoreError: the path is a file, or the folder holds a sweep, another table, or the same under another map.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file, not a folder. Choose another output folder.")
    if (folder / "sweep.json").exists() or (folder / "trials").exists():
        raise StoreError(f"{folder} holds a sweep. Nothing was changed. Choose another folder with --out.")
    if (folder / OBSERVATIONS).is_file():
        held = read_import(folder)
        if held.digest == imported.digest:
            return False
        other = "the same table under another map" if held.source_sha256 == imported.source_sha256 else "another table"
        raise StoreError(
            f"{folder} holds the import '{held.name}' of {held.source}: {other}. Nothing was changed. "
            "Choose another folder with --out, or rename this one and start anew with --fresh."
        )
    replace_file(folder / IMPORT_MAP, imported.map_text.encode())
    replace_file(folder / OBSERVATIONS, _to_parquet(imported))
    return True


def read_import(folder: Path) -> Import:
    """Read what `write_import` wrote.

    Raises:
        StoreError: no import, a damaged file, or one of a newer version of the program.
    """
    file = folder / OBSERVATIONS
    try:
        table = pq.ParquetFile(io.BytesIO(file.read_bytes()), page_checksum_verification=True).read()
        said = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        if said["schema_version"] > SCHEMA_VERSION:
            raise StoreError(f"{file} has schema version {said['schema_version']}, newer than this program. Update it.")
        text = {name: str(said[name]) for name in ("name", "source", "source_sha256", "map_text")}
        counts = {name: int(said[name]) for name in ("rows", "left_out")}
        scales, hps = tuple(said["scales"]), tuple(said["hps"])
        frame = table.select([SERIES, *scales, *hps, SEED, LOSS]).to_pandas()
    except FileNotFoundError:
        raise StoreError(f"{folder}: holds no import, for it has no {OBSERVATIONS}. Run `mutransfer import`.") from None
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} is damaged: {one_line(error)}. Remove it and import again.") from None
    return Import(scales=scales, hps=hps, frame=frame, **text, **counts)  # type: ignore[arg-type]


def _to_parquet(imported: Import) -> bytes:
    """The bytes of observations.parquet; equal imports give equal bytes."""
    said = {name: getattr(imported, name) for name in ("name", "source", "source_sha256", "rows", "left_out")}
    said |= {"schema_version": SCHEMA_VERSION, "map_text": imported.map_text}
    said |= {"scales": list(imported.scales), "hps": list(imported.hps)}
    columns = {name: pa.array(imported.frame[name].to_numpy()) for name in (*imported.keys, LOSS)}
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: canonical_json(said).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _filtered(cells: Cells, columns: ImportMap) -> Cells:
    """The rows that the filter wants and that are not left out. Raises TableError where that is none."""
    keep = np.ones(len(cells.rows), dtype=np.bool_)
    for column, value in columns.filter.items():
        keep &= _equal(cells, column, value)
    if columns.status is not None:
        keep &= ~cells.is_any(columns.status.column, columns.status.leave_out)
    if columns.loss.empty == "leave_out":
        keep &= _said_diverged(cells, columns) | ~cells.texts(columns.loss.column)[1]
    if not keep.any():
        wanted = ", ".join(f"{column} = {value!r}" for column, value in columns.filter.items()) or "no filter"
        raise TableError(
            f"{cells.source}: none of its {len(keep)} rows is left by [filter] ({wanted}), [status] leave_out and "
            f"[loss] empty of {columns.file}. Correct the map."
        )
    return cells.where(keep)


def _equal(cells: Cells, column: str, value: Cell) -> Bools:
    if isinstance(value, str):
        return cells.is_any(column, (value.strip(),))
    if isinstance(value, bool):  # as Parquet, pandas and JSON spell it
        return cells.is_any(column, (str(value), str(value).lower(), str(value).upper()))
    equal: Bools = cells.numbers(f"filter.{column}", column)[0] == float(value)
    return equal


def _refuse_mixed(cells: Cells, columns: ImportMap) -> None:
    """Raises TableError where a column of [require_equal] holds several values."""
    for column in columns.require_equal.columns if columns.require_equal else ():
        counts = pd.Series(cells.texts(column)[0].to_pylist()).value_counts()
        if len(counts) > 1:
            some = ", ".join(f"'{value}' ({count} rows)" for value, count in counts.head(_MOST_NAMED).items())
            more = f" and {len(counts) - _MOST_NAMED} more" if len(counts) > _MOST_NAMED else ""
            raise TableError(
                f"{cells.source}: column '{column}' must hold one value ([require_equal] of {columns.file}), got "
                f"{some}{more}. Their losses are not comparable: choose one with [filter], or make the column a "
                "scale or the series."
            )


def _said_diverged(cells: Cells, columns: ImportMap) -> Bools:
    """Which rows the status column says diverged."""
    if columns.status is None:
        return np.zeros(len(cells.rows), dtype=np.bool_)
    return cells.is_any(columns.status.column, columns.status.diverged)


def _losses(cells: Cells, columns: ImportMap) -> Floats:
    """In nats, NaN where the run diverged: said so, or with a loss that is not finite."""
    loss, diverged = columns.loss, _said_diverged(cells, columns)
    values, empty = cells.numbers("loss.column", loss.column)
    if loss.empty == "refuse":
        cells.refuse(
            empty & ~diverged, "loss.column", loss.column, "a loss",
            'Say what an empty cell means: [loss] empty = "diverged" or "leave_out".',
        )  # fmt: skip
    values = np.where(diverged | ~np.isfinite(values), np.nan, values)
    least = 1.0 if loss.unit == "perplexity" else 0.0
    action = "Correct the cell, or the unit in [loss]."
    cells.refuse(values <= least, "loss.column", loss.column, f"above {least:g} ({loss.unit})", action)
    nats: Floats = np.log(values) if loss.unit == "perplexity" else values
    return nats * _NATS_PER_BIT if loss.unit == "bits" else nats


def _series(cells: Cells, columns: ImportMap) -> list[str]:
    if columns.series is None or columns.series.column is None:
        return [columns.name if columns.series is None else str(columns.series.value)] * len(cells.rows)
    texts, empty = cells.texts(columns.series.column)
    action = "Fill it in, or leave the row out with [filter]."
    cells.refuse(empty, "series.column", columns.series.column, "a name", action)
    names: list[str] = texts.to_pylist()
    return names


def _positive(cells: Cells, key: str, number: NumberColumn) -> Floats:
    """The values of a scale or hyperparameter, after the map's transforms."""
    held, _ = cells.numbers(f"{key}.column", number.column)
    with np.errstate(over="ignore"):
        values = _exponentiate(held, number.holds) * number.factor
    right = np.isfinite(values) & (values > 0)
    must = "a finite number above 0" if number.holds == "value" else f"the {number.holds} of a finite number above 0"
    cells.refuse(~right, f"{key}.column", number.column, must, "Correct the cell, or leave its row out with [filter].")
    return values


def _exponentiate(held: Floats, holds: Holds) -> Floats:
    base = {"value": None, "log2": 2.0, "log10": 10.0, "ln": float(np.e)}[holds]
    values: Floats = held if base is None else np.power(base, held)
    return values


def _seeds(cells: Cells, columns: ImportMap) -> NDArray[np.int64]:
    if columns.seed is None:
        return np.zeros(len(cells.rows), dtype=np.int64)
    held, _ = cells.numbers("seed.column", columns.seed.column)
    whole = np.isfinite(held) & (np.trunc(held) == held) & (np.abs(held) < 2.0**53)
    cells.refuse(~whole, "seed.column", columns.seed.column, "a whole number", "Number the seeds.")
    return held.astype(np.int64)


def _one_row_a_run(frame: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """Sorted by run, equal rows once.

    Raises:
        TableError: two losses for one run; it names what else the two rows differ in.
    """
    keys = [name for name in frame.columns if name != LOSS]
    distinct = frame.drop_duplicates()
    twice = distinct.duplicated(keys, keep=False)
    if twice.any():
        first = distinct[twice].iloc[0]
        same = distinct[twice & (distinct[keys] == first[keys]).all(axis=1)]
        a, b = (int(index) for index in same.index[:2])
        raise TableError(_disagreement(frame, cells, a, b, int(twice.sum())))
    return distinct.sort_values(keys, ignore_index=True)


def _disagreement(frame: pd.DataFrame, cells: Cells, a: int, b: int, rows: int) -> str:
    keys = ", ".join(f"{name}={frame[name][a]}" for name in frame.columns if name != LOSS)
    losses = " and ".join("diverged" if np.isnan(frame[LOSS][i]) else f"loss {frame[LOSS][i]:g}" for i in (a, b))
    differ = _differing(cells, int(cells.rows[a]), int(cells.rows[b]))
    why = (
        f"They differ in {', '.join(map(repr, differ[:_MOST_NAMED]))}: map it, or choose one value with [filter]."
        if differ
        else "Nothing else tells them apart: add a seed column, or remove the wrong row."
    )
    return (
        f"{cells.source}: rows {cells.rows[a]} and {cells.rows[b]} are one run ({keys}) with different results, "
        f"{losses} ({rows} such rows). {why}"
    )


def _differing(cells: Cells, a: int, b: int) -> list[str]:
    """Columns that the map does not name and in which two rows differ."""
    names = column_names(cells.source)
    others = [name for name in names if name not in cells.table.column_names and names.count(name) == 1]
    if not others:
        return []
    pair = read_columns(cells.source, others).take([a - 1, b - 1]).to_pydict()
    return [name for name, (one, other) in pair.items() if one != other]
