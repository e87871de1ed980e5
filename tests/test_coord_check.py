"""The coordinate check tells mup from standard on real proxies, for every optimizer, tied and untied."""

from dataclasses import replace

import numpy as np
import pytest

from proxy_models.config import RunConfig
from proxy_models.coord_check import CoordCheck, CoordPoint, CoordSlope, coordinate_check, fit_slopes
from proxy_models.optimizer_config import SGD, AdamW, Muon, OptimizerConfig, Scale, SignSGD
from tests.proxy_helpers import cyclic_data, tiny_run, with_hparams

WIDTHS = (32, 64, 128, 256)
LR = {
    "adamw": 2.0**-7,
    "muon": 2.0**-6,
    "muon_rms_match": 2.0**-7,
    "scale": 2.0**-8,
    "scale_l2": 2.0**-5.5,
    "sgd": 2.0**-1,
    "sign_sgd": 2.0**-8,
}


def _run(optimizer: OptimizerConfig, width: int, seed: int, *, tied: bool) -> RunConfig:
    return tiny_run(
        optimizer=optimizer,
        width=width,
        base_width=32,
        seed=seed,
        model={"tied_embeddings": tied, "head_dim": 16, "attention_multiplier": 4.0},
        hparams={"lr": LR[optimizer.rule], "batch_tokens": 256, "embedding_init_std": 0.02 if tied else 1.0},
        train_tokens=2560,
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(),
        Muon(),
        Muon(shape_factor="rms_match", ns_schedule="polar_express"),
        Scale(),
        Scale(unit_norm="l2"),
        SGD(),
        SignSGD(),
    ],
    ids=lambda o: o.rule,
)
def test_mup_is_flat_and_standard_is_not(optimizer: OptimizerConfig, tied: bool) -> None:
    runs = [
        replace(_run(optimizer, width, seed, tied=tied), parametrization=parametrization)
        for parametrization in ("mup", "standard")
        for width in WIDTHS
        for seed in (0, 1)
    ]
    check = coordinate_check(runs, cyclic_data(), steps=6, tolerance=0.25)
    assert check.failures("mup") == ()
    worst = check.failures("standard")[0]
    # Unscaled, an update of Adam's kind grows as width; one of L2 norm 1, and the random logits that SGD starts
    # from with a tied embedding, as its square root.
    assert worst.slope > (0.35 if optimizer.rule in ("scale_l2", "sgd") else 0.5)


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
    runs = [_run(AdamW(), width, 0, tied=False) for width in WIDTHS[:3]]
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
        with_hparams(_run(AdamW(), width, seed, tied=True), lr=2.0**-10, embedding_init_std=1.0)
        for width in WIDTHS
        for seed in (0, 1)
    ]
    check = coordinate_check(runs, cyclic_data(), steps=2, tolerance=0.25)
    logits = {s.step: s.slope for s in check.slopes if s.tap == "logits"}
    assert logits[2] < -0.25
    assert check.failures("mup") == ()
