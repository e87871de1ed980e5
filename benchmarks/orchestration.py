"""What a trial costs beside its training: thousands of trials of one step of the smallest model, through Ray.

`python benchmarks/orchestration.py [--quick] [--save]` prints one JSON document. Every sweep is a process of its own
with two workers; the sizes take turns, and medians are compared. Starting Ray, the workers and torch counts, and so
does the trial itself: building the model, one step, validation (`training_ms_a_trial`, measured alone in this process).

* `ms_a_trial`: of the whole sweep, from `run_sweep`'s start to its end.
* `marginal_ms_a_trial`: what each further trial costs, from the smallest sweep to this one.
* `driver_bytes_a_trial`: growth of the driver's peak memory from the smallest sweep to this one.
* `linear`: what a further trial costs from 2,000 to 10,000, over what it costs from 500 to 2,000.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support import document
from benchmarks.support.idle_sweep import MODEL, WORKERS, idle_trials
from proxy_models.data import load_data
from proxy_models.train import Job, train
from sweeps.worker import prepare_process

SIZES, QUICK_SIZES = (500, 2000, 5000, 10_000), (20, 40, 60)
GOAL_SIZE = 2000
PACK_SIZE = 16
REPETITIONS = 3
TRAINED_ALONE = 100
GOAL_MS, GOAL_BYTES, GOAL_LINEAR = 20.0, 20e3, 1.25


def main() -> None:
    parser = document.parser(__doc__)
    parser.add_argument("--pack-size", type=int, default=PACK_SIZE)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    options = parser.parse_args()
    before = document.machine()
    sizes = QUICK_SIZES if options.quick else SIZES
    runs: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for _ in range(1 if options.quick else options.repetitions):
        for size in sizes:
            _, run = document.timed_process(
                "benchmarks.support.idle_sweep",
                [str(size), str(options.pack_size), "ray"],
                {"PYTHONWARNINGS": "ignore"},
            )
            runs[size].append(run)
    rows = summarized(runs)
    found = {
        "benchmark": "orchestration",
        "machine": before,
        "workers": WORKERS,
        "pack_size": options.pack_size,
        "training_ms_a_trial": 1e3 * training_alone(),
        "rows": rows,
        "goals": goals(rows),
    }
    document.publish(found, save=options.save)


def summarized(runs: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row a size, medians over repetitions; the smallest size is what others are compared to."""

    def median(size: int, key: str) -> float:
        return statistics.median(run[key] for run in runs[size])

    smallest = min(runs)
    rows = []
    for size in sorted(runs):
        row = {
            "trials": size,
            "seconds": [run["seconds"] for run in runs[size]],
            "ms_a_trial": 1e3 * median(size, "seconds") / size,
            "seconds_to_first_result": median(size, "seconds_to_first_result"),
            "step_ms_a_trial": 1e3 * median(size, "step_seconds_a_trial"),
            "driver_peak_bytes": median(size, "peak_bytes"),
        }
        if size > smallest:
            more = size - smallest
            row["marginal_ms_a_trial"] = 1e3 * (median(size, "seconds") - median(smallest, "seconds")) / more
            row["driver_bytes_a_trial"] = (median(size, "peak_bytes") - median(smallest, "peak_bytes")) / more
        rows.append(row)
    return rows


def goals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the sizes that they are about were run."""
    by_size = {row["trials"]: row for row in rows}
    goal_row = by_size.get(GOAL_SIZE, {})
    largest = max(by_size)
    linear = None
    if GOAL_SIZE in by_size and largest > GOAL_SIZE:
        seconds = {size: statistics.median(row["seconds"]) for size, row in by_size.items()}
        later = (seconds[largest] - seconds[GOAL_SIZE]) / (largest - GOAL_SIZE)
        linear = later / (1e-3 * goal_row["marginal_ms_a_trial"])
    return {
        "ms_a_trial_at_2000": document.goal(goal_row.get("ms_a_trial"), at_most=GOAL_MS),
        "driver_bytes_a_trial_to_2000": document.goal(goal_row.get("driver_bytes_a_trial"), at_most=GOAL_BYTES),
        "driver_bytes_a_trial_to_largest": document.goal(
            by_size[largest].get("driver_bytes_a_trial") if goal_row else None, at_most=GOAL_BYTES
        ),
        "linear": document.goal(linear, at_most=GOAL_LINEAR),
    }


def training_alone() -> float:
    """Seconds of a trial without any sweep: its model, its step and its validation, one after the other."""
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        trials, source = idle_trials(TRAINED_ALONE, Path(folder))
        data = load_data(source, vocab_size=MODEL.vocab_size, seq_len=MODEL.seq_len)
        jobs = [Job(run=trial.run) for trial in trials]
        list(train(jobs[:1], data))  # loads what torch loads late
        start = time.perf_counter()
        list(train(jobs, data))
        return (time.perf_counter() - start) / len(jobs)


if __name__ == "__main__":
    main()
