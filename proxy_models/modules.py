"""Building blocks whose parameters carry a Role. A model made of these can be scaled by the table of rules.

A module holds at most one parameter of its own, named `weight`, and says what it is in `role`. Nothing ever
looks at a parameter's name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxy_models.roles import Role

RMS_EPS = 1e-6


class Matrix(nn.Module):
    """y = multiplier * W x with W (fan_out, fan_in), no bias."""

    def __init__(self, fan_in: int, fan_out: int, *, role: Role, multiplier: float = 1.0) -> None:
        super().__init__()
        self.role, self.multiplier = role, multiplier
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))

    def forward(self, x: Tensor) -> Tensor:
        # On the input, the smaller side of a readout.
        return F.linear(x if self.multiplier == 1.0 else x * self.multiplier, self.weight)


class TokenEmbedding(nn.Module):
    """Rows of a (vocab, width) table, times the forward multiplier."""

    role = Role.EMBEDDING

    def __init__(self, vocab_size: int, width: int, *, multiplier: float = 1.0) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.weight)
        return x if self.multiplier == 1.0 else x * self.multiplier


class RMSNorm(nn.Module):
    """x / RMS(x) * gain over the last axis; the gain starts at 1."""

    role = Role.VECTOR

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), RMS_EPS)


def add_branch(x: Tensor, branch: Tensor, multiplier: float) -> Tensor:
    """x + multiplier * branch, and at 1 the plain sum, to the bit."""
    return x + (branch if multiplier == 1.0 else branch * multiplier)


def roles(model: nn.Module) -> dict[str, Role]:
    """Role of every parameter by its full name.

    Raises:
        TypeError: a parameter whose module does not say its role; unscaled, it would spoil transfer silently.
    """
    found: dict[str, Role] = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            role = getattr(module, "role", None)
            if not isinstance(role, Role):
                raise TypeError(f"parameter {prefix}.{name} of {type(module).__name__} has no Role")
            found[f"{prefix}.{name}"] = role
    return found
