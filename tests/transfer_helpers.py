"""A spec whose sweep is planted, and a real one that trains in seconds."""

import random
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from sweeps.spec import SweepSpec, TargetSpec, load_spec, load_target
from transfer.cli import app

PLANTED_SPEC = """
name = "planted"
[model]
mlp_ratio = 3.0
[run]
base_width = 32
widths = [32, 64, 128]
seeds = [3, 4]
train_tokens = 6400
validation_tokens = 512
{run}
[hparams]
batch_tokens = 128
decay_tokens = 1280
weight_decay = 0.1
[optimizers.adamw]
hparams = {{ readout_lr_ratio = 4.0 }}
axes.lr = {{ log2_from = -10, log2_to = -4, log2_step = 1 }}
[optimizers.muon]
axes.lr = {{ log2_from = -10, log2_to = -4, log2_step = 1 }}
"""

TINY_SPEC = """
name = "tiny"
[data]
source = "text"
path = "text.txt"
validation_frac = 0.2
[model]
depth = 1
head_dim = 8
seq_len = 16
[run]
parametrization = "{parametrization}"
base_width = 16
widths = [16, 32, 64]
seeds = [0, 1]
train_tokens = 640
validation_tokens = 320
[hparams]
batch_tokens = 64
decay_tokens = 320
[optimizers.adamw]
axes.lr = {{ log2_from = -10, log2_to = -2, log2_step = 2 }}
[optimizers.scale]
axes.lr = {{ log2_from = -10, log2_to = -2, log2_step = 2 }}
[check]
widths = [16, 32, 64, 128]
seeds = [0]
tolerance = 0.3
[engine]
executor = "loop"
"""
TINY_TARGET = "width = 96\nseeds = [0]\n"


def planted_spec(folder: Path, *, run: str = "") -> SweepSpec:
    file = folder / "planted.toml"
    file.write_text(PLANTED_SPEC.format(run=run))
    return load_spec(file)


def target(folder: Path, text: str = "width = 512\n") -> TargetSpec:
    file = folder / "target.toml"
    file.write_text(text)
    return load_target(file)


def write_tiny(folder: Path, *, parametrization: str = "mup") -> tuple[Path, Path]:
    """Spec and target files of a sweep of 60 trials of 10 steps, on text made of a few words.

    In a loop, whose bits repeat: for steps this short a machine may choose either executor."""
    words = random.Random(1).choices(["width", "depth", "loss", "muon", "scale", " = ", "\n"], k=3000)
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "spec.toml").write_text(TINY_SPEC.format(parametrization=parametrization))
    (folder / "target.toml").write_text(TINY_TARGET)
    return folder / "spec.toml", folder / "target.toml"


def invoke(*arguments: Any) -> Result:
    """Run a command in this process; stdout and stderr apart."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
