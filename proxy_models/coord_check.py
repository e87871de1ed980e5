"""The coordinate check: does the size of every activation stay put as the model grows, at the start and in training?

The unit test of a parametrization (Yang et al. 2022, arXiv:2203.03466, appendix D.1; microsoft/mup README), over width
and, as Dey et al. (arXiv:2505.01618) do it, over depth. There a block's activations have no counterpart of the same
index in a deeper model; compared are those of the first block and of the last, whose residual is the final one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from proxy_models.config import RunConfig, first_steps
from proxy_models.data import TokenData
from proxy_models.training import Training

LOGITS = "logits"
FIRST_BLOCK, LAST_BLOCK = "first_block", "last_block"
MIN_SIZES = 4  # fewer points do not tell a slope from noise
_BLOCK = re.compile(r"^block(\d+)\.")
Axis = Literal["width", "depth"]  # along which sizes are compared
# By how much an activation may fall over depth by design. The first block adds a share of 1/m_L to the residual; what
# all blocks add falls as depth^-1/2 for as long as it is random, a sum of depth terms of 1/m_L.
_FALLS_WITH_DEPTH = {f"{FIRST_BLOCK}.residual": 1.0, f"{LAST_BLOCK}.residual": 0.5}
_LOGITS_FALL_WITH_WIDTH = 0.5


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
    axis: Axis = "width"
    depth: int | None = None  # None in a check that was written before depth was one of its axes

    @property
    def size(self) -> int:
        """The width or the depth, along whichever the check goes."""
        return self.depth if self.axis == "depth" and self.depth is not None else self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordSlope:
    """d log RMS / d log size of one activation after `step` updates, least squares over sizes and seeds.

    A size is a width or a depth, as `axis` says.
    """

    optimizer: str
    parametrization: str
    tap: str
    step: int
    slope: float
    axis: Axis = "width"


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordCheck:
    """What was measured and how steep it is."""

    points: tuple[CoordPoint, ...]
    slopes: tuple[CoordSlope, ...]
    tolerance: float

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Along which sizes were compared, in order."""
        return tuple(dict.fromkeys(slope.axis for slope in self.slopes))

    def failures(self, parametrization: str, axis: Axis | None = None) -> tuple[CoordSlope, ...]:
        """Slopes out of bounds at the start and after the last step, along one axis or all, steepest first.

        The steps between are shown, not judged: there a learned part is still growing into an initial one. Bounds
        are plus and minus the tolerance, but for logits that start random (a tied embedding, or a readout with an
        initial spread): that part falls as width^-1/2 by design, so a mixture of it with a flat learned part has
        any slope from -1/2 to 0. Likewise residuals over depth, of which blocks add a random part at first.
        """
        last = max(slope.step for slope in self.slopes)
        ours = [s for s in self.slopes if s.parametrization == parametrization and axis in (None, s.axis)]
        random_logits = {slope.optimizer for slope in ours if (slope.tap, slope.step) == (LOGITS, 0)}
        out = [
            slope
            for slope in ours
            if slope.step in (0, last)
            and not self._low(slope, random_logits) <= slope.slope <= self.tolerance  # also catches NaN
        ]
        return tuple(sorted(out, key=lambda slope: -abs(slope.slope)))

    def _low(self, slope: CoordSlope, random_logits: set[str]) -> float:
        if slope.axis == "depth":
            return -self.tolerance - _FALLS_WITH_DEPTH.get(slope.tap, 0.0)
        falls = slope.tap == LOGITS and slope.optimizer in random_logits
        return -self.tolerance - (_LOGITS_FALL_WITH_WIDTH if falls else 0.0)


def coordinate_check(
    runs: Iterable[tuple[str, RunConfig]], data: TokenData, *, steps: int, tolerance: float, axis: Axis = "width"
) -> CoordCheck:
    """Train each run for `steps` updates and fit the slopes along one axis. A run comes with its optimizer's name.

    Raises:
        ValueError: as `check_of`.
    """
    points = [point for name, run in runs for point in activation_sizes(name, run, data, steps=steps, axis=axis)]
    return check_of(points, tolerance=tolerance)


def check_of(points: Sequence[CoordPoint], *, tolerance: float) -> CoordCheck:
    """The slopes of what was measured.

    Raises:
        ValueError: fewer than four widths, or depths, of some (optimizer, parametrization).
    """
    for (axis, optimizer, parametrization), sizes in _sizes(points).items():
        if len(sizes) < MIN_SIZES:
            raise ValueError(
                f"a coordinate check takes at least {MIN_SIZES} {axis}s, got {sorted(sizes)} for {optimizer} "
                f"{parametrization}"
            )
    return CoordCheck(points=tuple(points), slopes=fit_slopes(points), tolerance=tolerance)


def activation_sizes(
    optimizer: str, run: RunConfig, data: TokenData, *, steps: int, axis: Axis = "width"
) -> list[CoordPoint]:
    """RMS of every tapped activation on one fixed batch, before the first update and after each.

    The learning rate is at its peak throughout: a warmup would hide what an update does. Along depth, the blocks
    between the first and the last are left out.
    """
    training = Training([first_steps(run, steps=steps, batch_tokens=run.hparams.batch_tokens)], data)
    probe = training.windows(steps)[0, :, :-1]  # unseen by the updates
    points: list[CoordPoint] = []

    def record(step: int, name: str, activation: Tensor) -> None:
        points.extend(
            CoordPoint(
                optimizer=optimizer,
                parametrization=run.parametrization,
                tap=place,
                step=step,
                width=run.model.width,
                seed=run.seed,
                rms=activation.square().mean().sqrt().item(),
                axis=axis,
                depth=run.model.depth,
            )
            for place in ((name,) if axis == "width" else relative_places(name, run.model.depth))
        )

    for step in range(steps + 1):
        with torch.no_grad():
            training.forward(probe, lambda name, activation, step=step: record(step, name, activation))
        if step < steps:
            training.step()
    return points


def relative_places(tap: str, depth: int) -> tuple[str, ...]:
    """What an activation of a model of this depth is compared as: of the first block, the last, both, or neither.

    Of `block0.mlp` in a model of one block: `first_block.mlp` and `last_block.mlp`. An activation that is in no block
    keeps its name.
    """
    found = _BLOCK.match(tap)
    if found is None:
        return (tap,)
    places = {FIRST_BLOCK: 0, LAST_BLOCK: depth - 1}
    return tuple(_BLOCK.sub(f"{name}.", tap) for name, block in places.items() if block == int(found[1]))


def fit_slopes(points: Sequence[CoordPoint]) -> tuple[CoordSlope, ...]:
    """One slope per (axis, optimizer, parametrization, tap, step); activations that are exactly zero have none.

    A non-finite activation gives a slope of NaN, which no tolerance accepts.
    """
    groups: dict[tuple[Axis, str, str, str, int], list[CoordPoint]] = defaultdict(list)
    for point in points:
        groups[point.axis, point.optimizer, point.parametrization, point.tap, point.step].append(point)
    return tuple(
        CoordSlope(
            optimizer=optimizer, parametrization=parametrization, tap=tap, step=step, slope=_slope(group), axis=axis
        )
        for (axis, optimizer, parametrization, tap, step), group in groups.items()
        if any(point.rms != 0 for point in group)
    )


def _slope(group: Sequence[CoordPoint]) -> float:
    rms = np.array([point.rms for point in group])
    if not np.all(np.isfinite(rms) & (rms > 0)):
        return float("nan")
    log_size = np.log([point.size for point in group])
    return float(np.polyfit(log_size, np.log(rms), 1)[0])


def _sizes(points: Iterable[CoordPoint]) -> dict[tuple[Axis, str, str], set[int]]:
    sizes: dict[tuple[Axis, str, str], set[int]] = defaultdict(set)
    for point in points:
        sizes[point.axis, point.optimizer, point.parametrization].add(point.size)
    return sizes
