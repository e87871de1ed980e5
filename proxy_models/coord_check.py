"""The coordinate check: does the size of every activation stay put as width grows, at the start and under training?

The unit test of a parametrization (Yang et al. 2022, arXiv:2203.03466, appendix D.1; microsoft/mup README).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxy_models.config import RunConfig, first_steps
from proxy_models.data import TokenData
from proxy_models.training import Training

LOGITS = "logits"


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordPoint:
    """Root mean square of one activation in one run after `step` updates."""

    optimizer: str
    parametrization: str
    tap: str
    step: int
    width: int
    seed: int
    rms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordSlope:
    """d log RMS / d log width of one activation after `step` updates, least squares over widths and seeds."""

    optimizer: str
    parametrization: str
    tap: str
    step: int
    slope: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordCheck:
    """What was measured and how steep it is."""

    points: tuple[CoordPoint, ...]
    slopes: tuple[CoordSlope, ...]
    tolerance: float

    def failures(self, parametrization: str) -> tuple[CoordSlope, ...]:
        """Slopes out of bounds at the start and after the last step, steepest first.

        The steps between are shown, not judged: there a learned part is still growing into an initial one. Bounds
        are plus and minus the tolerance, but for logits that start random (a tied embedding, or a readout with an
        initial spread): that part falls as width^-1/2 by design, so a mixture of it with a flat learned part has
        any slope from -1/2 to 0.
        """
        last = max(slope.step for slope in self.slopes)
        ours = [slope for slope in self.slopes if slope.parametrization == parametrization]
        random_logits = {slope.optimizer for slope in ours if (slope.tap, slope.step) == (LOGITS, 0)}
        out = [
            slope
            for slope in ours
            if slope.step in (0, last)
            and not self._low(slope, random_logits) <= slope.slope <= self.tolerance  # also catches NaN
        ]
        return tuple(sorted(out, key=lambda slope: -abs(slope.slope)))

    def _low(self, slope: CoordSlope, random_logits: set[str]) -> float:
        falls = slope.tap == LOGITS and slope.optimizer in random_logits
        return -self.tolerance - (0.5 if falls else 0.0)


def coordinate_check(
    runs: Iterable[tuple[str, RunConfig]], data: TokenData, *, steps: int, tolerance: float
) -> CoordCheck:
    """Train each run for `steps` updates and fit the slopes. A run comes with the name of its optimizer.

    Raises:
        ValueError: as `check_of`.
    """
    points = [point for name, run in runs for point in activation_sizes(name, run, data, steps=steps)]
    return check_of(points, tolerance=tolerance)


def check_of(points: Sequence[CoordPoint], *, tolerance: float) -> CoordCheck:
    """The slopes of what was measured.

    Raises:
        ValueError: fewer than four widths of some (optimizer, parametrization).
    """
    for (optimizer, parametrization), widths in _widths(points).items():
        if len(widths) < 4:
            raise ValueError(
                f"a coordinate check takes at least 4 widths, got {sorted(widths)} for {optimizer} {parametrization}"
            )
    return CoordCheck(points=tuple(points), slopes=fit_slopes(points), tolerance=tolerance)


def activation_sizes(optimizer: str, run: RunConfig, data: TokenData, *, steps: int) -> list[CoordPoint]:
    """RMS of every tapped activation on one fixed batch, before the first update and after each.

    The learning rate is at its peak throughout: a warmup would hide what an update does.
    """
    training = Training([first_steps(run, steps=steps, batch_tokens=run.hparams.batch_tokens)], data)
    probe = training.windows(steps)[0, :, :-1]  # unseen by the updates
    points: list[CoordPoint] = []

    def record(step: int, name: str, activation: Tensor) -> None:
        points.append(
            CoordPoint(
                optimizer=optimizer,
                parametrization=run.parametrization,
                tap=name,
                step=step,
                width=run.model.width,
                seed=run.seed,
                rms=activation.square().mean().sqrt().item(),
            )
        )

    for step in range(steps + 1):
        with torch.no_grad():
            training.forward(probe, lambda name, activation, step=step: record(step, name, activation))
        if step < steps:
            training.step()
    return points


def fit_slopes(points: Sequence[CoordPoint]) -> tuple[CoordSlope, ...]:
    """One slope per (optimizer, parametrization, tap, step); activations that are exactly zero have none.

    A non-finite activation gives a slope of NaN, which no tolerance accepts.
    """
    groups: dict[tuple[str, str, str, int], list[CoordPoint]] = defaultdict(list)
    for point in points:
        groups[point.optimizer, point.parametrization, point.tap, point.step].append(point)
    return tuple(
        CoordSlope(optimizer=optimizer, parametrization=parametrization, tap=tap, step=step, slope=_slope(group))
        for (optimizer, parametrization, tap, step), group in groups.items()
        if any(point.rms != 0 for point in group)
    )


def _slope(group: Sequence[CoordPoint]) -> float:
    rms = np.array([point.rms for point in group])
    if not np.all(np.isfinite(rms) & (rms > 0)):
        return float("nan")
    log_width = np.log([point.width for point in group])
    return float(np.polyfit(log_width, np.log(rms), 1)[0])


def _widths(points: Iterable[CoordPoint]) -> dict[tuple[str, str], set[int]]:
    widths: dict[tuple[str, str], set[int]] = defaultdict(set)
    for point in points:
        widths[point.optimizer, point.parametrization].add(point.width)
    return widths
