"""Surfaces keep every trial: losses, divergences, gaps."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.interval import FitError
from analysis.surface import Series, Surface, surfaces
from proxy_models.optimizer_config import AdamW, Muon, Switch
from sweeps.trial import TrialStatus
from tests.analysis_helpers import planted_results, trial_result


def test_groups_by_optimizer_and_width_in_order() -> None:
    built = surfaces(planted_results(noise=0.0))
    assert [(s.optimizer, s.width) for s in built] == [(o, w) for o in ("adamw", "muon") for w in (32, 64, 128)]
    assert all(s.log2_values == (-10, -9, -8, -7, -6, -5, -4) and s.seeds == (3, 4) for s in built)
    assert all(s.fixed == () and s.missing == () and s.hp == "lr" for s in built)


def test_mean_and_standard_error_of_the_seeds() -> None:
    losses = {3: 2.31, 5: 2.37, 9: 2.46}
    (surface,) = surfaces(trial_result(loss, lr=0.02, seed=seed) for seed, loss in losses.items())
    assert surface.seeds == (3, 5, 9)
    assert surface.losses == ((2.31, 2.37, 2.46),)
    assert surface.mean_losses == (pytest.approx(2.38),)
    # deviations -0.07, -0.01, 0.08: variance 0.0114 / 2, standard error sqrt(0.0057 / 3)
    assert surface.standard_errors == (pytest.approx(math.sqrt(0.0019)),)
    assert surface.step_octaves == 0.0


def test_one_diverged_seed_censors_the_value_and_keeps_it() -> None:
    trials = [(0.01, 3, 2.5), (0.01, 4, 2.6), (0.02, 3, 2.4), (0.02, 4, None)]
    (surface,) = surfaces(trial_result(loss, lr=lr, seed=seed) for lr, seed, loss in trials)
    assert surface.censored == (False, True)
    assert surface.losses == ((2.5, 2.6), (2.4, None))
    assert surface.mean_losses == (pytest.approx(2.55), None)
    assert surface.standard_errors[1] is None
    assert surface.step_octaves == pytest.approx(1.0)


def test_failed_and_absent_trials_are_missing_not_censored() -> None:
    trials = [
        trial_result(2.5, lr=0.01, seed=3),
        trial_result(2.4, lr=0.02, seed=3),
        trial_result(2.6, lr=0.02, seed=4),
        trial_result(None, lr=0.01, seed=4, status=TrialStatus.FAILED),
    ]
    for results in (trials, trials[:3]):
        (surface,) = surfaces(results)
        assert surface.missing == ((0, 1),)
        assert surface.censored == (False, False)
        assert surface.mean_losses == (2.5, pytest.approx(2.5))
        assert surface.standard_errors[0] is None


def test_a_second_axis_gives_a_surface_for_each_of_its_values() -> None:
    results = [
        trial_result(2.5, lr=0.01, hparams={"weight_decay": decay, "clip_norm": clip})
        for decay in (0.0, 0.3)
        for clip in (None, 1.5)
    ]
    built = surfaces([*results, trial_result(2.2, lr=0.01, optimizer="muon")])
    assert [surface.fixed for surface in built] == [
        (("clip_norm", None), ("weight_decay", 0.0)),
        (("clip_norm", None), ("weight_decay", 0.3)),
        (("clip_norm", 1.5), ("weight_decay", 0.0)),
        (("clip_norm", 1.5), ("weight_decay", 0.3)),
        (),  # Muon does not vary them
    ]
    assert str(built[3].series) == "adamw, clip_norm=1.5, weight_decay=0.3"
    assert str(built[4].series) == "muon"


def test_what_follows_the_width_is_no_axis_and_what_does_not_is() -> None:
    scaled = [trial_result(2.5, lr=0.01, width=w, train_tokens=128 * w) for w in (32, 64)]
    assert [s.fixed for s in surfaces(scaled)] == [(), ()]
    variants = [trial_result(2.5, lr=0.01, optimizer=Muon(shape_factor=s)) for s in ("spectral", "max1")]
    assert [s.fixed for s in surfaces(variants)] == [
        (("optimizer.shape_factor", "max1"),),
        (("optimizer.shape_factor", "spectral"),),
    ]
    both = [trial_result(2.5, lr=0.01, parametrization=p) for p in ("mup", "standard")]
    assert [s.series for s in surfaces(both)] == [
        Series("adamw", (("parametrization", "mup"),)),
        Series("adamw", (("parametrization", "standard"),)),
    ]


def test_what_follows_batch_and_horizon_has_no_name_of_its_own() -> None:
    """beta2 follows the batch, decay_tokens the horizon; weight_decay takes two values at one of both."""
    results = [
        trial_result(
            2.5,
            lr=0.01,
            train_tokens=tokens,
            hparams={
                "batch_tokens": batch,
                "beta2": 0.98 ** (batch / 128),
                "decay_tokens": tokens // 4,
                "weight_decay": decay,
            },
        )
        for tokens in (6400, 12800)
        for batch in (128, 256)
        for decay in (0.0, 0.1)
    ]
    names = [tuple(name for name, _ in surface.fixed) for surface in surfaces(results)]
    assert names == [("batch_tokens", "train_tokens", "weight_decay")] * 8
    one_batch = [r for r in results if r.trial.run.hparams.batch_tokens == 128]
    assert {tuple(name for name, _ in s.fixed) for s in surfaces(one_batch)} == {("train_tokens", "weight_decay")}


def test_another_hyperparameter_as_the_axis() -> None:
    results = [trial_result(2 + d, lr=0.01, hparams={"weight_decay": d}) for d in (0.4, 0.1, 0.2)]
    (surface,) = surfaces(results, "weight_decay")
    assert surface.hp == "weight_decay"
    assert surface.log2_values == pytest.approx([math.log2(d) for d in (0.1, 0.2, 0.4)])
    assert surface.losses == ((2.1,), (2.2,), (2.4,))


@pytest.mark.parametrize("hp", ["weight_decay", "clip_norm", "width", "no_such"])
def test_refuses_an_axis_without_a_logarithm(hp: str) -> None:
    result = trial_result(2.5, lr=0.01, hparams={"weight_decay": 0.0, "clip_norm": None})
    with pytest.raises(FitError, match=rf"log2\({hp}\).*above 0, got"):
        surfaces([result], hp)


def test_refuses_two_results_of_one_trial_and_takes_one_twice() -> None:
    once = trial_result(2.5, lr=0.01)
    assert surfaces([once, once]) == surfaces([once])
    with pytest.raises(FitError, match=f"trial {once.trial_id} has two results: completed 2.5 and diverged None"):
        surfaces([once, trial_result(None, lr=0.01)])


@given(st.randoms(use_true_random=False))
def test_order_does_not_matter(shuffler: random.Random) -> None:
    results = planted_results(widths=(32, 64), log2_lrs=(-8, -7, -6), diverges_above=-6.5)
    shuffled = list(results)
    shuffler.shuffle(shuffled)
    assert surfaces(shuffled) == surfaces(results)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log2_values": (-7.0, -8.0)}, "log2_values must be ascending"),
        ({"seeds": ()}, "seeds must be ascending and not empty"),
        ({"losses": ((2.5, 2.6),)}, "shape"),
        ({"losses": ((2.5, 2.6), (2.5,))}, "shape"),
        ({"losses": ((2.5, math.inf), (2.5, 2.6))}, "finite"),
        ({"missing": ((0, 1),)}, "missing or stopped trial cannot have a loss"),
    ],
)
def test_an_impossible_surface_cannot_be_made(changes: dict[str, object], message: str) -> None:
    fields = {"log2_values": (-8.0, -7.0), "seeds": (3, 4), "losses": ((2.5, 2.6), (2.7, 2.8))}
    with pytest.raises(ValueError, match=message):
        Surface(optimizer="adamw", width=64, **{**fields, **changes})  # type: ignore[arg-type]


def test_a_sweeps_own_names_tell_optimizers_apart() -> None:
    """Two Muons under two names are two series; under the optimizer's own name, one series with a setting each."""
    kinds = {"muon": Muon(), "rms": Muon(shape_factor="rms_match")}
    results = {
        name: [trial_result(2.0 + lr, lr=lr, optimizer=config) for lr in (0.01, 0.02)] for name, config in kinds.items()
    }
    labels = {result.trial_id: name for name, both in results.items() for result in both}
    everything = [result for both in results.values() for result in both]
    assert [str(s.series) for s in surfaces(everything, labels=labels)] == ["muon", "rms"]
    assert [str(s.series) for s in surfaces(everything)] == [
        "muon, optimizer.shape_factor=rms_match",
        "muon, optimizer.shape_factor=spectral",
    ]


def test_a_switched_optimizer_is_flat_in_its_fields() -> None:
    switch = Switch(first=AdamW(), second=Muon(), at_tokens=640)
    (surface,) = surfaces([trial_result(2.1, lr=0.01, optimizer=switch), trial_result(2.2, lr=0.02, optimizer=switch)])
    assert str(surface.series) == "switch"
