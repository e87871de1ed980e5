"""What a sweep costs: FLOPs and memory from the configs, time from steps that were measured on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from proxy_models.accounting import Memory, memory, training_flops
from sweeps.calibration import this_machine
from sweeps.shape_plans import Plans, packs_of, shape_id_of, wall_seconds
from sweeps.spec import SweepSpec, TargetSpec, run_config
from sweeps.trial import Trial
from sweeps.trunk import flops_saved
from transfer.engine_plans import plan_here
from transfer.execution import Execution, expected_packs


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What trials of one optimizer, width and depth cost that are trained in one mode."""

    optimizer: str
    width: int
    depth: int
    trials: int
    flops: float
    bytes: int  # of one trial
    seconds: float  # of one worker: training and validation, by steps that were measured here
    mode: str
    pack_size: int
    pack_bytes: int
    why: str  # that mode

    def to_json(self) -> dict[str, str | int | float]:
        return {field: getattr(self, field) for field in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """What one optimizer takes at one width and depth, but for activations."""

    optimizer: str
    width: int
    depth: int
    memory: Memory

    def to_json(self) -> dict[str, str | int]:
        parts = {name: int(getattr(self.memory, name)) for name in ("weights", "gradients", "states", "total")}
        return {"optimizer": self.optimizer, "width": self.width, "depth": self.depth, **parts}


def memory_rows(spec: SweepSpec, target: TargetSpec | None, *, bytes_per_float: int) -> list[MemoryRow]:
    """Every optimizer of a spec at every width and depth, and at the target's, from the shapes alone.

    Raises:
        ConfigError: a size that is no model.
    """
    sizes: list[tuple[int, int]] = list(product(spec.run.widths, spec.depths))
    if target is not None:
        sizes.append((target.width, max(spec.depths) if target.depth is None else target.depth))
    rows = []
    for name, (width, depth) in product(spec.optimizers, sizes):
        run = run_config(spec, name, width=width, depth=depth, seed=0)
        counted = memory(run.model, run.optimizer, bytes_per_float=bytes_per_float)
        rows.append(MemoryRow(optimizer=name, width=width, depth=depth, memory=counted))
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepCost:
    """What a sweep costs on one machine."""

    rows: tuple[Cost, ...]
    flops_saved: float  # of the rows' FLOPs, what trials share and is trained once
    workers: int
    wall_seconds: float  # predicted, from the start of the backend to the last result

    def to_json(self) -> dict[str, Any]:
        return {
            "costs": [row.to_json() for row in self.rows],
            "flops_saved_by_trunks": self.flops_saved,
            "workers": self.workers,
            "wall_seconds": self.wall_seconds,
        }


def sweep_cost(trials: Sequence[tuple[str, Trial]], spec: SweepSpec, execution: Execution) -> SweepCost:
    """Costs by optimizer, by its name in the spec, width, depth and pack plan, in the plan's order.

    Raises:
        SpecError: as `plan_shapes`.
    """
    machine = this_machine()
    workers = execution.workers_on(spec, machine)
    plain = [trial for _, trial in trials]
    plans = plan_here(plain, spec, machine, workers)
    groups: dict[tuple[str, int, int, str, int], list[Trial]] = {}
    for name, trial in trials:
        plan = plans[shape_id_of(trial)]
        key = (name, plan.width, trial.run.model.depth, plan.mode.name, plan.pack_size)
        groups.setdefault(key, []).append(trial)
    packs = expected_packs(plain, partial(packs_of, plans=plans), spec.stopping_rule)
    wall = wall_seconds(packs, plans, workers)
    return SweepCost(
        rows=tuple(_cost(name, group, plans) for (name, *_), group in groups.items()),
        flops_saved=sum(map(flops_saved, packs)),
        workers=workers,
        wall_seconds=wall + execution.start_seconds,
    )


def _cost(optimizer: str, trials: Sequence[Trial], plans: Plans) -> Cost:
    own = [plans[shape_id_of(trial)] for trial in trials]
    largest = max(own, key=lambda plan: plan.bytes_per_pack)
    return Cost(
        optimizer=optimizer,
        width=own[0].width,
        depth=trials[0].run.model.depth,
        trials=len(trials),
        flops=sum(training_flops(trial.run) for trial in trials),
        bytes=max(plan.bytes_per_member for plan in own),
        seconds=sum(plan.seconds_of(trial.run) for plan, trial in zip(own, trials, strict=True)),
        mode=own[0].mode.name,
        pack_size=own[0].pack_size,
        pack_bytes=largest.bytes_per_pack,
        why=largest.why,
    )
