"""Polynomials that push singular values toward 1: the schedules of Newton-Schulz iteration. Knows no torch.

A step is (c_0, ..., c_d): X <- (c_0 I + c_1 A + ... + c_d A^d) X with A = X X^T, which maps a singular value s
to s (c_0 + c_1 s^2 + ... + c_d s^2d) and keeps the singular vectors.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from proxy_models.checks import ConfigError
from proxy_models.optimizer_config import PolarSchedule

Step = tuple[float, ...]

# Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): steep at zero, so that small singular values
# rise fast; they end between 0.68 and 1.14, not at 1.
_JORDAN: Step = (3.4445, -4.7750, 2.0315)
# You's five steps, as microsoft/dion and HeavyBall use them: between 0.9 and 1.1 from 2e-3 up.
_YOU: tuple[Step, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# Amsel et al., Polar Express (arXiv:2505.16932v3), optimal for singular values from 1e-3.
_POLAR_EXPRESS: tuple[Step, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
_POLAR_EXPRESS_SAFETY = 1.01  # keeps rounding from pushing a value beyond the interval the next step is made for


def polar_steps(schedule: PolarSchedule, n_steps: int) -> tuple[Step, ...]:
    """The polynomials of a schedule, one a step. A listed schedule repeats its last beyond its end.

    Raises:
        ConfigError: `svd`, which is exact and has no steps.
    """
    match schedule:
        case "jordan":
            return (_JORDAN,) * n_steps
        case "you":
            return _repeating_last(_YOU, n_steps)
        case "polar_express":
            listed = _repeating_last(_POLAR_EXPRESS, n_steps)
            return (*(_damped(step, _POLAR_EXPRESS_SAFETY) for step in listed[:-1]), listed[-1])
        case "taylor1" | "taylor2" | "taylor3" | "taylor4":
            return (_taylor(int(schedule.removeprefix("taylor"))),) * n_steps
        case "svd":
            raise ConfigError("the schedule 'svd' is exact and has no polynomial steps")


def scalar_map(steps: Sequence[Step], singular_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """What `steps` make of singular values of a matrix of Frobenius norm 1, float64."""
    s = np.asarray(singular_values, dtype=np.float64)
    for step in steps:
        s = s * np.polynomial.polynomial.polyval(s**2, step)
    return s


def smallest_lifted(steps: Sequence[Step], threshold: float) -> float | None:
    """The smallest singular value from which on every larger one, up to 1, ends at `threshold` or above.

    None where none below 1 does. To three digits, on a logarithmic grid.
    """
    grid = np.geomspace(1e-8, 1.0, 20_001)
    below = np.flatnonzero(scalar_map(steps, grid) < threshold)
    if not len(below):
        return float(grid[0])
    return float(grid[below[-1] + 1]) if below[-1] + 2 < len(grid) else None


def _repeating_last(steps: tuple[Step, ...], n_steps: int) -> tuple[Step, ...]:
    return (*steps[:n_steps], *(steps[-1],) * (n_steps - len(steps)))


def _damped(step: Step, safety: float) -> Step:
    """The step applied to X / safety."""
    return tuple(c / safety ** (2 * power + 1) for power, c in enumerate(step))


def _taylor(degree: int) -> Step:
    """Taylor polynomial of s^-1/2 at 1, in powers of s: sum_j (2j)! / (4^j (j!)^2) (1 - s)^j.

    After q steps the residual 1 - s^2 is at most its first value to the power (degree + 1)^q (Kim and Oh,
    arXiv:2601.19156, Theorem 2).
    """
    one_minus_s = np.polynomial.Polynomial([1.0, -1.0])
    terms = [math.comb(2 * j, j) / 4**j * one_minus_s**j for j in range(degree + 1)]
    return tuple(float(c) for c in sum(terms[1:], terms[0]).coef)
