"""What the labs about fast transfer write down of a verdict."""

from dataclasses import asdict
from typing import Any

from analysis.fast_transfer import FastTransfer


def rates_json(found: FastTransfer) -> dict[str, Any]:
    """A verdict with its exponents and gaps, ready for JSON."""
    return asdict(found) | {"verdict": found.verdict.value, "sentence": found.sentence}
