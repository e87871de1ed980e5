"""Progress in plain lines, durations as people say them."""

import pytest

from transfer.console import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.52, "0.5 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_are_few_and_tell_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Three quarters after 60 s: 20 s left. A line at most every 15 s, and one at the end."""
    clock = iter([0.0, 0.0, 5.0, 5.0, 60.0, 60.0, 60.0, 70.0, 70.0, 70.0])
    with Progress("sweep", 8, now=lambda: next(clock)) as progress:
        progress.advance(1, "1 of 8")
        progress.advance(5, "6 of 8")
        progress.advance(2, "8 of 8")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "sweep: 75% (6 of 8, about 20 s left)\nsweep: 100% (8 of 8, took 1 min 10 s)\n"
