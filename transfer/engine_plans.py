"""How this machine is to train a sweep's trials: planned from measurements, and kept in the results folder."""

from collections.abc import Mapping, Sequence
from functools import partial

from proxy_models.mode import Device, Mode, mode_from_name
from sweeps.calibration import Machine, calibration_file, step_cost
from sweeps.engine import plan_shapes
from sweeps.pack_size import Situation
from sweeps.shape_plans import Plans, ShapePlan, read_plans, shape_id_of, write_plans
from sweeps.spec import SweepSpec
from sweeps.store import ResultStore
from sweeps.trial import Trial

NO_MODES: Mapping[str, Mode] = {}


def plan_here(
    trials: Sequence[Trial],
    spec: SweepSpec,
    machine: Machine,
    workers: int,
    *,
    recorded: Plans | None = None,
    held: Mapping[str, Mode] = NO_MODES,
) -> dict[str, ShapePlan]:
    """A plan of every shape, with step costs from this machine's cache or measured now.

    Raises:
        SpecError: as `plan_shapes`.
    """
    situation = Situation(
        settings=spec.engine,
        file=str(spec.file),
        machine=machine,
        workers=workers,
        n_trials=len(trials),
        recorded=recorded or {},
        held=held,
    )
    measure = partial(step_cost, machine=machine, file=calibration_file())
    return {plan.shape_id: plan for plan in plan_shapes(trials, situation, measure)}


def kept_plans(
    trials: Sequence[Trial], store: ResultStore, spec: SweepSpec, machine: Machine, workers: int
) -> dict[str, ShapePlan]:
    """The folder's plans, with those of what is left to be trained added or, where nothing was trained, renewed.

    Raises:
        SpecError: as `plan_shapes`.
        StoreError: the folder's record is damaged.
    """
    recorded, committed = read_plans(store.folder), store.committed_ids()
    todo = [trial for trial in trials if trial.trial_id not in committed]
    done = {shape_id_of(trial): trial for trial in trials if trial.trial_id in committed}
    left = {shape_id_of(trial) for trial in todo}
    # A result may yet prove damaged, and its trial be trained again.
    todo += [trial for shape_id, trial in done.items() if shape_id not in left | recorded.keys()]
    if not todo:
        return recorded
    begun = {shape_id_of(trial) for trial in todo} & done.keys()
    results = {shape_id: store.read_one(done[shape_id].trial_id) for shape_id in begun}
    held = {shape_id: mode_from_name(result.mode) for shape_id, result in results.items() if result is not None}
    plans = recorded | plan_here(todo, spec, machine, workers, recorded=recorded, held=held)
    write_plans(store.folder, plans)
    return plans


def device_of(spec: SweepSpec, machine: Machine) -> Device:
    """Where new trials are going to be trained. Raises SpecError where there is no such device."""
    situation = Situation(settings=spec.engine, file=str(spec.file), machine=machine, workers=1, n_trials=0)
    return situation.device
