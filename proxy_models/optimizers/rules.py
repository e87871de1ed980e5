"""How each optimizer turns a stacked gradient into an update direction.

Tensors are (members, layers, fan_out, fan_in) or (members, layers, size). A rule is a record of its settings;
its state is a dict of tensors of its own, so that a state can be counted, saved and stacked. No operation
ever mixes members.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proxy_models.optimizer_config import Muon, ShapeFactor, UnitNorm
from proxy_models.optimizers.orthogonalize import orthogonalize

State = dict[str, Tensor]
_TINY = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """Per-member numbers, shaped (members, 1, ...) to broadcast over a stack."""

    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    momentum: Tensor


class UpdateRule(Protocol):
    """`direction` is subtracted from the weight, times the effective learning rate."""

    def init(self, weight: Tensor) -> State: ...

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        """Advance `state` in place and return the direction. `step` counts from 1."""
        ...


@dataclass(frozen=True, slots=True)
class Adam:
    """Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1, with torch's placement of eps."""

    def init(self, weight: Tensor) -> State:
        return {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        mean, square = state["mean"], state["square"]
        mean.lerp_(gradient, 1 - c.beta1)
        square.lerp_(gradient.square(), 1 - c.beta2)
        denominator = square.div(1 - c.beta2**step).sqrt_().add_(c.eps)
        return torch.div(mean, denominator, out=denominator).div_(1 - c.beta1**step)


@dataclass(frozen=True, slots=True)
class OrthogonalMomentum:
    """Muon's update (Jordan et al. 2024): orthogonalized momentum times the shape factor."""

    config: Muon

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - c.momentum)
        config = self.config
        ahead = gradient.lerp(momentum, c.momentum) if config.nesterov else momentum
        polar = orthogonalize(ahead, schedule=config.ns_schedule, n_steps=config.ns_steps, dtype=config.ns_dtype)
        return polar.mul_(shape_factor(config.shape_factor, *gradient.shape[-2:]))


def shape_factor(kind: ShapeFactor, fan_out: int, fan_in: int) -> float:
    """What multiplies an orthogonalized (fan_out, fan_in) update."""
    return {
        "spectral": (fan_out / fan_in) ** 0.5,
        "max1": max(1.0, fan_out / fan_in) ** 0.5,
        "rms_match": 0.2 * max(fan_out, fan_in) ** 0.5,
    }[kind]


@dataclass(frozen=True, slots=True)
class UnitNormalized:
    """SCALE's update without momentum: each output unit's gradient divided by its size over the inputs.

    `input_axis` is the axis of the inputs of a unit: -1 for a matrix (fan_out, fan_in); -2 for an embedding
    table (vocab, width), whose output units are its columns.
    """

    unit_norm: UnitNorm
    input_axis: int

    def init(self, weight: Tensor) -> State:
        return {}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        return normalize_units(gradient, self.unit_norm, self.input_axis)


@dataclass(frozen=True, slots=True)
class UnitNormalizedMomentum:
    """SCALE's update of the readout: the same, of an exponential average of gradients (no bias correction)."""

    unit_norm: UnitNorm

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        return normalize_units(state["momentum"].lerp_(gradient, 1 - c.momentum), self.unit_norm, -1)


def normalize_units(x: Tensor, unit_norm: UnitNorm, input_axis: int) -> Tensor:
    """Each unit over its RMS or its L2 norm; a unit of zeros stays zero."""
    squares = x.square()
    size = squares.mean(input_axis, keepdim=True) if unit_norm == "rms" else squares.sum(input_axis, keepdim=True)
    return x / size.sqrt_().clamp_(min=_TINY)


@dataclass(frozen=True, slots=True)
class Momentum:
    """Heavy-ball momentum, as torch.optim.SGD without dampening."""

    nesterov: bool

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        momentum = state["momentum"].mul_(c.momentum).add_(gradient)
        return gradient + c.momentum * momentum if self.nesterov else momentum.clone()


@dataclass(frozen=True, slots=True)
class SignMomentum:
    """The sign of an exponential average of gradients."""

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        momentum = state["momentum"].lerp_(gradient, 1 - c.momentum)
        # torch's sign of NaN is 0, which would hide that a run has diverged.
        return momentum.sign().where(momentum.isfinite(), torch.nan)
