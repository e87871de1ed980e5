"""What the JSON documents of benchmarks have in common: the machine and its load, and goals met or not."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.provenance import provenance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "benchmarks"


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """Takes `--quick` and `--save`."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="the smallest sizes: whether it works, not how fast")
    made.add_argument("--save", action="store_true", help="also write results/benchmarks/NAME.json")
    return made


def machine() -> dict[str, Any]:
    """Hardware, versions, and how many processes wanted a core over the last 1, 5 and 15 minutes."""
    return {**provenance(), "load_averages": [round(load, 2) for load in os.getloadavg()]}


def goal(value: float | None, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """A goal and whether it is met; None for both where nothing was measured."""
    bounds = {name: bound for name, bound in (("at_least", at_least), ("at_most", at_most)) if bound is not None}
    met = None if value is None else (at_least or value) <= value <= (at_most or value)
    return {**bounds, "value": value, "met": met}


def publish(document: Mapping[str, Any], *, save: bool) -> None:
    """Print one JSON document; with `save`, also write it under its name."""
    text = json.dumps(document, indent=1, allow_nan=False)
    print(text)
    if save:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{document['benchmark']}.json").write_text(text + "\n", encoding="utf-8")


def timed_process(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[float, Any]:
    """Wall seconds of a Python process from its start to its end, and the JSON that it printed last."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return seconds, json.loads(done.stdout.splitlines()[-1])
