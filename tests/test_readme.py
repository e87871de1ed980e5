"""What the README shows is what the committed results say, and every file it links to is there."""

import re
from pathlib import Path

import pytest

from transfer import tables
from transfer.folder import PLAN, read_plan, read_verification

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "results" / "quickstart"


def _block(text: str) -> str:
    """Printed lines without trailing blanks, as an editor keeps them."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 4
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_demo_shown_is_the_committed_one(capsys: pytest.CaptureFixture[str]) -> None:
    verification = read_verification(QUICKSTART)
    assert verification is not None
    assert verification.is_of(read_plan(QUICKSTART / PLAN))
    tables.show_verification(verification)
    assert _block(capsys.readouterr().out) in README


def test_the_optimizers_shown_are_the_committed_ones() -> None:
    report = (ROOT / "results" / "optimizers" / "report" / "report.md").read_text()
    start = report.index("| optimizer | width | best loss |")
    table = report[start : report.index("\n\n", start)]
    assert len(table.splitlines()) == 2 + 21
    assert table in README


def test_committed_run_shows_transfer() -> None:
    """The claim of the README's first figure, in numbers: the plan was within 0.02 nats of the best tried."""
    verification = read_verification(QUICKSTART)
    assert verification is not None
    assert [v.optimizer for v in verification.optimizers] == ["adamw", "muon", "scale"]
    for optimizer in verification.optimizers:
        assert optimizer.excess_loss is not None
        assert optimizer.excess_loss <= 0.02
