"""Tables of anybody's runs: what they must hold."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.interval import FitError
from analysis.observations import Observations, from_results
from sweeps.trial import TrialStatus
from tests.analysis_helpers import planted_results, trial_result


def table(**changes: Any) -> pd.DataFrame:
    columns = {
        "series": ["adamw", "adamw", "muon"],
        "N": [1e6, 2e6, 1e6],
        "lr": [1e-3, 2e-3, 1e-2],
        "seed": [0, 1, 0],
        "loss": [2.5, np.nan, 2.25],
    }
    return pd.DataFrame(columns | changes)


def observe(frame: pd.DataFrame) -> Observations:
    return Observations(scales=("N",), hps=("lr",), frame=frame)


def test_holds_the_named_columns_and_keeps_divergence() -> None:
    observations = observe(table(note=["x", "y", "z"]))
    assert list(observations.frame.columns) == ["series", "N", "lr", "seed", "loss"]
    assert observations.series == ("adamw", "muon")
    assert observations.frame["loss"].isna().tolist() == [False, True, False]
    assert observations.frame["N"].dtype == np.float64
    assert observations.frame["seed"].dtype == np.int64


def test_rows_that_say_the_same_are_kept_once() -> None:
    frame = pd.concat([table(), table()], ignore_index=True)
    pd.testing.assert_frame_equal(observe(frame).frame, observe(table()).frame)


@pytest.mark.parametrize("loss", [2.6, np.nan])
def test_rows_that_disagree_are_named(loss: float) -> None:
    frame = pd.concat([table(), table().iloc[[0]].assign(loss=loss)], ignore_index=True)
    with pytest.raises(FitError, match=r"rows \[0, 3\].*series=adamw, N=1000000.0, lr=0.001, seed=0.*several losses"):
        observe(frame)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"N": [1e6, 0.0, 1e6]},
            r"column N must hold above 0 and finite; 1 of 3 rows do not, such as rows \[1\].*\[0.0\]",
        ),
        ({"lr": [1e-3, 2e-3, -1.0]}, r"column lr must hold above 0.*rows \[2\]"),
        ({"lr": [1e-3, np.inf, np.nan]}, r"column lr must hold above 0.*rows \[1, 2\]"),
        ({"loss": [2.5, np.inf, 2.2]}, r"column loss must hold finite, or NaN.*rows \[1\]"),
        ({"seed": [0.0, 0.5, 1.0]}, r"column seed must hold whole numbers.*rows \[1\]"),
        ({"series": ["a", None, "b"]}, r"column series must hold a name in every row.*rows \[1\]"),
        ({"lr": ["a", "b", "c"]}, r"column lr must hold numbers, got "),
    ],
)
def test_refuses_values_that_no_fit_can_use(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FitError, match=message):
        observe(table(**changes))


def test_refuses_missing_columns_no_rows_and_unclear_names() -> None:
    with pytest.raises(
        FitError, match=r"columns \['N', 'lr'\] are missing; the table has \['series', 'seed', 'loss'\]"
    ):
        observe(table().drop(columns=["N", "lr"]))
    with pytest.raises(FitError, match="no runs to fit"):
        observe(table().iloc[:0])
    with pytest.raises(FitError, match="each once and at least one"):
        Observations(scales=("N",), hps=("N",), frame=table())
    with pytest.raises(FitError, match="each once and at least one"):
        Observations(scales=(), hps=("lr",), frame=table())


# --- our own sweeps


def test_a_sweep_over_lr_becomes_observations_over_width() -> None:
    results = planted_results(diverges_above=-4.5)
    results.append(trial_result(None, lr=0.5, status=TrialStatus.FAILED))
    observations = from_results(results)
    assert observations.series == ("adamw", "muon")
    assert observations.scales == ("width",)
    frame = observations.frame
    assert len(frame) == 2 * 3 * 2 * 7
    assert sorted(frame["width"].unique()) == [32, 64, 128]
    assert (frame["loss"].isna() == (frame["lr"] == 2.0**-4)).all()
    labels = {result.trial_id: "ours" for result in results}
    assert from_results(results[:7], labels=labels).series == ("ours",)


def test_what_else_varies_at_one_width_is_a_series_of_its_own() -> None:
    results = [
        trial_result(2.5 + decay, lr=lr, width=width, hparams={"weight_decay": decay, "batch_tokens": width * 4})
        for lr in (1e-3, 2e-3)
        for decay in (0.1, 0.2)
        for width in (32, 64)
    ]
    assert from_results(results).series == ("adamw, weight_decay=0.1", "adamw, weight_decay=0.2")
    both = from_results(results, ("lr", "weight_decay"))
    assert both.series == ("adamw",)  # batch_tokens follows the width
    assert both.hps == ("lr", "weight_decay")
    assert sorted(both.frame["weight_decay"].unique()) == [0.1, 0.2]
    batch = from_results(results, ("lr", "weight_decay", "batch_tokens")).frame["batch_tokens"]
    assert sorted(batch.unique()) == [128, 256]


def test_results_over_batch_and_tokens() -> None:
    """What follows a scale, such as warmup with the run and beta2 with the batch, makes no series."""
    results = [
        trial_result(
            2.5,
            lr=lr,
            width=width,
            train_tokens=tokens,
            hparams={"batch_tokens": batch, "warmup_tokens": tokens // 10, "beta2": 1 - batch / 1e4},
        )
        for lr in (1e-3, 2e-3)
        for width in (32, 64)
        for batch in (128, 256)
        for tokens in (6400, 25600)
    ]
    scales = {"width": "model.width", "batch_tokens": "batch_tokens", "train_tokens": "train_tokens"}
    found = from_results(results, scales=scales)
    assert (found.scales, found.series) == (tuple(scales), ("adamw",))
    assert len(found.frame.groupby(list(scales))) == 8
    assert len(from_results(results).series) == 4
    with pytest.raises(FitError, match="n_params is no field of every trial"):
        from_results(results, scales={"n_params": "n_params"})


def test_refuses_what_is_no_number() -> None:
    results = [trial_result(2.5, lr=1e-3, hparams={"clip_norm": None})]
    with pytest.raises(FitError, match="clip_norm must be a number in every trial, got None"):
        from_results(results, ("lr", "clip_norm"))
    with pytest.raises(FitError, match="rank must be a number"):
        from_results(results, ("rank",))
    with pytest.raises(FitError, match="weight_decay must hold above 0"):
        from_results(results, ("lr", "weight_decay"))
    with pytest.raises(FitError, match="no runs to fit"):
        from_results([])
