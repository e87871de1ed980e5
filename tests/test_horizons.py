"""Several horizons in one spec: their trials, and fits that are over width of the longest alone that say so."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from proxy_models.data import load_data
from sweeps.provenance import provenance
from sweeps.spec import SpecError, load_spec, plan_trials, run_config
from sweeps.store import ResultStore
from sweeps.trial import Trial
from tests.sweep_helpers import completed, write_words
from tests.transfer_helpers import invoke
from transfer.report import read_material, text_context

SPEC = """
name = "horizons"
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
widths = [32, 64, 128]
seeds = [0, 1]
train_tokens = [640, 1280, 2560]
validation_tokens = 64
decay_frac = 0.2
[hparams]
batch_tokens = 32
[optimizers.adamw]
axes.lr = { log2_from = -10, log2_to = -4, log2_step = 1 }
"""
HORIZONS = "[640, 1280, 2560]"
NOTE = "of the 3 horizons, 640, 1,280, 2,560 tokens, they are of the longest"


def write(folder: Path, *replacements: tuple[str, str]) -> Path:
    """SPEC with replacements."""
    text = SPEC
    for old, new in replacements:
        assert text.count(old) == 1, f"{old!r} is in the spec {text.count(old)} times"
        text = text.replace(old, new)
    (folder / "spec.toml").write_text(text)
    return folder / "spec.toml"


def planned(folder: Path, *replacements: tuple[str, str]) -> tuple[Trial, ...]:
    return plan_trials(load_spec(write(folder, *replacements)), "data")


def test_every_horizon_becomes_trials_with_a_decay_of_its_own(tmp_path: Path) -> None:
    trials = planned(tmp_path)
    lengths = {(one.run.train_tokens, one.run.hparams.decay_tokens) for one in trials}
    assert lengths == {(640, 128), (1280, 256), (2560, 512)}
    assert len(trials) == len({one.trial_id for one in trials}) == 3 * 3 * 7 * 2


def test_a_horizon_in_a_list_is_the_horizon_alone(tmp_path: Path) -> None:
    decay = ("decay_frac = 0.2", ""), ("batch_tokens = 32", "batch_tokens = 32\ndecay_tokens = 256")
    alone = planned(tmp_path, (HORIZONS, "1280"), *decay)
    assert planned(tmp_path, (HORIZONS, "[1280]")) == alone
    assert [one for one in planned(tmp_path) if one.run.train_tokens == 1280] == list(alone)


@pytest.mark.parametrize(
    ("tokens", "frac", "decay"),
    [
        (640, "0.2", 128),
        (640, "0.22", 128),
        (640, "0.23", 160),
        (640, "0.001", 32),
        (640, "1", 640),
        (2560, "0.5", 1280),
    ],
)
def test_a_share_of_the_run_decays_in_whole_batches(tmp_path: Path, tokens: int, frac: str, decay: int) -> None:
    spec = load_spec(write(tmp_path, ("decay_frac = 0.2", f"decay_frac = {frac}")))
    run = run_config(spec, "adamw", width=32, seed=0, train_tokens=tokens)
    assert run.hparams.decay_tokens == decay
    assert run_config(spec, "adamw", width=32, seed=0).train_tokens == 2560


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (HORIZONS, "[640, 640]", "run.train_tokens: must not have a value twice, got .* Remove one 640"),
        (HORIZONS, "[]", r"run.train_tokens: must have at least one value, got \[\]"),
        (HORIZONS, "[640, 0]", r"run.train_tokens\[1\]: must be at least 1, got 0"),
        (HORIZONS, "0", "run.train_tokens: must be at least 1, got 0"),
        (HORIZONS, '["640"]', r"run.train_tokens\[0\]: must be a whole number, got '640'"),
        (HORIZONS, '"640"', "run.train_tokens: must be a whole number, got '640'"),
        (HORIZONS, "[640, 650]", "run.train_tokens: train_tokens must be a positive multiple of .* got 650"),
        ("decay_frac = 0.2", "decay_frac = 0", "run.decay_frac: must be above 0"),
        ("decay_frac = 0.2", "decay_frac = 1.5", "run.decay_frac: must be at most 1"),
        (
            "decay_frac = 0.2",
            'decay_frac = 0.2\nschedule = "cosine"',
            'run: decay_frac goes with schedule = "wsd", got',
        ),
        (
            "batch_tokens = 32",
            "batch_tokens = 32\ndecay_tokens = 64",
            "hparams.decay_tokens: must not be given beside run.decay_frac, which sets it, got 64",
        ),
        (
            "[optimizers.adamw]",
            "[axes]\ndecay_tokens = [32, 64]\n[optimizers.adamw]",
            "axes.decay_tokens: must not be given beside run.decay_frac",
        ),
        (
            "[optimizers.adamw]",
            "[optimizers.adamw]\nhparams.decay_tokens = 32",
            "optimizers.adamw.hparams.decay_tokens: must not be given beside run.decay_frac",
        ),
        (
            "batch_tokens = 32",
            "batch_tokens = 32\nwarmup_tokens = 600",
            r"warmup_tokens \+ decay_tokens must not exceed",
        ),
        (
            "[optimizers.adamw]",
            '[search]\nmethod = "telescope"\n[optimizers.adamw]',
            r'search.method: must be "grid" where run.train_tokens has several horizons, got "telescope" with \[640',
        ),
        ("[optimizers.adamw]", '[search]\nmethod = "optuna"\n[optimizers.adamw]', "several horizons, got .optuna."),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"spec.toml: .*{message}"):
        load_spec(write(tmp_path, (old, new)))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sweep whose optimum falls by an octave with each doubling of the horizon: 2^-5, 2^-6, 2^-7."""
    folder = tmp_path_factory.mktemp("horizons")
    write_words(folder)
    spec = load_spec(write(folder))
    trials = plan_trials(spec, load_data(spec.data_source(), vocab_size=256, seq_len=16).fingerprint)
    store, rng = ResultStore(folder), np.random.default_rng(7)
    store.bind(name=spec.name, spec_text=spec.text, planned_ids=[one.trial_id for one in trials])
    for one in trials:
        run = one.run
        away = np.log2(run.hparams.lr) + 5 + np.log2(run.train_tokens / 640)
        loss = 1.0 + (run.model.width / 32) ** -0.5 + 0.06 * away**2 + 0.002 * float(rng.standard_normal())
        store.commit(replace(completed(one, loss), provenance=provenance()))
    (folder / "goal.toml").write_text("width = 256\nseeds = [0]\n")
    return folder


def test_plan_says_what_trunks_save(recorded: Path) -> None:
    """Of 140 steps of three horizons, the branches take over 16 and 32."""
    result = invoke("plan", recorded / "spec.toml", "--backend", "local", "--json")
    assert result.exit_code == 0, result.stderr
    cost = json.loads(result.stdout)
    assert cost["flops_saved_by_trunks"] == pytest.approx(48 / 140 * sum(row["flops"] for row in cost["costs"]))
    assert re.search(r"Saved by trunks, .* FLOPs, 34%", invoke("plan", recorded / "spec.toml").stdout)


def test_fits_are_of_the_longest_and_say_so(recorded: Path) -> None:
    result = invoke("fit", recorded, "--json")
    assert result.exit_code == 0, result.stderr
    assert NOTE in result.stderr
    optima = json.loads(result.stdout)["optima"]
    assert len(optima) == 3
    assert all(optimum["log2_value"] == pytest.approx(-7, abs=0.2) for optimum in optima)
    with (recorded / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 126
    assert {row["train_tokens"] for row in rows} == {"640", "1280", "2560"}
    assert json.loads(invoke("status", recorded, "--json").stdout)["planned"] == 126


def test_plan_and_report_say_so(recorded: Path) -> None:
    result = invoke("transfer", recorded, "--target", recorded / "goal.toml")
    assert result.exit_code == 0, result.stderr
    (adamw,) = json.loads((recorded / "plan.json").read_bytes())["optimizers"]
    assert adamw["log2_lr"]["value"] == pytest.approx(-7, abs=0.2)
    assert adamw["run"]["train_tokens"] == 2560
    assert adamw["run"]["hparams"]["decay_tokens"] == 512
    assert any(NOTE in caveat for caveat in adamw["caveats"])
    material = read_material(recorded)
    assert material.plan is not None
    context = text_context(material, "some text", {})
    assert context["summary"].startswith("42 of 42 trials")
    assert NOTE in context["summary"]
    assert f"{126 * 1e9:.2e} proxies" in str(context["provenance_table"].rows)


def test_every_horizon_has_a_study_of_its_own(recorded: Path) -> None:
    assert invoke("publish", recorded).exit_code == 0
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(recorded / "optuna.log")))
    studies = {
        name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)
    }
    assert len(studies) == 9
    best = studies["horizons, adamw, width 64, 1280 tokens"].best_params
    assert best == {"lr": 2.0**-6}


def test_with_nothing_at_the_longest_there_is_no_fit(tmp_path: Path, recorded: Path) -> None:
    (tmp_path / "text.txt").write_bytes((recorded / "text.txt").read_bytes())
    store, results = ResultStore(tmp_path), ResultStore(recorded).read()
    store.bind(name="horizons", spec_text=SPEC, planned_ids=list(results))
    for result in results.values():
        if result.trial.run.train_tokens < 2560:
            store.commit(result)
    failed = invoke("fit", tmp_path)
    assert failed.exit_code == 2
    assert "no results of the sweep 'horizons' at its longest horizon and reference batch yet" in failed.stderr
