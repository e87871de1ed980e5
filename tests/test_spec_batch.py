"""Batches in a spec: what follows them, which probes are planned, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.spec import SpecError, SweepSpec, labeled_trials, load_spec, run_config, run_configs, trunk_of
from sweeps.trunk import plan_tree, shared_steps

SPEC = """
name = "batches"
[model]
depth = 1
head_dim = 8
seq_len = 16
[run]
base_width = 16
widths = [16, 32]
seeds = [0, 1]
train_tokens = [5120, 10240, 20480]
validation_tokens = 64
decay_frac = 0.25
[hparams]
beta2 = 0.98
[axes]
batch_tokens = [32, 64, 128, 256]
[batch]
reference_tokens = 64
lr_exponent = 0.5
[critical_batch]
measure = ["steps_to_loss", "branches", "noise_scale"]
noise_every_steps = 8
[critical_batch.branches]
at_tokens = [2560, 7680]
factors = [1, 2, 4]
window_tokens = 2560
[optimizers.adamw]
axes.lr = [0.01, 0.02, 0.04]
[optimizers.muon]
axes.lr = [0.02, 0.04, 0.08]
"""

Load = Callable[..., SweepSpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """SPEC with replacements, loaded."""

    def loaded(*replacements: tuple[str, str]) -> SweepSpec:
        text = SPEC
        for old, new in replacements:
            assert text.count(old) == 1, f"{old!r} is in the spec {text.count(old)} times"
            text = text.replace(old, new)
        file = tmp_path / "spec.toml"
        file.write_text(text)
        return load_spec(file)

    return loaded


def test_the_lr_axis_and_beta2_follow_the_batch(load: Load) -> None:
    runs = [run for run in run_configs(load()) if run.optimizer.name == "adamw" and run.batch_change is None]
    lrs = {b: sorted({r.hparams.lr for r in runs if r.hparams.batch_tokens == b}) for b in (32, 64, 256)}
    assert lrs[64] == [0.01, 0.02, 0.04]
    assert lrs[256] == [0.02, 0.04, 0.08]
    assert lrs[32] == pytest.approx([2**-0.5 * lr for lr in lrs[64]])
    for run in runs:  # tokens over which half of a gradient's square is forgotten
        assert run.hparams.beta2 ** (64 / run.hparams.batch_tokens) == pytest.approx(0.98)


def test_beta2_may_stay(load: Load) -> None:
    runs = run_configs(load(("lr_exponent = 0.5", 'lr_exponent = 0.5\nbeta2 = "constant"')))
    assert {run.hparams.beta2 for run in runs} == {0.98}
    assert {run.batch_change.beta2 for run in runs if run.batch_change} == {None}


def test_a_run_takes_its_lr_as_it_is_given(load: Load) -> None:
    run = run_config(load(), "adamw", width=64, seed=0, overrides={"lr": 0.03, "batch_tokens": 256})
    assert run.hparams.lr == 0.03
    assert run.hparams.beta2 == pytest.approx(0.98**4)


def test_probes_go_on_from_runs_of_the_grid(load: Load) -> None:
    spec = load()
    trials = [trial for _, trial in labeled_trials(spec, "data")]
    probes = [trial for trial in trials if trial.run.batch_change is not None]
    assert len(probes) == 2 * 2 * 2 * 2 * 3  # optimizers, widths, seeds, points, factors
    assert len(trials) - len(probes) == 2 * 2 * 2 * 4 * 3 * 3
    tree, by_id = plan_tree(trials), {trial.trial_id: trial for trial in trials}
    for probe in probes:
        change, hp = probe.run.batch_change, probe.run.hparams
        assert change is not None
        factor = change.batch_tokens // hp.batch_tokens
        assert (hp.batch_tokens, hp.decay_tokens) == (64, 0)
        assert probe.run.train_tokens == change.at_tokens + 2560
        assert (change.lr_ratio, change.beta2) == (factor**0.5, pytest.approx(0.98**factor))
        trunk = by_id[tree.starts[probe.trial_id].trunk_id]
        assert trunk.run.train_tokens == 20480
        assert trunk.run.batch_change is None
        assert shared_steps(trunk.run) >= tree.starts[probe.trial_id].step == change.at_tokens // 64


def test_the_trunk_may_have_an_lr_of_its_own(load: Load) -> None:
    spec = load(("window_tokens = 2560", "window_tokens = 2560\nlr = { muon = 0.08 }"))
    lrs = {name: trunk_of(spec, name, width=16, depth=1, seed=0).hparams.lr for name in spec.optimizers}
    assert lrs == {"adamw": 0.02, "muon": 0.08}


def test_the_noise_is_measured_where_it_is_asked_for(load: Load) -> None:
    assert load().noise_every_steps == 8
    without = load(
        ('["steps_to_loss", "branches", "noise_scale"]', '["steps_to_loss", "branches"]'),
        ("noise_every_steps = 8\n", ""),
    )
    assert without.noise_every_steps is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[32, 64, 128, 256]",
            "[32, 64, 128]",
            r"axes.batch_tokens: must have at least 4 values .* got \[32, 64, 128\]",
        ),
        ("batch_tokens = [32, 64, 128, 256]", "", r"axes.batch_tokens: must have at least 4 values .* got \[\]"),
        ("[32, 64, 128, 256]", "[24, 32, 64, 128]", "axes.batch_tokens: batch_tokens must be a multiple of seq_len=16"),
        ("[32, 64, 128, 256]", "[64, 128, 256, 8192]", "run.train_tokens: train_tokens must be a positive multiple of"),
        ("[5120, 10240, 20480]", "[10240, 20480]", "run.train_tokens: must have at least 3 horizons"),
        ("[2560, 7680]", "[2560, 15424]", r"at_tokens: must lie within .* 15,360 tokens of its 20,480, got \[15424\]"),
        (
            "[2560, 7680]",
            "[2560, 7681]",
            r"branches.at_tokens: must be whole batches of the trunk's 64 tokens, got .7681.",
        ),
        ("window_tokens = 2560", "window_tokens = 2496", "branches: at_tokens must leave whole batches of 128 of 5056"),
        ("window_tokens = 2560", "window_tokens = 64", "branches: at_tokens must leave whole batches of 128 of 2624"),
        ("factors = [1, 2, 4]", "factors = [2, 4, 8]", "branches: factors must hold 1, .* got .2, 4, 8."),
        ("window_tokens = 2560", "window_tokens = 2560\nlr = { adam = 1.0 }", "branches.lr.adam: must be an optimizer"),
        ('"steps_to_loss", "branches", ', '"steps_to_loss", ', "branches goes with measure"),
        ('"steps_to_loss", "branches", "noise_scale"', '"steps_to_loss", "branches"', "noise_every_steps goes with"),
        ('"steps_to_loss", "branches", "noise_scale"', '"hyperbola"', "critical_batch.measure"),
        ('"steps_to_loss", "branches", "noise_scale"', "", "critical_batch.measure: must have at least one value"),
        ("reference_tokens = 64", "", "batch.reference_tokens"),
        ("lr_exponent = 0.5", "lr_exponent = 2.0", "batch.lr_exponent"),
        ("reference_tokens = 64", "reference_token = 64", "batch.reference_token"),
        ("beta2 = 0.98\n[axes]", "[axes]\nbeta2 = [0.9, 0.95]", "axes.beta2: must not be an axis where batch.beta2"),
    ],
)
def test_what_cannot_be_is_refused(load: Load, old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load((old, new))
