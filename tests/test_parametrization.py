"""The table against rules written out by hand, and what training makes of them."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from proxy_models.checks import ConfigError
from proxy_models.config import Parametrization, RunConfig, run_config_from_dict
from proxy_models.optimizer_config import (
    NSGD,
    OPTIMIZERS,
    SGD,
    AdamW,
    Apollo,
    ApolloMini,
    Dion,
    Fira,
    GaLore,
    IsotropicCurvature,
    Muon,
    NorMuon,
    OptimizerConfig,
    Scale,
    Scaling,
    SFanion,
    SignSGD,
    Switch,
)
from proxy_models.parametrization import (
    RULES,
    forward_multipliers,
    init_std_of,
    refuse_overshooting_decay,
    residual_multiplier,
    scale_role,
)
from proxy_models.roles import Role
from tests.proxy_helpers import tiny_run

M = 4.0  # width 64 over base width 16


@pytest.mark.parametrize(
    ("optimizer", "hidden_lr"),
    [
        (AdamW(), 1 / M),
        (Scale(), 1 / M),
        (Muon(), 1.0),
        (Muon(shape_factor="max1"), 1.0),
        (Muon(shape_factor="rms_match"), M**-0.5),
        (Muon(shape_factor="rms_match", width_rule="adamw"), 1 / M),
        (NorMuon(), 1.0),
        (NSGD(), 1.0),
        (SFanion(), 1.0),
        (Dion(), 1.0),
        (IsotropicCurvature(), 1.0),
        (SignSGD(), 1 / M),
        (Scale(normalization="row"), 1 / M),
        (Scale(normalization="ns"), M**-0.5),
        (GaLore(), 1 / M),
        (Fira(), 1 / M),
        (Apollo(), 1 / M),
        (ApolloMini(), 1 / M),
        (Switch(first=AdamW(), second=Muon(), at_tokens=64), 1 / M),
    ],
)
def test_mup_learning_rates(optimizer: OptimizerConfig, hidden_lr: float) -> None:
    ratios = {"embedding_lr_ratio": 3.0, "readout_lr_ratio": 0.5, "vector_lr_ratio": 7.0}
    run = tiny_run(optimizer=optimizer, width=64, hparams={"lr": 0.02, **ratios})
    effective = {role: scale_role(run, role).effective_lr for role in Role}
    assert effective == {
        Role.EMBEDDING: pytest.approx(0.06),
        Role.HIDDEN: pytest.approx(0.02 * hidden_lr),
        Role.READOUT: pytest.approx(0.01),
        Role.VECTOR: pytest.approx(0.14),
    }


def test_scale_in_the_papers_norm_moves_as_far_as_in_the_codes() -> None:
    """lr times the size of a unit's update: equal at every width once equal at base width."""
    ratios = []
    for width in (16, 64):
        rms, l2 = (tiny_run(optimizer=Scale(unit_norm=norm), width=width) for norm in ("rms", "l2"))
        for role, fan_in in ((Role.HIDDEN, 3 * width), (Role.READOUT, width)):
            moved = scale_role(l2, role).effective_lr / fan_in**0.5 / scale_role(rms, role).effective_lr
            ratios.append((role, round(moved, 9)))
    assert ratios[:2] == ratios[2:]


def test_mup_multipliers_and_inits() -> None:
    run = tiny_run(width=64, hparams={"hidden_init_gain": 1.5, "embedding_init_std": 0.3, "readout_init_gain": 2.0})
    assert scale_role(run, Role.READOUT).forward_multiplier == pytest.approx(1 / M)
    assert {scale_role(run, role).forward_multiplier for role in Role if role is not Role.READOUT} == {1.0}
    assert init_std_of(run, Role.HIDDEN, fan_in=192) == pytest.approx(1.5 * 192**-0.5)
    assert init_std_of(run, Role.EMBEDDING, fan_in=64) == pytest.approx(0.3)
    assert init_std_of(run, Role.READOUT, fan_in=64) == pytest.approx(2.0 * 16**-0.5)  # as at base width
    assert init_std_of(run, Role.VECTOR, fan_in=64) == 0.0


def test_standard_changes_only_fan_in_initialization() -> None:
    run = tiny_run(width=64, parametrization="standard", hparams={"lr": 0.02, "readout_init_gain": 2.0})
    for role in Role:
        assert scale_role(run, role).effective_lr == 0.02
        assert scale_role(run, role).forward_multiplier == 1.0
    assert init_std_of(run, Role.READOUT, fan_in=64) == pytest.approx(2.0 * 64**-0.5)


def test_the_table_has_every_pair() -> None:
    parametrizations, scalings = get_args(Parametrization), get_args(Scaling)
    assert set(RULES) == {(p, s) for p in parametrizations for s in scalings}
    assert all(set(rules) == set(Role) for rules in RULES.values())


def test_every_optimizer_starts_from_the_same_model() -> None:
    """So that a run can switch from one to another, and forward multipliers need no optimizer's name."""
    for parametrization in get_args(Parametrization):
        starts = {
            tuple((rules[role].init_std, rules[role].forward) for role in Role)
            for (name, _), rules in RULES.items()
            if name == parametrization
        }
        assert len(starts) == 1


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "switch"])
def test_parametrizations_coincide_at_base_width(name: str) -> None:
    mup, standard = (
        tiny_run(optimizer=OPTIMIZERS[name](), parametrization=parametrization, hparams={"readout_init_gain": 1.3})
        for parametrization in ("mup", "standard")
    )
    for role in Role:
        assert scale_role(mup, role) == scale_role(standard, role)


def _complete_p(optimizer: OptimizerConfig | None = None, *, depth: int, **run: Any) -> RunConfig:
    """Width 64 over 16 and depth over 2."""
    return tiny_run(
        optimizer=optimizer, width=64, model={"depth": depth}, parametrization="complete_p", base_depth=2, **run
    )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "switch"])
def test_complete_p_is_mup_at_base_depth(name: str) -> None:
    complete = _complete_p(OPTIMIZERS[name](), depth=2, hparams={"weight_decay": 0.3})
    mup = replace(complete, parametrization="mup", base_depth=None)
    assert [scale_role(complete, role) for role in Role] == [scale_role(mup, role) for role in Role]
    assert forward_multipliers(complete) == forward_multipliers(mup)


@pytest.mark.parametrize(
    ("optimizer", "hidden_lr"),
    [
        (AdamW(), 1 / M),
        (Muon(), 1.0),
        (Muon(shape_factor="rms_match"), M**-0.5),
        (NSGD(), 1.0),
        (Scale(), 1 / M),
        (SGD(), 5.0),  # a gradient in a branch is 1/m_L
        (IsotropicCurvature(), 5.0 ** (1 / 3)),  # and this update goes as its cube root
        (IsotropicCurvature(power=2), 5.0),
        (IsotropicCurvature(power=None), 1.0),
        (Switch(first=SGD(), second=Muon(), at_tokens=64), 5.0),
    ],
)
def test_complete_p_over_depth(optimizer: OptimizerConfig, hidden_lr: float) -> None:
    """At five times the base depth, against Dey et al. (arXiv:2505.01618) at alpha = 1 and what is derived from it."""
    run = _complete_p(optimizer, depth=10, hparams={"lr": 0.02, "weight_decay": 0.3, "eps": 1e-6})
    mup = replace(run, parametrization="mup", base_depth=None)
    assert run.depth_mult == 5.0
    assert residual_multiplier(run) == forward_multipliers(run).residual == pytest.approx(1 / 5)
    assert residual_multiplier(mup) == 1.0
    hidden = scale_role(run, Role.HIDDEN)
    assert hidden.effective_lr == pytest.approx(0.02 * hidden_lr)
    assert hidden.effective_lr * hidden.effective_weight_decay == pytest.approx(0.02 * 0.3)
    eps = {role: scale_role(run, role).effective_eps for role in Role}
    assert eps == {
        Role.EMBEDDING: pytest.approx(1e-6 / M),
        Role.HIDDEN: pytest.approx(1e-6 / M / 5),
        Role.READOUT: pytest.approx(1e-6 / M),
        Role.VECTOR: pytest.approx(1e-6 / M / 5),
    }
    for role in Role:
        ours, theirs = scale_role(run, role), scale_role(mup, role)
        assert (ours.init_std, ours.forward_multiplier) == (theirs.init_std, theirs.forward_multiplier)
        if role is not Role.HIDDEN:
            assert ours.effective_lr == theirs.effective_lr


def test_weight_decay_without_an_invariant_knows_no_depth() -> None:
    run = _complete_p(SGD(), depth=10, weight_decay_invariant="none", hparams={"weight_decay": 0.3})
    assert scale_role(run, Role.HIDDEN).effective_weight_decay == 0.3


@pytest.mark.parametrize(
    ("parametrization", "base_depth", "message"),
    [
        ("complete_p", None, "base_depth must be given with parametrization 'complete_p' .*=None with 'complete_p'"),
        ("mup", 2, "base_depth must be given .* got base_depth=2 with 'mup'"),
        ("standard", 2, "got base_depth=2 with 'standard'"),
        ("complete_p", 0, "base_depth must be at least 1, got 0"),
    ],
)
def test_base_depth_goes_with_complete_p(parametrization: str, base_depth: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(parametrization=parametrization, base_depth=base_depth)


def test_an_identity_without_base_depth_is_as_it_was_before_there_was_one() -> None:
    assert "base_depth" not in tiny_run().identity()
    run = _complete_p(depth=4)
    assert run.identity()["base_depth"] == 2
    assert run_config_from_dict(run.to_dict()) == run
    old = {name: value for name, value in tiny_run().to_dict().items() if name != "base_depth"}
    assert run_config_from_dict(old) == tiny_run()


def test_both_phases_of_a_switch_must_keep_their_weights_sign() -> None:
    """At a tenth of the lr the first phase is fine; the second, at ten times it, is not."""
    switch = Switch(first=AdamW(), second=Muon(shape_factor="rms_match"), at_tokens=320)
    hparams = {"lr": 0.05, "weight_decay": 4.0}
    refuse_overshooting_decay(tiny_run(optimizer=switch, hparams=hparams))
    with pytest.raises(ConfigError, match="weight_decay times the effective lr of embedding must be at most 1"):
        refuse_overshooting_decay(tiny_run(optimizer=switch, hparams={**hparams, "second_lr_ratio": 10.0}))


@pytest.mark.parametrize(("invariant", "expected"), [("lr_wd", 0.4), ("timescale", 0.4), ("none", 0.1)])
def test_weight_decay_invariant(invariant: str, expected: float) -> None:
    run = tiny_run(width=64, weight_decay_invariant=invariant, hparams={"weight_decay": 0.1})
    hidden = scale_role(run, Role.HIDDEN)
    assert hidden.effective_weight_decay == pytest.approx(expected)
    assert scale_role(run, Role.EMBEDDING).effective_weight_decay == pytest.approx(0.1)
    assert scale_role(run, Role.VECTOR).effective_weight_decay == 0.0
    if invariant != "none":
        assert hidden.effective_lr * hidden.effective_weight_decay == pytest.approx(0.01 * 0.1)


def test_adam_eps_follows_the_gradient() -> None:
    run = tiny_run(width=64, hparams={"eps": 1e-6})
    assert [scale_role(run, role).effective_eps for role in Role] == pytest.approx([1e-6 / M] * 4)


def test_weight_decay_that_turns_a_weights_sign_is_refused() -> None:
    """lr * weight_decay does not change with width under lr_wd; the readout's ratio makes it the first to overshoot."""
    hparams = {"lr": 0.25, "readout_lr_ratio": 4.0}
    refuse_overshooting_decay(tiny_run(width=64, hparams={**hparams, "weight_decay": 1.0}))
    with pytest.raises(
        ConfigError, match=r"weight_decay times .* readout must be at most 1 .* got 1\.5 .* at most 1 here"
    ):
        refuse_overshooting_decay(tiny_run(width=64, hparams={**hparams, "weight_decay": 1.5}))
