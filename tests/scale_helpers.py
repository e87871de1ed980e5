"""Planted runs over several hyperparameters and scales, and Step Law's real ones."""

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.observations import Observations

HPS = ("lr", "batch_tokens", "weight_decay")
HESSIANS = {
    1: np.array([[0.11]]),
    2: np.array([[0.10, -0.04], [-0.04, 0.07]]),
    3: np.array([[0.10, -0.04, 0.02], [-0.04, 0.07, 0.01], [0.02, 0.01, 0.05]]),
}
CENTER = np.array([-8.3, 17.4, -3.6])  # log2
Loss = Callable[[np.ndarray], np.ndarray]

DATA = Path(os.environ.get("MUTRANSFER_DATA", Path(__file__).parents[2] / "shared" / "data"))
STEP_LAW = DATA / "steplaw_dense_to_537m.csv"
needs_step_law = pytest.mark.skipif(not STEP_LAW.exists(), reason=f"Step Law's published runs are not at {STEP_LAW}")


def quadratic(k: int, optimum: Any, *, floor: float = 2.6) -> Loss:
    """Loss over (..., k) log2 hyperparameters."""

    def loss(x: np.ndarray) -> np.ndarray:
        off = x - np.asarray(optimum)
        return floor + np.einsum("...i,ij,...j->...", off, HESSIANS[k], off) / 2

    return loss


def grid(k: int, *, reach: int = 3, step: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """(points, k) log2 values around CENTER."""
    axis = step * np.arange(-reach, reach + 1) + offset
    return np.array(list(product(axis, repeat=k))) + CENTER[:k]


def cell_rows(
    loss: Loss,
    points: np.ndarray,
    *,
    seeds: int = 1,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    diverges: Callable[[np.ndarray], np.ndarray] | None = None,
    series: str = "adamw",
    **scales: float,
) -> pd.DataFrame:
    """The runs of one cell; every seed lifts its runs by an effect of its own."""
    rng = rng or np.random.default_rng(4)
    losses = (
        loss(points)[:, None] + 0.05 * rng.standard_normal(seeds) + noise * rng.standard_normal((len(points), seeds))
    )
    if diverges is not None:
        losses[diverges(points)] = np.nan
    rows = {name: np.repeat(2.0**column, seeds) for name, column in zip(HPS, points.T, strict=False)}
    named = {"series": series, **(scales or {"N": 1e6})}
    return pd.DataFrame(rows | {"seed": np.tile(np.arange(seeds), len(points)), "loss": losses.ravel()}).assign(**named)


def observe(cells: Any, k: int, scales: tuple[str, ...] = ("N",)) -> Observations:
    return Observations(scales=scales, hps=HPS[:k], frame=pd.concat(list(cells), ignore_index=True))


def step_law(*, up_to: float = 2.7e8) -> Observations:
    """Runs of models with up to so many parameters, arXiv:2503.04715."""
    runs = pd.read_csv(STEP_LAW)
    frame = pd.DataFrame({"series": "dense", "N": runs["N"], "D": runs["D"], "lr": runs["lr"]})
    frame = frame.assign(batch_tokens=runs["bs"] * 2048.0, seed=0, loss=runs["smooth loss"])
    return Observations(scales=("N", "D"), hps=HPS[:2], frame=frame[frame["N"] <= up_to].reset_index(drop=True))
