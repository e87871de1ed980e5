"""The coordinate check tells mup from standard on real proxies, for every optimizer, tied and untied."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from proxy_models.config import RunConfig
from proxy_models.coord_check import CoordCheck, CoordPoint, CoordSlope, coordinate_check, fit_slopes
from proxy_models.optimizer_config import (
    NSGD,
    SGD,
    AdamW,
    Apollo,
    ApolloMini,
    Dion,
    Fanion,
    FFanion,
    Fira,
    GaLore,
    IsotropicCurvature,
    Muon,
    MuonAll,
    NorMuon,
    OptimizerConfig,
    Scale,
    SFanion,
    SignSGD,
    Switch,
)
from proxy_models.roles import Role
from proxy_models.training import Training
from tests.proxy_helpers import cyclic_data, tiny_run, with_hparams

WIDTHS = (32, 64, 128, 256)
ADAM_TO_MUON = Switch(first=AdamW(), second=Muon(shape_factor="rms_match"), states="keep", at_tokens=512)
CASES: dict[str, tuple[OptimizerConfig, float]] = {  # name: optimizer, log2 of an lr that is not yet large
    "adamw": (AdamW(), -7),
    "sgd": (SGD(), -1),
    "sign_sgd": (SignSGD(), -8),
    "muon": (Muon(), -6),
    "muon_rms_match": (Muon(shape_factor="rms_match", ns_schedule="polar_express"), -7),
    "muon_all": (MuonAll(), -6),
    "normuon": (NorMuon(), -6),
    "nsgd": (NSGD(), -4),
    "fanion": (Fanion(), -6),
    "neon": (Fanion(rank=1), -6),
    "f_muon": (FFanion(), -6),
    "s_muon": (SFanion(), -6),
    "dion": (Dion(), -6),
    "isotropic_curvature": (IsotropicCurvature(), -4),
    "scale": (Scale(), -8),
    "scale_l2": (Scale(unit_norm="l2"), -5.5),
    "scale_row": (Scale(normalization="row", readout_normalization="row"), -8),
    "scale_row_l2": (Scale(unit_norm="l2", normalization="row", readout_normalization="row"), -6),
    "scale_sign": (Scale(normalization="sign", readout_normalization="sign"), -8),
    "scale_ns": (Scale(normalization="ns", readout_normalization="ns"), -8),
    "galore": (GaLore(), -7),
    "fira": (Fira(), -7),
    "apollo": (Apollo(), -7),
    "apollo_mini": (ApolloMini(), -7),
    "adamw_to_muon": (ADAM_TO_MUON, -7),
}
TIED = ["adamw", "sgd", "sign_sgd", "muon", "muon_rms_match", "muon_all", "scale", "scale_l2", "scale_row_l2"]
# What a wrong power makes of it: an update of Adam's kind grows as width; one of L2 norm 1, and the random logits
# that SGD starts from with a tied embedding, as its square root.
VISIBLY = {"scale_l2": 0.35, "sgd": 0.35}
SETTINGS: dict[str, dict[str, Any]] = {
    "scale_ns": {"vocab_size": 256},  # at least as large as the width
    "nsgd": {"readout_lr_ratio": 0.125},  # large steps of HIDDEN are small ones of Adam's readout
    "isotropic_curvature": {"readout_lr_ratio": 0.125},
}


def _run(
    optimizer: OptimizerConfig,
    log2_lr: float,
    width: int,
    seed: int,
    *,
    tied: bool,
    vocab_size: int = 64,
    **hparams: Any,
) -> RunConfig:
    return tiny_run(
        optimizer=optimizer,
        width=width,
        base_width=32,
        seed=seed,
        model={"tied_embeddings": tied, "head_dim": 16, "attention_multiplier": 4.0, "vocab_size": vocab_size},
        hparams={"lr": 2.0**log2_lr, "batch_tokens": 256, "embedding_init_std": 0.02 if tied else 1.0, **hparams},
        train_tokens=2560,
    )


def _check_of(name: str, *, tied: bool, parametrizations: Sequence[Any] = ("mup", "standard")) -> CoordCheck:
    settings = SETTINGS.get(name, {})
    runs = [
        (name, replace(_run(*CASES[name], width, seed, tied=tied, **settings), parametrization=parametrization))
        for parametrization in parametrizations
        for width in WIDTHS
        for seed in (0, 1)
    ]
    return coordinate_check(runs, cyclic_data(), steps=6, tolerance=0.25)


@pytest.mark.parametrize("name", [name for name in CASES if name != "muon_all"])
def test_mup_is_flat_and_standard_is_not(name: str) -> None:
    check = _check_of(name, tied=False)
    assert check.failures("mup") == ()
    assert check.failures("standard")[0].slope > VISIBLY.get(name, 0.4)


def test_muon_all_is_flat() -> None:
    """Standard is, too: its readout's two powers of m cancel. What standard lacks, an embedding alone shows below."""
    assert _check_of("muon_all", tied=False, parametrizations=("mup",)).failures("mup") == ()


@pytest.mark.parametrize("name", TIED)
def test_mup_is_flat_and_standard_is_not_with_tied_embeddings(name: str) -> None:
    check = _check_of(name, tied=True)
    assert check.failures("mup") == ()
    assert check.failures("standard")[0].slope > VISIBLY.get(name, 0.45)


def _moved(name: str, width: int, seed: int, role: Role) -> float:
    """RMS by which three updates of one role's parameters alone move the activation behind them."""
    optimizer, log2_lr = MOVED.get(name, CASES[name][0]), CASES[name][1]
    still = {"embedding_lr_ratio": 1e-9, "readout_lr_ratio": 1e-9, "vector_lr_ratio": 1e-9}
    only = still if role is Role.HIDDEN else {f"{role.value}_lr_ratio": 1e9}
    log2_lr = log2_lr if role is Role.HIDDEN else log2_lr - np.log2(1e9)
    run = _run(optimizer, log2_lr, width, seed, tied=False, readout_init_gain=1.0, clip_norm=None, **only)
    training = Training([run], cyclic_data())
    probe = training.windows(99)[0, :, :-1]
    tap = {Role.HIDDEN: "block1.residual", Role.EMBEDDING: "embedding"}[role]

    def activation() -> torch.Tensor:
        seen: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            training.forward(probe, lambda at, x: seen.update({at: x.clone()}))
        return seen[tap]

    before = activation()
    for _ in range(3):
        training.step()
    return float((activation() - before).square().mean().sqrt())


# At a quarter of the width a rank still grows into the data's dimension; a fixed one shows the rule itself.
MOVED = {"fanion": Fanion(rank=8), "dion": Dion(rank=8)}


@pytest.mark.parametrize(
    ("role", "widths", "tolerance"),
    # An embedding's rows that the data use are 64, and an orthogonal update of it takes no more than that in width.
    [(Role.HIDDEN, (32, 64, 128), 0.28), (Role.EMBEDDING, (16, 32, 64), 0.15)],
    ids=["hidden", "embedding"],
)
@pytest.mark.parametrize("name", CASES)
def test_an_update_moves_its_activation_alike_at_every_width(
    name: str, role: Role, widths: tuple[int, ...], tolerance: float
) -> None:
    """The learned part by itself: a power of width that is off by a half is off by a half here."""
    moved = [[_moved(name, width, seed, role) for seed in (0, 1)] for width in widths]
    slope = np.polyfit(np.log(widths), np.log(moved).mean(axis=1), 1)[0]
    assert abs(slope) < tolerance


def test_slopes_are_those_of_a_planted_power_law() -> None:
    rng = np.random.default_rng(2)
    points = [
        CoordPoint(
            optimizer="adamw", parametrization="mup", tap=tap, step=step, width=width, seed=seed,
            rms=3.7 * width**exponent * float(np.exp(0.01 * rng.standard_normal())),
        )
        for tap, exponent in (("a", 0.73), ("b", -0.41))
        for step in (0, 2)
        for width in (24, 48, 96, 192)
        for seed in range(3)
    ]  # fmt: skip
    slopes = {(s.tap, s.step): s.slope for s in fit_slopes(points)}
    assert slopes == {
        ("a", 0): pytest.approx(0.73, abs=0.02), ("a", 2): pytest.approx(0.73, abs=0.02),
        ("b", 0): pytest.approx(-0.41, abs=0.02), ("b", 2): pytest.approx(-0.41, abs=0.02),
    }  # fmt: skip


def test_a_non_finite_activation_fails_and_a_zero_one_is_left_out() -> None:
    def points(tap: str, rms: float) -> list[CoordPoint]:
        return [
            CoordPoint(optimizer="o", parametrization="p", tap=tap, step=0, width=w, seed=0, rms=rms)
            for w in (8, 16, 32, 64)
        ]

    slopes = {s.tap: s.slope for s in fit_slopes(points("zero", 0.0) + points("bad", float("inf")))}
    assert set(slopes) == {"bad"}
    assert np.isnan(slopes["bad"])


def test_three_widths_are_too_few() -> None:
    runs = [("adamw", _run(AdamW(), -7, width, 0, tied=False)) for width in WIDTHS[:3]]
    with pytest.raises(ValueError, match=r"at least 4 widths, got \[32, 64, 128\]"):
        coordinate_check(runs, cyclic_data(), steps=1, tolerance=0.2)


def _check(slopes: dict[tuple[str, int], float]) -> CoordCheck:
    """Planted slopes by (tap, step)."""
    return CoordCheck(
        points=(),
        slopes=tuple(
            CoordSlope(optimizer="adamw", parametrization="mup", tap=tap, step=step, slope=slope)
            for (tap, step), slope in slopes.items()
        ),
        tolerance=0.2,
    )


@pytest.mark.parametrize(
    ("slopes", "failing"),
    [
        ({("mlp", 0): 0.1, ("mlp", 3): -0.19}, []),
        ({("mlp", 0): 0.1, ("mlp", 3): -0.3}, [("mlp", 3)]),
        ({("mlp", 0): -0.4, ("mlp", 3): 0.0}, [("mlp", 0)]),
        ({("mlp", 1): 0.9, ("mlp", 3): 0.0}, []),  # on the way: shown, not judged
        ({("logits", 3): -0.3}, [("logits", 3)]),  # from zero: all of it is learned
        ({("logits", 0): -0.5, ("logits", 3): -0.3}, []),  # from a random readout
        ({("logits", 0): -0.5, ("logits", 3): -0.8}, [("logits", 3)]),
        ({("logits", 0): -0.5, ("logits", 3): 0.3}, [("logits", 3)]),
        ({("mlp", 0): 0.3, ("mlp", 3): float("nan"), ("residual", 3): 0.5}, None),
    ],
)
def test_bounds(slopes: dict[tuple[str, int], float], failing: list[tuple[str, int]] | None) -> None:
    failures = [(s.tap, s.step) for s in _check(slopes).failures("mup")]
    if failing is None:
        assert set(failures) == set(slopes)
    else:
        assert failures == failing
    assert _check(slopes).failures("standard") == ()


def test_a_tied_readout_that_has_hardly_learned_passes() -> None:
    """At a low learning rate a tied embedding's logits still are mostly their random start."""
    runs = [
        ("adamw", with_hparams(_run(AdamW(), -10, width, seed, tied=True), embedding_init_std=1.0))
        for width in WIDTHS
        for seed in (0, 1)
    ]
    check = coordinate_check(runs, cyclic_data(), steps=2, tolerance=0.25)
    logits = {s.step: s.slope for s in check.slopes if s.tap == "logits"}
    assert logits[2] < -0.25
    assert check.failures("mup") == ()
