"""Pydantic types of a spec's tables, built from the config records: a new field of HParams is a new key."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar, Union, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag
from pydantic import GetCoreSchemaHandler as Handler
from pydantic_core import CoreSchema, core_schema

from proxy_models.config import HParams, ModelConfig
from sweeps.spec_errors import LIST_TAG, NUMBER_TAG, RANGE_TAG, as_table, refuse_unknown_keys

Value = TypeVar("Value")
# strict: a number in quotes is a text, 1.5 is no whole number, true is no number; 1 may stand for 1.0
SECTION = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
MAX_AXIS_VALUES = 1000


def distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return `values` unchanged.

    Raises:
        ValueError: none, or one value twice.
    """
    if not values:
        raise ValueError("must have at least one value, got []. Add one.")
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"must not have a value twice, got {list(values)}. Remove one {twice[0]!r}.")
    return values


Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False), AfterValidator(distinct)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False), AfterValidator(distinct)]


class Log2Range(BaseModel):
    """Values 2**log2_from, 2**(log2_from + log2_step), ..., 2**log2_to, both ends included."""

    model_config = SECTION
    log2_from: float = Field(ge=-100, le=100)
    log2_to: float = Field(ge=-100, le=100)
    log2_step: float = Field(gt=0)

    def values(self) -> tuple[float, ...]:
        """Raises ValueError if no whole number of steps leads from log2_from to log2_to."""
        steps = (self.log2_to - self.log2_from) / self.log2_step
        if steps < 0 or abs(steps - round(steps)) > 1e-9 or steps >= MAX_AXIS_VALUES:
            raise ValueError(
                f"log2_step must lead from log2_from={self.log2_from:g} up to log2_to={self.log2_to:g} in a "
                f"whole number of steps below {MAX_AXIS_VALUES}, got {self.log2_step:g}. Change one of them."
            )
        return tuple(2.0 ** (self.log2_from + index * self.log2_step) for index in range(round(steps) + 1))


def _toml_type(hint: Any) -> Any:
    """TOML has no null: "none" in quotes stands for None."""
    if type(None) in getattr(hint, "__args__", ()):
        return Annotated[hint, BeforeValidator(lambda value: None if value == "none" else value)]
    return hint


def _axis_of(hint: Any) -> Any:
    """The pydantic type of an axis over a field of type `hint`: a list or a Log2Range, giving a tuple."""

    def expand(axis: Log2Range | tuple[Any, ...]) -> tuple[Any, ...]:
        values: tuple[Any, ...] = axis.values() if isinstance(axis, Log2Range) else axis
        if hint is int and not all(float(value).is_integer() for value in values):
            raise ValueError(f"must give whole numbers, got {list(values)}. Change the range.")
        return distinct(tuple(int(value) if hint is int else value for value in values))

    element: Any = _toml_type(hint)
    listed: Any = Annotated[tuple[element, ...], Strict(False), Tag(LIST_TAG)]
    ranged: Any = Annotated[Log2Range, BeforeValidator(_known(Log2Range.model_fields)), Tag(RANGE_TAG)]
    return Annotated[Union[listed, ranged], Discriminator(as_table), AfterValidator(expand)]  # noqa: UP007


def _known(names: Mapping[str, Any]) -> Callable[[Any], Any]:
    return lambda values: refuse_unknown_keys(values, names)


def table_schema(types: Mapping[str, Any], handler: Handler, *, required: tuple[str, ...] = ()) -> CoreSchema:
    """A table with the required and some of the other keys; what is left out stays out."""
    keys = {
        name: core_schema.typed_dict_field(handler.generate_schema(hint), required=name in required)
        for name, hint in types.items()
    }
    table = core_schema.typed_dict_schema(keys, config={"strict": True, "allow_inf_nan": False})
    return core_schema.no_info_before_validator_function(_known(types), table)


def field_types(record: type, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {field.name: _toml_type(hints[field.name]) for field in fields(record) if field.name not in without}


class _OneOrSeveral:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Handler) -> CoreSchema:
        tokens: Any = Annotated[int, Field(ge=1)]
        listed: Any = Annotated[tuple[tokens, ...], Strict(False), AfterValidator(distinct), Tag(LIST_TAG)]
        one: Any = Annotated[tokens, AfterValidator(lambda value: (value,)), Tag(NUMBER_TAG)]
        return handler.generate_schema(Annotated[Union[one, listed], Discriminator(_number_or_list)])  # noqa: UP007


def _number_or_list(value: Any) -> str:
    return LIST_TAG if isinstance(value, list) else NUMBER_TAG


class _HParamsTable:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Handler) -> CoreSchema:
        return table_schema(field_types(HParams), handler)


class _AxesTable:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Handler) -> CoreSchema:
        return table_schema({name: _axis_of(hint) for name, hint in get_type_hints(HParams).items()}, handler)


class _ModelTable:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Handler) -> CoreSchema:
        return table_schema(field_types(ModelConfig, without=("width",)), handler)


Horizons = Annotated[tuple[int, ...], _OneOrSeveral]  # a number, or a list of several
HParamsTable = Annotated[dict[str, Any], _HParamsTable]  # fixed values by field name
AxesTable = Annotated[dict[str, tuple[Any, ...]], _AxesTable]  # values by field name
ModelTable = Annotated[dict[str, Any], _ModelTable]  # ModelConfig fields but width
