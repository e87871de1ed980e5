"""Tiny runs and tokens for tests of proxy_models."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import TokenData
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import AdamW, OptimizerConfig
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, Watch, train


def tiny_run(
    *,
    optimizer: OptimizerConfig | None = None,
    width: int = 16,
    model: dict[str, Any] | None = None,
    hparams: dict[str, Any] | None = None,
    **run: Any,
) -> RunConfig:
    """A run of a few milliseconds a step; every part can be overridden."""
    defaults: dict[str, Any] = {"base_width": 16, "train_tokens": 640, "validation_tokens": 256, "seed": 3}
    return RunConfig(
        model=ModelConfig(**{"width": width, "head_dim": 8, "seq_len": 16, "vocab_size": 64, **(model or {})}),
        optimizer=optimizer or AdamW(),
        hparams=HParams(**{"lr": 0.01, "batch_tokens": 64, **(hparams or {})}),
        **{**defaults, **run},
    )


def with_hparams(run: RunConfig, **changes: Any) -> RunConfig:
    return replace(run, hparams=replace(run.hparams, **changes))


def outcomes(
    runs: Sequence[RunConfig],
    data: TokenData,
    *,
    mode: Mode = EAGER_LOOP,
    watch: Watch = Watch(),  # noqa: B008
) -> list[TrainOutcome]:
    """What each run gave, in their order."""
    found = dict(train([Job(run=run) for run in runs], data, mode=mode, watch=watch))
    return [found[index] for index in range(len(runs))]


def cyclic_data(*, vocab_size: int = 64, n: int = 4000, seed: int = 11) -> TokenData:
    """Tokens that a model can learn: each is its predecessor plus a small random step."""
    rng = np.random.default_rng(seed)
    tokens = (np.cumsum(rng.integers(1, 4, size=n)) % vocab_size).astype(np.uint16)
    return TokenData(train=tokens[: n - 800], validation=tokens[n - 800 :], fingerprint="test", description="cycle")
