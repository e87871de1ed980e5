"""Seconds per trial against width, depth, batch, pack size and workers, as a figure.

`python benchmarks/scaling.py [--quick] [--save]` prints one JSON document; with --save it also writes
results/benchmarks/scaling.json, .png and .svg. A trial has 100 steps of AdamW. Along width, depth and batch it is
timed in this process with one thread, eager and compiled, from the median of a few steps; compiling is left out. Along
the pack's size it is stacked, for each member. Along workers, whole sweeps through Ray of trials of 100 steps in packs
of 4 are timed from their start to their end, so Ray's start counts: `seconds_a_trial` is their time over their trials.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.support import document
from benchmarks.support.scaling_figure import draw
from benchmarks.support.turns import median_seconds
from benchmarks.support.workload import Workload, write_tokens
from proxy_models.config import RunConfig
from proxy_models.data import DataSource, TokenData, load_data
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.training import Training

STEPS = 100  # of a trial
REPETITIONS = 7
BASE = {"width": 64, "depth": 2, "batch_tokens": 1024}
AXES: dict[str, tuple[int, ...]] = {
    "width": (16, 32, 64, 128, 256),
    "depth": (1, 2, 4, 8),
    "batch_tokens": (128, 256, 512, 1024, 2048, 4096),
}
PACK_SIZES = (1, 2, 4, 8, 16)
PACK_BATCHES = (256, 1024)  # tokens: stacking pays where a step's arithmetic is small
WORKERS = (1, 2)
TRIALS_OF_WORKERS, PACK_OF_WORKERS = 16, 4
COMPILED_LOOP, STACKED = replace(EAGER_LOOP, compiled=True), Mode(executor="stacked")


def main() -> None:
    options = document.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    before = document.machine()
    data = load_data(DataSource(), vocab_size=256, seq_len=128)
    rows = quick_rows(data) if options.quick else all_rows(data)
    found = {"benchmark": "scaling", "machine": before, "base": BASE, "trial_steps": STEPS, "rows": rows}
    document.publish(found, save=options.save)
    if options.save:
        draw(rows, document.RESULTS)


def all_rows(data: TokenData) -> list[dict[str, Any]]:
    return [
        *(
            along(axis, value, mode, data)
            for axis in AXES
            for value in AXES[axis]
            for mode in (EAGER_LOOP, COMPILED_LOOP)
        ),
        *(along_pack(size, batch, data) for batch in PACK_BATCHES for size in PACK_SIZES),
        *(along_workers(workers, TRIALS_OF_WORKERS) for workers in WORKERS),
    ]


def quick_rows(data: TokenData) -> list[dict[str, Any]]:
    """Two values of each axis, nothing compiled, no Ray."""
    return [
        *(along(axis, value, EAGER_LOOP, data) for axis in AXES for value in AXES[axis][:2]),
        *(along_pack(size, PACK_BATCHES[0], data) for size in PACK_SIZES[:2]),
    ]


def along(axis: str, value: int, mode: Mode, data: TokenData) -> dict[str, Any]:
    """One trial of the base size but for one axis."""
    run = sized(**{**BASE, axis: value})
    return {
        "axis": axis,
        "value": value,
        "line": _how(mode),
        "seconds_a_trial": STEPS * step_seconds([run], data, mode),
    }


def along_pack(size: int, batch_tokens: int, data: TokenData) -> dict[str, Any]:
    """A member of a stacked pack at width 32."""
    runs = [replace(sized(width=32, depth=2, batch_tokens=batch_tokens), seed=seed) for seed in range(size)]
    seconds = STEPS * step_seconds(runs, data, STACKED) / size
    return {"axis": "pack_size", "value": size, "line": f"{batch_tokens} tokens", "seconds_a_trial": seconds}


def along_workers(workers: int, n_trials: int) -> dict[str, Any]:
    """A whole sweep through Ray."""
    from sweeps.pack import make_packs
    from sweeps.ray_backend import RayBackend
    from sweeps.run import run_sweep
    from sweeps.store import ResultStore

    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.npy"
        write_tokens(tokens)
        lrs = tuple(2.0**-9 * (1 + i / n_trials) for i in range(n_trials))
        workload = Workload(tokens_file=str(tokens), batch_tokens=1024, steps=STEPS, widths=(64,), lrs=lrs, seeds=(0,))
        start = time.perf_counter()
        run_sweep(
            workload.trials(),
            store=ResultStore(Path(folder) / "results"),
            data_source=workload.source,
            backend=RayBackend(),
            workers=workers,
            pack=partial(make_packs, size=PACK_OF_WORKERS),
            on_event=lambda event: None,
        )
        seconds = time.perf_counter() - start
    return {"axis": "workers", "value": workers, "line": "eager loop", "seconds_a_trial": seconds / n_trials}


def sized(*, width: int, depth: int, batch_tokens: int) -> RunConfig:
    run = Workload(tokens_file="", batch_tokens=batch_tokens, steps=STEPS).run(width, 2.0**-10, 0)
    return replace(run, model=replace(run.model, depth=depth))


def step_seconds(runs: Sequence[RunConfig], data: TokenData, mode: Mode) -> float:
    """Median of a step of all members."""
    training = Training(runs, data, mode)
    return median_seconds({"step": lambda: training.step().tolist()}, REPETITIONS)["step"]


def _how(mode: Mode) -> str:
    return f"{'compiled' if mode.compiled else 'eager'} {mode.executor}"


if __name__ == "__main__":
    main()
