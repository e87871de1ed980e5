"""The training loop: runs in, outcomes out. Knows nothing of sweeps, results on disk or ray."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxy_models.accounting import forward_flops_per_token
from proxy_models.config import RunConfig
from proxy_models.data import TokenData
from proxy_models.diagnostics import WHOLE_MODEL, Diagnostic, diagnose
from proxy_models.member_state import MemberState
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizers import Observe, Update
from proxy_models.outcome import TrainOutcome, curve, matmul_peak
from proxy_models.training import Training

# A training loss this many times the first one is not coming back to anything worth fitting.
DIVERGENCE_FACTOR = 2.0
_GPU_STEPS_A_READ = 16  # reading a loss waits for the GPU, which would wait for the next step's launches then

OnStep = Callable[[int, int, float], None]  # member, updates done, the loss before the last
OnState = Callable[[int, MemberState], None]  # member
# Which members to stop at a rung: it is given the updates done and every loss so far of those that still train.
Halt = Callable[[int, Mapping[int, Tensor]], Collection[int]]
# Sees every iterate of a loop's run: before the first update, with 0 updates done, and after each.
Follow = Callable[[Training, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One member of a pack: a run, where it goes on, and after which updates its state is asked for."""

    run: RunConfig
    start: MemberState | None = None
    save_at: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Who is told what while runs train. None of it changes a number."""

    on_step: OnStep | None = None
    on_state: OnState | None = None  # at the steps of `Job.save_at`
    state_seconds: float | None = None  # and every so many seconds
    diagnose_every: int | None = None  # steps
    noise_every: int | None = None  # steps between measurements of the gradient noise, see `Training.gradient_noise`
    follow: Follow | None = None


def train(
    jobs: Sequence[Job],
    data: TokenData,
    *,
    mode: Mode = EAGER_LOOP,
    watch: Watch = Watch(),
    rungs: Sequence[int] = (),
    halt: Halt | None = None,
) -> Iterator[tuple[int, TrainOutcome]]:
    """Train a pack; yields each member's index and outcome as soon as it is known.

    With `rungs`, updates in ascending order, no member passes one before all that still train have reached it and
    `halt` has said which of them stop. A loop then keeps all its members in memory, and advances them in turn.
    """
    stops = [*rungs, jobs[0].run.steps]
    if mode.executor == "loop" and not rungs:
        for index, job in enumerate(jobs):
            yield from _Group([_Member(index, job)], data, mode, watch).advance(stops[-1])
        return
    groups = [_Group(members, data, mode, watch) for members in _grouped(jobs, mode)]
    for stop in stops:
        for group in groups:
            yield from group.advance(stop)
        if halt is not None and stop < stops[-1]:
            losses = {member.index: member.loss_tensor() for group in groups for member in group.active(at=stop)}
            halted = halt(stop, losses) if losses else ()
            for group in groups:
                yield from group.halt(halted)


def _grouped(jobs: Sequence[Job], mode: Mode) -> list[list["_Member"]]:
    """Members that are advanced together: stacked, all that start at one step."""
    groups: dict[int, list[_Member]] = {}
    for index, job in enumerate(jobs):
        start = 0 if job.start is None else job.start.step
        groups.setdefault(index if mode.executor == "loop" else start, []).append(_Member(index, job))
    return list(groups.values())


@dataclass(slots=True, eq=False)
class _Member:
    """What is remembered of one run while it trains."""

    index: int
    job: Job
    losses: list[float] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    def __post_init__(self) -> None:
        start = self.job.start
        if start is not None:
            self.losses = start.losses.tolist()
            self.diagnostics = list(start.diagnostics)
            self.seconds = start.train_seconds

    @property
    def diverged(self) -> bool:
        return not self.losses[-1] <= DIVERGENCE_FACTOR * self.losses[0]  # also catches NaN

    @property
    def inherited_steps(self) -> int:
        return 0 if self.job.start is None else self.job.start.inherited_steps

    def loss_tensor(self) -> Tensor:
        """(updates done,), float64."""
        return torch.tensor(self.losses, dtype=torch.float64)


class _Group:
    """Members that take every step together, and what becomes of them."""

    def __init__(self, members: Sequence[_Member], data: TokenData, mode: Mode, watch: Watch) -> None:
        self.slots, self.mode, self.watch = list(members), mode, watch
        self.training = Training([member.job.run for member in members], data, mode)
        starts = [member.job.start for member in members if member.job.start is not None]
        if starts:
            self.training.load(starts)
        self.steps = members[0].job.run.steps
        self.unread: list[Tensor] = []  # losses of the last steps, (slots,)
        self.last_state = self.last_read = time.perf_counter()
        if watch.follow is not None and not starts:
            watch.follow(self.training, 0)

    @property
    def done(self) -> int:
        return self.training.step_count

    def active(self, *, at: int | None = None) -> list[_Member]:
        """Members that still train; with `at`, those that have done so many updates."""
        return [member for member in self.slots if not member.finished and at in (None, len(member.losses))]

    def advance(self, until: int) -> Iterator[tuple[int, TrainOutcome]]:
        """Train up to so many updates; at a run's end, validate it."""
        reads = {until, *(step for member in self.slots for step in member.job.save_at)}
        every = 1 if self.mode.device == "cpu" else _GPU_STEPS_A_READ
        self.last_read = time.perf_counter()
        while self.done < until and self.active():
            self._measure_noise()
            self.unread.append(self.training.step(self._observer()))
            if self.watch.follow is not None:
                self.watch.follow(self.training, self.done)
            if self.done in reads or len(self.unread) == every:
                yield from self._read()
                self._save()
        if self.done == self.steps:
            yield from self._validate()

    def halt(self, halted: Collection[int]) -> Iterator[tuple[int, TrainOutcome]]:
        """Stop some members."""
        for member in self.active():
            if member.index in halted:
                member.finished = True
                yield member.index, self._outcome(member, stopped_step=len(member.losses))
        self._compact()

    def _read(self) -> Iterator[tuple[int, TrainOutcome]]:
        """Tell every member its losses. One that has diverged is masked from there on, and later left out."""
        rows = torch.stack(self.unread).tolist()
        self.unread.clear()
        now = time.perf_counter()
        share = (now - self.last_read) / len(self.active())
        self.last_read = now
        for member in self.active():
            member.seconds += share
        for row in rows:
            for member, loss in zip(self.slots, row, strict=True):
                if member.finished:
                    continue
                member.losses.append(loss)
                if member.diverged:
                    member.finished = True
                if self.watch.on_step is not None:
                    self.watch.on_step(member.index, len(member.losses), loss)
                if member.finished:
                    yield member.index, self._outcome(member, diverged_step=len(member.losses))
        self._compact()

    def _compact(self) -> None:
        """Leave masked members out once half of the slots suffice: to a power of two, so that few sizes compile."""
        active = [slot for slot, member in enumerate(self.slots) if not member.finished]
        size = 1 << max(0, len(active) - 1).bit_length()
        if active and size <= len(self.slots) // 2:
            masked = [slot for slot, member in enumerate(self.slots) if member.finished]
            kept = sorted(active + masked[: size - len(active)])
            self.training.keep(kept)
            self.slots = [self.slots[slot] for slot in kept]

    def _validate(self) -> Iterator[tuple[int, TrainOutcome]]:
        if not self.active():
            return
        for member, (loss, error) in zip(self.slots, self.training.validate(), strict=True):
            if not member.finished:
                member.finished = True
                if loss < member.losses[0]:
                    yield member.index, self._outcome(member, validation=(loss, error))
                else:
                    yield member.index, self._outcome(member, diverged_step=self.steps)

    def _save(self) -> None:
        """Hand out the states that are due. Nothing is due at the end, which is an outcome's moment."""
        if self.watch.on_state is None or self.done == self.steps:
            return
        seconds = self.watch.state_seconds
        timed = seconds is not None and time.perf_counter() - self.last_state >= seconds
        for slot, member in enumerate(self.slots):
            if not member.finished and (timed or self.done in member.job.save_at):
                self.watch.on_state(member.index, self._state(slot))
        if timed:
            self.last_state = time.perf_counter()

    def _state(self, slot: int) -> MemberState:
        member, optimizer = self.slots[slot], self.training.optimizer.state(slot)
        return MemberState(
            step=self.done,
            losses=member.loss_tensor(),
            weights=self.training.weights_of(slot),
            optimizer=optimizer.tensors,
            births=optimizer.births,
            phase=optimizer.phase,
            train_seconds=member.seconds,
            inherited_steps=member.inherited_steps,
            diagnostics=tuple(member.diagnostics),
        )

    def _measure_noise(self) -> None:
        every = self.watch.noise_every
        if every is None or self.done % every != 0:
            return
        for quantity, values in self.training.gradient_noise().items():
            for member, value in zip(self.slots, values, strict=True):
                if not member.finished and math.isfinite(value):
                    member.diagnostics.append(
                        Diagnostic(step=self.done + 1, depth=0, kind=WHOLE_MODEL, quantity=quantity, value=value)
                    )

    def _observer(self) -> Observe | None:
        every = self.watch.diagnose_every
        if every is None or self.done % every != 0:
            return None
        step, places = self.done + 1, self.training.model.places()

        def observe(update: Update) -> None:
            for slot, member in enumerate(self.slots):
                if not member.finished:
                    member.diagnostics.extend(diagnose(update, step=step, places=places, member=slot))

        return observe

    def _outcome(
        self,
        member: _Member,
        *,
        diverged_step: int | None = None,
        stopped_step: int | None = None,
        validation: tuple[float, float] | None = None,
    ) -> TrainOutcome:
        run = member.job.run
        steps, losses = curve(member.losses[:-1] if member.diverged else member.losses, run.steps)
        tokens = run.tokens_before(len(member.losses)) - run.tokens_before(member.inherited_steps)
        flops = 3 * forward_flops_per_token(run.model) * tokens
        seconds = max(member.seconds, 1e-9)  # nothing, where all of it was taken over
        return TrainOutcome(
            diverged_step=diverged_step,
            stopped_step=stopped_step,
            validation_loss=validation[0] if validation else None,
            validation_loss_se=validation[1] if validation else None,
            curve_steps=steps,
            curve_losses=losses,
            train_seconds=member.seconds,
            tokens_per_second=tokens / seconds,
            flops=flops,
            flops_utilization=flops / seconds / matmul_peak(self.mode.device, self.mode.dtype),
            mode=self.mode,
            diagnostics=tuple(member.diagnostics),
        )
