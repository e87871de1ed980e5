"""The Optuna storage says what the ledger says, for every search method."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from sweeps.spec import SweepSpec, labeled_trials, load_spec
from sweeps.store import ResultStore
from sweeps.trial import TrialResult, TrialStatus
from tests.sweep_helpers import completed, diverged
from transfer.optuna_storage import publish, study_name

SPEC = """
name = "planted"
[model]
mlp_ratio = 3.0
[run]
base_width = 32
widths = [32, 64]
seeds = [3, 4]
train_tokens = 6400
validation_tokens = 512
[hparams]
batch_tokens = 128
[optimizers.adamw]
axes = { lr = [0.002, 0.01, 0.04], clip_norm = ["none", 1, 0.5] }
[optimizers.muon_2]
kind = "muon"
axes.lr = { log2_from = -6, log2_to = -3, log2_step = 1 }
"""


def ledger(folder: Path) -> tuple[SweepSpec, dict[str, TrialResult], dict[str, str]]:
    """A whole planted sweep in a store; muon's highest lr diverged."""
    (folder / "spec.toml").write_text(SPEC)
    spec = load_spec(folder / "spec.toml")
    labels, store = {}, ResultStore(folder)
    for index, (label, trial) in enumerate(labeled_trials(spec, "data")):
        labels[trial.trial_id] = label
        store.commit(diverged(trial) if trial.run.hparams.lr == 0.125 else completed(trial, 2.5 + index / 64))
    return spec, store.read(), labels


def storage(file: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(JournalFileBackend(str(file)))


def study(file: Path, spec: SweepSpec, optimizer: str, width: int) -> optuna.Study:
    return optuna.load_study(study_name=study_name(spec, optimizer, width, 2, 6400), storage=storage(file))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepSpec, dict[str, TrialResult]]:
    folder = tmp_path_factory.mktemp("published")
    spec, results, labels = ledger(folder)
    return publish(folder, spec, results.values(), labels), spec, results


def test_every_result_is_a_trial_with_its_numbers(published: tuple[Path, SweepSpec, dict[str, TrialResult]]) -> None:
    file, spec, results = published
    assert file.name == "optuna.log"
    seen = {}
    for optimizer, width in (("adamw", 32), ("adamw", 64), ("muon_2", 32), ("muon_2", 64)):
        found = study(file, spec, optimizer, width)
        assert found.user_attrs == {"sweep": "planted", "optimizer": optimizer, "width": width}
        for trial in found.trials:
            result = results[trial.user_attrs["trial_id"]]
            run = result.trial.run
            seen[result.trial_id] = result
            assert trial.params["lr"] == run.hparams.lr
            assert trial.user_attrs["seed"] == run.seed
            assert trial.user_attrs["width"] == run.model.width == width
            assert trial.duration is not None
            assert trial.duration.total_seconds() == pytest.approx(result.train_seconds, abs=1e-3)
            if result.status is TrialStatus.COMPLETED:
                assert trial.state is optuna.trial.TrialState.COMPLETE
                assert trial.value == result.validation_loss
                assert trial.intermediate_values == dict(zip(result.curve_steps, result.curve_losses, strict=True))
            else:
                assert trial.state is optuna.trial.TrialState.PRUNED
                assert trial.value is None
                assert trial.user_attrs["diverged_step"] == 7
            if optimizer == "adamw":
                assert trial.params["clip_norm"] == run.hparams.clip_norm
            else:
                assert set(trial.params) == {"lr"}
        losses = [
            result.validation_loss
            for trial in found.trials
            if (result := results[trial.user_attrs["trial_id"]]).validation_loss is not None
        ]
        assert found.best_value == min(losses)
    assert seen == results
    assert optuna.get_all_study_names(storage(file)) == [
        "planted, adamw, width 32", "planted, adamw, width 64", "planted, muon_2, width 32", "planted, muon_2, width 64"
    ]  # fmt: skip


def test_publishing_again_replaces_and_says_the_same(tmp_path: Path) -> None:
    spec, results, labels = ledger(tmp_path)
    some = dict(list(results.items())[:5])
    width = next(iter(some.values())).trial.run.model.width
    label = labels[next(iter(some))]
    file = publish(tmp_path, spec, some.values(), labels)
    first = study(file, spec, label, width).trials
    again = study(publish(tmp_path, spec, some.values(), labels), spec, label, width).trials
    assert again == first
    publish(tmp_path, spec, results.values(), labels)
    assert len(study(file, spec, label, width).trials) > len(first)
    assert {path.name for path in tmp_path.iterdir()} == {"spec.toml", "trials", "optuna.log"}


def test_a_failed_trial_is_no_evidence_and_a_broken_export_leaves_the_last(tmp_path: Path) -> None:
    spec, results, labels = ledger(tmp_path)
    one, two = list(results.values())[:2]
    failed = TrialResult(trial=two.trial, status=TrialStatus.FAILED, error="lost")
    file = publish(tmp_path, spec, [one, failed], labels)
    names = optuna.get_all_study_names(storage(file))
    assert len(names) == 1
    unrecorded = replace(one, trial=replace(one.trial, data_fingerprint="other"))
    with pytest.raises(FileNotFoundError):
        publish(tmp_path, spec, [unrecorded], {unrecorded.trial_id: "adamw"})
    assert optuna.get_all_study_names(storage(file)) == names
    assert {path.name for path in tmp_path.iterdir()} == {"spec.toml", "trials", "optuna.log"}
