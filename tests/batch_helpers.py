"""A planted sweep over batch, tokens and width, with probes: the truth is known, and away from 0 and 1."""

from dataclasses import dataclass

import numpy as np

from proxy_models.config import RunConfig
from sweeps.spec import SweepSpec, labeled_trials
from sweeps.trial import TrialResult
from tests.sweep_helpers import completed

SPEC = """
name = "batches"
[data]
source = "text"
path = "text.txt"
validation_frac = 0.2
[model]
depth = 1
head_dim = 16
seq_len = 16
[run]
base_width = 32
widths = [32, 64]
seeds = [0, 1]
train_tokens = [16384, 32768, 65536, 131072]
validation_tokens = 64
decay_frac = 0.25
[hparams]
weight_decay = 0.1
beta2 = 0.98
[axes]
batch_tokens = { log2_from = 6, log2_to = 12, log2_step = 1 }
[batch]
reference_tokens = 512
lr_exponent = 0.25
[critical_batch]
measure = ["steps_to_loss", "branches"]
[critical_batch.branches]
at_tokens = [16384, 65536]
factors = [1, 2, 4, 8]
window_tokens = 16384
lr_exponent = 0.25
[optimizers.adamw]
axes.lr = { log2_from = -9, log2_to = -3, log2_step = 1 }
[optimizers.muon]
axes.lr = { log2_from = -8, log2_to = -2, log2_step = 1 }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """One optimizer's truth."""

    critical: float  # the hyperbola's B_c at E_min = 2**15 tokens, in tokens
    power: float = 0.4  # of B_c over E_min
    lr: float = -6.0  # log2 of the best at batch 512 and 2**17 tokens
    lr_over_batch: float = 0.3
    lr_over_tokens: float = -0.25
    reducible: float = 6.0
    best_factor: int = 4  # of the probes


TRUTH = {"adamw": Planted(critical=500.0), "muon": Planted(critical=1200.0, lr=-5.0, reducible=5.4)}
REDUCIBLE_POWER = 0.3


def planted_results(spec: SweepSpec, fingerprint: str, *, noise: float = 0.002, seed: int = 7) -> list[TrialResult]:
    """Every trial of SPEC with a loss."""
    rng = np.random.default_rng(seed)
    return [
        completed(trial, _loss(trial.run, TRUTH[label]) + noise * float(rng.standard_normal()))
        for label, trial in labeled_trials(spec, fingerprint)
    ]


def _loss(run: RunConfig, truth: Planted) -> float:
    change = run.batch_change
    if change is not None:
        factor = change.batch_tokens // run.hparams.batch_tokens
        return 2.0 + (0.05 * np.log2(factor / truth.best_factor) if factor > truth.best_factor else 0.0)
    batch, tokens = run.hparams.batch_tokens, run.train_tokens
    away = np.log2(run.hparams.lr) - truth.lr
    away -= truth.lr_over_batch * np.log2(batch / 512) + truth.lr_over_tokens * np.log2(tokens / 2**17)
    narrower = (run.model.width / 32) ** -0.2
    reducible = truth.reducible * narrower * min_tokens(truth, batch, tokens) ** -REDUCIBLE_POWER
    return float(1.5 + reducible + 0.04 * away**2)


def min_tokens(truth: Planted, batch: float, tokens: float) -> float:
    """E with E (1 + batch / B_c(E)) = tokens."""
    found = tokens
    for _ in range(60):
        found = tokens / (1 + batch / critical(truth, found))
    return found


def critical(truth: Planted, tokens: float) -> float:
    return float(truth.critical * (tokens / 2**15) ** truth.power)
