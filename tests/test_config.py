"""Records refuse what no run can have, and do not depend on how a number was typed."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.checks import ConfigError
from proxy_models.config import HParams, ModelConfig, run_config_from_dict
from proxy_models.optimizer_config import AdamW, Muon, Scale
from tests.proxy_helpers import tiny_run


def test_integers_in_float_fields_are_stored_as_floats() -> None:
    hparams = HParams(lr=1, weight_decay=0, clip_norm=2)
    assert (repr(hparams.lr), repr(hparams.weight_decay), repr(hparams.clip_norm)) == ("1.0", "0.0", "2.0")
    assert repr(HParams(lr=1, batch_tokens=512).batch_tokens) == "512"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 20}, r"multiple of head_dim=8, got 20; the nearest widths are 16 and 24"),
        ({"width": 0}, "width must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"head_dim": 7, "width": 14}, "head_dim must be even"),
        ({"mlp_ratio": 2.7}, r"mlp_ratio \* width must be a positive whole number"),
        ({"attention_multiplier": 0.0}, "attention_multiplier must be above 0"),
    ],
)
def test_model_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{"width": 16, "head_dim": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, got 0"),
        ({"lr": -0.5}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"final_lr_frac": 1.5}, r"final_lr_frac must be in \[0, 1\]"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"readout_lr_ratio": 0.0}, "readout_lr_ratio must be above 0"),
    ],
)
def test_hparams_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HParams(**{"lr": 0.01, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tokens": 650}, "train_tokens must be a positive multiple of batch_tokens=64"),
        ({"train_tokens": 0}, "train_tokens must be a positive multiple"),
        ({"validation_tokens": 16}, "validation_tokens must be at least two sequences"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"base_width": 0}, "base_width must be at least 1"),
        ({"hparams": {"batch_tokens": 40}}, "batch_tokens must be a multiple of seq_len=16"),
        ({"hparams": {"warmup_tokens": 400, "decay_tokens": 400}}, "must not exceed train_tokens=640"),
    ],
)
def test_run_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(**changes)


def test_muon_refuses_no_steps() -> None:
    with pytest.raises(ConfigError, match="ns_steps must be between 1 and 30, got 0"):
        Muon(ns_steps=0)


@given(
    optimizer=st.sampled_from([AdamW(), Muon(shape_factor="rms_match", nesterov=False, ns_steps=3), Scale()]),
    lr=st.floats(1e-6, 10.0),
    clip=st.none() | st.floats(0.1, 10.0),
    width=st.sampled_from([8, 16, 64]),
    seed=st.integers(0, 2**40),
)
def test_dict_round_trip(optimizer: Any, lr: float, clip: float | None, width: int, seed: int) -> None:
    run = tiny_run(optimizer=optimizer, width=width, seed=seed, hparams={"lr": lr, "clip_norm": clip})
    assert run_config_from_dict(run.to_dict()) == run
    assert replace(run, seed=seed + 1) != run
