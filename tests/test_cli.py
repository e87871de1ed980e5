"""Every command from a user's side: help, exit status, one clear message for bad input, JSON and nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.transfer_helpers import TINY_SPEC, invoke, write_tiny
from transfer.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
README = Path(__file__).parent.parent / "README.md"


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    assert COMMANDS == [
        "check", "compare", "fit", "import", "lab", "memory", "plan", "publish", "report", "run", "status", "sweep",
        "transfer", "verify",
    ]  # fmt: skip
    for command in COMMANDS:
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert len(result.stdout) > 200
        assert f"`mutransfer {command}" in README.read_text()


def test_help_loads_nothing_heavy() -> None:
    """So that it answers in well under half a second; the time itself is measured in benchmarks."""
    code = "import sys, transfer.cli; print(sorted({'torch', 'ray', 'pandas', 'pydantic', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_completion_is_offered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from transfer.cli import app; app(prog_name='mutransfer')"],
        env={**os.environ, "_MUTRANSFER_COMPLETE": "complete_bash", "COMP_WORDS": "mutransfer ver", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "verify" in done.stdout


def _edited(folder: Path, old: str, new: str) -> Path:
    spec, _ = write_tiny(folder)
    text = TINY_SPEC.format(parametrization="mup")
    assert old in text
    spec.write_text(text.replace(old, new))
    return spec


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[run]", "[run", r"spec.toml.*line"),
        ("seeds = [0, 1]", "sedes = [0, 1]", r"run.sedes.*seeds"),
        ("depth = 1", 'depth = "one"', r"model.depth"),
        ("seeds = [0, 1]", "seeds = []", r"run.seeds"),
        ("widths = [16, 32, 64]\n", "widths = [16, 32, 60]\n", r"run.widths.*multiple of head_dim=8, got 60"),
        ("{ log2_from = -10, log2_to = -2, log2_step = 2 }", "[0.1, 0.0, 0.2]", r"adamw.axes.lr.*above 0"),
        ("{ log2_from = -10, log2_to = -2, log2_step = 2 }", "[0.1, 0.2]", r"adamw.axes.lr.*at least 3"),
        ("{ log2_from = -10, log2_to = -2, log2_step = 2 }", "[]", r"adamw.axes.lr"),
        ('path = "text.txt"', 'path = "nowhere.txt"', r"nowhere.txt"),
        ("seq_len = 16", "seq_len = 16\nvocab_size = 50", r"outside the vocabulary of 50"),
        ("seq_len = 16", "seq_len = 16384", r"batch_tokens must be a multiple of seq_len"),
        ("[optimizers.scale]", "[optimizers.sacle]", r"optimizers.sacle.*scale"),
        ("[hparams]", "[hparams]\nlearning_rate = 0.1", r"hparams.learning_rate"),
        ('executor = "loop"', 'device = "cuda"', r"engine.device: must be .auto. or .cpu. on this machine"),
        ('executor = "loop"', 'compile = "yes"', r"engine.compile: must be one of 'auto', True or False"),
        ('executor = "loop"', "pack_size = 0", r"engine.pack_size: must be at least 1"),
        ("[hparams]", "[hparams]\nweight_decay = 5", r"hparams.weight_decay.*got 1.25 at lr=0.25.*at most 4 here"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_a_bad_spec_costs_nothing(tmp_path: Path, command: str, old: str, new: str, message: str) -> None:
    spec = _edited(tmp_path, old, new)
    out = ("--out", tmp_path / "out", "--backend", "local") if command == "sweep" else ()
    result = invoke(command, spec, *out)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_short_data_file_is_refused(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    (tmp_path / "text.txt").write_text("too short")
    result = invoke("sweep", spec, "--out", tmp_path / "out", "--backend", "local")
    assert result.exit_code == 2
    assert "text.txt: the training part has 8 tokens, fewer than the 33" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "nowhere.toml"), "nowhere.toml.*does not exist|nowhere.toml.*no such file"),
        (("status", "nowhere"), "nowhere: there is no such folder"),
        (("fit", "."), ": holds no sweep"),
        (("report", "nowhere"), "there is no such folder"),
        (("verify", "nowhere.json", "."), "nowhere.json: there is no such file"),
        (("transfer", "nowhere", "--target", "nowhere.toml"), "nowhere"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr, re.IGNORECASE), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "slurm"), "must be 'ray' or 'local', got 'slurm'"),
        (("--backend", "local", "--address", "auto"), "local uses no Ray"),
        (("--backend", "local", "--workers", "3"), "must be 1 with --backend local, which is one process, got 3"),
        (("--address", "ray://head:10001"), "must not be a Ray Client's, got ray://head:10001"),
    ],
)
def test_options_that_contradict_each_other(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    spec, _ = write_tiny(tmp_path)
    result = invoke("sweep", spec, "--out", tmp_path / "out", *options)
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_plan_prints_costs_as_a_table_or_json(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    table = invoke("plan", spec, "--workers", 3)
    assert (table.exit_code, "adamw" in table.stdout, "With 3 workers about" in table.stdout) == (0, True, True)
    assert "loop-eager-cpu-float32: " in table.stdout
    assert "not compiled" in table.stdout
    planned = json.loads(invoke("plan", spec, "--json", "--workers", 3).stdout)
    costs = planned["costs"]
    assert {(c["optimizer"], c["width"]) for c in costs} == {(o, w) for o in ("adamw", "scale") for w in (16, 32, 64)}
    assert {(c["trials"], c["mode"], c["pack_size"]) for c in costs} == {(10, "loop-eager-cpu-float32", 4)}
    assert all(c["seconds"] > 0 and c["flops"] > 0 and c["bytes"] == c["pack_bytes"] > 0 for c in costs)
    seconds = sum(c["seconds"] for c in costs)
    start = 9.0  # of Ray
    assert planned["workers"] == 3
    assert seconds / 3 <= planned["wall_seconds"] - start <= seconds


def test_plan_measures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is trained: every number is the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec, _ = write_tiny(tmp_path)
    first, second = (invoke("plan", spec, "--json").stdout for _ in range(2))
    assert first == second
    (tmp_path / "cache" / "mutransfer" / "calibration.json").write_text("damaged")
    again = json.loads(invoke("plan", spec, "--json").stdout)
    assert again != json.loads(first)
    assert [c["trials"] for c in again["costs"]] == [c["trials"] for c in json.loads(first)["costs"]]


def test_an_engine_of_the_users_choice_is_planned_in_packs(tmp_path: Path) -> None:
    spec = _edited(tmp_path, 'executor = "loop"', 'executor = "stacked"\npack_size = 6')
    costs = json.loads(invoke("plan", spec, "--json").stdout)["costs"]
    assert {(c["mode"], c["pack_size"]) for c in costs} == {("stacked-eager-cpu-float32", 6)}
    assert all(c["pack_bytes"] == 6 * c["bytes"] for c in costs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus-per-worker", "0"), "--gpus-per-worker must be a fraction above 0 or a whole number, got 0"),
        (("--gpus-per-worker", "-1"), "got -1"),
        (("--gpus-per-worker", "1.5"), "got 1.5"),
        (("--gpus-per-worker", "nan"), "got nan"),
        (("--gpus-per-worker", "0.5", "--backend", "local"), "--backend local is one process"),
    ],
)
def test_shares_of_gpus_that_ray_cannot_give_are_refused(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    spec, _ = write_tiny(tmp_path)
    result = invoke("sweep", spec, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"schema_version": 1}')
    result = invoke("verify", tmp_path / "plan.json", tmp_path)
    assert result.exit_code == 2
    assert "is not a plan of this version" in result.stderr
