"""[engine] from a user's side: a sweep keeps the modes it began with, and its report knows what was predicted."""

import json
from pathlib import Path

import pytest
from typer.testing import Result

from sweeps.shape_plans import ENGINE
from sweeps.store import ResultStore
from tests.transfer_helpers import invoke, write_tiny

EDITS = (
    ("widths = [16, 32, 64]\n", "widths = [16]\n"),
    ("[optimizers.scale]\naxes.lr = { log2_from = -10, log2_to = -2, log2_step = 2 }\n", ""),
    ('[engine]\nexecutor = "loop"\n', ""),
)
BEGUN = '[engine]\nexecutor = "stacked"\npack_size = 4\n'


def _sweep(folder: Path, engine: str) -> Result:
    """Ten trials of one shape, in this process."""
    spec, _ = write_tiny(folder)
    text = spec.read_text()
    for old, new in EDITS:
        assert old in text
        text = text.replace(old, new)
    spec.write_text(text + engine)
    return invoke("sweep", spec, "--out", folder / "out", "--backend", "local", "--no-check")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A stacked sweep that has lost three of its results."""
    result = _sweep(tmp_path, BEGUN)
    assert result.exit_code == 0, result.stderr
    assert "predicted" in result.stderr
    for file in sorted((tmp_path / "out" / "trials").glob("*.parquet"))[:3]:
        file.unlink()
    return tmp_path


def _modes(folder: Path) -> list[str]:
    return sorted(result.mode for result in ResultStore(folder / "out").read().values())


def test_a_resumed_sweep_keeps_its_modes_whatever_the_machine_would_choose(begun: Path) -> None:
    assert _sweep(begun, "").exit_code == 0
    assert _modes(begun) == ["stacked-eager-cpu-float32"] * 10
    (shape,) = json.loads((begun / "out" / ENGINE).read_bytes())["shapes"]
    assert (shape["mode"], shape["members"]) == ("stacked-eager-cpu-float32", 3)
    assert shape["why"].startswith("[engine] says stacked; not compiled, which may save ")


def test_a_spec_that_contradicts_results_is_refused_and_a_fresh_start_is_not(begun: Path) -> None:
    refused = _sweep(begun, '[engine]\nexecutor = "loop"\n')
    assert refused.exit_code == 2
    assert "engine.executor: must stay what the results at width 16" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert _modes(begun) == ["stacked-eager-cpu-float32"] * 7
    spec = begun / "spec.toml"
    fresh = invoke("sweep", spec, "--out", begun / "out", "--backend", "local", "--no-check", "--fresh")
    assert fresh.exit_code == 0, fresh.stderr
    assert _modes(begun) == ["loop-eager-cpu-float32"] * 10


def test_results_without_a_record_keep_their_mode(begun: Path) -> None:
    (begun / "out" / ENGINE).unlink()
    assert _sweep(begun, "").exit_code == 0
    assert _modes(begun) == ["stacked-eager-cpu-float32"] * 10


def test_the_report_shows_what_was_predicted(begun: Path) -> None:
    assert invoke("report", begun / "out").exit_code == 0
    markdown = (begun / "out" / "report" / "report.md").read_text()
    (row,) = [line for line in markdown.splitlines() if "| stacked-eager-cpu-float32 |" in line]
    predicted, actual, ratio = (cell.strip() for cell in row.split("|")[5:8])
    assert predicted.endswith(" s")
    assert actual.endswith(" s")
    assert float(ratio) > 0
    assert (begun / "out" / "report" / "predicted_time.png").exists()
