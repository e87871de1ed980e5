"""One step over the stacks of a pack.

Clipping, decoupled weight decay and the schedule are the same for every optimizer, so they stand here once;
a rule gives only the direction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from proxy_models.config import RunConfig
from proxy_models.optimizer_config import Switch
from proxy_models.optimizers.rules import Coefficients, State, UpdateRule
from proxy_models.optimizers.update_rules import update_rule
from proxy_models.parametrization import scale_role
from proxy_models.stacks import Stack

# On a CPU a part of this size goes through a whole step before the next, with the same bits: with 2**20 Muon takes 1.2
# to 1.3 times as long from 64 x 64 to 128 x 128, and AdamW up to 1.6 times (benchmarks/optimizer_step.py).
_CACHE_FLOATS = 2**17
_CLIP_TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one stack is about to be moved by. Its tensors change after the step: copy what is to stay."""

    stack: Stack
    rule: UpdateRule
    state: State
    coefficients: Coefficients
    gradient: Tensor  # clipped
    direction: Tensor
    lr: Tensor  # effective and scheduled, (members, 1, ...)


Observe = Callable[[Update], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerState:
    """One member's, by parameter: tensors on the CPU, its own, without the axes of members and layers."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # parameter -> the rule's name -> tensor
    births: Mapping[str, int]  # parameter -> the step count at which its state began
    phase: int = 0  # index of the optimizer, of a switched one


class Stepper(Protocol):
    """What a training loop needs of an optimizer."""

    @property
    def step_count(self) -> int: ...

    def step(self, gradients: Sequence[Tensor], schedule_factors: Tensor, observe: Observe | None = None) -> None:
        """One update in place. `schedule_factors` (members,) multiplies each group's own peak."""
        ...

    def keep(self, members: Sequence[int], weights: Sequence[Tensor]) -> None:
        """Go on with some members alone, whose weights are these."""
        ...

    def state(self, member: int) -> OptimizerState:
        """One member's state, which `load` takes in any pack of its shape."""
        ...

    def load(self, states: Sequence[OptimizerState], step_count: int) -> None:
        """Take up the states of all members, each after as many steps, begun at the same ones."""
        ...


def make_optimizer(layouts: Sequence[Stack], weights: Sequence[Tensor], runs: Sequence[RunConfig]) -> Stepper:
    """The optimizer of a pack whose members share one optimizer config and differ in hyperparameters."""
    if len(runs[0].phases) == 1:
        return Optimizer(layouts, weights, runs)
    return SwitchingOptimizer(layouts, weights, runs)


class Optimizer:
    """Steps the stacks of a pack with one optimizer."""

    def __init__(self, layouts: Sequence[Stack], weights: Sequence[Tensor], runs: Sequence[RunConfig]) -> None:
        self.layouts, self.weights = tuple(layouts), list(weights)
        (_, first), *more = runs[0].phases
        assert not more, "an optimizer that is switched has phases, and each of them an Optimizer"
        self.rules = [update_rule(first.optimizer, stack.role) for stack in layouts]  # type: ignore[arg-type]
        self.states: list[State] = [
            rule.init(weight.detach()) for rule, weight in zip(self.rules, weights, strict=True)
        ]
        self.parts = [_parts(weight) for weight in weights]
        self.step_count = 0
        self.births = [0] * len(self.states)  # the step count at which each state began
        scales = [[scale_role(run, stack.role) for run in runs] for stack in layouts]
        stacks = list(zip(weights, scales, strict=True))
        self.peak_lrs = [_per_member([s.effective_lr for s in scale], w) for w, scale in stacks]
        self.weight_decays = [_per_member([s.effective_weight_decay for s in scale], w) for w, scale in stacks]
        self.coefficients = [
            Coefficients(
                beta1=_per_member([run.hparams.beta1 for run in runs], w),
                beta2=_per_member([run.hparams.beta2 for run in runs], w),
                eps=_per_member([s.effective_eps for s in scale], w),
                momentum=_per_member([run.hparams.momentum for run in runs], w),
                orthogonal_frac=_per_member([run.hparams.orthogonal_frac for run in runs], w),
                sign_lr_ratio=_per_member([s.effective_sign_lr_ratio for s in scale], w),
            )
            for w, scale in stacks
        ]
        clips = [torch.inf if run.hparams.clip_norm is None else run.hparams.clip_norm for run in runs]
        self.clip_norms = weights[0].new_tensor(clips)  # (members,)
        self.clips = any(run.hparams.clip_norm is not None for run in runs)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], schedule_factors: Tensor, observe: Observe | None = None) -> None:
        """See `Stepper`."""
        self.step_count += 1
        if self.clips:
            clip = clip_factors(gradients, self.clip_norms)
            gradients = [gradient * _broadcast(clip, gradient) for gradient in gradients]
        for i, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            lr = self.peak_lrs[i] * _broadcast(schedule_factors, weight)
            for layers in self.parts[i]:
                update = self._update(i, layers, gradient[:, layers], lr)
                if observe is not None:
                    observe(update)
                weight[:, layers].mul_(1 - lr * self.weight_decays[i]).sub_(update.direction.mul_(lr))

    def _update(self, i: int, layers: slice, gradient: Tensor, lr: Tensor) -> Update:
        """Advance the state of some layers of a stack, and say how they move."""
        rule, coefficients, stack = self.rules[i], self.coefficients[i], self.layouts[i]
        state = {name: tensor[:, layers] for name, tensor in self.states[i].items()}
        return Update(
            stack=replace(stack, names=stack.names[layers]),
            rule=rule,
            state=state,
            coefficients=coefficients,
            gradient=gradient,
            direction=rule.direction(gradient, state, coefficients, self.step_count - self.births[i]),
            lr=lr,
        )

    def keep(self, members: Sequence[int], weights: Sequence[Tensor]) -> None:
        """See `Stepper`."""
        index = list(members)
        self.weights = list(weights)
        self.parts = [_parts(weight) for weight in weights]
        self.states = [{key: tensor[index] for key, tensor in state.items()} for state in self.states]
        self.peak_lrs = [lr[index] for lr in self.peak_lrs]
        self.weight_decays = [decay[index] for decay in self.weight_decays]
        self.coefficients = [
            Coefficients(**{field.name: getattr(c, field.name)[index] for field in fields(c)})
            for c in self.coefficients
        ]
        self.clip_norms = self.clip_norms[index]

    def state(self, member: int) -> OptimizerState:
        """See `Stepper`."""
        tensors: dict[str, dict[str, Tensor]] = {}
        births: dict[str, int] = {}
        for stack, state, birth in zip(self.layouts, self.states, self.births, strict=True):
            for layer, name in enumerate(stack.names):
                tensors[name] = {key: tensor[member, layer].cpu().clone() for key, tensor in state.items()}
                births[name] = birth
        return OptimizerState(tensors=tensors, births=births)

    @torch.no_grad()
    def load(self, states: Sequence[OptimizerState], step_count: int) -> None:
        """See `Stepper`."""
        self.step_count = step_count
        for i, stack in enumerate(self.layouts):
            (self.births[i],) = {state.births[name] for state in states for name in stack.names}
            for key, tensor in self.states[i].items():
                for member, state in enumerate(states):
                    for layer, name in enumerate(stack.names):
                        tensor[member, layer] = state.tensors[name][key].to(tensor.device)

    def take_over(self, before: "Optimizer", *, keep_states: bool) -> None:
        """Go on where another optimizer of the same stacks stopped.

        A state is carried over where the other has every tensor that it needs, in the same shape.
        """
        self.step_count = before.step_count
        self.births = [before.step_count] * len(self.states)
        for i, (state, old) in enumerate(zip(self.states, before.states, strict=True)):
            if keep_states and state and all(key in old and old[key].shape == t.shape for key, t in state.items()):
                self.states[i] = {key: old[key] for key in state}
                self.births[i] = before.births[i]


class SwitchingOptimizer:
    """One optimizer up to a step, then another on the same weights; or the same with other coefficients."""

    def __init__(self, layouts: Sequence[Stack], weights: Sequence[Tensor], runs: Sequence[RunConfig]) -> None:
        phases = [run.phases for run in runs]
        switches = {start for _, (start, _) in phases}
        assert len(switches) == 1, f"members of a pack must switch at one step, got {sorted(switches)}"
        self.switch_step = switches.pop()
        switch = runs[0].optimizer
        self.keep_states = not isinstance(switch, Switch) or switch.states == "keep"
        self.current, self.next = (Optimizer(layouts, weights, [phase[i][1] for phase in phases]) for i in range(2))

    @property
    def phase(self) -> int:
        """Index of the optimizer that steps now."""
        return int(self.current is self.next)

    @property
    def step_count(self) -> int:
        return self.current.step_count

    def step(self, gradients: Sequence[Tensor], schedule_factors: Tensor, observe: Observe | None = None) -> None:
        """See `Stepper`."""
        if self.phase == 0 and self.current.step_count == self.switch_step:
            self.next.take_over(self.current, keep_states=self.keep_states)
            self.current = self.next
        self.current.step(gradients, schedule_factors, observe)

    def keep(self, members: Sequence[int], weights: Sequence[Tensor]) -> None:
        """See `Stepper`."""
        for optimizer in {id(phase): phase for phase in (self.current, self.next)}.values():
            optimizer.keep(members, weights)

    def state(self, member: int) -> OptimizerState:
        """See `Stepper`."""
        return replace(self.current.state(member), phase=self.phase)

    def load(self, states: Sequence[OptimizerState], step_count: int) -> None:
        """See `Stepper`."""
        (phase,) = {state.phase for state in states}
        if phase == 1:
            self.current = self.next
        self.current.load(states, step_count)


def clip_factors(gradients: Sequence[Tensor], clip_norms: Tensor) -> Tensor:
    """Per member, what brings its global gradient norm down to clip_norm; 1 where it is below. (members,)"""
    squares = sum(gradient.square().flatten(1).sum(1) for gradient in gradients)
    assert isinstance(squares, Tensor)
    return (clip_norms / (squares.sqrt() + _CLIP_TINY)).clamp(max=1.0)


def _parts(weight: Tensor) -> tuple[slice, ...]:
    """Layers of a stack that are updated together: all of them, but on a CPU as many as stay in a core's cache."""
    layers = weight.shape[1]
    most = max(1, _CACHE_FLOATS * layers // weight.numel()) if weight.device.type == "cpu" else layers
    return tuple(slice(start, min(start + most, layers)) for start in range(0, layers, most))


def _broadcast(per_member: Tensor, like: Tensor) -> Tensor:
    return per_member.reshape(-1, *[1] * (like.ndim - 1))


def _per_member(values: Sequence[float], like: Tensor) -> Tensor:
    return _broadcast(like.new_tensor(values), like)
