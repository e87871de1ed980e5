"""A spec means one grid, and whatever is wrong with a file is said in one message that names file, key and value."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.config import HParams
from proxy_models.optimizer_config import AdamW, Muon
from proxy_models.parametrization import scale_role
from proxy_models.roles import Role
from sweeps.spec import (
    SpecError,
    axes_of,
    check_target,
    labeled_trials,
    load_spec,
    load_target,
    plan_trials,
    run_config,
    run_configs,
)
from sweeps.spec_types import Log2Range

SPEC = """
name = "tiny"
[data]
source = "text"
path = "text.txt"
[model]
depth = 1
head_dim = 8
seq_len = 16
[run]
base_width = 16
widths = [16, 32]
seeds = [0, 1]
train_tokens = 320
validation_tokens = 64
[hparams]
batch_tokens = 32
weight_decay = 0.1
[axes]
beta2 = [0.95, 0.99]
[optimizers.adamw]
hparams = { embedding_lr_ratio = 4.0 }
axes.lr = { log2_from = -9, log2_to = -6, log2_step = 1.5 }
[optimizers.muon]
shape_factor = "max1"
hparams = { beta2 = 0.9, clip_norm = "none" }
axes.lr = [1, 0.02, 0.04]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """SPEC with replacements, as a file."""

    def write(*replacements: tuple[str, str]) -> Path:
        text = SPEC
        for old, new in replacements:
            assert text.count(old) == 1, f"{old!r} is in the spec {text.count(old)} times"
            text = text.replace(old, new)
        file = tmp_path / "spec.toml"
        file.write_text(text)
        return file

    return write


def test_a_spec_means_its_whole_grid(write: Write) -> None:
    runs = run_configs(load_spec(write()))
    adamw = [run for run in runs if run.optimizer == AdamW()]
    muon = [run for run in runs if run.optimizer == Muon(shape_factor="max1")]
    assert len(adamw) == 2 * 3 * 2 * 2  # widths, lr, beta2, seeds
    assert len(muon) == 2 * 3 * 2  # its fixed beta2 replaces the shared axis
    assert {run.hparams.lr for run in adamw} == {2**-9, 2**-7.5, 2**-6}
    assert [run.hparams.lr for run in muon[:6:2]] == [1.0, 0.02, 0.04]
    assert {run.hparams.embedding_lr_ratio for run in adamw} == {4.0}
    assert {(run.hparams.beta2, run.hparams.clip_norm) for run in muon} == {(0.9, None)}
    assert {run.hparams.weight_decay for run in runs} == {0.1}
    assert [(run.model.width, run.seed) for run in muon[:2]] == [(16, 0), (16, 1)]
    assert {run.model.width for run in runs} == {16, 32}


def test_optimizers_have_names_of_the_users(write: Write) -> None:
    """Several Muons in one sweep: each name says its kind, and every trial knows its name."""
    rms = '[optimizers.rms]\nkind = "muon"\nshape_factor = "rms_match"\naxes.lr = [0.1, 0.2, 0.4]\n[optimizers.muon]'
    spec = load_spec(write(("[optimizers.muon]", rms)))
    assert {name: own.config for name, own in spec.optimizers.items()} == {
        "adamw": AdamW(),
        "rms": Muon(shape_factor="rms_match"),
        "muon": Muon(shape_factor="max1"),
    }
    labeled = labeled_trials(spec, "data")
    assert tuple(trial for _, trial in labeled) == plan_trials(spec, "data")
    assert {(name, trial.run.optimizer) for name, trial in labeled} == {
        (name, own.config) for name, own in spec.optimizers.items()
    }


def test_two_names_for_one_run_are_refused(write: Write) -> None:
    ratio = "hparams = { embedding_lr_ratio = 4.0 }"
    twice = f'[optimizers.again]\nkind = "adamw"\n{ratio}\naxes.lr = [0.015625, 1, 2]\n[optimizers.muon]'
    with pytest.raises(SpecError, match=r"again: must have runs of its own, got one that is also in optimizers.adamw"):
        load_spec(write(("[optimizers.muon]", twice)))


def test_a_switch_has_phases_with_their_own_lr_and_width_rule(write: Write) -> None:
    switch = (
        'kind = "switch"\nstates = "keep"\nfirst = { kind = "adamw" }\n'
        'second = { kind = "muon", shape_factor = "rms_match" }'
    )
    spec = load_spec(
        write(('shape_factor = "max1"', switch), ("beta2 = 0.9,", "second_lr_ratio = 0.5, decay_tokens = 160,"))
    )
    run = run_config(spec, "muon", width=64, seed=0, overrides={"lr": 0.2})
    (start, first), (switched, second) = run.phases
    assert (start, switched, run.steps) == (0, 5, 10)
    assert (first.optimizer, second.optimizer) == (AdamW(), Muon(shape_factor="rms_match"))
    assert [scale_role(phase, Role.HIDDEN).effective_lr for phase in (first, second)] == [0.2 / 4, 0.1 / 2]


def test_readout_momentum_needs_a_readout(write: Write) -> None:
    """SCALE averages the readout's gradients alone; a tied readout is an embedding, which it does not average."""
    scale = ('shape_factor = "max1"', 'kind = "scale"')
    tied = ("depth = 1", "depth = 1\ntied_embeddings = true")
    with pytest.raises(
        SpecError, match=r"model.tied_embeddings: tied_embeddings must be false for scale, .* momentum to 0"
    ):
        load_spec(write(scale, tied))
    assert load_spec(write(scale, tied, ("beta2 = 0.9,", "momentum = 0.0,")))
    assert load_spec(write(tied))


def test_planning_twice_gives_the_same_trials_in_order_and_none_twice(write: Write) -> None:
    first = plan_trials(load_spec(write()), "data")
    assert first == plan_trials(load_spec(write()), "data")
    assert len({trial.trial_id for trial in first}) == len(first) == 36


def test_numbers_typed_differently_are_the_same_trial(write: Write) -> None:
    typed = plan_trials(load_spec(write(("[1, 0.02, 0.04]", "[1.0, 2e-2, 4.0e-2]"), ("0.1", "1e-1"))), "data")
    assert typed == plan_trials(load_spec(write()), "data")


def test_defaults_are_the_records_own(write: Write) -> None:
    spec = load_spec(write(("weight_decay = 0.1", ""), ("[axes]\nbeta2 = [0.95, 0.99]", "")))
    run = run_config(spec, "adamw", width=32, seed=5, overrides={"lr": 0.3})
    assert run.hparams == HParams(lr=0.3, embedding_lr_ratio=4.0, batch_tokens=32)
    assert (run.parametrization, run.schedule, run.weight_decay_invariant) == ("mup", "wsd", "lr_wd")
    assert (run.model.width, run.seed, run.train_tokens) == (32, 5, 320)


def test_a_run_at_any_width_takes_overrides_a_horizon_and_middle_values(write: Write) -> None:
    spec = load_spec(write())
    run = run_config(spec, "adamw", width=256, seed=0, overrides={"beta2": 0.9}, train_tokens=640)
    assert (run.model.width, run.train_tokens, run.hparams.beta2, run.hparams.lr) == (256, 640, 0.9, 2**-7.5)
    assert axes_of(spec, "muon") == {"lr": (1.0, 0.02, 0.04)}


def test_relative_data_paths_belong_to_the_specs_folder(write: Write, tmp_path: Path) -> None:
    spec = load_spec(write())
    assert spec.data_source().path == str(tmp_path / "text.txt")
    assert spec.with_data_folder(Path("/elsewhere")).data_source().path == "/elsewhere/text.txt"
    absolute = load_spec(write(('"text.txt"', '"/data/tokens.bin"'), ('"text"', '"tokens"\ndtype = "uint16"')))
    assert (absolute.data_source().path, absolute.data_source().dtype) == ("/data/tokens.bin", "uint16")


def test_a_spec_keeps_its_file_and_text(write: Write) -> None:
    file = write()
    spec = load_spec(str(file))
    assert (spec.file, spec.text) == (file, SPEC)


def test_check_widths_double_from_base_width_unless_given(write: Write) -> None:
    assert load_spec(write()).check_widths == (16, 32, 64, 128)
    assert load_spec(write(("[axes]", "[check]\nwidths = [8, 16, 24, 32]\n[axes]"))).check_widths == (8, 16, 24, 32)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # broken or unknown
        ("depth = 1", "depth =", r"is not valid TOML: Invalid value \(at line 7, column 8\)"),
        ("depth = 1", "dept = 1", r"model.dept: unknown key, got the value 1; .* Did you mean 'depth'\?"),
        ("[run]", "[runs]", r"runs: unknown key, .* Did you mean 'run'\?"),
        ("axes.lr = [1", "axes.ler = [1", r"optimizers.muon.axes.ler: unknown key, .* Did you mean 'lr'\?"),
        ("beta2 = [", "zzz = [", "axes.zzz: unknown key, .* allowed here: batch_tokens, .* Rename or remove it"),
        ("[optimizers.muon]", "[optimizers.moun]", r"optimizers.moun: must be an optimizer, .* Did you mean 'muon'\?"),
        ("log2_to", "log2_too", "optimizers.adamw.axes.lr.log2_too: unknown key"),
        # missing
        ("base_width = 16", "", "run.base_width: is missing. Add this key"),
        (", log2_step = 1.5", "", "optimizers.adamw.axes.lr.log2_step: is missing"),
        ('path = "text.txt"', "", "data: path goes with .* got source = 'text', path = None"),
        # wrong type: nothing is converted silently
        ("depth = 1", 'depth = "1"', "model.depth: must be a whole number, got '1'. Write it without quotes"),
        ("depth = 1", "depth = 1.5", "model.depth: must be a whole number, got 1.5"),
        ("depth = 1", "depth = true", "model.depth: must be a whole number, got True"),
        ("[16, 32]", '[16, "32"]', r"run.widths\[1\]: must be a whole number, got '32'"),
        ("[16, 32]", "16", "run.widths: must be a list, got 16. Write it in square brackets"),
        ("[1, 0.02, 0.04]", '[1, "0.02", 0.04]', r"optimizers.muon.axes.lr\[1\]: must be a number, got '0.02'"),
        ("weight_decay = 0.1", "weight_decay = true", "hparams.weight_decay: must be a number, got True"),
        ("weight_decay = 0.1", "weight_decay = nan", "hparams.weight_decay: must be a finite number, got nan"),
        ('"none"', '"off"', "optimizers.muon.hparams.clip_norm: must be a number, got 'off'"),
        ("depth = 1", 'depth = 1\nqk_norm = "no"', "model.qk_norm: must be true or false, got 'no'"),
        ('"text.txt"', "3", "data.path: must be a text, got 3. Write it in double quotes"),
        ("hparams = { embedding_lr_ratio = 4.0 }", "hparams = 4", "optimizers.adamw.hparams: must be a table, got 4"),
        ("[optimizers.adamw]", "data2 = 1\n[optimizers.adamw]", "axes.data2: unknown key"),
        # not one of the choices
        (
            '"max1"',
            '"max"',
            "optimizers.muon.shape_factor: must be one of 'spectral', 'max1' or 'rms_match', got 'max'",
        ),
        ('"text"', '"txt"', "data.source: must be one of 'stdlib', 'text' or 'tokens', got 'txt'"),
        # optimizers by name
        (
            '"max1"',
            '"max1"\nkind = "mouon"',
            r"optimizers.muon.kind: must be an optimizer, got 'mouon'; .* Did you mean 'muon'\?",
        ),
        (
            "[optimizers.muon]",
            "[optimizers.mine]",
            "optimizers.mine: must be an optimizer, .* A name of your own takes a kind = ... in its table",
        ),
        ("[optimizers.muon]", '[optimizers."my muon"]\nkind = "muon"', "optimizers.my muon: a name has letters"),
        ('"max1"', '"max1"\nns_schedule = "jordon"', r"optimizers.muon.ns_schedule: .* Did you mean 'jordan'\?"),
        (
            'shape_factor = "max1"',
            'kind = "fanion"\nrank = 0',
            "optimizers.muon: rank must be at least 1, got 0",
        ),
        (
            'shape_factor = "max1"',
            'kind = "dion"\nrank = 17',
            "optimizers.muon.rank: rank must be at most the smaller side .* 16 at width 16, got 17; the nearest is 16",
        ),
        ('shape_factor = "max1"', 'kind = "galore"\nrank_frac = 1.2', "rank_frac must be above 0 and at most 1"),
        ('shape_factor = "max1"', 'kind = "fira"\nrank = 2\nrank_frac = 0.5', "rank and rank_frac exclude each other"),
        ('shape_factor = "max1"', 'kind = "fanion"\nshape_factor = "rms_match"', "shape_factor must be 'spectral' or"),
        ('shape_factor = "max1"', 'kind = "isotropic_curvature"\npower = 5', "power must be 2, 4, 6 or 8, or none"),
        ('shape_factor = "max1"', 'kind = "apollo"\nrefresh_steps = 0', "refresh_steps must be at least 1, got 0"),
        ('shape_factor = "max1"', 'kind = "adamw"\nshape_factor = "max1"', "muon.shape_factor: unknown key"),
        (
            '[optimizers.muon]\nshape_factor = "max1"',
            '[check]\nwidths = [8, 16, 32, 64]\n[optimizers.muon]\nkind = "dion"\nrank = 16',
            "check.widths: rank must be at most the smaller side .* 8 at width 8, got 16",
        ),
        # a switch
        ('shape_factor = "max1"', 'kind = "switch"\nfirst = { kind = "adamw" }', "optimizers.muon.second: is missing"),
        (
            'shape_factor = "max1"',
            'kind = "switch"\nfirst = { kind = "adamw" }\nsecond = { kind = "muo" }',
            r"optimizers.muon.second.kind: must be an optimizer, got 'muo'; .* Did you mean 'muon'\?",
        ),
        (
            'shape_factor = "max1"',
            'kind = "switch"\nfirst = { kind = "adamw" }\nsecond = 3',
            "optimizers.muon.second: must be a table, got 3",
        ),
        (
            'shape_factor = "max1"',
            'kind = "switch"\nfirst = { kind = "adamw" }\nsecond = { kind = "switch" }',
            "optimizers.muon.second.kind: must be an optimizer, got 'switch'",
        ),
        (
            'shape_factor = "max1"',
            'kind = "switch"\nfirst = { kind = "adamw" }\nsecond = { kind = "muon" }\nat_tokens = 320',
            r"optimizers.muon.at_tokens: .* got a switch at step 10 of 10 .* at_tokens can be 32 to 288",
        ),
        (
            'shape_factor = "max1"',
            'kind = "switch"\nfirst = { kind = "adamw" }\nsecond = { kind = "muon" }',
            "optimizers.muon.at_tokens: at_tokens must be given where the schedule has no decay to switch at",
        ),
        (
            'shape_factor = "max1"',
            'kind = "switch"\nfirst = { kind = "adamw" }\nsecond = { kind = "dion", rank = 20 }\nat_tokens = 64',
            "rank must be at most the smaller side",
        ),
        # out of range
        ("[1, 0.02, 0.04]", "[1, 0, 0.04]", "optimizers.muon.axes.lr: lr must be above 0, got 0.0"),
        ("[1, 0.02, 0.04]", "[1, -0.5, 0.04]", "optimizers.muon.axes.lr: lr must be above 0, got -0.5"),
        ("[1, 0.02, 0.04]", "[0.02, 0.04]", r"optimizers.muon.axes.lr: must have at least 3 values, .* \[0.02, 0.04\]"),
        ("axes.lr = [1, 0.02, 0.04]", "", r"optimizers.muon.axes.lr: must have at least 3 values, .* got \[\]"),
        ("[1, 0.02, 0.04]", "[]", r"optimizers.muon.axes.lr: must have at least one value, got \[\]"),
        (
            "[1, 0.02, 0.04]",
            "[1, 0.02, 1.0]",
            "optimizers.muon.axes.lr: must not have a value twice, .* Remove one 1.0",
        ),
        ("[16, 32]", "[]", r"run.widths: must have at least one value, got \[\]"),
        ("[16, 32]", "[16, 16]", "run.widths: must not have a value twice"),
        ("[16, 32]", "[16, 20]", "run.widths: width must be a multiple of head_dim=8, got 20; .* 16 and 24"),
        ("[0, 1]", "[0, 0]", "run.seeds: must not have a value twice"),
        ("[0, 1]", "[0, -1]", r"run.seeds\[1\]: must be at least 0, got -1"),
        ("[0, 1]", "[]", "run.seeds: must have at least one value"),
        ("base_width = 16", "base_width = 0", "run.base_width: must be at least 1, got 0"),
        ("base_width = 16", "base_width = 20", "run.base_width: width must be a multiple of head_dim=8, got 20"),
        ("train_tokens = 320", "train_tokens = 330", "run.train_tokens: train_tokens must be a positive multiple of"),
        (
            "batch_tokens = 32",
            "batch_tokens = 40",
            "hparams.batch_tokens: batch_tokens must be a multiple of seq_len=16",
        ),
        ("weight_decay = 0.1", "weight_decay = -1", "hparams.weight_decay: weight_decay must be at least 0, got -1.0"),
        ("[0.95, 0.99]", "[0.95, 1.0]", r"axes.beta2: beta2 must be in \[0, 1\), got 1.0"),
        ("embedding_lr_ratio = 4.0", "eps = 0", "optimizers.adamw.hparams.eps: eps must be above 0, got 0.0"),
        ('"max1"', '"max1"\nns_steps = 0', "optimizers.muon: ns_steps must be between 1 and 30, got 0"),
        ("depth = 1", "depth = 1\nmlp_ratio = 0.3", r"model.mlp_ratio: mlp_ratio \* width must be a positive whole"),
        ('"tiny"', '"../tiny"', "name: must be letters, digits, .* got '../tiny'"),
        ('"tiny"', '""', "name: must be letters, digits, .* got ''"),
        ('"text.txt"', '"text.txt"\nvalidation_frac = 1.5', "data.validation_frac: must be below 1.0, got 1.5"),
        ('"text.txt"', '"text.txt"\ndtype = "uint16"', 'data: dtype goes with source = "tokens" alone'),
        # ranges
        ("log2_step = 1.5", "log2_step = 2", "optimizers.adamw.axes.lr: log2_step must lead from log2_from=-9 up to"),
        ("log2_step = 1.5", "log2_step = 0", "optimizers.adamw.axes.lr.log2_step: must be above 0.0, got 0"),
        ("log2_step = 1.5", "log2_step = 1e-6", "whole number of steps below 1000"),
        ("log2_from = -9", "log2_from = 9", "whole number of steps"),
        ("log2_from = -9", "log2_from = -900", "optimizers.adamw.axes.lr.log2_from: must be at least -100"),
        ("log2_to = -6", "log2_to = 600", "optimizers.adamw.axes.lr.log2_to: must be at most 100"),
        (
            "[0.95, 0.99]",
            "[0.95]\nbatch_tokens = { log2_from = 4.5, log2_to = 5.5, log2_step = 1 }",
            "axes.batch_tokens: must give whole numbers",
        ),
        # contradictions
        ("weight_decay = 0.1", "beta2 = 0.9", r"hparams.beta2: must not be an axis as well \(axes.beta2\), got 0.9"),
        ("beta2 = 0.9,", "lr = 0.9,", r"optimizers.muon.hparams.lr: must not be an axis as well"),
        # the coordinate check
        (
            "[axes]",
            "[check]\nwidths = [16, 32, 64]\n[axes]",
            r"check.widths: must have at least 4 values to show a slope",
        ),
        (
            "[axes]",
            "[check]\nwidths = [16, 32, 64, 100]\n[axes]",
            "check.widths: width must be a multiple of head_dim=8",
        ),
        (
            "[axes]",
            "[check]\nbatch_tokens = 40\n[axes]",
            "check.batch_tokens: batch_tokens must be a multiple of seq_len=16, got 40",
        ),
        ("[axes]", "[check]\ntolerance = 0\n[axes]", "check.tolerance: must be above 0.0, got 0"),
    ],
)
def test_bad_specs_are_refused(write: Write, old: str, new: str, message: str) -> None:
    file = write((old, new))
    with pytest.raises(SpecError, match=message) as got:
        load_spec(file)
    assert str(got.value).startswith(f"{file}: ")
    assert "\n" not in str(got.value)
    assert str(got.value)[-1] in ".?"


def test_a_spec_needs_an_optimizer(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(SPEC[: SPEC.index("[optimizers.adamw]")] + "[optimizers]\n")
    with pytest.raises(SpecError, match=r"optimizers: is empty. Add a table: \[optimizers.adamw\]"):
        load_spec(file)


def test_an_integer_axis_may_be_a_range(write: Write) -> None:
    axes = "[0.95]\nbatch_tokens = { log2_from = 4, log2_to = 5, log2_step = 1 }"
    spec = load_spec(write(("[0.95, 0.99]", axes), ("batch_tokens = 32", "")))
    assert axes_of(spec, "adamw")["batch_tokens"] == (16, 32)


def test_an_optional_axis_may_hold_none(write: Write) -> None:
    spec = load_spec(write(("[0.95, 0.99]", '[0.95]\nclip_norm = ["none", 1]')))
    assert axes_of(spec, "adamw")["clip_norm"] == (None, 1.0)


@given(
    start=st.integers(-20, 5),
    step=st.sampled_from([0.25, 0.5, 1.0, 1 / 3, 0.1]),
    steps=st.integers(0, 40),
)
def test_a_log2_range_has_both_ends_and_equal_steps(start: int, step: float, steps: int) -> None:
    values = Log2Range(log2_from=start, log2_to=start + steps * step, log2_step=step).values()
    assert len(values) == steps + 1
    assert values[0] == 2.0**start
    assert values[-1] == pytest.approx(2.0 ** (start + steps * step), rel=1e-9)
    ratios = {round(high / low, 9) for low, high in itertools.pairwise(values)}
    assert ratios <= {round(2.0**step, 9)}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "no such file. Give the path of a TOML file"),
        (lambda path: path.mkdir(), "is a folder. Give the path of a TOML file in it"),
        (lambda path: path.write_bytes(b"name = '\xff'"), r"is not UTF-8 text \(byte 8\)"),
        (lambda path: path.symlink_to(path), "cannot be read: "),
    ],
)
def test_paths_that_are_no_spec(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "spec.toml"
    prepare(path)
    with pytest.raises(SpecError, match=message):
        load_spec(path)
    with pytest.raises(SpecError, match=message):
        load_target(path)


def test_a_target_at_least_as_wide_as_the_proxies_is_accepted(write: Write, tmp_path: Path) -> None:
    spec = load_spec(write())
    file = tmp_path / "target.toml"
    for text in ("width = 32", "width = 64\ntrain_tokens = 640\nseeds = [3, 4]"):
        file.write_text(text)
        target = load_target(file)
        check_target(target, spec)
    assert (target.width, target.train_tokens, target.seeds) == (64, 640, (3, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 24", "width: must be at least the widest proxy's, 32, got 24. .* raise it"),
        ("width = 50", "width: width must be a multiple of head_dim=8, got 50"),
        ("width = 64\ntrain_tokens = 100", "train_tokens: train_tokens must be a positive multiple of batch_tokens=32"),
        (
            "width = 64\ntrain_tokens = 32",
            r"train_tokens: warmup_tokens \+ decay_tokens must not exceed train_tokens=32, got 64 \+ 0",
        ),
        ('width = "64"', "width: must be a whole number, got '64'"),
        ("width = 64\nseeds = [-1]", r"seeds\[0\]: must be at least 0, got -1"),
        ("widht = 64", r"widht: unknown key, got the value 64; .* Did you mean 'width'\?"),
        ("", "width: is missing"),
    ],
)
def test_bad_targets_are_refused(write: Write, tmp_path: Path, text: str, message: str) -> None:
    spec = load_spec(write(("weight_decay = 0.1", "warmup_tokens = 64")))
    file = tmp_path / "target.toml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message) as got:
        check_target(load_target(file), spec)
    assert str(got.value).startswith(f"{file}: ")


def test_reading_a_spec_loads_nothing_heavy() -> None:
    code = (
        "import sys, sweeps.spec, sweeps.store, sweeps.run\n"
        "print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))\n"
    )
    light = "import sys, sweeps.spec\nprint(sorted({'numpy', 'pyarrow'} & set(sys.modules)))\n"
    for program in (code, light):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def test_records_are_frozen(write: Write) -> None:
    spec = load_spec(write())
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]
    assert replace(spec.optimizers["muon"], axes={}).hparams == {"beta2": 0.9, "clip_norm": None}
