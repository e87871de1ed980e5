"""In which numerics mode, and in packs of which size, a sweep's trials are trained: decided once for each shape.

Decides from records and from step costs that a caller measures. Knows no torch and no disk.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from proxy_models.accounting import training_bytes
from proxy_models.mode import Mode
from proxy_models.parametrization import forward_multipliers
from sweeps.calibration import Measure, StepCost
from sweeps.pack_size import Situation, sized
from sweeps.shape_plans import LOAD_SECONDS, Shape, ShapePlan, shapes_of
from sweeps.spec_errors import SpecError
from sweeps.trial import Trial

# Before anything is compiled: what it takes, measured at widths 32 to 256 on two cores of a Xeon with torch 2.13.
# There a compiled step took 0.69 to 0.93 of an eager one, the less the narrower the model.
PRIOR_COMPILED_STEP = 0.8
PRIOR_COMPILE_SECONDS = 15.0
# A CPU's steps are worth stacking where the cost of calling operations is most of them: members of 64 to 256 tokens a
# step and widths 16 to 64 took a third to a half of their time, those of 20 ms as long as before. Below such a gain
# a loop's bitwise repetition is worth more.
STACKABLE_SECONDS = 0.01
LEAST_CPU_GAIN = 1.5
_HOPE = 2.0  # times the price must be hoped to be saved before anything is compiled: by then half the price is paid


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """A plan but for compiling, or whole where its mode is settled."""

    shape: Shape
    mode: Mode
    pack_size: int
    cost: StepCost
    why: str

    @property
    def program(self) -> tuple[object, ...]:
        """What shapes have in common that share one compiled function."""
        run = self.shape.run
        return run.model, forward_multipliers(run), run.hparams.batch_tokens, self.mode, self.members_together

    @property
    def members_together(self) -> int:
        """Members that take a step in one call."""
        return self.pack_size if self.mode.executor == "stacked" else 1

    def plan(self) -> ShapePlan:
        run = self.shape.run
        return ShapePlan(
            shape_id=self.shape.shape_id,
            optimizer=run.optimizer.name,
            width=run.model.width,
            mode=self.mode,
            pack_size=self.pack_size,
            members=len(self.shape.trials),
            seconds_per_step_member=self.cost.seconds,
            compile_seconds=self.cost.compile_seconds,
            bytes_per_member=self.cost.peak_bytes or training_bytes(run),
            why=self.why,
        )


def plan_shapes(trials: Sequence[Trial], situation: Situation, measure: Measure) -> tuple[ShapePlan, ...]:
    """Plan every shape of the trials that are to be trained.

    A shape that was planned before keeps its mode, unless the spec now says otherwise and nothing was trained yet.

    Raises:
        SpecError: the spec contradicts the mode of a shape that has results, or asks for what is not here.
    """
    shapes = shapes_of(trials)
    plans: dict[str, ShapePlan] = {}
    groups: dict[tuple[object, ...], list[_Draft]] = defaultdict(list)
    for shape in shapes:
        mode = _settled(shape, situation)
        if mode is None:
            draft = _draft(shape, situation, measure)
            groups[draft.program].append(draft)
        else:
            plans[shape.shape_id] = _keep(shape, mode, situation, measure)
    for group in groups.values():
        plans |= {draft.shape.shape_id: draft.plan() for draft in _compiled(group, situation, measure)}
    return tuple(plans[shape.shape_id] for shape in shapes)


def _settled(shape: Shape, situation: Situation) -> Mode | None:
    """The mode of a shape's results, else what an earlier plan decided; None where it may be planned anew."""
    held, recorded = situation.held.get(shape.shape_id), situation.recorded.get(shape.shape_id)
    mode = held or (recorded.mode if recorded else None)
    if mode is None:
        return None
    excluded = _excluded(mode, situation)
    if excluded is None:
        return mode
    if held is None:
        return None
    key, now = excluded
    raise SpecError(
        f"{situation.file}: engine.{key}: must stay what the results at width {shape.run.model.width} were trained "
        f"with ({held.name}), got {now}: losses of two modes differ by rounding. Set it back, or start anew with "
        "--fresh."
    )


def _excluded(mode: Mode, situation: Situation) -> tuple[str, str] | None:
    """The first key by which the spec or the machine excludes a mode, and what it is now."""
    settings = situation.settings
    wanted = {
        "executor": (settings.executor, mode.executor),
        "compile": (settings.compile, mode.compiled),
        "device": (settings.device, mode.device),
        "dtype": (settings.dtype, mode.dtype),
    }
    for key, (now, was) in wanted.items():
        if now not in ("auto", was):
            return key, str(now).lower()
    return ("device", "a machine without a GPU") if mode.device == "cuda" and situation.machine.gpu is None else None


def _keep(shape: Shape, mode: Mode, situation: Situation, measure: Measure) -> ShapePlan:
    """As it was planned before, in packs for the trials that are left; measured where no record tells."""
    recorded = situation.recorded.get(shape.shape_id)
    size, cost = sized(shape, replace(mode, compiled=False), situation, measure)
    why = "the mode of its results"
    if recorded is not None and recorded.mode == mode:
        cost, why = recorded.step_cost, recorded.why
    elif mode.compiled:
        cost = measure(shape.run, mode, size if mode.executor == "stacked" else 1)
    return _Draft(shape=shape, mode=mode, pack_size=size, cost=cost, why=why).plan()


def _draft(shape: Shape, situation: Situation, measure: Measure) -> _Draft:
    """The executor, and packs for it."""
    settings, device = situation.settings, situation.device
    loop = Mode(device=device, dtype=settings.dtype)
    stacked = replace(loop, executor="stacked")

    def drafted(mode: Mode, why: str) -> _Draft:
        size, cost = sized(shape, mode, situation, measure)
        return _Draft(shape=shape, mode=mode, pack_size=size, cost=cost, why=why)

    if settings.executor != "auto":
        return drafted(replace(loop, executor=settings.executor), f"[engine] says {settings.executor}")
    one = drafted(loop, "")
    if device == "cpu" and one.cost.seconds > STACKABLE_SECONDS:
        return replace(one, why="a CPU gains nothing from stacking steps this long")
    many = drafted(stacked, "")
    least_gain = LEAST_CPU_GAIN if device == "cpu" else 1.0
    faster = many if least_gain * many.cost.seconds < one.cost.seconds else one
    times = f"{1e3 * many.cost.seconds:.3g} ms stacked by {many.pack_size}, {1e3 * one.cost.seconds:.3g} ms in a loop"
    return replace(faster, why=f"a member's step takes {times}")


def _compiled(group: Sequence[_Draft], situation: Situation, measure: Measure) -> Iterator[_Draft]:
    """Drafts that share one compiled function, which all use or none."""
    first = group[0]
    compiled, why = _compiling(group, situation, measure)
    for draft in group:
        if compiled is None:
            yield replace(draft, why=f"{draft.why}; {why}")
            continue
        # What an optimizer does is not compiled, and so the saving is the same for all.
        seconds = max(draft.cost.seconds - first.cost.seconds + compiled.seconds, 0.1 * draft.cost.seconds)
        cost = replace(compiled, seconds=seconds)
        yield replace(draft, mode=replace(draft.mode, compiled=True), cost=cost, why=f"{draft.why}; {why}")


def _compiling(group: Sequence[_Draft], situation: Situation, measure: Measure) -> tuple[StepCost | None, str]:
    """The first one's cost when compiled, None where it is not to be; and why."""
    wanted, first, workers = situation.settings.compile, group[0], situation.workers
    if wanted is False:
        return None, "[engine] says not to compile"
    if not situation.machine.has_compiler:
        if wanted == "auto":
            return None, "not compiled, for there is no C++ compiler"
        raise SpecError(
            f'{situation.file}: engine.compile: must be "auto" or false on this machine, which has no C++ compiler, '
            "got true. Change it, or install g++."
        )
    if wanted == "auto":
        eager = sum(draft.shape.steps * draft.cost.seconds for draft in group)
        # On a GPU nothing is known beforehand: at best the whole time is saved.
        hoped = eager * (1 - PRIOR_COMPILED_STEP) if first.mode.device == "cpu" else eager
        price = workers * (PRIOR_COMPILE_SECONDS + LOAD_SECONDS)
        if hoped <= _HOPE * price:
            return None, f"not compiled, which may save {hoped:.2g} s and take {price:.2g} s"
    mode = replace(first.mode, compiled=True)
    cost = measure(first.shape.run, mode, first.members_together)
    saved = sum(draft.shape.steps for draft in group) * (first.cost.seconds - cost.seconds)
    price = workers * cost.compile_seconds
    balance = f"which saves {saved:.2g} s and takes {price:.2g} s"
    if wanted == "auto" and saved <= price:
        return None, f"not compiled, {balance}"
    return cost, f"compiled, {balance}" if wanted == "auto" else "[engine] says to compile"
