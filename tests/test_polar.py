"""Polar schedules against closed forms, published thresholds and the exact polar factor."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.checks import ConfigError
from proxy_models.optimizer_config import PolarSchedule
from proxy_models.optimizers.orthogonalize import orthogonalize
from proxy_models.polar_schedules import polar_steps, scalar_map, smallest_lifted

SCHEDULES: list[PolarSchedule] = ["jordan", "you", "polar_express", "taylor1", "taylor2", "taylor3", "taylor4"]


@pytest.mark.parametrize(
    ("schedule", "n_steps", "slope"),
    [
        ("jordan", 5, 485.0),
        ("jordan", 3, 40.9),
        ("you", 5, 493.0),
        ("polar_express", 6, 1846.0),
        ("polar_express", 7, 3428.0),
        ("polar_express", 8, 6363.0),
        ("taylor1", 5, 1.5**5),
        ("taylor2", 8, 1.875**8),
    ],
)
def test_slope_at_zero(schedule: PolarSchedule, n_steps: int, slope: float) -> None:
    """The product of the steps' first coefficients: how fast the smallest singular values rise."""
    assert scalar_map(polar_steps(schedule, n_steps), 1e-9) / 1e-9 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize(
    ("schedule", "n_steps", "threshold", "smallest"),
    [
        ("jordan", 5, 0.5, 1.07e-3),
        ("jordan", 3, 0.5, 1.3e-2),
        ("jordan", 5, 0.7, None),  # dips to 0.68 ever again
        ("you", 5, 0.9, 2.16e-3),
        ("polar_express", 6, 0.5, 2.9e-4),
        ("polar_express", 6, 0.9, 6.7e-4),
        ("polar_express", 8, 0.9, 2.1e-4),
        ("taylor1", 15, 0.9, 3.0e-3),
        ("taylor2", 12, 0.7, 4.4e-4),
    ],
)
def test_which_singular_values_are_lifted(
    schedule: PolarSchedule, n_steps: int, threshold: float, smallest: float | None
) -> None:
    found = smallest_lifted(polar_steps(schedule, n_steps), threshold)
    assert found is None if smallest is None else found == pytest.approx(smallest, rel=0.03)


@given(residual=st.floats(1e-6, 1 - 1e-6), degree=st.sampled_from([1, 2, 3, 4]), n_steps=st.integers(1, 6))
def test_taylor_residuals_fall_as_the_theorem_says(residual: float, degree: int, n_steps: int) -> None:
    """1 - s^2 after q steps is at most its start to the power (k+1)^q. Kim and Oh, arXiv:2601.19156, Theorem 2."""
    schedule: PolarSchedule = ("taylor1", "taylor2", "taylor3", "taylor4")[degree - 1]
    s = scalar_map(polar_steps(schedule, n_steps), np.sqrt(1 - residual))
    assert 1 - float(s) ** 2 <= residual ** ((degree + 1) ** n_steps) + 1e-12


@pytest.mark.parametrize("delta", [0.15, 0.6, 0.97])
def test_one_taylor_step_is_the_closed_form(delta: float) -> None:
    after = [1 - float(scalar_map(polar_steps(s, 1), np.sqrt(1 - delta))) ** 2 for s in ("taylor1", "taylor2")]
    assert after[0] == pytest.approx(delta**2 * (3 + delta) / 4)
    assert after[1] == pytest.approx(delta**3 * (40 + 15 * delta + 9 * delta**2) / 64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(9, 9), (14, 6), (6, 14)])
def test_matrices_follow_the_scalar_map(schedule: PolarSchedule, shape: tuple[int, int]) -> None:
    """Singular vectors stay, singular values of G / ||G||_F go through the map: members and layers at once."""
    matrices = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    expected = torch.from_numpy(scalar_map(polar_steps(schedule, 7), (s / s.norm(dim=-1, keepdim=True)).numpy()))
    result = orthogonalize(matrices, schedule=schedule, n_steps=7, dtype="float32")
    torch.testing.assert_close(result, u @ torch.diag_embed(expected) @ vh, rtol=1e-5, atol=1e-6)


def test_svd_is_the_polar_factor_and_has_no_steps() -> None:
    matrices = torch.randn(2, 2, 8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    polar = orthogonalize(matrices, schedule="svd", n_steps=1, dtype="float32")
    torch.testing.assert_close(polar.mT @ polar, torch.eye(5, dtype=torch.float64).expand(2, 2, 5, 5))
    assert (torch.linalg.eigvalsh(polar.mT @ matrices) > 0).all()  # the symmetric factor is positive
    with pytest.raises(ConfigError, match="'svd' is exact"):
        polar_steps("svd", 3)


def test_bfloat16_agrees_to_its_precision_and_returns_float32() -> None:
    matrices = torch.randn(4, 2, 24, 24, generator=torch.Generator().manual_seed(5))
    low, high = (orthogonalize(matrices, schedule="polar_express", n_steps=6, dtype=d) for d in ("bfloat16", "float32"))
    assert low.dtype == torch.float32
    assert 1e-4 < (low - high).norm() / high.norm() < 0.03
