"""From a spec to a report, and where the time went."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sweeps.run import raising_interrupted
from sweeps.spec import check_target, load_spec, load_target
from transfer import folder as folders
from transfer import pack_check
from transfer.console import duration, say
from transfer.execution import Execution, session
from transfer.pipeline import default_folder, prepare, run_prepared, transfer, verify
from transfer.report import write_report
from transfer.tables import show_pack_checks

T = TypeVar("T")


def run_all(
    spec_file: Path,
    target_file: Path,
    folder: Path | None,
    execution: Execution,
    *,
    fresh: bool,
    gate: bool,
    check_pack: int | None = None,
) -> Path:
    """From a spec to a report: sweep, transfer, verify, report. Prints where the time went; returns the report.

    With `check_pack`, the number of trials to train again alone after the sweep.

    Raises:
        PackCheckError: a recorded trial gives other numbers alone.
    """
    spec, target = load_spec(spec_file), load_target(target_file)
    check_target(target, spec)
    out = folder or default_folder(spec)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        start = time.monotonic()
        value = work()
        seconds[stage] = time.monotonic() - start
        folders.write(out, folders.TIMES, json.dumps(seconds, indent=1) + "\n")
        return value

    with raising_interrupted(), session(execution):
        store, trials = timed("coordinate check", lambda: prepare(spec, out, execution, fresh=fresh, gate=gate))
        timed("sweep", lambda: run_prepared(spec, store, trials, execution))
        if check_pack is not None:
            checks = timed("trials alone", lambda: pack_check.check_pack(out, check_pack))
            show_pack_checks(checks)
            pack_check.refuse_failure(checks)
        plan = timed("fit and plan", lambda: transfer(out, target))
        timed("target runs", lambda: verify(plan, out, execution))
    report = timed("report", lambda: write_report(out))
    say("where the time went: " + ", ".join(f"{stage} {duration(s)}" for stage, s in seconds.items()))
    say(f"total: {duration(sum(seconds.values()))}")
    return report
