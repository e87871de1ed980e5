"""Tiny sweeps on real files for tests of the sweeps package, and results made up without training."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import load_data
from proxy_models.optimizer_config import Muon
from sweeps.spec import SweepSpec, load_spec, plan_trials
from sweeps.trial import Trial, TrialResult, TrialStatus

SPEC = """
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
base_width = 16
widths = [16, 32]
seeds = [0, 1]
train_tokens = {train_tokens}
validation_tokens = 64
[hparams]
batch_tokens = 32
[optimizers.adamw]
axes.lr = [0.001, 0.01, 0.1]
[optimizers.muon]
axes.lr = [0.01, 0.1, 1e30]
"""
N_TRIALS, N_DIVERGED = 24, 4  # of SPEC: muon does not survive lr = 1e30


def write_words(folder: Path) -> None:
    """text.txt, which the specs of tests name."""
    words = random.Random(5)
    (folder / "text.txt").write_text("".join(words.choice("abc efgh.\n") for _ in range(4000)))


def write_sweep(folder: Path, *, steps: int = 10) -> tuple[SweepSpec, tuple[Trial, ...]]:
    """A spec with its text file; about 2 ms a step."""
    write_words(folder)
    (folder / "spec.toml").write_text(SPEC.format(train_tokens=32 * steps))
    return read_sweep(folder)


def read_sweep(folder: Path) -> tuple[SweepSpec, tuple[Trial, ...]]:
    """The spec that `write_sweep` wrote, and its trials."""
    spec = load_spec(folder / "spec.toml")
    data = load_data(spec.data_source(), vocab_size=256, seq_len=16)
    return spec, plan_trials(spec, data.fingerprint)


def trial(*, lr: float = 0.02, seed: int = 3, width: int = 32, depth: int = 1, **hparams: Any) -> Trial:
    """A trial that no test trains."""
    run = RunConfig(
        model=ModelConfig(width=width, head_dim=16, depth=depth, seq_len=16),
        optimizer=Muon(),
        hparams=HParams(lr=lr, **{"batch_tokens": 32, **hparams}),
        base_width=16,
        train_tokens=320,
        validation_tokens=64,
        seed=seed,
    )
    return Trial(run=run, data_fingerprint="abc")


def completed(of: Trial, loss: float = 2.5) -> TrialResult:
    """A made-up result with a loss."""
    return TrialResult(
        trial=of,
        status=TrialStatus.COMPLETED,
        validation_loss=loss,
        validation_loss_se=0.125,
        curve_steps=(1, 5, 10),
        curve_losses=(5.5, 4.0, loss + 0.1),
        train_seconds=1.5,
        tokens_per_second=213.3,
        flops=1e9,
        flops_utilization=0.25,
        provenance={"cpu": "a processor", "torch": "2.13.0"},
    )


def diverged(of: Trial) -> TrialResult:
    """A made-up divergence at step 7."""
    result = completed(of)
    return replace(result, status=TrialStatus.DIVERGED, validation_loss=None, validation_loss_se=None, diverged_step=7)


def start_driver(folder: Path, backend: str) -> subprocess.Popen[str]:
    """tests.sweep_driver on the folder's sweep: `local`, `ray`, or the address of a cluster."""
    command = [sys.executable, "-m", "tests.sweep_driver", str(folder), backend]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def stop_after(driver: subprocess.Popen[str], n_finished: int, signum: signal.Signals) -> None:
    """Read the driver's events until so many trials finished, then send the signal and wait."""
    with driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            n_finished -= "finished" in json.loads(line)
            if n_finished == 0:
                break
        driver.send_signal(signum)
        driver.wait(timeout=60)
