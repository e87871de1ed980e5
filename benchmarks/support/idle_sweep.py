"""A sweep of trials that do next to nothing, as a process of its own: `... idle_sweep TRIALS PACK_SIZE BACKEND`.

Prints one line of JSON: wall seconds of `run_sweep`, until its first result, and this process's peak memory.
"""

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, load_data
from proxy_models.optimizer_config import AdamW
from sweeps.pack import make_packs
from sweeps.run import Backend, Event, TrialFinished, run_sweep
from sweeps.store import ResultStore
from sweeps.trial import Trial

WORKERS = 2
MODEL = ModelConfig(width=2, depth=1, head_dim=2, mlp_ratio=1.0, vocab_size=2, seq_len=2)


def main() -> None:
    n_trials, pack_size, backend = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(n_trials, pack_size, backend, Path(folder))))


def measure(n_trials: int, pack_size: int, backend: str, folder: Path) -> dict[str, Any]:
    trials, source = idle_trials(n_trials, folder)
    finished: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, TrialFinished):
            finished.append(time.perf_counter())

    start = time.perf_counter()
    outcome = run_sweep(
        trials,
        store=ResultStore(folder / "results"),
        data_source=source,
        backend=_backend(backend),
        workers=WORKERS if backend == "ray" else 1,
        pack=partial(make_packs, size=pack_size),
        on_event=on_event,
    )
    seconds = time.perf_counter() - start
    assert len(outcome.results) == len(finished) == n_trials, f"{len(finished)} of {n_trials} trials finished"
    return {
        "trials": n_trials,
        "backend": backend,
        "seconds": seconds,
        "seconds_to_first_result": finished[0] - start,
        "step_seconds_a_trial": sum(result.train_seconds for result in outcome.results.values()) / n_trials,
        "peak_bytes": _peak_bytes(),
    }


def idle_trials(n_trials: int, folder: Path) -> tuple[list[Trial], DataSource]:
    """Trials of one step of the smallest model, which differ in their learning rate, and the data they are for."""
    np.save(folder / "tokens.npy", np.tile(np.array([0, 1], dtype=np.uint8), 200))
    source = DataSource(kind="tokens", path=str(folder / "tokens.npy"))
    data = load_data(source, vocab_size=MODEL.vocab_size, seq_len=MODEL.seq_len)
    return [
        Trial(
            run=RunConfig(
                model=MODEL,
                optimizer=AdamW(),
                hparams=HParams(lr=1e-3 * (1 + i / n_trials), batch_tokens=2),
                base_width=2,
                train_tokens=2,
                validation_tokens=4,
                seed=0,
            ),
            data_fingerprint=data.fingerprint,
        )
        for i in range(n_trials)
    ], source


def _peak_bytes() -> int:
    """Of this process since it started; what `getrusage` tells, a child takes over from its parent."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _backend(name: str) -> Backend:
    if name == "local":
        from sweeps.local_backend import LocalBackend

        return LocalBackend()
    from sweeps.ray_backend import RayBackend

    return RayBackend()


if __name__ == "__main__":
    main()
