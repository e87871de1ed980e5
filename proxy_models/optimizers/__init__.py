"""Optimizers for stacked tensors: one table of update rules, one step that applies them.

Clipping, decoupled weight decay and the schedule are the same for every optimizer, so they stand here once;
a rule gives only the direction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from proxy_models.config import RunConfig
from proxy_models.optimizer_config import SGD, AdamW, Muon, OptimizerConfig, Scale, SignSGD
from proxy_models.optimizers.rules import (
    Adam,
    Coefficients,
    Momentum,
    OrthogonalMomentum,
    SignMomentum,
    State,
    UnitNormalized,
    UnitNormalizedMomentum,
    UpdateRule,
)
from proxy_models.parametrization import Role, scale_role
from proxy_models.stacks import Stack

_CLIP_TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_


def update_rule(optimizer: OptimizerConfig, role: Role) -> UpdateRule:
    """Which rule an optimizer uses for a role."""
    match optimizer:
        case AdamW():
            return Adam()
        case Muon():
            return OrthogonalMomentum(optimizer) if role is Role.HIDDEN else Adam()
        case Scale(unit_norm=unit_norm):
            return {
                Role.EMBEDDING: UnitNormalized(unit_norm, input_axis=-2),
                Role.HIDDEN: UnitNormalized(unit_norm, input_axis=-1),
                Role.READOUT: UnitNormalizedMomentum(unit_norm),
                Role.VECTOR: Adam(),
            }[role]
        case SGD(nesterov=nesterov):
            return Momentum(nesterov)
        case SignSGD():
            return SignMomentum()


class Optimizer:
    """Steps the stacks of a pack whose members share one optimizer config and differ in hyperparameters."""

    def __init__(self, layouts: Sequence[Stack], weights: Sequence[Tensor], runs: Sequence[RunConfig]) -> None:
        self.weights = list(weights)
        self.rules = [update_rule(runs[0].optimizer, stack.role) for stack in layouts]
        self.states: list[State] = [
            rule.init(weight.detach()) for rule, weight in zip(self.rules, weights, strict=True)
        ]
        self.step_count = 0
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
            )
            for w, scale in stacks
        ]
        clips = [torch.inf if run.hparams.clip_norm is None else run.hparams.clip_norm for run in runs]
        self.clip_norms = weights[0].new_tensor(clips)  # (members,)
        self.clips = any(run.hparams.clip_norm is not None for run in runs)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], schedule_factors: Tensor) -> None:
        """One update in place. `schedule_factors` (members,) multiplies each group's own peak."""
        self.step_count += 1
        if self.clips:
            clip = clip_factors(gradients, self.clip_norms)
            gradients = [gradient * _broadcast(clip, gradient) for gradient in gradients]
        for i, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            direction = self.rules[i].direction(gradient, self.states[i], self.coefficients[i], self.step_count)
            lr = self.peak_lrs[i] * _broadcast(schedule_factors, weight)
            weight.mul_(1 - lr * self.weight_decays[i]).sub_(direction.mul_(lr))


def clip_factors(gradients: Sequence[Tensor], clip_norms: Tensor) -> Tensor:
    """Per member, what brings its global gradient norm down to clip_norm; 1 where it is below. (members,)"""
    squares = sum(gradient.square().flatten(1).sum(1) for gradient in gradients)
    assert isinstance(squares, Tensor)
    return (clip_norms / (squares.sqrt() + _CLIP_TINY)).clamp(max=1.0)


def _broadcast(per_member: Tensor, like: Tensor) -> Tensor:
    return per_member.reshape(-1, *[1] * (like.ndim - 1))


def _per_member(values: Sequence[float], like: Tensor) -> Tensor:
    return _broadcast(like.new_tensor(values), like)
