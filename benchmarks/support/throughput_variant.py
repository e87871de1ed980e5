"""One way to train a workload, as a process of its own: `python -m benchmarks.support.throughput_variant NAME JSON`.

Prints, as its last line, the losses and training seconds of all trials.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.support.workload import Workload

WORKERS = 2
ENGINES = {
    "mutransfer": {},  # what a spec without [engine] gets
    "mutransfer_compiled_loop": {"executor": "loop", "compile": True},
}


def main() -> None:
    name, text = sys.argv[1:]
    fields = json.loads(text)
    workload = Workload(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(outcome(name, workload, scratch)))


def outcome(name: str, workload: Workload, scratch: str) -> dict[str, Any]:
    if name in PLAIN:
        return {"trials": PLAIN[name](workload, scratch)}
    from benchmarks.support.engine import with_engine
    from sweeps.ray_backend import RayBackend
    from sweeps.spec_models import EngineSection

    return with_engine(workload, RayBackend(), workers=WORKERS, engine=EngineSection(**ENGINES[name]))


def _with_ray(workload: Workload, scratch: str, *, reuse_actors: bool) -> list[dict[str, Any]]:
    from benchmarks.support.plain_torch import with_ray

    return with_ray(workload, reuse_actors=reuse_actors, workers=WORKERS, scratch=scratch)


def _with_optuna(workload: Workload, scratch: str) -> list[dict[str, Any]]:
    from benchmarks.support.plain_torch import with_optuna

    return with_optuna(workload)


PLAIN: dict[str, Callable[[Workload, str], list[dict[str, Any]]]] = {
    "ray_process_a_trial": lambda workload, scratch: _with_ray(workload, scratch, reuse_actors=False),
    "ray_reused_actors": lambda workload, scratch: _with_ray(workload, scratch, reuse_actors=True),
    "optuna": _with_optuna,
}


if __name__ == "__main__":
    main()
