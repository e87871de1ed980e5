"""From recorded trials at six widths to the verdict in fits.json, plan.json, the report and on the terminal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from analysis.equivalent import equivalent
from analysis.interval import percentile_interval
from analysis.loss_law import LossLaw, PowerLaw
from proxy_models.data import load_data
from sweeps.provenance import provenance
from sweeps.spec import load_spec, plan_trials
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult
from tests.sweep_helpers import completed, write_words
from tests.transfer_helpers import invoke

SPEC = """
name = "{name}"
[data]
source = "text"
path = "text.txt"
validation_frac = 0.2
[model]
depth = 1
head_dim = 16
seq_len = 16
[run]
base_width = 32
widths = {widths}
seeds = [0, 1, 2]
train_tokens = 3200
validation_tokens = 64
[hparams]
batch_tokens = 32
[optimizers.adamw]
axes.lr = {{ log2_from = -10, log2_to = -4, log2_step = 0.5 }}
"""
SIX = [32, 64, 128, 256, 512, 1024]


def planted(trial: Trial, rng: np.random.Generator, floor: float) -> TrialResult:
    """alpha 0.5 and an optimum at -7.3 + 1.9 r^-0.9; noise of 2 millinats."""
    r = trial.run.model.width / 32
    away = np.log2(trial.run.hparams.lr) + 7.3 - 1.9 * r**-0.9
    loss = floor + 1.2 * r**-0.5 + 0.06 * away**2 + 0.002 * float(rng.standard_normal())
    return replace(completed(trial, loss), provenance=provenance())


def record(
    folder: Path, *, name: str = "planted", widths: list[int] = SIX, beta: float = 0.9, floor: float = 1.3
) -> Path:
    """A results folder of a whole sweep."""
    folder.mkdir()
    write_words(folder)
    (folder / "in.toml").write_text(SPEC.format(name=name, widths=widths))
    spec = load_spec(folder / "in.toml")
    trials = plan_trials(spec, load_data(spec.data_source(), vocab_size=256, seq_len=16).fingerprint)
    store = ResultStore(folder)
    store.bind(name=spec.name, spec_text=spec.text, planned_ids=[trial.trial_id for trial in trials])
    rng = np.random.default_rng(7)
    for trial in trials:
        store.commit(planted(trial, rng, floor))
    return folder


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = record(tmp_path_factory.mktemp("rates") / "fast")
    (folder / "goal.toml").write_text("width = 4096\nseeds = [0]\n")
    for command in (("fit", folder), ("transfer", folder, "--target", folder / "goal.toml"), ("report", folder)):
        result = invoke(*command)
        assert result.exit_code == 0, result.stderr
    return folder


def test_the_verdict_reaches_every_document(fast: Path) -> None:
    (fit,) = json.loads((fast / "fits.json").read_bytes())["fast_transfer"]
    assert fit["verdict"] == "fast"
    assert fit["beta"]["interval"]["low"] < 0.9 < fit["beta"]["interval"]["high"]
    (plan,) = json.loads((fast / "plan.json").read_bytes())["optimizers"]
    assert plan["fast_transfer"]["verdict"] == "fast"
    assert plan["log2_lr"]["interval"]["low"] < -7.3 + 1.9 * 128**-0.9 < plan["log2_lr"]["interval"]["high"]
    assert "v + b width^-beta" in plan["rests_on"]
    shares = plan["excess_equivalent"]
    assert 0 <= shares["width_share"]["value"] < shares["compute_share"]["value"] < 0.1
    report = (fast / "report" / "report.md").read_text()
    assert "Transfer is fast" in report
    assert "| adamw | fast |" in report
    assert "| adamw | 32 at 1024 | +1.8" in report
    assert (fast / "report" / "transfer_gaps.svg").is_file()
    shown = invoke("fit", fast).stdout
    assert "adamw: Transfer is fast" in shown


def test_compare_puts_sweeps_side_by_side(fast: Path) -> None:
    worse = record(fast.parent / "worse", name="worse", floor=1.5)
    result = invoke("compare", fast, worse, "--json")
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)["series"]
    assert first["limit_gap"]["value"] == 0
    assert second["limit_gap"]["value"] == pytest.approx(0.2, abs=0.05)
    assert second["kappa"]["interval"]["high"] < 0
    assert "worse: adamw" in invoke("compare", fast, worse).stdout


@pytest.mark.parametrize(
    ("widths", "said"), [([32], "two widths"), ([32, 64], "4 widths or more"), ([32, 64, 128], "4 widths or more")]
)
def test_few_widths_are_inconclusive_or_refused(tmp_path: Path, widths: list[int], said: str) -> None:
    folder = record(tmp_path / "few", widths=widths)
    (folder / "goal.toml").write_text("width = 256\nseeds = [0]\n")
    result = invoke("transfer", folder, "--target", folder / "goal.toml")
    assert said in result.stdout + result.stderr
    assert result.exit_code == (2 if widths == [32] else 0)
    if widths != [32]:
        (plan,) = json.loads((folder / "plan.json").read_bytes())["optimizers"]
        assert plan["fast_transfer"]["verdict"] == "inconclusive"
        assert plan["fast_transfer"]["probability_fast"] is None
    refused = invoke("compare", folder)
    assert refused.exit_code == 2
    assert "four widths or more" in refused.stderr


def test_a_grid_too_is_published_to_optuna(fast: Path) -> None:
    result = invoke("publish", fast)
    assert result.exit_code == 0, result.stderr
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(result.stdout.strip()))
    studies = optuna.get_all_study_summaries(storage)
    assert len(studies) == len(SIX)
    assert sum(study.n_trials for study in studies) == len(SIX) * 13 * 3


def test_an_excess_in_width_and_compute_is_that_of_the_law() -> None:
    """1.3 + 1.2 (n/32)^-0.5: 0.02 nats above its loss at 512 is its loss at another width, found by root finding."""
    law = PowerLaw(limit=1.3, reducible=1.2, exponent=0.5)
    loss_law = LossLaw(
        optimizer="adamw", fixed=(), widths=(32, 64, 128, 256), losses=(2.5, 2.15, 1.9, 1.72), pure=law, limited=law,
        draws=(law,) * 50, level=0.9,
    )  # fmt: skip
    excesses = np.linspace(0.0, 0.04, 50)
    found = equivalent(loss_law, 512, 0.02, excesses, flops_exponent=1.8)
    assert found is not None
    narrower = 32 * ((1.2 * 16**-0.5 + 0.02) / 1.2) ** -2
    assert found.width_share.value == pytest.approx(1 - narrower / 512)
    assert found.compute_share.value == pytest.approx(1 - (narrower / 512) ** 1.8)
    widths = 32 * ((1.2 * 16**-0.5 + excesses) / 1.2) ** -2
    expected = percentile_interval(1 - widths / 512, 0.9)
    assert (found.width_share.interval.low, found.width_share.interval.high) == pytest.approx(
        (expected.low, expected.high)
    )
    flat = PowerLaw(limit=1.3, reducible=0.0, exponent=0.5)
    rising = LossLaw(
        optimizer="adamw", fixed=(), widths=(32, 64, 128), losses=(2.5, 2.5, 2.5), pure=flat, limited=flat,
        draws=(flat,), level=0.9,
    )  # fmt: skip
    assert equivalent(rising, 512, 0.02, excesses, flops_exponent=2.0) is None
