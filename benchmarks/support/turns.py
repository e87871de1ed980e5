"""Timing things in turns, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Key = TypeVar("Key")
WARM_UPS = 2


def timed(works: Mapping[Key, Callable[[], object]], repetitions: int) -> dict[Key, list[float]]:
    """Wall seconds of each, run in turns after some of each to warm up."""
    seconds: dict[Key, list[float]] = {key: [] for key in works}
    for repetition in range(WARM_UPS + repetitions):
        for key, work in works.items():
            start = time.perf_counter()
            work()
            if repetition >= WARM_UPS:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def median_seconds(works: Mapping[Key, Callable[[], object]], repetitions: int) -> dict[Key, float]:
    """Medians of `timed`."""
    return {key: statistics.median(values) for key, values in timed(works, repetitions).items()}
