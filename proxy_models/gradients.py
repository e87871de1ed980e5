"""Losses and gradients of a pack's members from their stacked weights, in any numerics mode.

A model is written for one run and knows of no members: `loop` gives it one member's parameters, `stacked` maps it
over all of them with `torch.func.vmap`. No operation mixes members: a loss that is not finite stays where it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from proxy_models.config import ModelConfig, RunConfig
from proxy_models.mode import Mode
from proxy_models.parametrization import ForwardMultipliers, forward_multipliers
from proxy_models.stacks import Stack, by_name, layout, make_model, parameters_of
from proxy_models.transformer import Tap, Transformer

# (windows (M, B, T + 1), weights, each (M, layers, *shape)) -> (mean loss of each member (M,), gradients as weights)
Gradients = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]
# torch.compile keeps a few variants of one code object and then gives up on it; every program is one more of ours.
_MOST_VARIANTS = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Program:
    """What all packs of one model in one mode share: the module, which holds no weights, and its gradients."""

    model: Transformer
    layouts: tuple[Stack, ...]
    mode: Mode
    gradients: Gradients

    def forward(self, tokens: Tensor, weights: Sequence[Tensor], tap: Tap | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T) by the weights of the first member; `tap` sees every named activation."""
        parameters = parameters_of(self.layouts, weights, 0)
        return functional_call(self.model, parameters, (tokens,) if tap is None else (tokens, tap))

    def losses(self, windows: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Mean loss of each sequence of windows (B, T + 1), which all members see: (M, B)."""
        with _arithmetic(self.mode):
            if self.mode.executor == "loop":
                return _sequence_losses(self.model, self.layouts, [weight[0] for weight in weights], windows)[None]
            return vmap(lambda *member: _sequence_losses(self.model, self.layouts, member, windows))(*weights)


def program(run: RunConfig, mode: Mode) -> Program:
    """The program of a run's model. Each is made once a process, and so compiled once for each batch and pack size."""
    return _program(run.model, forward_multipliers(run), mode)


@lru_cache(maxsize=_MOST_VARIANTS)
def _program(config: ModelConfig, multipliers: ForwardMultipliers, mode: Mode) -> Program:
    model = make_model(config, multipliers).to(mode.device)
    layouts = layout(model)
    if mode.compiled:
        gradients = _compiled_gradients(model, layouts, mode)
    else:
        gradients = _loop_gradients(model, layouts, mode) if mode.executor == "loop" else _stacked(model, layouts, mode)
    return Program(model=model, layouts=layouts, mode=mode, gradients=gradients)


def _loop_gradients(model: Transformer, layouts: Sequence[Stack], mode: Mode) -> Gradients:
    def gradients(windows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        with _arithmetic(mode):
            loss = _sequence_losses(model, layouts, [weight[0] for weight in weights], windows[0]).mean()
        return loss.detach()[None], torch.autograd.grad(loss, list(weights))

    return gradients


def _stacked(model: Transformer, layouts: Sequence[Stack], mode: Mode) -> Gradients:
    def gradients(windows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        with _arithmetic(mode):
            losses = vmap(lambda x, *member: _sequence_losses(model, layouts, member, x).mean())(windows, *weights)
        # The sum's gradient is 1 for every member, so that of a member is its own loss's.
        return losses.detach(), torch.autograd.grad(losses.sum(), list(weights))

    return gradients


def _compiled_gradients(model: Transformer, layouts: Sequence[Stack], mode: Mode) -> Gradients:
    def loss(member: Sequence[Tensor], windows: Tensor) -> Tensor:
        return _sequence_losses(model, layouts, member, windows).mean()

    def all_members(weights: Sequence[Tensor], windows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        if mode.executor == "stacked":
            return vmap(grad_and_value(loss))(weights, windows)
        gradients, value = grad_and_value(loss)([weight[0] for weight in weights], windows[0])
        return [gradient[None] for gradient in gradients], value[None]

    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    torch._dynamo.config.recompile_limit = _MOST_VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = _MOST_VARIANTS
    options = {"triton.cudagraphs": True} if mode.device == "cuda" else None
    compiled = torch.compile(all_members, dynamic=False, fullgraph=True, options=options)

    def gradients(windows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        if mode.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        with _arithmetic(mode):
            found, losses = compiled([weight.detach() for weight in weights], windows)
        # What a CUDA graph returns is written over by its next run.
        return losses.clone(), found

    return gradients


def _sequence_losses(
    model: Transformer, layouts: Sequence[Stack], weights: Sequence[Tensor], windows: Tensor
) -> Tensor:
    """Mean loss of each sequence, (B,), by one member's weights, each (layers, *shape)."""
    logits = functional_call(model, by_name(layouts, weights), (windows[:, :-1],))  # (B, T, V)
    targets = windows[:, 1:]  # (B, T)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.unflatten(0, targets.shape).mean(1)


@contextmanager
def _arithmetic(mode: Mode) -> Iterator[None]:
    """The dtype of matrix products, and an attention kernel that can be mapped over members."""
    with ExitStack() as stack:
        if mode.dtype == "bfloat16":
            stack.enter_context(torch.autocast(mode.device, torch.bfloat16, cache_enabled=False))
        if mode.executor == "stacked" and mode.device == "cpu":
            # A CPU's fused kernel has no batching rule: vmap would call it once a member, and say so each time.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
