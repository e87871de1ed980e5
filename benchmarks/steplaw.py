"""lr and batch of larger models, predicted from smaller ones: Step Law's published runs (arXiv:2503.04715).

`python benchmarks/steplaw.py [CSV] [--fit-up-to N]` prints one JSON document. Cells with up to N parameters are fitted;
every larger cell of the file is predicted and priced on its own runs, in percent of that cell's own optimum:

* `linear`: interpolated linearly between runs, over the lowest run. Noise makes the lowest run lower than the basin
  is, so this is not 0 at the true optimum.
* `smooth`: a smoothing thin-plate spline in log2 lr and log2 batch, over its own minimum.
* `nearest`: the run nearest to the prediction, over the lowest run.

`own` prices the cell's own smooth optimum, which is what noise costs on the other two. `plain` is a quadratic a cell
(least squares within 3 % of the lowest loss) and ordinary log-linear regression, `step_law` the published law.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.spatial import Delaunay

from analysis.observations import Observations
from analysis.scale_law import fit_scale_law

DATA = Path(os.environ.get("MUTRANSFER_DATA", Path(__file__).parents[2] / "shared" / "data"))
RUNS = DATA / "steplaw_dense_to_537m.csv"
SEQUENCE_TOKENS = 2048
FIT_UP_TO = 2.7e8
PLAIN_BAND = 0.03
TARGETS = {"mean": 0.10, "worst": 0.20, "held": 0.8}
_NEAR = 0.06  # of the lowest loss: the spline's runs, so that the cliff does not bend it
_SMOOTHING = 1.0
_REACH = (1.5, 2.0)  # octaves of lr and batch around the lowest run in which the spline's minimum is sought
_STEP = 0.05

Floats = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="?", type=Path, default=RUNS)
    parser.add_argument("--fit-up-to", type=float, default=FIT_UP_TO, help="parameters of the largest model fitted")
    options = parser.parse_args()
    if not options.csv.is_file():
        raise SystemExit(f"skipped: there are no runs at {options.csv}. Give their path, or set MUTRANSFER_DATA.")
    print(json.dumps(measure(read(options.csv), options.fit_up_to), indent=1))


def read(path: Path) -> pd.DataFrame:
    """Columns series, N, D, lr, batch_tokens, seed, loss."""
    runs = pd.read_csv(path)
    frame = pd.DataFrame({"series": "dense", "N": runs["N"], "D": runs["D"], "lr": runs["lr"]})
    frame["batch_tokens"] = runs["bs"] * float(SEQUENCE_TOKENS)
    return frame.assign(seed=0, loss=runs["smooth loss"])


def measure(frame: pd.DataFrame, fit_up_to: float) -> dict[str, Any]:
    small = frame[frame["N"] <= fit_up_to].reset_index(drop=True)
    observations = Observations(scales=("N", "D"), hps=("lr", "batch_tokens"), frame=small)
    law = fit_scale_law(observations, "dense")
    plain = plain_law(observations.frame)
    rng = np.random.default_rng(0)
    cells: list[dict[str, Any]] = []
    costs: dict[str, list[dict[str, float]]] = {"ours": [], "own": [], "plain": [], "step_law": []}
    held: list[bool] = []
    for (n_params, tokens), runs in frame[frame["N"] > fit_up_to].groupby(["N", "D"]):
        scales = {"N": float(n_params), "D": float(tokens)}
        prediction, own = law.predict(scales, rng=rng), Cell(runs)
        places = {
            "ours": np.array(prediction.log2_values),
            "own": own.smooth_optimum,
            "plain": plain(scales),
            "step_law": step_law(scales),
        }
        priced = {name: own.excess(place) for name, place in places.items()}
        for name, cost in priced.items():
            costs[name].append(cost)
        holds = [
            [interval.contains(float(value)) for interval, value in zip(prediction.intervals, optimum, strict=True)]
            for optimum in (own.smooth_optimum, own.lowest_run)
        ]
        held.extend(holds[0])
        cells.append(
            {
                **scales,
                "lr": prediction.values[0],
                "batch_tokens": prediction.values[1],
                "log2": rounded(prediction.log2_values),
                "log2_optimum": rounded(prediction.optimum),
                "log2_interval": [rounded((i.low, i.high)) for i in prediction.intervals],
                "own_log2_smooth": rounded(own.smooth_optimum),
                "own_log2_lowest_run": rounded(own.lowest_run),
                "held_smooth": holds[0],
                "held_lowest_run": holds[1],
                "expected_excess_percent": 100 * prediction.excess_loss / own.lowest,
                "excess_percent": priced,
            }
        )
    summary = {name: summarized(cost) for name, cost in costs.items()}
    ours = summary["ours"]
    return {
        "benchmark": "steplaw",
        "fitted_cells": len(law.responses),
        "left_out": law.left_out,
        "powers": {f"{p.hp}~{p.scale}": rounded((p.value, p.interval.low, p.interval.high)) for p in law.powers},
        "cells": cells,
        "excess_percent": summary,
        "held": float(np.mean(held)),
        "held_lowest_run": float(np.mean([h for cell in cells for h in cell["held_lowest_run"]])),
        "targets": TARGETS,
        "met": {
            **{f"{s}_mean": ours[s]["mean"] <= TARGETS["mean"] for s in ours},
            **{f"{s}_worst": ours[s]["worst"] <= TARGETS["worst"] for s in ours},
            "held": bool(np.mean(held) >= TARGETS["held"]),
        },
    }


class Cell:
    """The runs of one cell as surfaces over (log2 lr, log2 batch_tokens)."""

    def __init__(self, runs: pd.DataFrame) -> None:
        points, self.losses = np.log2(runs[["lr", "batch_tokens"]].to_numpy()), runs["loss"].to_numpy()
        self.points, self.lowest = points, float(self.losses.min())
        self.lowest_run = points[self.losses.argmin()]
        self._linear = LinearNDInterpolator(points, self.losses)
        near = self.losses <= self.lowest * (1 + _NEAR)
        self._smooth = RBFInterpolator(
            points[near], self.losses[near], kernel="thin_plate_spline", smoothing=_SMOOTHING
        )
        axes = [np.arange(at - r, at + r + _STEP, _STEP) for at, r in zip(self.lowest_run, _REACH, strict=True)]
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        grid = grid[Delaunay(points).find_simplex(grid) >= 0]
        values = self._smooth(grid)
        self.smooth_optimum, self.smooth_lowest = grid[values.argmin()], float(values.min())

    def excess(self, place: Floats) -> dict[str, float]:
        """Percent, by surface; NaN where linear interpolation would leave the runs."""
        nearest = self.losses[((self.points - place) ** 2).sum(axis=1).argmin()]
        return {
            "linear": 100 * (float(self._linear(place[None])[0]) / self.lowest - 1),
            "smooth": 100 * (float(self._smooth(place[None])[0]) / self.smooth_lowest - 1),
            "nearest": 100 * (float(nearest) / self.lowest - 1),
        }


def plain_law(frame: pd.DataFrame) -> Callable[[Mapping[str, float]], Floats]:
    """A quadratic a cell, then ordinary least squares over log2 N and log2 D."""
    scales, optima = [], []
    for (n_params, tokens), runs in frame.groupby(["N", "D"]):
        inside = runs[runs["loss"] <= runs["loss"].min() * (1 + PLAIN_BAND)]
        x, y = np.log2(inside[["lr", "batch_tokens"]].to_numpy()).T
        design = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])
        _, bx, by, xx, xy, yy = np.linalg.lstsq(design, inside["loss"].to_numpy(), rcond=None)[0]
        optima.append(np.linalg.solve([[2 * xx, xy], [xy, 2 * yy]], [-bx, -by]))
        scales.append([1.0, np.log2(n_params), np.log2(tokens)])
    law = np.linalg.lstsq(np.array(scales), np.array(optima), rcond=None)[0]
    return lambda at: np.array([1.0, np.log2(at["N"]), np.log2(at["D"])]) @ law


def step_law(scales: Mapping[str, float]) -> Floats:
    """arXiv:2503.04715, equation 1: lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 tokens."""
    n_params, tokens = scales["N"], scales["D"]
    return np.log2([1.79 * n_params**-0.713 * tokens**0.307, 0.58 * tokens**0.571])


def summarized(costs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    table = pd.DataFrame(costs)
    return {name: {"mean": float(table[name].mean()), "worst": float(table[name].max())} for name in table}


def rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]


if __name__ == "__main__":
    main()
