"""How an optimizer turns a stacked gradient into an update direction.

Tensors are (members, layers, fan_out, fan_in) or (members, layers, size). A rule is a record of its settings;
its state is a dict of tensors of its own, so that a state can be counted, saved and stacked. No operation
ever mixes members.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proxy_models.optimizer_config import MomentumForm

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """Per-member numbers, shaped (members, 1, ...) to broadcast over a stack."""

    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    momentum: Tensor
    orthogonal_frac: Tensor
    sign_lr_ratio: Tensor


class UpdateRule(Protocol):
    """`direction` is subtracted from the weight, times the effective learning rate."""

    def init(self, weight: Tensor) -> State: ...

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        """Advance `state` in place and return the direction, a tensor of its own. `step` counts from 1."""
        ...


class Transform(Protocol):
    """What a (possibly averaged) gradient becomes. Returns a new tensor and leaves `x` as it was."""

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Adam:
    """Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1, with torch's placement of eps."""

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight), "square": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        mean, square = state["momentum"], state["square"]
        mean.lerp_(gradient, 1 - c.beta1)
        square.lerp_(gradient.square(), 1 - c.beta2)
        denominator = square.div(1 - c.beta2**step).sqrt_().add_(c.eps)
        return torch.div(mean, denominator, out=denominator).div_(1 - c.beta1**step)


@dataclass(frozen=True, slots=True)
class Memoryless:
    """A transform of the gradient itself."""

    transform: Transform

    def init(self, weight: Tensor) -> State:
        return {}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        return self.transform(gradient, c)


@dataclass(frozen=True, kw_only=True, slots=True)
class Averaged:
    """A transform of averaged gradients: an exponential average, or `additive`, M <- momentum*M + G.

    No bias correction. With Nesterov's step the average looks one step ahead, as in torch.optim.SGD and Muon.
    """

    transform: Transform
    nesterov: bool = False
    form: MomentumForm = "ema"

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        momentum = state["momentum"]
        if self.form == "additive":
            momentum.mul_(c.momentum).add_(gradient)
        else:
            momentum.lerp_(gradient, 1 - c.momentum)
        return self.transform(self.averaged(gradient, state, c), c)

    def averaged(self, gradient: Tensor, state: State, c: Coefficients) -> Tensor:
        """What is transformed, once `state` has seen `gradient`."""
        momentum = state["momentum"]
        if not self.nesterov:
            return momentum
        return gradient + c.momentum * momentum if self.form == "additive" else gradient.lerp(momentum, c.momentum)


def plain(x: Tensor, c: Coefficients) -> Tensor:
    """The gradient as it is."""
    return x.clone()


def sign(x: Tensor, c: Coefficients) -> Tensor:
    """-1, 0 or 1; NaN where x is not finite. torch's sign of NaN is 0, which would hide that a run has diverged."""
    return x.sign().where(x.isfinite(), torch.nan)
