"""Memory of optimizers on Llama models, against the totals published with SCALE (arXiv:2506.16659, README there)."""

from dataclasses import asdict, dataclass
from typing import Any

from proxy_models.accounting import memory, parameter_counts
from proxy_models.config import ModelConfig
from proxy_models.optimizer_config import AdamW, Apollo, ApolloMini, GaLore, MuonAll, OptimizerConfig, Scale

BFLOAT16_BYTES = 2


def llama(width: int, mlp_width: int, depth: int, heads: int) -> ModelConfig:
    """The paper's models: vocabulary 32,000, SwiGLU, untied, no QK-norm."""
    return ModelConfig(
        width=width,
        depth=depth,
        head_dim=width // heads,
        mlp_ratio=mlp_width / width,
        vocab_size=32_000,
        seq_len=256,
        qk_norm=False,
    )


MODELS = {
    "60M": llama(512, 1376, 8, 8),
    "130M": llama(768, 2048, 12, 12),
    "350M": llama(1024, 2736, 24, 16),
    "1B": llama(2048, 5461, 24, 32),
    "7B": llama(4096, 11008, 32, 32),
}
GALORE_RANKS = {"60M": 128, "130M": 256, "350M": 384, "1B": 512}  # 350M: what its published total takes


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """Bytes of weights and optimizer states in bfloat16: what the paper counts, without gradients and activations."""

    optimizer: str
    model: str
    parameters: int
    stored_bytes: int
    published_gb: float

    @property
    def stored_gb(self) -> float:
        return self.stored_bytes / 1e9

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"stored_gb": self.stored_gb}


_PUBLISHED: dict[str, dict[str, float]] = {
    "Adam": {"60M": 0.35, "130M": 0.81, "350M": 2.21, "1B": 8.04, "7B": 40.43},
    "Muon": {"60M": 0.23, "130M": 0.54, "350M": 1.47, "1B": 5.36, "7B": 26.95},
    "GaLore": {"60M": 0.28, "130M": 0.61, "350M": 1.59, "1B": 4.76},
    "APOLLO": {"7B": 16.14},
    "APOLLO-Mini": {"60M": 0.25, "130M": 0.46, "350M": 1.00, "1B": 3.20, "7B": 14.53},
    "SCALE": {"60M": 0.15, "130M": 0.32, "350M": 0.80, "1B": 2.81, "7B": 13.74},
}


def totals() -> list[Total]:
    """Every published cell, from our accounting. Muon's column keeps a momentum of every parameter: MuonAll's."""
    return [
        Total(
            optimizer=name,
            model=size,
            parameters=sum(parameter_counts(MODELS[size]).values()),
            stored_bytes=memory(MODELS[size], _config(name, size), bytes_per_float=BFLOAT16_BYTES).stored,
            published_gb=gb,
        )
        for name, cells in _PUBLISHED.items()
        for size, gb in cells.items()
    ]


def _config(name: str, size: str) -> OptimizerConfig:
    if name == "GaLore":
        return GaLore(rank=GALORE_RANKS[size])
    configs: dict[str, OptimizerConfig] = {
        "Adam": AdamW(),
        "Muon": MuonAll(),
        "APOLLO": Apollo(rank=256),
        "APOLLO-Mini": ApolloMini(),
        "SCALE": Scale(),
    }
    return configs[name]
