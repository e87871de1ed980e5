"""How the trials of each shape are trained: the plan that a whole sweep keeps, the packs and the times it makes.

`engine.json` in a results folder holds it, written before anything is trained, so that a sweep that is resumed goes
on in the modes that it began with. `transfer/engine.schema.json` documents every field.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, TypeAdapter, ValidationError, WithJsonSchema

from proxy_models.config import RunConfig
from proxy_models.mode import Mode, mode_from_name
from sweeps.calibration import StepCost
from sweeps.files import replace_file
from sweeps.pack import Pack, make_packs, shape_of
from sweeps.store import StoreError
from sweeps.trial import Trial

ENGINE = "engine.json"
SCHEMA_VERSION = 1
# Of one worker: torch's compiler, and from its cache on disk what another process compiled (2.7 s and 1.7 s, measured
# on a Xeon with torch 2.13).
LOAD_SECONDS = 5.0

ModeName = Annotated[
    Mode,
    BeforeValidator(lambda value: mode_from_name(value) if isinstance(value, str) else value),
    PlainSerializer(lambda mode: mode.name, return_type=str),
    WithJsonSchema({"type": "string"}),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapePlan:
    """How the trials of one shape are trained, and what that is expected to take."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)
    shape_id: str
    """Sixteen hex digits, of what trials that can be in one pack have in common."""
    optimizer: str
    """Name of the update rule."""
    width: int
    """Of the model."""
    mode: ModeName
    """Executor, eager or compiled, device, dtype, joined by hyphens; kept when the sweep is resumed."""
    pack_size: int
    """Trials in a pack at most."""
    members: int
    """Trials that were left to be trained when this was planned."""
    seconds_per_step_member: float
    """Predicted time of one step, for each member of a pack."""
    compile_seconds: float
    """What compiling took when it was measured; 0 where nothing is compiled."""
    bytes_per_member: int
    """Peak memory of one member."""
    why: str
    """What decided for the mode."""

    def seconds_of(self, run: RunConfig, *, first_step: int = 0) -> float:
        """Training from that step on, and validation, whose forward pass is a third of a step's work.

        After a change of batch a token is taken to cost what it did before.
        """
        tokens = run.train_tokens - run.tokens_before(first_step) + run.validation_tokens / 3
        return self.seconds_per_step_member * tokens / run.hparams.batch_tokens

    @property
    def step_cost(self) -> StepCost:
        """Of one member."""
        return StepCost(
            seconds=self.seconds_per_step_member,
            compile_seconds=self.compile_seconds,
            peak_bytes=self.bytes_per_member,
        )

    @property
    def bytes_per_pack(self) -> int:
        """Peak memory of a pack: a loop holds one member at a time."""
        return self.bytes_per_member * (self.pack_size if self.mode.executor == "stacked" else 1)


Plans = Mapping[str, ShapePlan]  # by shape_id


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRecord:
    """What `engine.json` holds."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)
    schema_version: int
    """Of this document."""
    shapes: tuple[ShapePlan, ...]
    """In the order in which they were planned."""


ENGINE_JSON: TypeAdapter[EngineRecord] = TypeAdapter(EngineRecord)


def write_plans(folder: Path, plans: Plans) -> None:
    """Replace the folder's plans, whole or not at all."""
    record = EngineRecord(schema_version=SCHEMA_VERSION, shapes=tuple(plans.values()))
    replace_file(folder / ENGINE, ENGINE_JSON.dump_json(record, indent=1) + b"\n")


def read_plans(folder: Path) -> dict[str, ShapePlan]:
    """The plans made so far; none where no sweep began.

    Raises:
        StoreError: the file is damaged, or written by a newer version of the program.
    """
    file = folder / ENGINE
    try:
        record = ENGINE_JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise StoreError(
            f"{file} is not a record of modes of this version ({error.errors()[0]['msg']}). Update the program; or "
            "start anew with --fresh, for results of several modes differ by rounding."
        ) from None
    return {plan.shape_id: plan for plan in record.shapes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Trials that can be in one pack."""

    shape_id: str
    trials: tuple[Trial, ...]

    @property
    def run(self) -> RunConfig:
        """One of them: all take the same time."""
        return self.trials[0].run

    @property
    def steps(self) -> int:
        """Of all trials together."""
        return self.run.steps * len(self.trials)


def shape_id_of(trial: Trial) -> str:
    """Sixteen hex digits, equal for trials that can be in one pack."""
    return shape_of(trial).trial_id


def shapes_of(trials: Iterable[Trial]) -> tuple[Shape, ...]:
    """Trials by shape, in the order in which shapes first appear."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[shape_id_of(trial)].append(trial)
    return tuple(Shape(shape_id=shape_id, trials=tuple(group)) for shape_id, group in groups.items())


def packs_of(
    trials: Sequence[Trial], plans: Plans, *, diagnose_every: int | None = None, noise_every: int | None = None
) -> tuple[Pack, ...]:
    """Packs of every trial once, by the plans of their shapes, the longest first."""
    packs = [
        pack
        for shape in shapes_of(trials)
        for pack in make_packs(
            shape.trials,
            plans[shape.shape_id].pack_size,
            mode=plans[shape.shape_id].mode,
            diagnose_every=diagnose_every,
            noise_every=noise_every,
        )
    ]
    return tuple(sorted(packs, key=lambda pack: -pack_seconds(pack, plans)))


def pack_seconds(pack: Pack, plans: Plans) -> float:
    """Training and validation of a pack from where its trials start, without compiling."""
    plan = plans[shape_id_of(pack.trials[0])]
    starts = {trial_id: fork.step for trial_id, fork in pack.starts.items()}
    return sum(plan.seconds_of(trial.run, first_step=starts.get(trial.trial_id, 0)) for trial in pack.trials)


def wall_seconds(packs: Sequence[Pack], plans: Plans, workers: int) -> float:
    """Until the last worker is done, if each free worker takes the next pack; start-up apart."""
    free_at = [(0.0, worker) for worker in range(workers)]
    loaded: set[tuple[int, str]] = set()
    for pack in packs:
        at, worker = heapq.heappop(free_at)
        shape_id = shape_id_of(pack.trials[0])
        if plans[shape_id].mode.compiled and (worker, shape_id) not in loaded:
            loaded.add((worker, shape_id))
            at += LOAD_SECONDS
        heapq.heappush(free_at, (at + pack_seconds(pack, plans), worker))
    return max(at for at, _ in free_at)


if __name__ == "__main__":
    import json

    print(json.dumps(ENGINE_JSON.json_schema(), indent=1, sort_keys=True))
