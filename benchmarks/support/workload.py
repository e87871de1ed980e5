"""The trials that `sweep_throughput` trains in several ways."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, load_data
from proxy_models.optimizer_config import AdamW
from sweeps.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Every width with every learning rate and seed: the quick start's model, AdamW, clipping and schedule."""

    tokens_file: str
    batch_tokens: int
    steps: int
    widths: tuple[int, ...] = (32, 64)
    lrs: tuple[float, ...] = tuple(2.0 ** (-9 + i / 4) for i in range(16))
    seeds: tuple[int, ...] = (0, 1)

    @property
    def grid(self) -> list[tuple[int, float, int]]:
        """(width, lr, seed) of every trial."""
        return list(product(self.widths, self.lrs, self.seeds))

    def run(self, width: int, lr: float, seed: int) -> RunConfig:
        tokens = self.steps * self.batch_tokens
        return RunConfig(
            model=ModelConfig(width=width, attention_multiplier=4.0),
            optimizer=AdamW(),
            hparams=HParams(
                lr=lr,
                readout_lr_ratio=8.0,
                weight_decay=0.1,
                clip_norm=1.0,
                batch_tokens=self.batch_tokens,
                warmup_tokens=tokens // self.batch_tokens // 10 * self.batch_tokens,
                decay_tokens=tokens // self.batch_tokens // 2 * self.batch_tokens,
            ),
            base_width=32,
            train_tokens=tokens,
            validation_tokens=8192,
            seed=seed,
        )

    @property
    def source(self) -> DataSource:
        return DataSource(kind="tokens", path=self.tokens_file)

    def trials(self) -> list[Trial]:
        """In the grid's order."""
        model = self.run(*self.grid[0]).model
        data = load_data(self.source, vocab_size=model.vocab_size, seq_len=model.seq_len)
        return [Trial(run=self.run(*place), data_fingerprint=data.fingerprint) for place in self.grid]


def write_tokens(file: Path) -> None:
    """The quick start's text as a token file, as a user has it ready before a sweep."""
    np.save(file, load_data(DataSource(), vocab_size=256, seq_len=128).train)
