"""The [optimizers] section of a spec: a table for each optimizer of the sweep, under a name of the user's.

`[optimizers.muon]` is Muon. A second one takes a name of its own and says what it is:
`[optimizers.muon_rms]` with `kind = "muon"` and `shape_factor = "rms_match"`.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler as Handler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from proxy_models.checks import ConfigError
from proxy_models.optimizer_config import OPTIMIZERS, OptimizerConfig, Switch
from sweeps.spec_errors import shown
from sweeps.spec_types import AxesTable, HParamsTable, field_types, table_schema

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_PLAIN = {name: record for name, record in OPTIMIZERS.items() if record is not Switch}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSpec:
    """One optimizer of a sweep, with what its own table says."""

    config: OptimizerConfig
    hparams: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]


class _OptimizersTable:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Handler) -> CoreSchema:
        own = {"hparams": HParamsTable, "axes": AxesTable}
        values = core_schema.dict_schema(
            core_schema.str_schema(), _by_kind(OPTIMIZERS, own, _spec_of, handler), strict=True
        )
        return core_schema.no_info_before_validator_function(_with_kinds, values)


class _PhaseTable:
    """One optimizer of a switch: {kind = "muon", ...}."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Handler) -> CoreSchema:
        values = _by_kind(_PLAIN, {}, _config_of, handler)
        return core_schema.no_info_before_validator_function(lambda table: _with_kind("", table, _PLAIN), values)


_Phase = Annotated[Any, _PhaseTable]
OptimizersTable = Annotated[dict[str, OptimizerSpec], _OptimizersTable]


def _by_kind(
    records: Mapping[str, type[OptimizerConfig]],
    own: Mapping[str, Any],
    build: Callable[[type[OptimizerConfig], dict[str, Any]], Any],
    handler: Handler,
) -> CoreSchema:
    """A table whose `kind` says which record it is, and with it which keys it may have."""
    choices: dict[Any, CoreSchema] = {}
    for kind, record in records.items():
        keys: dict[str, Any] = field_types(record, without=("name", "first", "second")) | dict(own) | {"kind": str}
        if record is Switch:
            keys |= {"first": _Phase, "second": _Phase}
        table = table_schema(keys, handler, required=("first", "second") if record is Switch else ())
        choices[_tag(kind)] = core_schema.no_info_after_validator_function(partial(build, record), table)
    return core_schema.tagged_union_schema(choices, lambda table: _tag(table["kind"]), strict=True)


def _tag(kind: str) -> str:
    """In angle brackets: a step of an error's place that is no key of the file."""
    return f"<{kind}>"


def _with_kinds(tables: Any) -> Any:
    """Every table with its kind, which is its name where it does not say."""
    if not isinstance(tables, dict):
        return tables
    return {label: _with_kind(_named(label), table, OPTIMIZERS) for label, table in tables.items()}


def _named(label: str) -> str:
    if not _LABEL.fullmatch(label):
        raise PydanticCustomError(
            "unknown_key",
            "a name has letters, digits, '.', '_' and '-', at most 40, and starts with a letter or digit. Rename it.",
            {"key": label},
        )
    return label


def _with_kind(label: str, table: Any, records: Mapping[str, Any]) -> Any:
    if not isinstance(table, dict):
        raise PydanticCustomError(
            "unknown_key",
            'must be a table, got {value}. Write it as { kind = "muon" }.',
            {"key": label, "value": shown(table)},
        )
    kind = table.get("kind", label)
    if not isinstance(kind, str) or kind not in records:
        near = difflib.get_close_matches(str(kind), sorted(records), n=1, cutoff=0.5)
        hints = [f"Did you mean '{match}'?" for match in near]
        if "kind" not in table:
            hints.append("A name of your own takes a kind = ... in its table.")
        raise PydanticCustomError(
            "unknown_key",
            "must be an optimizer, got {value}; {hints}",
            {
                "key": ".".join(part for part in (label, "kind" if "kind" in table or not label else "") if part),
                "value": shown(kind),
                "hints": " ".join([f"there are {', '.join(sorted(records))}.", *hints]),
            },
        )
    return table | {"kind": kind}


def _config_of(record: type[OptimizerConfig], table: dict[str, Any]) -> OptimizerConfig:
    try:
        return record(**{key: value for key, value in table.items() if key not in ("kind", "hparams", "axes")})
    except ConfigError as error:
        raise ValueError(f"{error}. Change it.") from None


def _spec_of(record: type[OptimizerConfig], table: dict[str, Any]) -> OptimizerSpec:
    return OptimizerSpec(config=_config_of(record, table), hparams=table.get("hparams", {}), axes=table.get("axes", {}))
