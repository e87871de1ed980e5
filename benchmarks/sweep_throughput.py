"""64 trials of 200 steps at widths 32 and 64: this project's engine against Ray Tune and Optuna with plain torch.

`python benchmarks/sweep_throughput.py [--quick] [--save]` prints one JSON document. Each way is a process of its own,
timed from its start to its end, so that starting Ray, loading torch and compiling count; the ways take turns, and
medians are compared. All train with one thread a process, the ways that have workers with two.

* `mutransfer`: `run_sweep` through Ray, planned as for a spec without an [engine] table. The first repetition finds
  empty caches, and measures (`first_seconds`); later ones find what it left, as on any machine that was used before.
* `ray_process_a_trial`: Ray Tune over a function, as its tutorial has it. `ray_reused_actors`: with actors reused and
  Tune's loggers off. `optuna`: a grid, trial after trial in one process. Data is a token file, mapped into memory.
* `tried`: the same sweep with compiled gradients, twice: `first_seconds` with nothing compiled before, and
  `seconds` with what that left. `best` is the faster of both settings, against the same runs of the others.

The quick start's model and batch of 1024 tokens are what the goals are about: the batch this project's own sweeps
have. The same with 256 tokens, where what a step costs beside its arithmetic weighs more, is reported beside it.
`arithmetic` is the share of the workers' time that went to training steps: what no orchestration can save.
"""

import json
import secrets
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.support import document
from benchmarks.support.throughput_variant import ENGINES, WORKERS
from benchmarks.support.workload import Workload, write_tokens

REPETITIONS = 3
BASELINES = ("ray_process_a_trial", "ray_reused_actors", "optuna")
COMPARED = ("mutransfer", *BASELINES)
ONE_PROCESS = ("optuna",)
TRIED = tuple(name for name in ENGINES if name != "mutransfer")
HEADLINE_BATCH, OTHER_BATCH = 1024, 256  # tokens
LOSS_TOLERANCE = 0.02  # nats: what other rounding grows to in 200 steps at the highest learning rates
OVER_PROCESSES, OVER_BEST = 3.0, 1.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """One run of one way."""

    seconds: float
    outcome: Mapping[str, Any]

    @property
    def losses(self) -> list[float]:
        return [trial["loss"] for trial in self.outcome["trials"]]

    @property
    def train_seconds(self) -> float:
        return sum(trial["train_seconds"] for trial in self.outcome["trials"])


def main() -> None:
    parser = document.parser(__doc__)
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[HEADLINE_BATCH, OTHER_BATCH])
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--untried", action="store_true", help="leave out the other settings of [engine]")
    options = parser.parse_args()
    before = document.machine()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.npy"
        write_tokens(tokens)
        rows = []
        for batch_tokens in options.batch_tokens:
            workload = Workload(tokens_file=str(tokens), batch_tokens=batch_tokens, steps=200)
            tried: Sequence[str] = () if options.untried else TRIED
            if options.quick:
                workload = quick(workload)
                rows.append(measure(workload, Path(folder), repetitions=1, tried=()))
            else:
                rows.append(measure(workload, Path(folder), repetitions=options.repetitions, tried=tried))
    headline = next((row for row in rows if row["batch_tokens"] == HEADLINE_BATCH), rows[0])
    found = {
        "benchmark": "sweep_throughput",
        "machine": before,
        "workers": WORKERS,
        "rows": rows,
        "goals": headline["goals"],
    }
    document.publish(found, save=options.save)


def quick(workload: Workload) -> Workload:
    """Four trials of five steps."""
    return replace(workload, steps=10, widths=(16,), lrs=(2.0**-8, 2.0**-7))


def measure(workload: Workload, folder: Path, *, repetitions: int, tried: Sequence[str]) -> dict[str, Any]:
    """All ways, in turns, and the other settings once each."""
    runs: dict[str, list[Repetition]] = {name: [] for name in COMPARED}
    for _ in range(repetitions):
        for name in COMPARED:
            runs[name].append(repetition(name, workload, folder))
    reference = runs["optuna"][0].losses
    others = {name: tried_summary(name, workload, folder, reference) for name in tried}
    seconds = {name: statistics.median(run.seconds for run in ran) for name, ran in runs.items()}
    ratios = {name: seconds[name] / seconds["mutransfer"] for name in BASELINES}
    return {
        "batch_tokens": workload.batch_tokens,
        "steps": workload.steps,
        "widths": workload.widths,
        "trials": len(workload.grid),
        "ways": {name: summary(name, ran, reference) for name, ran in runs.items()},
        "tried": others,
        "trials_per_hour_over": ratios,
        "best": best(seconds, others),
        "goals": {
            "over_ray_process_a_trial": document.goal(ratios["ray_process_a_trial"], at_least=OVER_PROCESSES),
            "over_best_of_the_others": document.goal(
                min(ratios[name] for name in BASELINES if name != "ray_process_a_trial"), at_least=OVER_BEST
            ),
            "largest_loss_difference": document.goal(
                max(difference(run.losses, reference) for ran in runs.values() for run in ran), at_most=LOSS_TOLERANCE
            ),
        },
    }


def repetition(name: str, workload: Workload, folder: Path) -> Repetition:
    environment = {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor-{name}"),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0" if name == "ray_process_a_trial" else "1",
        "PYTHONWARNINGS": "ignore",
    }
    seconds, outcome = document.timed_process(
        "benchmarks.support.throughput_variant", [name, json.dumps(asdict(workload))], environment
    )
    return Repetition(seconds=seconds, outcome=outcome)


def summary(name: str, runs: Sequence[Repetition], reference: Sequence[float]) -> dict[str, Any]:
    """Medians of one way, and where its time went."""
    median = statistics.median(run.seconds for run in runs)
    trials, workers = len(reference), 1 if name in ONE_PROCESS else WORKERS
    return {
        "seconds": [run.seconds for run in runs],
        "median_seconds": median,
        "first_seconds": runs[0].seconds,
        "trials_per_hour": 3600 * trials / median,
        "train_seconds_a_trial": statistics.median(run.train_seconds for run in runs) / trials,
        "arithmetic": statistics.median(run.train_seconds / (workers * run.seconds) for run in runs),
        "largest_loss_difference": max(difference(run.losses, reference) for run in runs),
        **{key: runs[-1].outcome[key] for key in ("plan", "modes") if key in runs[-1].outcome},
    }


def tried_summary(name: str, workload: Workload, folder: Path, reference: Sequence[float]) -> dict[str, Any]:
    """Of the second of two runs."""
    first, second = (repetition(name, workload, folder) for _ in range(2))
    return summary(name, [second], reference) | {"first_seconds": first.seconds}


def best(seconds: Mapping[str, float], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest setting of the engine, and how many times the trials per hour of the others it reaches."""
    settings = {"mutransfer": seconds["mutransfer"], **{name: row["median_seconds"] for name, row in others.items()}}
    way = min(settings, key=lambda name: settings[name])
    return {"way": way, "trials_per_hour_over": {name: seconds[name] / settings[way] for name in BASELINES}}


def difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """The largest over all trials, nats."""
    return max(abs(one - other) for one, other in zip(losses, reference, strict=True))


if __name__ == "__main__":
    main()
