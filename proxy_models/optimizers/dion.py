"""Dion: low-rank orthogonalized momentum with error feedback (Ahn et al., arXiv:2504.05295)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.optimizer_config import Dion
from proxy_models.optimizers.orthogonalize import shape_factor
from proxy_models.optimizers.rules import Coefficients, State

_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class LowRankPolar:
    """One power iteration a step, warm from the last. `basis` is Q, (fan_in, k), columns of norm 1.

    The first basis is random, the same for every member, so that a member does not depend on its pack.
    """

    config: Dion

    def init(self, weight: Tensor) -> State:
        members, layers, fan_out, fan_in = weight.shape
        k = self.config.rank_of(min(fan_out, fan_in))
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(1, layers, fan_in, k, generator=generator, dtype=torch.float64).to(weight)
        return {"momentum": torch.zeros_like(weight), "basis": _unit_columns(basis).repeat(members, 1, 1, 1)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        momentum, basis = state["momentum"], state["basis"]
        momentum.add_(gradient)
        left = torch.linalg.qr(momentum @ basis).Q  # P (fan_out, k)
        right = momentum.mT @ left  # R (fan_in, k)
        momentum.sub_((1 - c.momentum) * (left @ right.mT))
        # A zero column (no gradient yet) keeps its direction.
        basis.copy_(torch.where(right.abs().amax(-2, keepdim=True) == 0, basis, _unit_columns(right)))
        return (left @ basis.mT).mul_(shape_factor("spectral", *gradient.shape[-2:]))


def _unit_columns(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-2, keepdim=True).clamp_(min=_TINY)
