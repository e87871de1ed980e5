"""From a planted sweep over batch, tokens and width on disk to fits, plans for other batches and a report."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from proxy_models.data import load_data
from sweeps.provenance import provenance
from sweeps.spec import SpecError, check_target, load_spec, load_target, plan_trials
from sweeps.store import ResultStore
from tests.batch_helpers import SPEC, TRUTH, critical, planted_results
from tests.sweep_helpers import write_words
from tests.transfer_helpers import invoke
from transfer.make_plan import make_plan
from transfer.pipeline import Fitted, fit
from transfer.plan import PLAN_JSON, TransferPlan

TOKENS = 2**20


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batches")
    write_words(folder)
    (folder / "spec.toml").write_text(SPEC)
    spec = load_spec(folder / "spec.toml")
    fingerprint = load_data(spec.data_source(), vocab_size=256, seq_len=16).fingerprint
    store = ResultStore(folder)
    store.bind(name=spec.name, spec_text=spec.text, planned_ids=[t.trial_id for t in plan_trials(spec, fingerprint)])
    for result in planted_results(spec, fingerprint):
        store.commit(replace(result, provenance=provenance()))
    return folder


@pytest.fixture(scope="module")
def fitted(recorded: Path) -> Fitted:
    return fit(recorded)


def planned(folder: Path, fitted: Fitted, target: str) -> TransferPlan:
    (folder / "goal.toml").write_text(target)
    goal = load_target(folder / "goal.toml")
    return make_plan(load_spec(folder / "spec.toml"), goal, fitted.over_width, digest="", scales=fitted.scales)


def test_fits_hold_the_study_and_say_what_they_are_of(recorded: Path) -> None:
    result = invoke("fit", recorded, "--json")
    assert result.exit_code == 0, result.stderr
    assert "of the 7 batches, 64, 128, 256, 512, 1,024, 2,048, 4,096 tokens, of the reference, 512" in result.stderr
    document = json.loads(result.stdout)
    assert json.loads((recorded / "fits.json").read_text()) == document
    optima = {(o["optimizer"], o["width"]): o["log2_value"] for o in document["optima"]}
    assert optima.keys() == {(name, width) for name in TRUTH for width in (32, 64)}
    for (name, _), value in optima.items():
        assert value == pytest.approx(TRUTH[name].lr, abs=0.15)
    assert [found["optimizer"] for found in document["scales"]["optimizers"]] == list(TRUTH)
    with (recorded / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = ("optimizer", "width", "train_tokens", "batch_tokens", "batch_tokens_after", "seed", "lr")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    assert sum(row["batch_tokens_after"] != "" for row in rows) == 2 * 2 * 2 * 2 * 4
    shown = invoke("fit", recorded).stdout
    for words in (
        "critical batch by steps to a loss",
        "critical batch by branches",
        "lr over scales",
        "grows as tokens^",
    ):
        assert words in shown


def test_probes_are_in_no_study(recorded: Path) -> None:
    assert invoke("publish", recorded).exit_code == 0
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(recorded / "optuna.log")))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    assert len(studies) == 2 * 2 * 4
    assert {len(study.trials) for study in studies} == {7 * 7 * 2}
    assert {trial.params["batch_tokens"] for trial in studies[0].trials} == {2**k for k in range(6, 13)}
    (recorded / "optuna.log").unlink()


def test_a_plan_moves_batch_and_lr_and_says_what_on(recorded: Path, fitted: Fitted) -> None:
    plan = planned(recorded, fitted, f"width = 128\ntrain_tokens = {TOKENS}\nseeds = [0]\n")
    for optimizer in plan.optimizers:
        truth, hp = TRUTH[optimizer.optimizer], optimizer.run.hparams
        settings = {setting.name: setting for setting in optimizer.settings}
        wanted = 0.2 * critical(truth, TOKENS / 1.2)
        assert wanted / 2.6 < hp.batch_tokens <= 1.3 * wanted  # a power of two of sequences below
        assert settings["batch_tokens"].interval is not None
        assert settings["batch_tokens"].interval.contains(wanted)
        expected = truth.lr + truth.lr_over_batch * np.log2(hp.batch_tokens / 512) + truth.lr_over_tokens * 3
        assert np.log2(hp.lr) == pytest.approx(expected, abs=0.25)
        assert optimizer.log2_lr.value == pytest.approx(np.log2(hp.lr))
        assert optimizer.log2_lr.interval is not None
        assert optimizer.log2_lr.interval.contains(expected)
        assert settings["lr"].rests_on == "fitted here"
        assert hp.beta2 == pytest.approx(0.98 ** (hp.batch_tokens / 512))
        assert hp.lr * hp.weight_decay == pytest.approx(2.0**truth.lr * 0.1, rel=0.15)  # as at the proxies: lr_wd
        assert hp.decay_tokens == TOKENS // 4
        assert [stage.batch_tokens for stage in optimizer.batch_warmup] == [512, 1024]
        assert any("hold at the proxies' tokens and batch" in caveat for caveat in optimizer.caveats)


def test_the_targets_own_batch_wins(recorded: Path, fitted: Fitted) -> None:
    plan = planned(recorded, fitted, "width = 128\nbatch_tokens = 2048\nseeds = [0]\n")
    for optimizer in plan.optimizers:
        truth = TRUTH[optimizer.optimizer]
        assert optimizer.run.hparams.batch_tokens == 2048
        assert optimizer.settings[0].rests_on == "given"
        assert np.log2(optimizer.run.hparams.lr) == pytest.approx(truth.lr + 2 * truth.lr_over_batch, abs=0.2)


def test_at_the_proxies_own_scales_nothing_moves(recorded: Path, fitted: Fitted) -> None:
    plan = planned(recorded, fitted, "width = 128\nbatch_tokens = 512\nseeds = [0]\n")
    for optimizer in plan.optimizers:
        assert optimizer.settings[1].rests_on == "measured here"
        assert "moved by" not in optimizer.rests_on
        assert optimizer.run.hparams.weight_decay == 0.1


def test_the_report_shows_it(recorded: Path) -> None:
    (recorded / "goal.toml").write_text(f"width = 128\ntrain_tokens = {TOKENS}\nseeds = [0]\n")
    made = invoke("transfer", recorded, "--target", recorded / "goal.toml")
    assert made.exit_code == 0, made.stderr
    plan = PLAN_JSON.validate_json((recorded / "plan.json").read_bytes())
    assert all(optimizer.batch_warmup and optimizer.settings for optimizer in plan.optimizers)
    assert "rests on" in made.stdout
    result = invoke("report", recorded)
    assert result.exit_code == 0, result.stderr
    out = recorded / "report"
    figures = {
        *(f"critical_batch_{name}_{width}" for name in TRUTH for width in (32, 64)),
        *(f"branches_{name}" for name in TRUTH),
        *("token_ratio_adamw_muon_32", "token_ratio_adamw_muon_64", "critical_batch_over_tokens", "lr_over_batch"),
    }
    drawn = {file.stem for file in out.glob("*.svg")}
    assert all(any(stem.startswith(figure) for stem in drawn) for figure in figures)
    text = (out / "report.md").read_text()
    for words in (
        "Batch, tokens and weight decay",
        "B_c (hyperbola), tokens",
        "largest branch within 0.01 nats",
        "published laws say of the target",
        "fitted here",
    ):
        assert words in text
        assert words in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("width = 128\nbatch_tokens = 24\n", "batch_tokens: batch_tokens must be a multiple of seq_len=16"),
        (
            "width = 128\nbatch_tokens = 48\n",
            "train_tokens: train_tokens must be a positive multiple of batch_tokens=48",
        ),
        ("width = 128\nbatch_tokens = 262144\n", "must be a positive multiple of batch_tokens=262144, got 131072"),
        ("width = 128\noverhead = 0.0\n", "overhead: must be above 0"),
    ],
)
def test_targets_that_cannot_be(recorded: Path, tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "goal.toml").write_text(target)
    with pytest.raises(SpecError, match=message):
        check_target(load_target(tmp_path / "goal.toml"), load_spec(recorded / "spec.toml"))
