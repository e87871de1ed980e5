"""A worker as a process of its own, to be killed or starved:

`python -m tests.worker_driver FOLDER MODE TRIALS STEPS CHECKPOINT_SECONDS [MEGABYTES]`

trains `worker_pack` into FOLDER/results. With MEGABYTES, so much more memory than a first small pack took can be had.
Prints one JSON line for each group of trials that it tries to train together.
"""

import json
import random
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sweeps.worker
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, load_data
from proxy_models.mode import Mode, mode_from_name
from proxy_models.optimizer_config import AdamW
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, train
from sweeps.pack import Pack
from sweeps.store import ResultStore
from sweeps.trial import Trial

LARGE_VOCABULARY = 8192  # whose logits are nearly all of a step's memory: 17 MB a member and copy


def data_source(folder: Path) -> DataSource:
    """Some text, written there, that no model learns by heart: small losses would differ much, seen relatively."""
    words = random.Random(3)
    (folder / "text.txt").write_text("".join(words.choice("abc efgh.\n") for _ in range(8000)))
    return DataSource(kind="text", path=str(folder / "text.txt"), validation_frac=0.2)


def worker_pack(folder: Path, mode: Mode, n_trials: int, steps: int, *, vocab_size: int = 256) -> Pack:
    """Trials of one small shape that differ in lr and seed."""
    fingerprint = load_data(data_source(folder), vocab_size=vocab_size, seq_len=16).fingerprint
    batch_tokens = 512 if vocab_size == LARGE_VOCABULARY else 32
    runs = [
        RunConfig(
            model=ModelConfig(width=16, head_dim=8, depth=2, seq_len=16, vocab_size=vocab_size),
            optimizer=AdamW(),
            hparams=HParams(lr=0.01 * (1 + i % 3), batch_tokens=batch_tokens, decay_tokens=batch_tokens * steps // 2),
            base_width=16,
            train_tokens=batch_tokens * steps,
            validation_tokens=128,
            seed=i,
        )
        for i in range(n_trials)
    ]
    return Pack(trials=tuple(Trial(run=run, data_fingerprint=fingerprint) for run in runs), mode=mode)


def _train(jobs: Sequence[Job], *arguments: Any, **options: Any) -> Iterator[tuple[int, TrainOutcome]]:
    print(json.dumps({"starts": [0 if job.start is None else job.start.step for job in jobs]}), flush=True)
    yield from train(jobs, *arguments, **options)


def main(folder: Path, mode: str, n_trials: int, steps: int, checkpoint_seconds: float, megabytes: int | None) -> None:
    sweeps.worker.prepare_process()
    if megabytes is not None:
        work(folder / "warm-up", worker_pack(folder, mode_from_name(mode), 1, 2))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    sweeps.worker.train = _train  # type: ignore[assignment]
    vocab_size = 256 if megabytes is None else LARGE_VOCABULARY
    pack = worker_pack(folder, mode_from_name(mode), n_trials, steps, vocab_size=vocab_size)
    work(folder / "results", pack, checkpoint_seconds)


def work(results: Path, pack: Pack, checkpoint_seconds: float = 60.0) -> None:
    """Run the pack."""
    sweeps.worker.run_pack(
        pack,
        data_source=data_source(results.parent),
        store=ResultStore(results),
        on_event=lambda event: None,
        checkpoint_seconds=checkpoint_seconds,
    )


if __name__ == "__main__":
    folder, mode, n_trials, steps, seconds, *rest = sys.argv[1:]
    main(Path(folder), mode, int(n_trials), int(steps), float(seconds), int(rest[0]) if rest else None)
