"""What each Newton-Schulz schedule makes of small singular values."""

from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from proxy_models.optimizer_config import PolarSchedule
from proxy_models.polar_schedules import polar_steps, scalar_map, smallest_lifted

THRESHOLDS = (0.5, 0.7, 0.9)
MAX_STEPS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleMap:
    """A schedule with its steps as a map of singular values in (0, 1], of a matrix of Frobenius norm 1."""

    schedule: str
    n_steps: int
    slope_at_zero: float
    smallest_lifted: tuple[float | None, ...]  # to each of THRESHOLDS and above, from there up to 1
    largest: float  # what any value becomes at most
    singular_values: tuple[float, ...]
    mapped: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"thresholds": THRESHOLDS}


def schedule_maps(n_steps: int) -> list[ScheduleMap]:
    """Every schedule but the exact one."""
    return [_map_of(schedule, n_steps) for schedule in get_args(PolarSchedule) if schedule != "svd"]


def _map_of(schedule: PolarSchedule, n_steps: int) -> ScheduleMap:
    steps = polar_steps(schedule, n_steps)
    values = np.geomspace(1e-4, 1.0, 400)
    mapped = scalar_map(steps, values)
    return ScheduleMap(
        schedule=schedule,
        n_steps=n_steps,
        slope_at_zero=float(scalar_map(steps, 1e-12)) / 1e-12,
        smallest_lifted=tuple(smallest_lifted(steps, threshold) for threshold in THRESHOLDS),
        largest=float(scalar_map(steps, np.linspace(0, 1, 20_001)).max()),
        singular_values=tuple(values.tolist()),
        mapped=tuple(mapped.tolist()),
    )
