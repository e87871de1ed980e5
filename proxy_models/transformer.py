"""A decoder-only transformer: RMSNorm before each branch, rotary positions, causal attention, gated or ReLU^2 MLP.

Shapes: B batch, T tokens, D width, H heads, K head_dim, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxy_models.config import ModelConfig
from proxy_models.modules import Matrix, RMSNorm, TokenEmbedding, add_branch
from proxy_models.parametrization import ForwardMultipliers
from proxy_models.roles import Role

ROTARY_BASE = 10_000.0
Tap = Callable[[str, Tensor], None]


def _ignore(name: str, activation: Tensor) -> None:
    """The tap of a normal run."""


def rotary_table(seq_len: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position * ROTARY_BASE^(-2i/head_dim), each (T, K/2). Su et al., arXiv:2104.09864."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+K/2}) of (B, H, T, K) by their position's angle."""
    a, b = x.chunk(2, dim=-1)  # each (B, H, T, K/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal attention with logits attention_multiplier * q.k / head_dim (Yang et al., arXiv:2203.03466, Def. 4.1)."""

    def __init__(self, config: ModelConfig, multiplier: float) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.logit_scale = config.attention_multiplier / config.head_dim
        width = config.width
        self.query, self.key, self.value, self.out = (
            Matrix(width, width, role=Role.HIDDEN, multiplier=multiplier) for _ in range(4)
        )
        self.query_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, tap: Tap) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, K)
            for project in (self.query, self.key, self.value)
        )
        q = rotate(self.query_norm(q), cos, sin).to(v.dtype)  # the table is float32, also where products are not
        k = rotate(self.key_norm(k), cos, sin).to(v.dtype)
        if tap is not _ignore:
            tap("attention_logits", q @ k.mT * self.logit_scale)  # the fused kernel below never shows them
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.logit_scale)
        y = self.out(y.transpose(1, 2).flatten(-2))  # (B, T, D)
        tap("attention", y)
        return y


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202) or squared ReLU (So et al., arXiv:2109.08668)."""

    def __init__(self, config: ModelConfig, multiplier: float) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = Matrix(config.width, config.mlp_width, role=Role.HIDDEN, multiplier=multiplier)
        if self.gated:
            self.gate = Matrix(config.width, config.mlp_width, role=Role.HIDDEN, multiplier=multiplier)
        self.down = Matrix(config.mlp_width, config.width, role=Role.HIDDEN, multiplier=multiplier)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        up = self.up(x)  # (B, T, mlp_width)
        hidden = F.silu(self.gate(x)) * up if self.gated else F.relu(up).square()
        tap("mlp_hidden", hidden)
        y = self.down(hidden)  # (B, T, D)
        tap("mlp", y)
        return y


class Block(nn.Module):
    """x + residual * attention(norm(x)), then x + residual * mlp(norm(x)), with the residual multiplier."""

    def __init__(self, config: ModelConfig, multipliers: ForwardMultipliers) -> None:
        super().__init__()
        self.residual_multiplier = multipliers.residual
        self.attention_norm, self.mlp_norm = RMSNorm(config.width), RMSNorm(config.width)
        self.attention, self.mlp = Attention(config, multipliers.hidden), MLP(config, multipliers.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, tap: Tap) -> Tensor:
        x = add_branch(x, self.attention(self.attention_norm(x), cos, sin, tap), self.residual_multiplier)
        x = add_branch(x, self.mlp(self.mlp_norm(x), tap), self.residual_multiplier)
        tap("residual", x)
        return x


class Transformer(nn.Module):
    """Tokens (B, T) to logits (B, T, V). Weights are left uninitialized: `stacks.initialize` fills them by role."""

    def __init__(self, config: ModelConfig, multipliers: ForwardMultipliers) -> None:
        super().__init__()
        self.readout_multiplier = multipliers.readout
        self.embedding = TokenEmbedding(config.vocab_size, config.width, multiplier=multipliers.embedding)
        self.blocks = nn.ModuleList(Block(config, multipliers) for _ in range(config.depth))
        self.final_norm = RMSNorm(config.width)
        # Tied: one matrix under the input rule; the readout's forward multiplier still acts on the logits.
        self.readout = (
            None
            if config.tied_embeddings
            else Matrix(config.width, config.vocab_size, role=Role.READOUT, multiplier=self.readout_multiplier)
        )
        cos, sin = rotary_table(config.seq_len, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def places(self) -> dict[str, tuple[int, str]]:
        """Depth and kind of every matrix in a block by its parameter's name: `attention.query` in block 0."""
        return {
            f"{prefix}{name}.weight": (depth, name)
            for depth, block in enumerate(self.blocks)
            for prefix in [f"blocks.{depth}."]
            for name, module in block.named_modules()
            if isinstance(module, Matrix)
        }

    def forward(self, tokens: Tensor, tap: Tap = _ignore) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)  # (B, T, D)
        tap("embedding", x)
        for depth, block in enumerate(self.blocks):
            x = block(x, cos, sin, _prefixed(tap, f"block{depth}."))
        x = self.final_norm(x)
        if self.readout is None:
            logits = F.linear(x * self.readout_multiplier, self.embedding.weight)
        else:
            logits = self.readout(x)  # (B, T, V)
        tap("logits", logits)
        return logits


def _prefixed(tap: Tap, prefix: str) -> Tap:
    return tap if tap is _ignore else lambda name, activation: tap(prefix + name, activation)
