"""Five doubling horizons with a shared stable phase: trained from one trunk, against five runs of their own.

`python benchmarks/trunk.py [--quick] [--save]` prints one JSON document. A fifth of each horizon is its decay, so the
trunk way takes 19 of 31 parts of the steps (`flops_share`). Both ways are whole sweeps in this process, with validation
and with results and states on disk, and take turns; their results must be the same, bit for bit. `cpu_seconds` are
this process's own, which say more than the clock's where other work shares the machine.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.support import document
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, load_data
from proxy_models.optimizer_config import AdamW
from sweeps.local_backend import LocalBackend
from sweeps.pack import Pack, make_packs
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult
from sweeps.trunk import flops_saved, plan_packs

AT_MOST = 0.63
REPETITIONS = 5
BATCH_TOKENS, SHORTEST_STEPS, N_HORIZONS, DECAY_FRAC = 1024, 40, 5, 0.2
one_by_one = partial(make_packs, size=1)


def main() -> None:
    options = document.parser(__doc__).parse_args()
    before = document.machine()
    trials = horizons(SHORTEST_STEPS // 2 if options.quick else SHORTEST_STEPS)
    ways = {"separate": one_by_one(trials), "trunk": plan_packs(trials, one_by_one)}
    seconds, losses = measure(ways, repetitions=1 if options.quick else REPETITIONS)
    wall, cpu = ({way: statistics.median(s[clock] for s in seconds[way]) for way in ways} for clock in (0, 1))
    found = {
        "benchmark": "trunk",
        "machine": before,
        "width": trials[0].run.model.width,
        "horizons_steps": [trial.run.steps for trial in trials],
        "decay_frac": DECAY_FRAC,
        "final_losses": losses,
        "flops_share": 1 - sum(map(flops_saved, ways["trunk"])) / sum(pack.flops for pack in ways["separate"]),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "cpu_share": cpu["trunk"] / cpu["separate"],
        "wall_share": document.goal(wall["trunk"] / wall["separate"], at_most=AT_MOST),
    }
    document.publish(found, save=options.save)


def measure(
    ways: Mapping[str, Sequence[Pack]], *, repetitions: int
) -> tuple[dict[str, list[tuple[float, float]]], list[float | None]]:
    """Seconds of each repetition of each way, by the clock and of this process; the final losses, which must agree."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        train(ways["separate"][-1:], Path(folder) / "warm up")
        for repetition in range(repetitions):
            results = {}
            for way in sorted(ways, reverse=repetition % 2 == 1):  # neither is always the first
                results[way], spent = timed(partial(train, ways[way], Path(folder) / f"{way} {repetition}"))
                seconds[way].append(spent)
            for trial_id, result in results["separate"].items():
                assert result.same_numbers(results["trunk"][trial_id]), f"trial {trial_id} has other numbers"
    by_length = sorted(results["trunk"].values(), key=lambda result: result.trial.run.steps)
    return seconds, [result.validation_loss for result in by_length]


def horizons(shortest: int) -> list[Trial]:
    """One run at each horizon, of so many steps and more."""
    model = ModelConfig(width=32)
    fingerprint = load_data(DataSource(), vocab_size=model.vocab_size, seq_len=model.seq_len).fingerprint
    lengths = [BATCH_TOKENS * shortest * 2**doubling for doubling in range(N_HORIZONS)]
    return [
        Trial(
            run=RunConfig(
                model=model,
                optimizer=AdamW(),
                hparams=HParams(
                    lr=2.0**-6, batch_tokens=BATCH_TOKENS, warmup_tokens=8192, decay_tokens=int(DECAY_FRAC * tokens)
                ),
                base_width=32,
                train_tokens=tokens,
                validation_tokens=16_384,
                seed=0,
            ),
            data_fingerprint=fingerprint,
        )
        for tokens in lengths
    ]


def train(packs: Sequence[Pack], folder: Path) -> dict[str, TrialResult]:
    """Train packs in this process into a folder of their own."""
    folder.mkdir()
    store = ResultStore(folder)
    LocalBackend().execute(packs, store=store, data_source=DataSource(), workers=1, on_event=lambda event: None)
    return store.read()


def timed(work: Callable[[], dict[str, TrialResult]]) -> tuple[dict[str, TrialResult], tuple[float, float]]:
    """What it returns, and its seconds by the clock and of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    results = work()
    return results, (time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    main()
