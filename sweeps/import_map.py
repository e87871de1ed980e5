"""The column map of an import: which columns of somebody's table of runs hold what, in which unit.

Loads neither pandas nor pyarrow: a wrong map is refused before the table is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, Strict, model_validator

from sweeps.spec_file import FileSection, Section, read_section
from sweeps.spec_types import Value, distinct

OBSERVATIONS, IMPORT_MAP = "observations.parquet", "import.toml"  # files of a results folder
# Columns of the canonical table beside the scales and hyperparameters.
SERIES, SEED, LOSS = "series", "seed", "loss"
_OWN_COLUMNS = frozenset({SERIES, SEED, LOSS})

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Cell = str | int | float | bool
Words = Annotated[tuple[str, ...], Strict(False), AfterValidator(distinct)]
Holds = Literal["value", "log2", "log10", "ln"]


def _not_empty(table: dict[str, Value]) -> dict[str, Value]:
    if not table:
        raise ValueError("must name at least one, got none. Add one.")
    return table


class NumberColumn(Section):
    """A column of positive numbers. The value is what the column holds, out of its logarithm, times `multiply`.

    `quantity = "batch"` says that it is what a step sees: laws of the batch are in tokens, so its unit must be said,
    and it becomes tokens. What a column is called never decides that.
    """

    column: str
    holds: Holds = "value"
    multiply: float = Field(default=1.0, gt=0)  # such as the tokens of a sequence
    quantity: Literal["batch"] | None = None
    unit: Literal["tokens", "sequences"] | None = None  # of a batch, after `holds` and `multiply`
    seq_len: int | None = Field(default=None, gt=0)  # tokens of a sequence

    @model_validator(mode="after")
    def _batch_with_its_unit(self) -> Self:
        if self.quantity is None:
            given = next((name for name in ("unit", "seq_len") if getattr(self, name) is not None), None)
            if given:
                raise ValueError(
                    f'{given} is of a batch, and quantity does not say that this is one. Add quantity = "batch", '
                    f"or remove {given}."
                )
            return self
        if self.unit is None:
            raise ValueError(
                'must say in which unit the batch is, for it is not guessed. Add unit = "tokens", or '
                'unit = "sequences" and seq_len.'
            )
        if self.unit == "tokens" and self.seq_len is not None:
            raise ValueError('seq_len must be left out of a batch in tokens. Remove it, or write unit = "sequences".')
        if self.unit == "sequences" and self.seq_len is None:
            raise ValueError("must have the tokens of a sequence, seq_len, to turn a batch in sequences into tokens.")
        if self.unit == "sequences" and self.multiply != 1.0:
            raise ValueError(
                f"multiply must be left out of a batch in sequences, which seq_len turns into tokens, got "
                f"{self.multiply:g} beside seq_len = {self.seq_len}. Remove multiply."
            )
        return self

    @property
    def factor(self) -> float:
        """What the column's values, out of their logarithm, are multiplied with; a batch becomes tokens."""
        return self.multiply * (self.seq_len or 1)


class LossColumn(Section):
    """The loss. `bits` and `perplexity` (of a token) become nats."""

    column: str
    unit: Literal["nats", "bits", "perplexity"] = "nats"
    empty: Literal["refuse", "diverged", "leave_out"] = "refuse"  # what an empty cell says of its run


class SeriesColumn(Section):
    """What is followed over scale, such as an optimizer: a column of names, or one name for every row."""

    column: str | None = None
    value: str | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.column is None) == (self.value is None):
            raise ValueError(
                f"must have either a column or a value, got column = {self.column!r}, value = {self.value!r}. "
                'Write column = "..." or value = "...".'
            )
        return self


class SeedColumn(Section):
    """A column of whole numbers."""

    column: str


class StatusColumn(Section):
    """A column that says how a run ended. Values in neither list are runs with a loss."""

    column: str
    diverged: Words = ("diverged",)
    leave_out: Annotated[tuple[str, ...], Strict(False)] = ()  # such as crashed: says nothing about its settings

    @model_validator(mode="after")
    def _lists_apart(self) -> Self:
        both = sorted(set(self.diverged) & set(self.leave_out))
        if both:
            raise ValueError(f"diverged and leave_out must not share a value, got {both[0]!r} in both. Remove one.")
        return self


class RequireEqual(Section):
    """Columns that must hold one value over all rows that are read, such as a data set or a token budget."""

    columns: Words


class ImportMap(FileSection):
    """A whole column map, as `load_map` returns it."""

    name: Name
    loss: LossColumn
    series: SeriesColumn | None = None  # None: one series, called as the import
    scales: Annotated[dict[Name, NumberColumn], AfterValidator(_not_empty)]
    hps: Annotated[dict[Name, NumberColumn], AfterValidator(_not_empty)]
    seed: SeedColumn | None = None  # None: every run is of seed 0
    status: StatusColumn | None = None
    require_equal: RequireEqual | None = None
    filter: dict[str, Cell] = Field(default_factory=dict)  # rows to read: column -> the value it must hold
    _file: Path = PrivateAttr(default=Path("columns.toml"))

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for name in self.hps:
            if name in self.scales:
                raise ValueError(f"{name} must be a scale or a hyperparameter, got both. Rename or remove one.")
        for name in (*self.scales, *self.hps):
            if name in _OWN_COLUMNS:
                raise ValueError(f"no scale or hyperparameter may be called {name}, which has its own section.")
        return self

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        batches = [name for name, number in (self.scales | self.hps).items() if number.quantity == "batch"]
        if len(batches) > 1:
            raise ValueError(f'only one column may have quantity = "batch", got {" and ".join(batches)}. Remove one.')
        return self

    @property
    def batch(self) -> str | None:
        """The scale or hyperparameter declared to be the batch, which is then in tokens; None where none is."""
        return next((name for name, number in (self.scales | self.hps).items() if number.quantity == "batch"), None)

    @property
    def columns(self) -> dict[str, str]:
        """Every column that is read, by the key of the map that names it."""
        named: dict[str, str | None] = {
            "loss.column": self.loss.column,
            "series.column": self.series.column if self.series else None,
            **{f"scales.{name}.column": scale.column for name, scale in self.scales.items()},
            **{f"hps.{name}.column": hp.column for name, hp in self.hps.items()},
            "seed.column": self.seed.column if self.seed else None,
            "status.column": self.status.column if self.status else None,
            **{f"require_equal.columns[{i}]": c for i, c in enumerate(self._required)},
            **{f"filter.{column}": column for column in self.filter},
        }
        return {key: column for key, column in named.items() if column is not None}

    @property
    def _required(self) -> tuple[str, ...]:
        return self.require_equal.columns if self.require_equal else ()


class ImportTarget(FileSection):
    """The scales of the large run that an import's hyperparameters are meant for."""

    scales: Annotated[dict[Name, Annotated[float, Field(gt=0)]], AfterValidator(_not_empty)]
    _file: Path = PrivateAttr(default=Path("target.toml"))


def load_map(path: str | Path) -> ImportMap:
    """Read a column map.

    Raises:
        SpecError: the file or a key is not usable.
    """
    return read_section(path, ImportMap)


def load_import_target(path: str | Path) -> ImportTarget:
    """Read the target file of an import.

    Raises:
        SpecError: the file or a key is not usable.
    """
    return read_section(path, ImportTarget)
