"""The polar factor U V^T of a matrix U S V^T, batched over every leading axis."""

import torch
from torch import Tensor

from proxy_models.optimizer_config import PolarDtype, PolarSchedule
from proxy_models.polar_schedules import Step, polar_steps

_TINY = 1e-7
# On a CPU matrices go through all steps in groups that stay in a core's cache: 1.3 to 1.5 times faster at 64 x 64
# and 128 x 128 than all at once, with the same bits (benchmarks/optimizer_step.py).
_CHUNK_FLOATS = 2**16
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def orthogonalize(matrices: Tensor, *, schedule: PolarSchedule, n_steps: int, dtype: PolarDtype) -> Tensor:
    """Polar factors of (..., fan_out, fan_in), by Newton-Schulz steps in `dtype`, or exactly by `svd`.

    Returned in the input's dtype. A zero matrix stays zero under Newton-Schulz.
    """
    if schedule == "svd":
        return _exact(matrices)
    if matrices.dtype == torch.float64:  # tests: the schedule itself, without rounding
        return newton_schulz(matrices, polar_steps(schedule, n_steps))
    return newton_schulz(matrices.to(_DTYPES[dtype]), polar_steps(schedule, n_steps)).to(matrices.dtype)


def _exact(matrices: Tensor) -> Tensor:
    """U V^T; NaN for a matrix that is not finite, on which the batched decomposition would fail as a whole."""
    finite = matrices.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u, _, vh = torch.linalg.svd(matrices.where(finite, 0.0), full_matrices=False)
    return (u @ vh).where(finite, torch.nan)


def newton_schulz(matrices: Tensor, steps: tuple[Step, ...]) -> Tensor:
    """Apply polynomial steps to X = G / ||G||_F, on the side where X X^T is smaller, in the input's dtype."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _TINY)
    batch_shape, x = x.shape[:-2], x.reshape(-1, *x.shape[-2:])  # baddbmm takes one batch axis
    chunk = max(1, _CHUNK_FLOATS // x[0].numel()) if x.device.type == "cpu" else len(x)
    x = torch.cat([_iterate(part, steps) for part in x.split(chunk)])
    x = x.reshape(*batch_shape, *x.shape[-2:])
    return x.mT if tall else x


def _iterate(x: Tensor, steps: tuple[Step, ...]) -> Tensor:
    for step in steps:
        x = torch.baddbmm(x, _without_constant(step, x @ x.mT), x, beta=step[0])
    return x


def _without_constant(step: Step, gram: Tensor) -> Tensor:
    """c_1 A + ... + c_d A^d by Horner's rule."""
    if len(step) == 2:
        return step[1] * gram
    polynomial = torch.baddbmm(gram, gram, gram, beta=step[-2], alpha=step[-1])
    for c in step[-3:0:-1]:
        polynomial = torch.baddbmm(gram, polynomial, gram, beta=c)
    return polynomial
