"""The polar factor U V^T of a matrix U S V^T, batched over every leading axis."""

import torch
from torch import Tensor

from proxy_models.optimizer_config import PolarConfig, PolarDtype, PolarSchedule, ShapeFactor
from proxy_models.polar_schedules import Step, polar_steps

_TINY = 1e-7
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def polar_factor(matrices: Tensor, config: PolarConfig) -> Tensor:
    """`orthogonalize` with a config's schedule, steps and dtype."""
    return orthogonalize(matrices, schedule=config.ns_schedule, n_steps=config.ns_steps, dtype=config.ns_dtype)


def orthogonalize(matrices: Tensor, *, schedule: PolarSchedule, n_steps: int, dtype: PolarDtype) -> Tensor:
    """Polar factors of (..., fan_out, fan_in), by Newton-Schulz steps in `dtype`, or exactly by `svd`.

    Returned in the input's dtype. A zero matrix stays zero under Newton-Schulz.
    """
    if schedule == "svd":
        u, _, vh = decompose(matrices)
        return u @ vh
    return newton_schulz(_as(matrices, dtype), polar_steps(schedule, n_steps)).to(matrices.dtype)


def orthogonalize_diagonal(vectors: Tensor, *, schedule: PolarSchedule, n_steps: int, dtype: PolarDtype) -> Tensor:
    """The diagonals of `orthogonalize` of diagonal matrices, in O(n): (..., n) to (..., n).

    Newton-Schulz steps keep a matrix diagonal and act on each entry alone. By `svd` it is the sign.
    """
    if schedule == "svd":
        return vectors.sign().where(vectors.isfinite(), torch.nan)
    x = _as(vectors, dtype)
    x = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + _TINY)
    for step in polar_steps(schedule, n_steps):
        square, polynomial = x * x, torch.full_like(x, step[-1])
        for c in step[-2::-1]:
            polynomial = polynomial * square + c
        x = x * polynomial
    return x.to(vectors.dtype)


def decompose(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T of the reduced singular value decomposition; U is NaN for a matrix that is not finite.

    (On one such matrix the batched decomposition would fail as a whole.)
    """
    finite = matrices.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u, s, vh = torch.linalg.svd(matrices.where(finite, 0.0), full_matrices=False)
    return u.where(finite, torch.nan), s, vh


def shape_factor(kind: ShapeFactor, fan_out: int, fan_in: int) -> float:
    """What multiplies an orthogonalized (fan_out, fan_in) update."""
    return {
        "spectral": (fan_out / fan_in) ** 0.5,
        "max1": max(1.0, fan_out / fan_in) ** 0.5,
        "rms_match": 0.2 * max(fan_out, fan_in) ** 0.5,
    }[kind]


def newton_schulz(matrices: Tensor, steps: tuple[Step, ...]) -> Tensor:
    """Apply polynomial steps to X = G / ||G||_F, on the side where X X^T is smaller, in the input's dtype."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _TINY)
    batch_shape, x = x.shape[:-2], x.reshape(-1, *x.shape[-2:])  # baddbmm takes one batch axis
    for step in steps:
        x = torch.baddbmm(x, _without_constant(step, x @ x.mT), x, beta=step[0])
    x = x.reshape(*batch_shape, *x.shape[-2:])
    return x.mT if tall else x


def _as(x: Tensor, dtype: PolarDtype) -> Tensor:
    """In the iteration's dtype; float64, which only tests use, stays: the schedule itself, without rounding."""
    return x if x.dtype == torch.float64 else x.to(_DTYPES[dtype])


def _without_constant(step: Step, gram: Tensor) -> Tensor:
    """c_1 A + ... + c_d A^d by Horner's rule."""
    if len(step) == 2:
        return step[1] * gram
    polynomial = torch.baddbmm(gram, gram, gram, beta=step[-2], alpha=step[-1])
    for c in step[-3:0:-1]:
        polynomial = torch.baddbmm(gram, polynomial, gram, beta=c)
    return polynomial
