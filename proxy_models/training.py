"""The weights and the optimizer of a pack's members, advanced a step at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from proxy_models.config import RunConfig
from proxy_models.data import TokenData, batch, validation_windows
from proxy_models.gradients import program
from proxy_models.member_state import MemberState
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizers import Observe, make_optimizer
from proxy_models.schedule import schedule_factor
from proxy_models.stacks import by_name, initialize
from proxy_models.transformer import Tap

_VALIDATION_BATCH = 32  # sequences
_MICRO_BATCHES = 8  # at most, of the gradient noise's measurement: each costs a backward pass of its own


class Training:
    """Runs of one shape: one member in a `loop`, any number `stacked`. Bitwise reproducible on one machine."""

    def __init__(self, runs: Sequence[RunConfig], data: TokenData, mode: Mode = EAGER_LOOP) -> None:
        assert len(runs) == 1 or mode.executor == "stacked", f"a loop has one member at a time, got {len(runs)}"
        self.runs, self.data, self.mode = tuple(runs), data, mode
        self.program = program(self.runs[0], mode)
        self.model, self.layouts = self.program.model, self.program.layouts
        self.weights = [initialize(stack, runs).to(mode.device).requires_grad_() for stack in self.layouts]
        self.optimizer = make_optimizer(self.layouts, self.weights, runs)

    @property
    def step_count(self) -> int:
        """Updates done, by all members."""
        return self.optimizer.step_count

    def step(self, observe: Observe | None = None) -> Tensor:
        """One update, which `observe` sees for each stack; returns the losses before it, (M,), in nats per token."""
        step = self.step_count
        losses, gradients = self.gradients(self.windows(step), self.weights)
        factors = [schedule_factor(run, step) for run in self.runs]
        self.optimizer.step(gradients, torch.tensor(factors, device=self.mode.device), observe)
        return losses

    def gradients(self, windows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Mean losses (M,) of some windows (M, B, T + 1), and their gradients, by any weights that require them."""
        return self.program.gradients(windows, weights)

    def windows(self, step: int) -> Tensor:
        """The step's training windows of each member, (M, B, T + 1). Members of one seed see the same."""
        seeds = list(dict.fromkeys(run.seed for run in self.runs))
        batch_tokens, seq_len = self.runs[0].batch_tokens_of(step), self.runs[0].model.seq_len
        distinct = [
            torch.from_numpy(batch(self.data, seed=seed, step=step, batch_tokens=batch_tokens, seq_len=seq_len))
            for seed in seeds
        ]
        stacked = torch.stack(distinct).to(self.mode.device)
        return stacked[[seeds.index(run.seed) for run in self.runs]] if len(self.runs) > 1 else stacked

    def gradient_noise(self) -> dict[str, list[float]]:
        """What the gradient noise scale is estimated from, of the next step's batch, one value a member.

        `gradient_sq_micro`, the mean over micro-batches of the squared norm of their gradient; `gradient_sq_batch`,
        the squared norm of the mean of these gradients; `micro_tokens` and `batch_tokens`. All parameters, before
        clipping. Nothing where a batch is one sequence. McCandlish et al., arXiv:1812.06162, appendix A.1, whose two
        batches are here of one step, so that no parameter moves between them.
        """
        windows = self.windows(self.step_count)
        sequences, members, seq_len = windows.shape[1], len(self.runs), self.runs[0].model.seq_len
        parts = max(n for n in range(1, _MICRO_BATCHES + 1) if sequences % n == 0)
        if parts == 1:
            return {}
        # A compiled program would be compiled anew for this size of batch.
        eager = program(self.runs[0], replace(self.mode, compiled=False))
        means = [torch.zeros_like(weight) for weight in self.weights]
        micro = torch.zeros(members, device=self.mode.device)
        for part in windows.split(sequences // parts, dim=1):
            _, gradients = eager.gradients(part, self.weights)
            micro += _squared_norms(gradients) / parts
            for mean, gradient in zip(means, gradients, strict=True):
                mean += gradient / parts
        batch_tokens = float(sequences * seq_len)
        return {
            "gradient_sq_micro": micro.tolist(),
            "gradient_sq_batch": _squared_norms(means).tolist(),
            "micro_tokens": [batch_tokens / parts] * members,
            "batch_tokens": [batch_tokens] * members,
        }

    def forward(self, tokens: Tensor, tap: Tap | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T) by the first member; `tap` sees every named activation."""
        return self.program.forward(tokens, self.weights, tap)

    @torch.no_grad()
    def validate(self) -> list[tuple[float, float]]:
        """Mean held-out loss and its standard error over sequences, of each member."""
        run = self.runs[0]
        windows = torch.from_numpy(
            validation_windows(self.data, validation_tokens=run.validation_tokens, seq_len=run.model.seq_len)
        ).to(self.mode.device)
        parts = [self.program.losses(part, self.weights) for part in windows.split(_VALIDATION_BATCH)]
        losses = torch.cat(parts, dim=1).double()  # (M, sequences)
        errors = losses.std(dim=1) / math.sqrt(losses.shape[1])
        return list(zip(losses.mean(dim=1).tolist(), errors.tolist(), strict=True))

    def keep(self, members: Sequence[int]) -> None:
        """Go on with some of the members alone, in this order."""
        self.runs = tuple(self.runs[member] for member in members)
        self.weights = [weight.detach()[list(members)].requires_grad_() for weight in self.weights]
        self.optimizer.keep(members, self.weights)

    def weights_of(self, member: int) -> dict[str, Tensor]:
        """A copy of one member's weights by parameter, on the CPU."""
        return by_name(self.layouts, [weight.detach()[member].cpu().clone() for weight in self.weights])

    @torch.no_grad()
    def load(self, states: Sequence[MemberState]) -> None:
        """Put every member where it was in a run of its own, or of its trunk; all of them at one step."""
        for member, state in enumerate(states):
            self._fill(member, state.weights)
        self.optimizer.load([state.optimizer_state for state in states], states[0].step)

    def _fill(self, member: int, weights: Mapping[str, Tensor]) -> None:
        for stack, weight in zip(self.layouts, self.weights, strict=True):
            weight[member] = torch.stack([weights[name] for name in stack.names]).to(weight.device)


def _squared_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Over all parameters, (M,)."""
    return torch.stack([gradient.square().flatten(1).sum(1) for gradient in gradients]).sum(0)
