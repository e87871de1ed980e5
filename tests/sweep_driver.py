"""A sweep as a process of its own, to be interrupted and killed: `python -m tests.sweep_driver FOLDER BACKEND`.

BACKEND is local, ray, or the address of a Ray cluster. FOLDER holds what `write_sweep` wrote.
Prints one JSON line an event, and a last one with the counts.
"""

import json
import sys
from functools import partial
from pathlib import Path

from sweeps.local_backend import LocalBackend
from sweeps.pack import make_packs
from sweeps.run import (
    Backend,
    Event,
    Interrupted,
    PackStarted,
    TrialFailed,
    TrialFinished,
    TrialProgress,
    run_sweep,
)
from sweeps.store import ResultStore
from sweeps.trial import TrialStatus
from tests.sweep_helpers import read_sweep


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def on_event(event: Event) -> None:
    match event:
        case PackStarted(trials=trials):
            say(started=[trial.trial_id for trial in trials])
        case TrialFinished(result=result):
            say(finished=result.trial_id)
        case TrialFailed(trial=trial, error=error):
            say(failed=trial.trial_id, error=error)
        case TrialProgress():
            pass


def backend_of(name: str) -> Backend:
    if name == "local":
        return LocalBackend()
    from sweeps.ray_backend import RayBackend

    return RayBackend(address=None if name == "ray" else name)


def main(folder: Path, backend: str) -> None:
    spec, trials = read_sweep(folder)
    store = ResultStore(folder / "results")
    outcome = run_sweep(
        trials,
        store=store,
        data_source=spec.data_source(),
        backend=backend_of(backend),
        workers=1 if backend == "local" else 2,
        pack=partial(make_packs, size=4),
        stopping=spec.stopping_rule,
        on_event=on_event,
    )
    say(reused=outcome.reused, **{status.value: outcome.count(status) for status in TrialStatus})


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_status)
