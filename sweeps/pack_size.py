"""How many trials of a shape a pack holds, and what a step then costs. Knows no torch and no disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy_models.accounting import training_bytes
from proxy_models.mode import Device, Mode
from sweeps.calibration import DoesNotFitError, Machine, Measure, StepCost
from sweeps.shape_plans import Plans, Shape
from sweeps.spec_errors import SpecError
from sweeps.spec_models import EngineSection

# Trials that a loop's pack has at most, fewer where there are few, so that workers finish together.
LOOP_PACK_SIZE = 4
_MEMORY_SHARE = 0.8  # of what is free, for what the count of bytes leaves out
_LEAST_GAIN = 0.1  # in throughput, for which a pack is doubled


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What a plan depends on beside the trials to be trained."""

    settings: EngineSection
    file: str  # the spec's, for messages
    machine: Machine
    workers: int
    n_trials: int  # to be trained, of all shapes
    recorded: Plans = field(default_factory=dict)  # what earlier plans of this sweep decided
    held: Mapping[str, Mode] = field(default_factory=dict)  # by shape: the mode of the results that there are

    @property
    def device(self) -> Device:
        """Raises SpecError where the spec asks for a GPU and there is none."""
        if self.settings.device == "cuda" and self.machine.gpu is None:
            raise SpecError(
                f'{self.file}: engine.device: must be "auto" or "cpu" on this machine, where torch sees no GPU, '
                'got "cuda". Change it, or run on a machine with a GPU.'
            )
        return "cpu" if self.machine.gpu is None or self.settings.device == "cpu" else "cuda"


def sized(shape: Shape, mode: Mode, situation: Situation, measure: Measure) -> tuple[int, StepCost]:
    """A pack's size, and the cost of a step in it.

    A stacked pack leaves a pack to every worker, fits into memory, and is doubled only for as long as throughput gains
    from it. Where the spec asks for stacking on a CPU, which may gain nothing, it is as large as it can be.
    """
    wanted = situation.settings.pack_size
    if mode.executor == "loop":
        least = max(1, min(LOOP_PACK_SIZE, situation.n_trials // (4 * situation.workers)))
        return wanted or least, measure(shape.run, mode, 1)
    if wanted is not None:
        size = min(wanted, len(shape.trials))
        return size, measure(shape.run, mode, size)
    most = largest_stack(shape, mode, situation)
    if situation.settings.executor == "stacked" and mode.device == "cpu":
        return most, measure(shape.run, mode, most)
    return _doubled(shape, mode, most, measure)


def largest_stack(shape: Shape, mode: Mode, situation: Situation) -> int:
    """As many members as memory holds, with a pack for every worker."""
    gpus, workers = max(situation.machine.gpus, 1), situation.workers
    sharing = workers if mode.device == "cpu" else -(-workers // gpus)  # one memory
    room = _MEMORY_SHARE * situation.machine.free_bytes / sharing
    return max(1, min(int(room // training_bytes(shape.run)), -(-len(shape.trials) // workers)))


def _doubled(shape: Shape, mode: Mode, most: int, measure: Measure) -> tuple[int, StepCost]:
    size, cost = 1, measure(shape.run, mode, 1)
    while size < most:
        larger = min(2 * size, most)
        try:
            next_cost = measure(shape.run, mode, larger)
        except DoesNotFitError:  # the count of bytes is not exact
            break
        if next_cost.seconds > (1 - _LEAST_GAIN * (larger / size - 1)) * cost.seconds:
            break
        size, cost = larger, next_cost
    return size, cost
