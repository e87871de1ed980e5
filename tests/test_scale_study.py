"""A study of a planted sweep finds what was planted: critical batches, lr over batch and tokens, probes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.critical_batch import Verdict
from analysis.hp_powers import BATCH, TOKENS
from analysis.scale_study import Measures, ScaleStudy, study_scales, varying_scales
from analysis.scale_study_json import study_json
from sweeps.spec import labeled_trials, load_spec
from sweeps.trial import TrialResult
from tests.batch_helpers import SPEC, TRUTH, critical, planted_results

MEASURES = Measures(steps_to_loss=True, lr_exponent=0.25)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TrialResult], dict[str, str]]:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "spec.toml").write_text(SPEC)
    spec = load_spec(folder / "spec.toml")
    return planted_results(spec, "data"), {trial.trial_id: label for label, trial in labeled_trials(spec, "data")}


def studied(results: list[TrialResult], labels: dict[str, str], **kwargs: object) -> ScaleStudy:
    made = study_scales(
        results, rng=np.random.default_rng(3), measures=MEASURES, band_nats=0.1, labels=labels, **kwargs
    )  # type: ignore[arg-type]
    assert made is not None
    return made


@pytest.fixture(scope="module")
def study(planted: tuple[list[TrialResult], dict[str, str]]) -> ScaleStudy:
    return studied(*planted)


@pytest.mark.parametrize("label", TRUTH)
def test_lr_over_batch_and_tokens(study: ScaleStudy, label: str) -> None:
    found, truth = study.of(label), TRUTH[label]
    assert found is not None
    assert found.powers is not None
    for scale, planted_power in ((BATCH, truth.lr_over_batch), (TOKENS, truth.lr_over_tokens)):
        power = found.powers.power(scale)
        assert power.interval.contains(planted_power)
        assert power.value == pytest.approx(planted_power, abs=0.05)
        assert power.rests_on == "fitted here"
    assert found.by_cell is not None
    assert len(found.by_cell.cells) == 2 * 4
    for cell in found.by_cell.cells:
        assert cell.value == pytest.approx(truth.lr_over_batch, abs=0.1)


@pytest.mark.parametrize("label", TRUTH)
def test_critical_batches_and_their_law(study: ScaleStudy, label: str) -> None:
    found, truth = study.of(label), TRUTH[label]
    assert found is not None
    assert [fit.width for fit in found.critical] == [32, 64]
    for fit in found.critical:
        for record in fit.measured:
            assert record.min_tokens is not None
            expected = critical(truth, record.min_tokens)
            assert record.verdict is Verdict.MEASURED
            assert record.value == pytest.approx(expected, rel=0.25)
    assert found.law is not None
    assert found.law.over_tokens.value == pytest.approx(truth.power, abs=0.15)
    predicted = found.law.predict(2.0**17, 10_000)
    assert predicted.interval.contains(critical(truth, 2.0**17))
    assert found.co_scaled is not None
    assert found.co_scaled.value == pytest.approx(truth.lr_over_tokens + truth.power * truth.lr_over_batch, abs=0.1)


def test_tokens_of_one_optimizer_over_another(study: ScaleStudy) -> None:
    assert [(ratio.numerator, ratio.denominator, ratio.width) for ratio in study.ratios] == [
        ("adamw", "muon", 32),
        ("adamw", "muon", 64),
    ]
    for ratio in study.ratios:
        values = [point.value for point in ratio.points if point.bound is None and point.value is not None]
        assert min(values) > 1.1  # Muon's loss is lower at every batch, and its critical batch higher
        assert ratio.everywhere.growth.value == "yes"


def test_probes(study: ScaleStudy) -> None:
    for found in study.optimizers:
        assert [(local.width, local.at_tokens) for local in found.branches] == [
            (32, 16384), (32, 65536), (64, 16384), (64, 65536),
        ]  # fmt: skip
        assert {local.factor for local in found.branches} == {4}
        assert {local.batch_tokens for local in found.branches} == {2048}
        (width, stages), _ = found.warmups
        assert width == 32
        assert [stage.batch_tokens for stage in stages] == [512, 1024]
        assert stages[1].lr_ratio == pytest.approx(2**0.25)


def test_the_document_is_json(study: ScaleStudy) -> None:
    document = json.loads(json.dumps(study_json(study), allow_nan=False))
    assert [found["optimizer"] for found in document["optimizers"]] == ["adamw", "muon"]
    for found in document["optimizers"]:
        assert found["critical_batch_law"]["definition"] == "hyperbola"
        assert all(r["unit"] == "tokens" for fit in found["critical_batch"] for r in fit["critical_batches"])
    assert document["unmeasured"] == []


def test_it_depends_on_no_order_and_no_other_optimizer(
    planted: tuple[list[TrialResult], dict[str, str]], study: ScaleStudy
) -> None:
    results, labels = planted
    shuffled = [results[i] for i in np.random.default_rng(1).permutation(len(results))]
    assert study_json(studied(shuffled, labels)) == study_json(study)
    alone = {trial_id: label for trial_id, label in labels.items() if label == "muon"}
    muon = studied([result for result in results if result.trial_id in alone], alone)
    assert study_json(muon)["optimizers"] == study_json(study)["optimizers"][1:]


def test_the_noise_of_a_trial(planted: tuple[list[TrialResult], dict[str, str]]) -> None:
    results, labels = planted
    rng = np.random.default_rng(5)
    rows = []
    for step in range(1, 200, 4):
        noise, square = 300.0, 0.5  # tokens
        micro, batch = square * (1 + noise / 64), square * (1 + noise / 512)
        values = {
            "gradient_sq_micro": micro * (1 + 0.02 * rng.standard_normal()),
            "gradient_sq_batch": batch * (1 + 0.02 * rng.standard_normal()),
            "micro_tokens": 64.0,
            "batch_tokens": 512.0,
        }
        rows += [{"step": step, "depth": 0, "kind": "all", "quantity": q, "value": v} for q, v in values.items()]
    made = studied(results, labels, diagnostics={results[0].trial_id: pd.DataFrame(rows)})
    (record,) = made.optimizers[0].noise
    assert record.trial_id == results[0].trial_id
    assert all(window.value == pytest.approx(300, rel=0.1) for window in record.trend.windows)
    assert study_json(made)["optimizers"][0]["noise_scale"][0]["direction"] == record.trend.direction


def test_a_sweep_over_width_alone_is_not_studied(planted: tuple[list[TrialResult], dict[str, str]]) -> None:
    results, labels = planted
    plain = [
        r
        for r in results
        if (r.trial.run.hparams.batch_tokens, r.trial.run.train_tokens, r.trial.run.batch_change) == (512, 131072, None)
    ]
    assert varying_scales(plain) == ()
    assert study_scales(plain, rng=np.random.default_rng(0), measures=MEASURES, band_nats=0.1, labels=labels) is None


def test_what_cannot_be_measured_is_said(planted: tuple[list[TrialResult], dict[str, str]], tmp_path: Path) -> None:
    """Three batches are no hyperbola, and one batch tells no power."""
    results, labels = planted
    few = [r for r in results if r.trial.run.hparams.batch_tokens in (256, 512, 1024) and not r.trial.run.batch_change]
    made = studied(few, labels)
    assert {(one.what, one.optimizer) for one in made.unmeasured} >= {
        ("critical batch by steps to a loss", "adamw"),
        ("critical batch by steps to a loss", "muon"),
    }
    assert all(one.reason for one in made.unmeasured)
    single = studied([r for r in few if r.trial.run.hparams.batch_tokens == 512], labels)
    powers = single.optimizers[0].powers
    assert powers is not None
    assert powers.power(BATCH).rests_on == "published prior"
    assert powers.power(TOKENS).rests_on == "fitted here"
