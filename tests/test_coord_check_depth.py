"""The coordinate check over depth tells complete_p from mup and standard, and a wrong power of depth from the right."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from proxy_models import parametrization
from proxy_models.config import Parametrization, RunConfig
from proxy_models.coord_check import CoordCheck, CoordSlope, coordinate_check, relative_places
from proxy_models.optimizer_config import IsotropicCurvature, OptimizerConfig
from proxy_models.parametrization import RULES
from proxy_models.roles import Role
from proxy_models.training import Training
from tests.proxy_helpers import cyclic_data, tiny_run
from tests.test_coord_check import CASES, MOVED

DEPTHS = (2, 4, 8, 16)
TOLERANCE = 0.15  # the default of a spec's check
OPTIMIZERS: dict[str, tuple[OptimizerConfig, float]] = {
    **CASES,
    "quadratic_curvature": (IsotropicCurvature(power=2), -1),  # goes as the gradient, as SGD does
}


def _run(
    name: str,
    depth: int,
    *,
    rules: Parametrization,
    width: int = 32,
    optimizer: OptimizerConfig | None = None,
    **hp: Any,
) -> RunConfig:
    config, log2_lr = OPTIMIZERS[name]
    return tiny_run(
        optimizer=optimizer or config,
        width=width,
        base_width=32,
        seed=0,
        parametrization=rules,
        base_depth=2 if rules == "complete_p" else None,
        model={"head_dim": 16, "attention_multiplier": 4.0, "depth": depth},
        hparams={"lr": 2.0**log2_lr, "batch_tokens": 128, **hp},
        train_tokens=1280,
    )


@pytest.mark.parametrize("name", ["adamw", "muon", "scale", "sgd"])
def test_complete_p_is_flat_over_depth_where_mup_and_standard_are_not(name: str) -> None:
    """At twice the base width, so that standard is not mup. The last block's residual, the sum of all branches, grows
    as depth^0.4 to depth^0.6 without a rule for depth, at the start (random branches: a half) and after eight updates.
    """
    runs = [
        (name, _run(name, depth, rules=rules, width=64))
        for rules in ("complete_p", "mup", "standard")
        for depth in DEPTHS
    ]
    check = coordinate_check(runs, cyclic_data(), steps=8, tolerance=TOLERANCE, axis="depth")
    assert check.axes == ("depth",)
    assert check.failures("complete_p") == ()
    for rules in ("mup", "standard"):
        failures = {(s.tap, s.step): s.slope for s in check.failures(rules)}
        assert failures["last_block.residual", 0] > 0.35
        assert failures["last_block.residual", 8] > 0.35


def _moved(name: str, depth: int, role: Role, rules: Parametrization = "complete_p") -> tuple[float, float]:
    """RMS by which three updates of one role's parameters alone move the final residual, and the logits."""
    still = {"embedding_lr_ratio": 1e-9, "readout_lr_ratio": 1e-9, "vector_lr_ratio": 1e-9}
    lr = 2.0 ** OPTIMIZERS[name][1]
    only = still if role is Role.HIDDEN else {"lr": lr * 1e-9, f"{role.value}_lr_ratio": 1e9}
    run = _run(name, depth, rules=rules, optimizer=MOVED.get(name), readout_init_gain=1.0, clip_norm=None, **only)
    training = Training([run], cyclic_data())
    probe = training.windows(99)[0, :, :-1]

    def activations() -> tuple[torch.Tensor, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            training.forward(probe, lambda at, x: seen.update({at: x.clone()}))
        return seen[f"block{depth - 1}.residual"], seen["logits"]

    before = activations()
    for _ in range(3):
        training.step()
    residual, logits = (
        float((after - start).square().mean().sqrt()) for after, start in zip(activations(), before, strict=True)
    )
    return residual, logits


def _slopes(measure: Callable[[int], tuple[float, float]], depths: tuple[int, ...]) -> list[float]:
    moved = np.array([measure(depth) for depth in depths])
    return [float(np.polyfit(np.log(depths), column, 1)[0]) for column in np.log(moved).T]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hidden_updates_move_the_model_alike_at_every_depth(name: str) -> None:
    """The learned part by itself, which the sizes above hide behind what is random: no layer is lazy, none explodes.

    A power of depth that is off by a third, as the isotropic curvature model's would be without its own, is off by a
    third here.
    """
    assert max(map(abs, _slopes(lambda depth: _moved(name, depth, Role.HIDDEN), (4, 16)))) < 0.25


@pytest.mark.parametrize(("name", "grows"), [("adamw", 0.7), ("muon", 0.7), ("scale", 0.7), ("sgd", 0.7)])
def test_without_the_rule_hidden_updates_move_a_deeper_model_further(name: str, grows: float) -> None:
    residual, _ = _slopes(lambda depth: _moved(name, depth, Role.HIDDEN, "mup"), (4, 16))
    assert residual > grows


def test_sgd_without_its_power_of_depth_would_be_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {**RULES, ("complete_p", "sgd"): RULES["mup", "sgd"]}
    monkeypatch.setattr(parametrization, "RULES", rules)
    residual, logits = _slopes(lambda depth: _moved("sgd", depth, Role.HIDDEN), (4, 16))
    assert (residual, logits) == (pytest.approx(-1.0, abs=0.3), pytest.approx(-1.0, abs=0.3))


def test_the_final_gain_is_why_sgds_gains_keep_their_lr() -> None:
    """It is in no branch; the gains in branches move the residual less and less, and the logits hardly at all."""
    residual, logits = _slopes(lambda depth: _moved("sgd", depth, Role.VECTOR), (4, 16))
    assert residual < -1.0
    assert abs(logits) < 0.15


@pytest.mark.parametrize(
    ("tap", "depth", "places"),
    [
        ("block0.mlp", 4, ("first_block.mlp",)),
        ("block3.attention_logits", 4, ("last_block.attention_logits",)),
        ("block1.mlp", 4, ()),
        ("block10.mlp", 11, ("last_block.mlp",)),
        ("block0.residual", 1, ("first_block.residual", "last_block.residual")),
        ("logits", 4, ("logits",)),
    ],
)
def test_blocks_are_compared_by_their_relative_place(tap: str, depth: int, places: tuple[str, ...]) -> None:
    assert relative_places(tap, depth) == places


@pytest.mark.parametrize(
    ("tap", "slope", "passes"),
    [
        ("last_block.mlp", -0.3, False),
        ("last_block.residual", -0.6, True),  # random at first: a sum of depth terms of 1/depth
        ("last_block.residual", -0.7, False),
        ("last_block.residual", 0.2, False),
        ("first_block.residual", -1.1, True),  # the first block's share of the whole
        ("logits", -0.2, False),
    ],
)
def test_what_falls_over_depth_by_design_may(tap: str, slope: float, passes: bool) -> None:
    start = CoordSlope(optimizer="o", parametrization="p", tap="logits", step=0, slope=0.0, axis="depth")
    judged = CoordSlope(optimizer="o", parametrization="p", tap=tap, step=4, slope=slope, axis="depth")
    check = CoordCheck(points=(), slopes=(start, judged), tolerance=TOLERANCE)
    assert (check.failures("p") == ()) is passes


def test_three_depths_are_too_few() -> None:
    runs = [("adamw", _run("adamw", depth, rules="complete_p")) for depth in (2, 4, 8)]
    with pytest.raises(ValueError, match=r"at least 4 depths, got \[2, 4, 8\]"):
        coordinate_check(runs, cyclic_data(), steps=1, tolerance=0.2, axis="depth")
