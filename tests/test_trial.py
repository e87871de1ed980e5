"""A trial's identity is what determines its numbers, and nothing else."""

from dataclasses import asdict, fields, replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.config import HParams, ModelConfig, RunConfig, run_config_from_dict
from proxy_models.optimizer_config import OPTIMIZERS, AdamW, Muon, Switch
from sweeps.trial import NUMERICS_VERSION, Trial, TrialResult, TrialStatus, canonical_json, identity_hash

RUN = RunConfig(
    model=ModelConfig(width=32, head_dim=16, depth=2, seq_len=16),
    optimizer=Muon(),
    hparams=HParams(lr=0.02, batch_tokens=32),
    base_width=16,
    train_tokens=320,
    validation_tokens=64,
    seed=3,
)
TRIAL = Trial(run=RUN, data_fingerprint="abc")

SWITCHED = partial(Switch, first=AdamW(), second=Muon(), at_tokens=64)
floats = st.floats(min_value=1e-6, max_value=1e6)
runs = st.builds(
    lambda width, optimizer, hparams, seed, parametrization: replace(
        RUN,
        model=replace(RUN.model, width=16 * width),
        optimizer=optimizer(),
        hparams=hparams,
        seed=seed,
        parametrization=parametrization,
    ),
    width=st.integers(1, 64),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)).map(
        lambda name: (
            partial(Switch, first=AdamW(), second=Muon(), at_tokens=64) if name == "switch" else OPTIMIZERS[name]
        )
    ),
    hparams=st.builds(
        HParams,
        lr=floats,
        eps=floats,
        weight_decay=floats,
        clip_norm=st.none() | floats,
        beta1=st.floats(0, 0.999),
        batch_tokens=st.just(32),
    ),
    seed=st.integers(0, 2**40),
    parametrization=st.sampled_from(["mup", "standard"]),
)


def test_the_id_of_a_known_trial_never_changes() -> None:
    assert NUMERICS_VERSION == 1, "a new numerics version needs a new id here"
    assert TRIAL.trial_id == "7377a747a633b941"


@given(run=runs)
def test_a_run_survives_its_dict_with_its_id(run: RunConfig) -> None:
    again = run_config_from_dict(run.to_dict())
    assert again == run
    assert Trial(run=again, data_fingerprint="abc") == Trial(run=run, data_fingerprint="abc")
    assert identity_hash(run.identity(), "abc", NUMERICS_VERSION) == Trial(run=run, data_fingerprint="abc").trial_id


@given(value=st.integers(1, 1000))
def test_whole_numbers_and_floats_give_one_id(value: int) -> None:
    typed = [replace(RUN, hparams=HParams(lr=number, batch_tokens=32)) for number in (value, float(value))]
    assert len({Trial(run=run, data_fingerprint="abc").trial_id for run in typed}) == 1


@given(first=runs, second=runs)
def test_equal_ids_mean_equal_runs(first: RunConfig, second: RunConfig) -> None:
    ids = [Trial(run=run, data_fingerprint="abc").trial_id for run in (first, second)]
    assert (ids[0] == ids[1]) == (first == second)


@pytest.mark.parametrize(
    "other",
    [
        replace(TRIAL, data_fingerprint="abd"),
        replace(TRIAL, run=replace(RUN, seed=4)),
        replace(TRIAL, run=replace(RUN, base_width=32)),
        replace(TRIAL, run=replace(RUN, validation_tokens=128)),
        replace(TRIAL, run=replace(RUN, optimizer=Muon(nesterov=False))),
        replace(TRIAL, run=replace(RUN, hparams=replace(RUN.hparams, clip_norm=None))),
        replace(TRIAL, run=replace(RUN, model=replace(RUN.model, tied_embeddings=True))),
    ],
)
def test_whatever_changes_the_numbers_changes_the_id(other: Trial) -> None:
    assert other.trial_id != TRIAL.trial_id


def test_a_new_numerics_version_changes_the_id() -> None:
    assert identity_hash(RUN.identity(), "abc", NUMERICS_VERSION + 1) != TRIAL.trial_id


def test_canonical_json_has_one_spelling_and_no_nan() -> None:
    assert canonical_json({"b": 1.0, "a": [None, True]}) == '{"a":[null,true],"b":1.0}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": TrialStatus.COMPLETED}, "a loss goes with COMPLETED"),
        ({"status": TrialStatus.COMPLETED, "validation_loss": float("nan")}, "a loss goes with COMPLETED"),
        ({"status": TrialStatus.DIVERGED, "validation_loss": 2.0, "diverged_step": 3}, "a loss goes with COMPLETED"),
        ({"status": TrialStatus.DIVERGED}, "a divergence step goes with DIVERGED"),
        ({"status": TrialStatus.COMPLETED, "validation_loss": 2.0, "diverged_step": 3}, "goes with DIVERGED"),
        ({"status": TrialStatus.FAILED, "diverged_step": 3}, "goes with DIVERGED"),
    ],
)
def test_a_status_goes_with_its_numbers(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrialResult(trial=TRIAL, **fields)  # type: ignore[arg-type]


def test_same_numbers_ignores_speed_and_hardware_alone() -> None:
    result = TrialResult(
        trial=TRIAL,
        status=TrialStatus.COMPLETED,
        validation_loss=2.5,
        validation_loss_se=0.1,
        curve_steps=(1, 2),
        curve_losses=(5.0, 3.0),
    )
    assert result.same_numbers(replace(result, train_seconds=9.0, tokens_per_second=1.0, provenance={"cpu": "x"}))
    changes = {
        "validation_loss": 2.5000000001,
        "validation_loss_se": 0.2,
        "curve_steps": (1, 3),
        "curve_losses": (5, 4),
    }
    for name, value in changes.items():
        assert not result.same_numbers(replace(result, **{name: value}))
    assert asdict(result)["trial"]["data_fingerprint"] == "abc"


def test_a_mode_must_exist() -> None:
    with pytest.raises(ValueError, match="mode must be <executor>-<eager or compiled>-<device>-<dtype>, got 'fast'"):
        TrialResult(trial=TRIAL, status=TrialStatus.FAILED, mode="fast")


@pytest.mark.parametrize(
    ("modes", "loss", "same"),
    [
        (("loop-compiled-cpu-float32", "loop-compiled-cpu-float32"), 2.5 + 1e-9, False),
        (("loop-compiled-cpu-float32", "loop-eager-cpu-float32"), 2.5 + 1e-9, True),
        (("loop-eager-cpu-float32", "loop-compiled-cpu-float32"), 2.5 + 1e-9, True),
        (("stacked-eager-cpu-float32", "stacked-eager-cpu-float32"), 2.5 + 1e-9, True),
        (("stacked-eager-cpu-float32", "stacked-eager-cpu-float32"), 2.6, False),
        (("stacked-eager-cpu-float32", "loop-eager-cpu-float32"), None, False),
    ],
)
def test_numbers_agree_by_bits_in_a_loop_mode_and_nearly_between_modes(
    modes: tuple[str, str], loss: float | None, same: bool
) -> None:
    one = TrialResult(trial=TRIAL, status=TrialStatus.COMPLETED, validation_loss=2.5, mode=modes[0])
    other = replace(one, validation_loss=loss or 2.5, mode=modes[1])
    if loss is None:
        other = replace(other, status=TrialStatus.DIVERGED, validation_loss=None, diverged_step=3)
    assert one.same_numbers(other) == same
    assert other.same_numbers(one) == same


def test_fields_at_their_default_are_not_part_of_the_id() -> None:
    """So that a field added later leaves the ids of old results as they were."""
    assert RUN.identity() == {
        "model": {"width": 32, "seq_len": 16},
        "optimizer": {"name": "muon"},
        "hparams": {"lr": 0.02, "batch_tokens": 32},
        "base_width": 16,
        "train_tokens": 320,
        "validation_tokens": 64,
        "seed": 3,
    }
    changed = replace(RUN, optimizer=Muon(ns_steps=3), weight_decay_invariant="none")
    assert changed.identity()["optimizer"] == {"name": "muon", "ns_steps": 3}
    assert changed.identity()["weight_decay_invariant"] == "none"


def test_defaults_are_what_the_ids_of_this_numerics_version_mean() -> None:
    """Changing a default changes the meaning of ids on disk: raise NUMERICS_VERSION, then change it here too."""
    assert NUMERICS_VERSION == 1
    required = {
        "width",
        "lr",
        "model",
        "optimizer",
        "hparams",
        "base_width",
        "train_tokens",
        "validation_tokens",
        "seed",
        "first",
        "second",
    }
    polar = {"ns_schedule": "jordan", "ns_steps": 5, "ns_dtype": "float32"}
    muon = {
        **polar, "shape_factor": "spectral", "width_rule": "spectral_norm", "nesterov": True, "momentum_form": "ema",
    }  # fmt: skip
    rank = {"rank": None, "rank_frac": None}
    fanion = {**polar, **rank, "shape_factor": "spectral", "nesterov": True}
    defaults = {
        record.__name__: {f.name: f.default for f in fields(record) if f.name not in required}
        for record in (ModelConfig, HParams, RunConfig, *OPTIMIZERS.values())
    }
    assert defaults == {
        "ModelConfig": {
            "depth": 2, "head_dim": 16, "mlp": "swiglu", "mlp_ratio": 3.0, "vocab_size": 256, "seq_len": 128,
            "tied_embeddings": False, "qk_norm": True, "attention_multiplier": 1.0,
        },
        "HParams": {
            "embedding_lr_ratio": 1.0, "readout_lr_ratio": 1.0, "vector_lr_ratio": 1.0, "weight_decay": 0.0,
            "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "momentum": 0.95, "orthogonal_frac": 0.5, "sign_lr_ratio": 0.01,
            "second_lr_ratio": 1.0, "clip_norm": 1.0, "batch_tokens": 1024, "warmup_tokens": 0, "decay_tokens": 0,
            "final_lr_frac": 0.0, "hidden_init_gain": 1.0, "embedding_init_std": 1.0, "readout_init_gain": 0.0,
        },
        "RunConfig": {"parametrization": "mup", "weight_decay_invariant": "lr_wd", "schedule": "wsd",
            "base_depth": None, "batch_change": None,
        },
        "AdamW": {"name": "adamw"},
        "SGD": {"name": "sgd", "nesterov": False},
        "SignSGD": {"name": "sign_sgd", "nesterov": False},
        "Muon": {**muon, "name": "muon"},
        "NorMuon": {**muon, "name": "normuon"},
        "MuonAll": {**polar, "name": "muon_all", "nesterov": True, "ns_steps": 6},
        "NSGD": {"name": "nsgd", "nesterov": True},
        "Fanion": {**fanion, "name": "fanion"},
        "FFanion": {**fanion, "name": "f_fanion"},
        "SFanion": {**fanion, "name": "s_fanion"},
        "Dion": {**rank, "name": "dion"},
        "IsotropicCurvature": {"name": "isotropic_curvature", "power": 4, "nesterov": False},
        "Scale": {
            "name": "scale", "unit_norm": "rms", "normalization": "column", "readout_normalization": "column",
        },
        "GaLore": {**rank, "name": "galore", "refresh_steps": 200},
        "Fira": {**rank, "name": "fira", "refresh_steps": 200},
        "Apollo": {**rank, "name": "apollo", "refresh_steps": 200},
        "ApolloMini": {"name": "apollo_mini", "refresh_steps": 200},
        "Switch": {"name": "switch", "at_tokens": None, "states": "reset"},
    }  # fmt: skip
    # No rank at all is a default too.
    ranks = {name: record().rank_of(40) for name, record in OPTIMIZERS.items() if hasattr(record, "rank_of")}
    assert ranks == {"fanion": 10, "f_fanion": 40, "s_fanion": 40, "dion": 10, "galore": 10, "fira": 10, "apollo": 10}
