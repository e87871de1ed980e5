"""The workload's trials through this project's engine, as `mutransfer sweep` plans and runs them."""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.support.workload import Workload
from sweeps.calibration import calibration_file, step_cost, this_machine
from sweeps.engine import plan_shapes
from sweeps.pack_size import Situation
from sweeps.run import Backend, run_sweep
from sweeps.shape_plans import packs_of
from sweeps.spec_models import EngineSection
from sweeps.store import ResultStore


def with_engine(workload: Workload, backend: Backend, *, workers: int, engine: EngineSection) -> dict[str, Any]:
    """Every trial's loss and training seconds, and the plan; calibration is part of it where nothing is cached."""
    trials, machine = workload.trials(), this_machine()
    situation = Situation(settings=engine, file="benchmark", machine=machine, workers=workers, n_trials=len(trials))
    measure = partial(step_cost, machine=machine, file=calibration_file())
    plans = {plan.shape_id: plan for plan in plan_shapes(trials, situation, measure)}
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_sweep(
            trials,
            store=ResultStore(Path(folder)),
            data_source=workload.source,
            backend=backend,
            workers=workers,
            pack=partial(packs_of, plans=plans),
            on_event=lambda event: None,
        )
    results = [outcome.results[trial.trial_id] for trial in trials]
    return {
        "trials": [{"loss": one.validation_loss, "train_seconds": one.train_seconds} for one in results],
        "plan": [f"width {p.width}: {p.mode.name}, packs of {p.pack_size}; {p.why}" for p in plans.values()],
        "modes": Counter(one.mode for one in results),
    }
