"""Anybody's runs as one table: losses over hyperparameters, at several scales."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from analysis.interval import FitError
from analysis.surface import LABEL, NO_LABELS, Labels, Series, fields_of, label_of, varying_fields
from sweeps.trial import TrialResult, TrialStatus

SERIES, SEED, LOSS = "series", "seed", "loss"
WIDTH_ONLY: Mapping[str, str] = MappingProxyType({"width": "model.width"})  # a scale's name and its field
_MOST_ROWS = 5  # named in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """One row a run. Columns of `frame`: `series`, every scale, every hyperparameter, `seed`, `loss` (nats).

    A loss of NaN says that the run diverged: its loss is unknown but worse (censored). Rows that say the same are
    kept once. Scales and hyperparameters are above 0, since the fits work in their log2.

    Raises:
        FitError: a missing column, no row, a value that is not allowed, or two losses for one run.
    """

    scales: tuple[str, ...]
    hps: tuple[str, ...]
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", _checked(self.scales, self.hps, self.frame))

    @property
    def series(self) -> tuple[str, ...]:
        return tuple(sorted(self.frame[SERIES].unique().astype(str)))


def from_results(
    results: Iterable[TrialResult],
    hps: Sequence[str] = ("lr",),
    labels: Labels = NO_LABELS,
    scales: Mapping[str, str] = WIDTH_ONLY,
) -> Observations:
    """The results of one of our own sweeps, over `scales`: by name a field of `fields_of`, such as `model.depth`.

    `hps` are numeric fields of `HParams`; an optimizer is what `labels` calls it. Whatever else varies at one
    combination of scales makes another series. FAILED trials are evidence about nothing and are left out; STOPPED
    ones are censored.

    Raises:
        FitError: no result, no such scale or hyperparameter, one that is not above 0, or one trial with two results.
    """
    kept = [result for result in results if result.status is not TrialStatus.FAILED]
    runs = [fields_of(result) for result in kept]
    names = [label_of(result, labels) for result in kept]
    for hp in hps:
        wrong = [run.get(hp) for run in runs if isinstance(run.get(hp), bool | str | None)]
        if wrong:
            raise FitError(f"{hp} must be a number in every trial, got {wrong[0]}; choose numeric fields of HParams")
    absent = [field for field in scales.values() if any(field not in run for run in runs)]
    if absent:
        raise FitError(f"{absent[0]} is no field of every trial; choose fields such as model.width or train_tokens")
    axes = {*hps, "seed"}
    varying = varying_fields(
        (
            {field: value for field, value in run.items() if field not in axes} | {LABEL: name}
            for name, run in zip(names, runs, strict=True)
        ),
        scales.values(),
    )
    rows = [
        {
            SERIES: str(Series(name, tuple((field, run[field]) for field in sorted(varying.get(name, ()))))),
            **{scale: float(run[field]) for scale, field in scales.items()},
            **{hp: float(run[hp]) for hp in hps},
            SEED: run["seed"],
            LOSS: float("nan") if result.validation_loss is None else result.validation_loss,
        }
        for name, run, result in zip(names, runs, kept, strict=True)
    ]
    columns = [SERIES, *scales, *hps, SEED, LOSS]
    return Observations(scales=tuple(scales), hps=tuple(hps), frame=pd.DataFrame(rows, columns=columns))


def _checked(scales: tuple[str, ...], hps: tuple[str, ...], frame: pd.DataFrame) -> pd.DataFrame:
    names = (SERIES, *scales, *hps, SEED, LOSS)
    if not scales or not hps or len(set(names)) < len(names):
        raise FitError(f"scales and hps must be names, each once and at least one, got scales={scales}, hps={hps}")
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise FitError(f"columns {missing} are missing; the table has {[str(name) for name in frame.columns]}")
    if frame.empty:
        raise FitError("there are no runs to fit")
    for name in (*scales, *hps, LOSS, SEED):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise FitError(f"column {name} must hold numbers, got {frame[name].dtype}")
    seeds = frame[SEED].to_numpy()
    _refuse(frame, ~np.isfinite(seeds) | (seeds != np.floor(seeds)), SEED, "whole numbers")
    _refuse(frame, frame[SERIES].isna().to_numpy(), SERIES, "a name in every row")
    checked = pd.DataFrame(
        {
            SERIES: frame[SERIES].astype("category"),
            **{name: frame[name].to_numpy(dtype=np.float64) for name in (*scales, *hps)},
            SEED: seeds.astype(np.int64),
            LOSS: frame[LOSS].to_numpy(dtype=np.float64),
        }
    )
    for name in (*scales, *hps):
        values = checked[name].to_numpy()
        _refuse(checked, ~(np.isfinite(values) & (values > 0)), name, "above 0 and finite")
    _refuse(checked, np.isinf(checked[LOSS].to_numpy()), LOSS, "finite, or NaN where the run diverged")
    return _one_row_a_run(checked, [SERIES, *scales, *hps, SEED])


def _refuse(frame: pd.DataFrame, wrong: np.ndarray[Any, np.dtype[np.bool_]], name: str, allowed: str) -> None:
    if wrong.any():
        rows = np.flatnonzero(wrong)
        got = frame[name].iloc[rows[:_MOST_ROWS]].tolist()
        raise FitError(
            f"column {name} must hold {allowed}; {len(rows)} of {len(frame)} rows do not, such as rows "
            f"{rows[:_MOST_ROWS].tolist()} (counted from 0): {got}"
        )


def _one_row_a_run(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    again = frame.duplicated(keys, keep=False)
    if not again.any():
        return frame
    kept = frame[~frame.duplicated([*keys, LOSS])]
    rivals = kept.index[kept.duplicated(keys, keep=False)]
    if len(rivals):
        first = frame.loc[rivals[0], keys]
        same = rivals[(frame.loc[rivals, keys] == first).all(axis=1).to_numpy()]
        run = ", ".join(f"{name}={first[name]}" for name in keys)
        raise FitError(
            f"rows {same.tolist()} (counted from 0) are one run ({run}) with several losses: "
            f"{frame.loc[same, LOSS].tolist()}; {len(rivals)} rows are so. Give repeated runs a seed of their own, "
            "or remove the wrong rows"
        )
    return kept.reset_index(drop=True)
