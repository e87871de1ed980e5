"""Seconds and memory to load and fit a table of result rows: responses of every cell with draws, and every series' law.

`python benchmarks/fit_scale.py [ROWS ...]` prints one JSON document. Each size runs in a process of its own on at most
two cores: its peak memory is the whole process's. The target is a million rows in 10 s and 2 GB, in time that grows no
faster than the rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

SIZES = (100_000, 1_000_000)
TARGETS = {"seconds": 10.0, "gigabytes": 2.0, "slowdown": 1.1}  # slowdown: time ratio over row ratio
CORES = 2
SEEDS, GRID, N_BOOTSTRAP = 5, (12, 10), 200  # runs of one cell: seeds x lr x batch
_SCALES = (5, 5)  # values of N and of D
_CHILD = "--child"


def main() -> None:
    if sys.argv[1:2] == [_CHILD]:
        print(json.dumps(load_and_fit(Path(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, default=SIZES)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted(parser.parse_args().rows):
            path = Path(folder) / f"{size}.parquet"
            written = write(path, size)
            command = [sys.executable, __file__, _CHILD, str(path)]
            environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(CORES))
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            rows.append({"rows": written, **json.loads(done.stdout)})
    small, large = rows[0], rows[-1]
    slowdown = (large["seconds"] / small["seconds"]) / (large["rows"] / small["rows"])
    met = {
        "seconds": large["seconds"] <= TARGETS["seconds"],
        "gigabytes": large["peak_gigabytes"] <= TARGETS["gigabytes"],
        "slowdown": slowdown <= TARGETS["slowdown"],
    }
    document = {"benchmark": "fit_scale", "sizes": rows, "slowdown": slowdown, "targets": TARGETS, "met": met}
    print(json.dumps(document, indent=1))


def write(path: Path, n_rows: int) -> int:
    """Planted runs as Parquet: whole series of 25 cells, as many as come closest to `n_rows`."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(7)
    n_series = max(1, round(n_rows / (SEEDS * GRID[0] * GRID[1] * _SCALES[0] * _SCALES[1])))
    axes = (
        np.arange(n_series),
        2.0 ** np.arange(24, 24 + _SCALES[0]),
        2.0 ** np.arange(30, 30 + _SCALES[1]),
        2.0 ** np.linspace(-12, -6.5, GRID[0]),
        2.0 ** np.linspace(15, 19.5, GRID[1]),
        np.arange(SEEDS),
    )
    series, n_params, tokens, lr, batch, seed = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    x = np.log2(lr) + 9.3 + 0.4 * (np.log2(n_params) - 26) - 0.2 * (np.log2(tokens) - 32)
    y = np.log2(batch) - 17.2 - 0.5 * (np.log2(tokens) - 32)
    loss = 2.3 + 0.2 * (n_params / 2**24) ** -0.3 + 0.010 * x**2 - 0.008 * x * y + 0.009 * y**2 + 0.002 * x**3
    loss = np.where(x > 2.5, np.nan, loss + 0.002 * rng.standard_normal(len(loss)))
    names = np.array([f"series-{i:03d}" for i in range(n_series)])
    columns = {"N": n_params, "D": tokens, "lr": lr, "batch_tokens": batch, "seed": seed, "loss": loss}
    table = pd.DataFrame({"series": names[series], **columns})
    table.iloc[rng.permutation(len(table))].to_parquet(path, index=False)
    return len(table)


def load_and_fit(path: Path) -> dict[str, float]:
    """In a fresh process, so that imports and peak memory are its own; imports are not counted in the seconds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    import resource
    import time

    import numpy as np
    import pandas as pd

    from analysis.cells import cells_of
    from analysis.observations import Observations
    from analysis.response import BAND_FRACTION, responses_of
    from analysis.scale_law import scale_law_of

    started = time.process_time()
    times = [time.perf_counter()]
    observations = Observations(scales=("N", "D"), hps=("lr", "batch_tokens"), frame=pd.read_parquet(path))
    times.append(time.perf_counter())
    cells, rng = cells_of(observations, band_fraction=BAND_FRACTION), np.random.default_rng(3)
    responses = responses_of(cells, n_bootstrap=N_BOOTSTRAP, rng=rng, level=0.9)
    times.append(time.perf_counter())
    by_series = defaultdict(list)
    for response in responses:
        by_series[response.series].append(response)
    laws = [scale_law_of(cells.of_series(series), own) for series, own in by_series.items()]
    times.append(time.perf_counter())
    load, response, law = (after - before for before, after in pairwise(times))
    return {
        "cells": len(responses),
        "laws": len(laws),
        "lr~N": float(np.mean([law.powers[0].value for law in laws])),
        "load_seconds": load,
        "response_seconds": response,
        "law_seconds": law,
        "seconds": times[-1] - times[0],
        "cpu_seconds": time.process_time() - started,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


if __name__ == "__main__":
    main()
