"""A table of runs as cells: the mapped columns of a CSV or Parquet file, checked, with their row numbers."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeps.import_map import ImportMap
from sweeps.spec_errors import SpecError, shown

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_PARQUET_MAGIC = b"PAR1"
_EMPTY = ("", "NA", "N/A", "null", "None")  # what programs write for nothing; nan is a number


class TableError(SpecError):
    """A table of runs that cannot be read as its column map says."""


@dataclass(frozen=True, slots=True)
class Cells:
    """The mapped columns of some of a table's rows, and those rows' numbers."""

    source: Path
    table: pa.Table
    rows: NDArray[np.int64]  # from 1

    def where(self, keep: Bools) -> "Cells":
        return self if keep.all() else Cells(self.source, self.table.filter(pa.array(keep)), self.rows[keep])

    def refuse(self, wrong: Bools, key: str, column: str, must: str, action: str) -> None:
        """Raise TableError with the first cell of `column` where `wrong` holds."""
        if wrong.any():
            index = int(wrong.argmax())
            cell = shown(self.table.column(column)[index].as_py())
            more = f" (and {wrong.sum() - 1} more)" if wrong.sum() > 1 else ""
            raise TableError(
                f"{self.source}: column '{column}' ({key}): must be {must}, got {cell} in row "
                f"{self.rows[index]}{more}. {action}"
            )

    def texts(self, column: str) -> tuple[pa.Array, Bools]:
        """Texts without the blanks around them, and where the cell is empty."""
        return _texts(self.table.column(column))

    def is_any(self, column: str, values: Iterable[str]) -> Bools:
        """Which cells are one of these texts."""
        wanted = pa.array(list(values), pa.string())
        found: Bools = pc.is_in(self.texts(column)[0], value_set=wanted).to_numpy(zero_copy_only=False)
        return found

    def numbers(self, key: str, column: str) -> tuple[Floats, Bools]:
        """Numbers, NaN where a cell says so or is empty, and where it is empty.

        Raises:
            TableError: a cell that is no number.
        """
        cells = self.table.column(column)
        if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type) or pa.types.is_decimal(cells.type):
            return cells.cast(pa.float64(), safe=False).to_numpy(), cells.is_null().to_numpy()
        texts, empty = _texts(cells)
        texts = pc.if_else(pa.array(empty), "nan", texts)
        if not _all_numbers(texts):
            wrong = np.zeros(len(texts), dtype=np.bool_)
            wrong[_first_no_number(texts)] = True
            self.refuse(wrong, key, column, "a number", "Correct the cell, or leave its row out with [filter].")
        return pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False), empty


def read_cells(source: Path, columns: ImportMap) -> Cells:
    """The columns that the map names.

    Raises:
        TableError: no such file, not a table, or a column that is missing or there twice.
    """
    names = column_names(source)
    for key, column in columns.columns.items():
        if column not in names:
            near = difflib.get_close_matches(column, names, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Correct the map."
            raise TableError(
                f"{source}: has no column '{column}', which {key} of {columns.file} names; "
                f"its columns: {', '.join(names)}. {hint}"
            )
        if names.count(column) > 1:
            raise TableError(f"{source}: has the column '{column}' ({key}) more than once. Rename one in the table.")
    table = read_columns(source, list(dict.fromkeys(columns.columns.values())))
    for field in table.schema:
        if pa.types.is_nested(field.type):
            raise TableError(f"{source}: column '{field.name}' holds a {field.type} a row. Map one of plain values.")
    if not table.num_rows:
        raise TableError(f"{source}: has no rows below its header. Give a table of runs.")
    return Cells(source, table, np.arange(1, table.num_rows + 1))


def column_names(source: Path) -> list[str]:
    """Every column of a table, in its order. Raises TableError as `read_cells`."""
    try:
        if _is_parquet(source):
            return list(pq.read_schema(source).names)
        with pyarrow.csv.open_csv(source) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from None


def read_columns(source: Path, columns: Sequence[str]) -> pa.Table:
    """CSV columns come as texts: a guessed type would fail on the first cell that does not fit, without its row."""
    try:
        if _is_parquet(source):
            return pq.ParquetFile(source).read(columns=list(columns))
        texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns)
        return pyarrow.csv.read_csv(source, convert_options=texts)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from None


def _is_parquet(source: Path) -> bool:
    with source.open("rb") as stream:
        return stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _unreadable(source: Path, error: Exception) -> TableError:
    if isinstance(error, FileNotFoundError):
        return TableError(f"{source}: no such file. Give the path of a CSV or Parquet file.")
    if isinstance(error, IsADirectoryError):
        return TableError(f"{source}: is a folder. Give the path of a CSV or Parquet file in it.")
    return TableError(f"{source}: cannot be read as CSV (comma-separated, UTF-8) or Parquet: {one_line(error)}")


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())


def _texts(cells: pa.ChunkedArray) -> tuple[pa.Array, Bools]:
    """A column as texts without the blanks around them, and where there is nothing."""
    flat = cells.combine_chunks()
    flat = flat.dictionary_decode() if pa.types.is_dictionary(flat.type) else flat
    texts = pc.fill_null(pc.utf8_trim_whitespace(flat.cast(pa.string())), "")
    return texts, pc.is_in(texts, value_set=pa.array(_EMPTY)).to_numpy(zero_copy_only=False)


def _all_numbers(texts: pa.Array) -> bool:
    try:
        pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _first_no_number(texts: pa.Array) -> int:
    """Index of the first text that is no number, by bisection: one such is known to be there."""
    low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _all_numbers(texts[low:middle]) else (low, middle)
    return low
