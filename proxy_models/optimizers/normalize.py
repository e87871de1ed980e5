"""Transforms that divide parts of a gradient by their size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.optimizer_config import UnitNorm
from proxy_models.optimizers.rules import Coefficients

_TINY = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitNormalize:
    """Each unit over its RMS or its L2 norm along `axis`; a unit of zeros stays zero.

    For a matrix (fan_out, fan_in) and axis -1 a unit is what enters an output, for -2 what leaves an input; for
    an embedding table (vocab, width), whose inputs are its rows, the other way round.
    """

    unit_norm: UnitNorm
    axis: int

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        squares = x.square()
        size = (
            squares.mean(self.axis, keepdim=True) if self.unit_norm == "rms" else squares.sum(self.axis, keepdim=True)
        )
        return x / size.sqrt_().clamp_(min=_TINY)


def frobenius_unit(x: Tensor) -> Tensor:
    """Each matrix over its Frobenius norm; a zero matrix stays zero."""
    return x / torch.linalg.matrix_norm(x, keepdim=True).clamp_(min=_TINY)
