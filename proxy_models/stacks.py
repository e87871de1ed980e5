"""Parameters of one role and shape, over members and layers, as one tensor.

A stack is (members, layers, *shape): members are runs of a pack, layers the parameters that share role and
shape. Optimizers see a handful of large tensors where a loop over parameters would see dozens of small ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proxy_models.config import ModelConfig, RunConfig
from proxy_models.modules import roles
from proxy_models.parametrization import ForwardMultipliers, forward_multipliers, init_std_of
from proxy_models.roles import Role
from proxy_models.transformer import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Which parameters one stacked tensor holds, in order."""

    role: Role
    shape: tuple[int, ...]  # of one parameter: (fan_out, fan_in), (vocab, width) or (size,)
    names: tuple[str, ...]


def build_model(run: RunConfig) -> Transformer:
    """The module of a run, on the meta device: its weights live in stacks."""
    return make_model(run.model, forward_multipliers(run))


def make_model(config: ModelConfig, multipliers: ForwardMultipliers) -> Transformer:
    """The module of all runs with this model and these forward multipliers."""
    return Transformer(config, multipliers)


def layout(model: nn.Module) -> tuple[Stack, ...]:
    """Group a model's parameters by (role, shape), in order of first appearance."""
    groups: dict[tuple[Role, tuple[int, ...]], list[str]] = {}
    role_of = roles(model)
    for name, parameter in model.named_parameters():
        groups.setdefault((role_of[name], tuple(parameter.shape)), []).append(name)
    return tuple(Stack(role=role, shape=shape, names=tuple(names)) for (role, shape), names in groups.items())


def initialize(stack: Stack, runs: Sequence[RunConfig]) -> Tensor:
    """Initial weights, (members, layers, *shape), float32, on the CPU.

    Each parameter draws from its own generator, seeded by (seed, name), so that adding a layer or a member
    leaves the others' weights as they were.
    """
    weights = torch.ones(len(runs), len(stack.names), *stack.shape)
    if stack.role is not Role.VECTOR:
        for member, run in enumerate(runs):
            std = init_std_of(run, stack.role, fan_in=stack.shape[-1])
            for layer, name in enumerate(stack.names):
                weights[member, layer] = std * torch.randn(stack.shape, generator=_generator(run.seed, name))
    return weights


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def parameters_of(layouts: Sequence[Stack], weights: Sequence[Tensor], member: int) -> dict[str, Tensor]:
    """One member's parameters by name, as views that carry gradients back to the stacks."""
    return by_name(layouts, [weight[member] for weight in weights])


def by_name(layouts: Sequence[Stack], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """One member's tensors, (layers, ...) for each stack, taken apart by the parameters' names."""
    return {
        name: tensor
        for stack, tensors_of_stack in zip(layouts, tensors, strict=True)
        for name, tensor in zip(stack.names, tensors_of_stack.unbind(0), strict=True)
    }
