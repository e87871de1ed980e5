"""Intervals, and the error that every fit raises when its data cannot carry it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class FitError(ValueError):
    """Data that no honest fit can be made to. The message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An interval at a confidence `level`, in the unit of what it belongs to."""

    low: float
    high: float
    level: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval must be ordered, got low={self.low}, high={self.high}")
        if not 0 < self.level < 1:
            raise ValueError(f"a level must be between 0 and 1, got {self.level}")

    @property
    def width(self) -> float:
        return self.high - self.low

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


def percentile_interval(draws: ArrayLike, level: float) -> Interval:
    """The central `level` of bootstrap draws (Efron's percentile interval)."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level)


def robust_sd(draws: ArrayLike) -> float:
    """Half the central 68.27% range: a normal's standard deviation, and finite for heavy-tailed draws."""
    return percentile_interval(draws, 0.6827).width / 2
