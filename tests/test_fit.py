"""A whole sweep: planted optima found, the rest said aloud, one document, no dependence on order."""

import itertools
import json
import random
from typing import Any

import numpy as np
import pytest

from analysis.drift import predict_optimum
from analysis.fast_transfer import Verdict
from analysis.fit import SCHEMA_VERSION, SweepFit, fit_sweep
from analysis.flags import Flag
from analysis.interval import FitError
from analysis.loss_law import predict_loss
from analysis.surface import Series
from sweeps.trial import TrialStatus
from tests.analysis_helpers import planted_results, trial_result

BATCHES = (128, 256, 512, 1024, 2048)


def fit(results: Any, **settings: Any) -> SweepFit:
    return fit_sweep(results, rng=np.random.default_rng(19), n_bootstrap=100, **settings)


@pytest.fixture(scope="module")
def planted() -> SweepFit:
    return fit(planted_results())


def test_finds_planted_optima_drifts_and_losses(planted: SweepFit) -> None:
    assert planted.series == (Series("adamw"), Series("muon"))
    assert [skipped.what for skipped in planted.skipped] == ["fast_transfer", "fast_transfer"]  # it takes four widths
    assert len(planted.surfaces) == len(planted.optima) == 6
    for optimum in planted.optima_of(Series("adamw")):
        assert optimum.log2_value == pytest.approx(-6 - 32 / optimum.width, abs=0.15)
        assert optimum.loss == pytest.approx(1.3 + 1.2 * (optimum.width / 32) ** -0.6, abs=0.03)
    adamw, muon = planted.drifts
    assert adamw.resolved
    assert predict_optimum(adamw, 256).log2_value == pytest.approx(-6 - 32 / 256, abs=0.15)
    assert not muon.resolved
    assert predict_optimum(muon, 256).log2_value == pytest.approx(-6.6, abs=0.1)
    assert all(law.wider_is_better for law in planted.loss_laws)
    expected = predict_loss(planted.loss_laws[1], 256)
    assert expected.interval is not None
    assert expected.interval.contains(1.3 + 0.07 + 1.2 * 8**-0.6)


def test_same_results_in_any_order_give_the_same_fit(planted: SweepFit) -> None:
    shuffled = planted_results()
    random.Random(5).shuffle(shuffled)
    assert fit(shuffled) == planted
    assert fit(iter(shuffled)).to_json() == planted.to_json()


def test_document_is_json_and_summarizes_draws(planted: SweepFit) -> None:
    text = json.dumps(planted.to_json(), allow_nan=False)
    document = json.loads(text)
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["settings"] == {"hp": "lr", "band_nats": 0.05, "n_bootstrap": 100, "level": 0.9}
    lists = {"surfaces", "optima", "drifts", "loss_laws", "fast_transfer", "penalties", "skipped"}
    assert set(document) == {"schema_version", "settings", "n_stopped", "joint"} | lists
    optimum = document["optima"][4]
    assert (optimum["optimizer"], optimum["width"], optimum["fixed"]) == ("muon", 64, {})
    assert optimum["value"] == pytest.approx(2 ** optimum["log2_value"])
    assert optimum["interval"]["level"] == 0.9
    assert optimum["n_draws"] == 100
    assert {"name", "advice"} == set(optimum["flags"][0])
    assert "draws" not in text.replace("n_draws", "")
    assert document["surfaces"][0]["mean_losses"] == pytest.approx(list(planted.surfaces[0].mean_losses))
    assert document["drifts"][0]["resolved"] is True
    assert document["loss_laws"][0]["limited"].keys() == {"limit", "reducible", "exponent"}


def test_divergence_bounds_and_does_not_skip() -> None:
    diverging = fit(planted_results(optimizers=("muon",), diverges_above=-6.5))
    assert [optimum.edge for optimum in diverging.optima] == [None] * 3
    assert all(Flag.NEXT_TO_DIVERGED in optimum.flags for optimum in diverging.optima)
    assert document_is_plain(diverging)


def document_is_plain(fitted: SweepFit) -> bool:
    return bool(json.dumps(fitted.to_json(), allow_nan=False))


def test_what_cannot_be_fitted_is_named() -> None:
    """Width 128 diverges everywhere, so one optimum and the loss law are missing; the drift has two widths left."""
    results = planted_results(optimizers=("muon",), widths=(32, 64))
    dead = [trial_result(None, lr=2.0**e, optimizer="muon", width=128, seed=s) for e in (-7, -6, -5) for s in (3, 4)]
    fitted = fit([*results, *dead])
    assert [(skipped.what, skipped.width) for skipped in fitted.skipped] == [
        ("optimum", 128), ("loss_law", None), ("fast_transfer", None), ("penalties", None),
    ]  # fmt: skip
    assert "3 of 3 values diverged" in fitted.skipped[0].reason
    assert fitted.drifts[0].widths == (32, 64)
    assert document_is_plain(fitted)


def test_optima_at_an_edge_stay_out_of_what_is_fitted_over_width() -> None:
    clipped = [
        result
        for result in planted_results(optimizers=("muon",))
        if result.trial.run.model.width != 64 or result.trial.run.hparams.lr < 2**-7.5
    ]
    fitted = fit(clipped)
    assert [optimum.edge for optimum in fitted.optima] == [None, "high", None]
    assert fitted.drifts[0].widths == (32, 128)
    assert [skipped.what for skipped in fitted.skipped] == ["loss_law", "fast_transfer"]


def test_a_second_axis_is_fitted_apart() -> None:
    both = [
        result for decay in (0.0, 0.2) for result in planted_results(hparams={"weight_decay": decay}, widths=(32, 64))
    ]
    fitted = fit(both)
    assert [str(series) for series in fitted.series] == [
        f"{optimizer}, weight_decay={decay}" for optimizer in ("adamw", "muon") for decay in (0.0, 0.2)
    ]
    assert [drift.fixed for drift in fitted.drifts[:2]] == [(("weight_decay", 0.0),), (("weight_decay", 0.2),)]
    assert fitted.to_json()["optima"][2]["fixed"] == {"weight_decay": 0.2}


def test_four_widths_give_rates_and_a_verdict() -> None:
    half_octaves = tuple(np.arange(-10, -3.4, 0.5))
    fitted = fit(planted_results(widths=(32, 64, 128, 256, 512, 1024), noise=0.001, log2_lrs=half_octaves))
    adamw, muon = fitted.transfers
    assert adamw.beta.interval.contains(1.0)  # -6 - 32/width
    assert adamw.alpha.interval.contains(0.6)
    assert (adamw.verdict, muon.verdict) == (Verdict.FAST, Verdict.INCONCLUSIVE)  # muon's optimum stays put
    assert adamw.joint_error is not None
    assert adamw.joint_error < 0.01
    document = fitted.to_json()
    assert [transfer["verdict"] for transfer in document["fast_transfer"]] == ["fast", "inconclusive"]
    assert [one["width"] for one in document["penalties"][0]["penalties"]] == [32, 64, 128, 256, 512]
    assert document_is_plain(fitted)


def test_two_numeric_axes_are_also_fitted_together() -> None:
    """The optimum is at log2 lr = -6.6 + 0.4 (log2 batch - 9.2) and log2 batch = 9.2: tilted, off the grid."""
    rng = np.random.default_rng(4)
    results = []
    for width, seed, lr, batch in itertools.product((32, 64, 128, 256), (3, 4), range(-10, -3), BATCHES):
        b = np.log2(batch) - 9.2
        loss = 1.3 + 1.2 * (width / 32) ** -0.6 + 0.05 * (lr + 6.6 - 0.4 * b) ** 2 + 0.03 * b**2
        hparams = {"batch_tokens": batch}
        loss += 0.002 * rng.standard_normal()
        results.append(trial_result(loss, lr=2.0**lr, width=width, seed=seed, hparams=hparams, train_tokens=102400))
    joint = fit(results).joint
    assert joint is not None
    assert joint.hps == ("lr", "batch_tokens")
    for cell in joint.series[0].cells:
        assert cell.log2_values == pytest.approx((-6.6, 9.2), abs=0.1)
    assert fit(planted_results()).joint is None


def test_one_seed_still_gives_optima() -> None:
    fitted = fit(planted_results(seeds=(3,)))
    assert all(Flag.ONE_SEED in optimum.flags for optimum in fitted.optima)
    assert all(predict_loss(law, 256).interval is None for law in fitted.loss_laws)
    assert document_is_plain(fitted)


def test_refuses_a_sweep_without_results() -> None:
    failed = trial_result(None, lr=0.01, status=TrialStatus.FAILED)
    for results in ([], [failed]):
        with pytest.raises(FitError, match="no trial has a result yet; run the sweep first"):
            fit(results)


def test_an_added_optimizer_leaves_the_others_fits_as_they_were() -> None:
    both = fit_sweep(planted_results(optimizers=("adamw", "muon")), rng=np.random.default_rng(6))
    alone = fit_sweep(
        [r for r in planted_results(optimizers=("adamw", "muon")) if r.trial.run.optimizer.name == "muon"],
        rng=np.random.default_rng(6),
    )
    assert alone.optima == tuple(optimum for optimum in both.optima if optimum.optimizer == "muon")
    assert alone.drifts == tuple(drift for drift in both.drifts if drift.optimizer == "muon")
