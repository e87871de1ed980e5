"""A trial's result as one flat Parquet row, and back."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from proxy_models.config import HParams, run_config_from_dict
from proxy_models.mode import EAGER_LOOP
from sweeps.trial import NUMERICS_VERSION, Trial, TrialResult, TrialStatus, canonical_json, identity_hash

if TYPE_CHECKING:
    import pandas as pd

    from proxy_models.diagnostics import Diagnostic

SCHEMA_VERSION = 2  # of these columns; written into every file
_VERSION_KEY = "schema_version"


class DamagedRowError(ValueError):
    """Bytes that are no result: truncated, altered, or of another trial than they say."""


class NewerSchemaError(ValueError):
    """A result whose columns this version of the program does not know."""


_HPARAM_TYPES = get_type_hints(HParams)
_COLUMNS: dict[str, pa.DataType] = {
    "trial_id": pa.string(),
    "status": pa.string(),
    "optimizer": pa.string(),
    "parametrization": pa.string(),
    "width": pa.int64(),
    "depth": pa.int64(),
    "base_width": pa.int64(),
    "seed": pa.int64(),
    "train_tokens": pa.int64(),
    **{field.name: pa.int64() if _HPARAM_TYPES[field.name] is int else pa.float64() for field in fields(HParams)},
    "validation_loss": pa.float64(),
    "validation_loss_se": pa.float64(),
    "diverged_step": pa.int64(),
    "train_seconds": pa.float64(),
    "tokens_per_second": pa.float64(),
    "flops": pa.float64(),
    "flops_utilization": pa.float64(),
    "data_fingerprint": pa.string(),
    "numerics_version": pa.int64(),
    "mode": pa.string(),  # from version 2 on; before, all was trained by the eager loop
}
_SCHEMA = pa.schema(
    _COLUMNS
    | {
        "curve_steps": pa.list_(pa.int64()),
        "curve_losses": pa.list_(pa.float64()),
        "config_json": pa.string(),
        "provenance_json": pa.string(),
    }
)
# A single number only grows when compressed, and setting up a compressor is most of the time that it takes.
_LONG = ("config_json", "provenance_json", "curve_steps.list.element", "curve_losses.list.element")
_COMPRESSION = {name: "none" for name in _SCHEMA.names} | {path: "zstd" for path in _LONG}
# Columns that are fields of TrialResult under the same name.
_RESULT_FIELDS = (
    "validation_loss",
    "validation_loss_se",
    "diverged_step",
    "train_seconds",
    "tokens_per_second",
    "flops",
    "flops_utilization",
)


def scalars_of(result: TrialResult) -> dict[str, Any]:
    """The row without curves and JSON; losses in nats per token, times in seconds."""
    run = result.trial.run
    return {
        "trial_id": result.trial_id,
        "status": result.status.value,
        "optimizer": run.optimizer.name,
        "parametrization": run.parametrization,
        "width": run.model.width,
        "depth": run.model.depth,
        "base_width": run.base_width,
        "seed": run.seed,
        "train_tokens": run.train_tokens,
        **asdict(run.hparams),
        **{name: getattr(result, name) for name in _RESULT_FIELDS},
        "data_fingerprint": result.trial.data_fingerprint,
        "numerics_version": NUMERICS_VERSION,
        "mode": result.mode,
    }


def scalar_table(results: Mapping[str, TrialResult]) -> pa.Table:
    """One row each of `scalars_of`, under the ids that are given."""
    rows = [scalars_of(result) | {"trial_id": trial_id} for trial_id, result in results.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(_COLUMNS))


def to_parquet(result: TrialResult) -> bytes:
    """One row with page checksums; about 6 kB with a curve of 100 points."""
    row = scalars_of(result) | {
        "curve_steps": result.curve_steps,
        "curve_losses": result.curve_losses,
        "config_json": canonical_json(result.trial.run.to_dict()),
        "provenance_json": canonical_json(dict(result.provenance or {})),
    }
    sink = io.BytesIO()
    # One row: statistics, dictionaries and a second copy of the schema would be most of the file.
    options = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(sink, _SCHEMA, compression=_COMPRESSION, write_page_checksum=True, **options) as writer:
        writer.write_table(pa.Table.from_pylist([row], schema=_SCHEMA))
        writer.add_key_value_metadata({_VERSION_KEY: str(SCHEMA_VERSION)})
    return sink.getvalue()


def from_parquet(content: bytes) -> tuple[str, TrialResult]:
    """Inverse of `to_parquet`, with the id under which the result was made.

    Raises:
        DamagedRowError: not the bytes that were written.
        NewerSchemaError: written by a newer version of the program.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        version = int((file.metadata.metadata or {}).get(_VERSION_KEY.encode(), 0))
        rows = file.read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedRowError(f"not readable as Parquet: {error}") from error
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(f"has schema version {version}, this program knows up to {SCHEMA_VERSION}")
    if version < 1 or len(rows) != 1:
        raise DamagedRowError(f"must be one row with a schema version, got {len(rows)} rows, version {version}")
    try:
        return _result_of(rows[0])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedRowError(f"holds no valid result: {type(error).__name__}: {error}") from error


_DIAGNOSTICS = pa.schema(
    {"step": pa.int64(), "depth": pa.int64(), "kind": pa.string(), "quantity": pa.string(), "value": pa.float64()}
)


def diagnostics_to_parquet(diagnostics: "Sequence[Diagnostic]") -> bytes:
    """One row each."""
    sink = io.BytesIO()
    rows = [asdict(diagnostic) for diagnostic in diagnostics]
    pq.write_table(pa.Table.from_pylist(rows, schema=_DIAGNOSTICS), sink, compression="zstd")
    return sink.getvalue()


def diagnostics_from_parquet(content: bytes) -> "pd.DataFrame":
    """Inverse of `diagnostics_to_parquet`, as a frame."""
    frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).to_pandas()
    return frame


def _result_of(row: dict[str, Any]) -> tuple[str, TrialResult]:
    run = run_config_from_dict(json.loads(row["config_json"]))
    if identity_hash(run.identity(), row["data_fingerprint"], row["numerics_version"]) != row["trial_id"]:
        raise ValueError(f"its configuration does not hash to its trial id {row['trial_id']}")
    result = TrialResult(
        trial=Trial(run=run, data_fingerprint=row["data_fingerprint"]),
        status=TrialStatus(row["status"]),
        curve_steps=tuple(row["curve_steps"]),
        curve_losses=tuple(row["curve_losses"]),
        mode=row.get("mode") or EAGER_LOOP.name,
        provenance=json.loads(row["provenance_json"]) or None,
        **{name: row[name] for name in _RESULT_FIELDS},
    )
    return row["trial_id"], result
