"""From a spec to a report on real files, without Ray; and again, which trains nothing."""

import json
import re
from pathlib import Path

import pytest

from tests.transfer_helpers import TINY_TARGET, invoke, write_tiny


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run."""
    folder = tmp_path_factory.mktemp("ran")
    spec, target = write_tiny(folder)
    result = invoke("run", spec, "--target", target, "--out", folder / "out", "--backend", "local")
    assert result.exit_code == 0, result.stderr
    assert "where the time went: coordinate check" in result.stderr
    assert f"report: {folder / 'out' / 'report' / 'index.html'}" in result.stdout
    return folder


def _trials(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "out" / "trials").iterdir()}


def test_results_folder_holds_everything(ran: Path) -> None:
    names = {path.name for path in (ran / "out").iterdir()}
    assert {"spec.toml", "target.toml", "trials", "fits.json", "losses.csv", "plan.json", "check.json"} <= names
    assert {"verification.json", "times.json", "provenance.json", "report"} <= names
    assert len(_trials(ran)) == 2 * 3 * 5 * 2 + 2 * 3
    assert len((ran / "out" / "losses.csv").read_text().splitlines()) == 61


def test_the_page_is_whole_by_itself(ran: Path) -> None:
    page = (ran / "out" / "report" / "index.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', "").replace('href="#', ""))
    for section in (
        "The optimizers side by side",
        "The plan",
        "Measured at the target",
        "Coordinate check",
        "What training took",
        "Where the numbers come from",
    ):
        assert f"<h2>{section}</h2>" in page
    assert page.count("<svg") >= 6
    markdown = (ran / "out" / "report" / "report.md").read_text()
    for stem in re.findall(r"\]\(([a-z_]+)\.svg\)", markdown):
        assert (ran / "out" / "report" / f"{stem}.svg").read_text().startswith("<?xml")
        assert (ran / "out" / "report" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_running_again_trains_nothing_and_changes_no_number(ran: Path) -> None:
    before, losses = _trials(ran), (ran / "out" / "losses.csv").read_bytes()
    fits, plan = (ran / "out" / "fits.json").read_bytes(), (ran / "out" / "plan.json").read_bytes()
    command = ("run", ran / "spec.toml", "--target", ran / "target.toml", "--out", ran / "out", "--backend", "local")
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "60 recorded before, 0 to run" in result.stderr
    assert _trials(ran) == before
    assert (ran / "out" / "losses.csv").read_bytes() == losses
    assert ((ran / "out" / "fits.json").read_bytes(), (ran / "out" / "plan.json").read_bytes()) == (fits, plan)


def test_two_runs_of_one_spec_give_equal_bytes(ran: Path, tmp_path: Path) -> None:
    spec, target = write_tiny(tmp_path)
    result = invoke("run", spec, "--target", target, "--out", tmp_path / "out", "--backend", "local")
    assert result.exit_code == 0
    for name in ("losses.csv", "fits.json", "plan.json", "check.json", "verification.json"):
        assert (tmp_path / "out" / name).read_bytes() == (ran / "out" / name).read_bytes(), name


@pytest.mark.parametrize("command", ["status", "fit", "report"])
def test_json_is_one_document(ran: Path, command: str) -> None:
    result = invoke(command, ran / "out", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema_version"] == 1


def test_status_counts(ran: Path) -> None:
    counts = json.loads(invoke("status", ran / "out", "--json").stdout)
    assert (counts["planned"], counts["missing"]) == (60, 0)
    assert counts["completed"] + counts["diverged"] == 60


def test_transfer_and_verify_print_what_they_write(ran: Path) -> None:
    plan = invoke("transfer", ran / "out", "--target", ran / "target.toml", "--json")
    assert json.loads(plan.stdout) == json.loads((ran / "out" / "plan.json").read_text())
    verified = invoke("verify", ran / "out" / "plan.json", ran / "out", "--backend", "local", "--json")
    assert json.loads(verified.stdout) == json.loads((ran / "out" / "verification.json").read_text())
    table = invoke("transfer", ran / "out", "--target", ran / "target.toml")
    assert "plan for width 96" in table.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 32\n", r"width: must be at least the widest proxy's, 64, got 32"),
        ("width = 100\n", r"multiple of head_dim=8, got 100"),
        ("wdith = 96\n", r"wdith.*width"),
        ('width = "96"\n', r"width"),
    ],
)
def test_a_bad_target_is_refused(ran: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "target.toml").write_text(text)
    before = (ran / "out" / "plan.json").read_bytes()
    result = invoke("transfer", ran / "out", "--target", tmp_path / "target.toml")
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert (ran / "out" / "plan.json").read_bytes() == before
    assert TINY_TARGET in (ran / "out" / "target.toml").read_text()


def test_another_sweep_is_not_written_over(ran: Path, tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    spec.write_text(spec.read_text().replace('name = "tiny"', 'name = "other"'))
    before = _trials(ran)
    result = invoke("sweep", spec, "--out", ran / "out", "--backend", "local")
    assert result.exit_code == 2
    assert "holds the sweep 'tiny', not 'other'" in result.stderr
    assert "--fresh" in result.stderr
    assert _trials(ran) == before
    assert 'name = "tiny"' in (ran / "out" / "spec.toml").read_text()


def test_the_gate_stops_a_sweep_that_cannot_transfer(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path, parametrization="standard")
    stopped = invoke("sweep", spec, "--out", tmp_path / "out", "--backend", "local")
    assert stopped.exit_code == 1
    assert "the coordinate check failed under 'standard'" in stopped.stderr
    assert "--no-check" in stopped.stderr
    assert not list((tmp_path / "out").glob("trials/*"))
    checked = invoke("check", spec, "--out", tmp_path / "out", "--json")
    assert (checked.exit_code, json.loads(checked.stdout)["passed"]) == (1, False)
    assert "short runs" not in checked.stderr  # from the cache
    went = invoke("sweep", spec, "--out", tmp_path / "out", "--backend", "local", "--no-check")
    assert went.exit_code == 0


def test_check_passes_under_mup(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    result = invoke("check", spec, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "coordinate check passed under 'mup'" in result.stdout
