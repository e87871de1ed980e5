"""The two claims of SCALE's ablation (arXiv:2506.16659) on real proxies: real text, the committed spec."""

from functools import lru_cache
from pathlib import Path

import pytest

from proxy_models.data import load_data
from sweeps.spec import load_spec, run_config
from sweeps.worker import prepare_process
from tests.proxy_helpers import outcomes

SPEC = Path(__file__).parents[1] / "sweeps" / "specs" / "scale_ablation.toml"


@lru_cache
def loss(optimizer: str, seed: int) -> float:
    """At width 32 and lr 2^-6, the best of the grid for all three arms."""
    prepare_process()
    spec = load_spec(SPEC)
    run = run_config(spec, optimizer, width=32, seed=seed, overrides={"lr": 2.0**-6})
    data = load_data(spec.data_source(), vocab_size=run.model.vocab_size, seq_len=run.model.seq_len)
    (outcome,) = outcomes([run], data)
    assert outcome.validation_loss is not None
    return outcome.validation_loss


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_readout_momentum_helps(seed: int) -> None:
    """By 0.03 and 0.04 nats when measured."""
    assert loss("scale", seed) < loss("no_momentum", seed) - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_row_normalization_of_the_readout_hurts(seed: int) -> None:
    """By 0.03 and 0.05 nats when measured."""
    assert loss("row_readout", seed) > loss("no_momentum", seed) + 0.01
