"""The linear-network lab: its formulas against a trained network, its laws against the published exponents."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from analysis.fast_transfer import Verdict
from tests.transfer_helpers import invoke
from transfer.labs import linear_network as lab

GENERIC, ORTHOGONAL = lab.CASES
_LARGE = tuple(2**k for k in range(12, 18))  # no matrix of size n is drawn


def test_a_trained_network_has_these_losses() -> None:
    """f(x) = V^T W1 W0 x with W1 trained, matrix by matrix."""
    rng, n, steps, rate = np.random.default_rng(3), 30, 4, 2.7
    x, y = lab.data(GENERIC, rng)
    m, d = x.shape
    w0 = rng.standard_normal((n, d)) / np.sqrt(d)
    w1 = rng.standard_normal((n, n)) / np.sqrt(n)
    v = rng.standard_normal(n) / n
    h = x @ w0.T
    residuals = h @ w1.T @ v - y
    predicted = lab.losses((v @ v * h @ h.T)[None], residuals[None], steps).at(np.array([rate]))
    for _ in range(steps):
        w1 = w1 - rate / m * np.outer(v, (h @ w1.T @ v - y) @ h)
    assert predicted[0] == pytest.approx(np.mean((h @ w1.T @ v - y) ** 2) / 2, rel=1e-12)
    assert predicted[0] < np.mean(residuals**2) / 2 * 0.9


def test_draws_have_the_law_of_explicit_matrices() -> None:
    """Means and standard deviations of A_n and of the first residuals, from W0, W1 and V themselves."""
    rng, n, draws = np.random.default_rng(4), 12, 20_000
    x, y = lab.data(GENERIC, rng)
    kernels, residuals = lab.initialize(x, y, width=n, draws=draws, rng=rng)
    h = x @ (rng.standard_normal((draws, n, 8)) / np.sqrt(8)).swapaxes(1, 2)
    v = rng.standard_normal((draws, n, 1)) / n
    w1 = rng.standard_normal((draws, n, n)) / np.sqrt(n)
    explicit_kernels = (v**2).sum(axis=1, keepdims=True) * (h @ h.swapaxes(1, 2))
    explicit_residuals = (h @ w1.swapaxes(1, 2) @ v)[..., 0] - y
    for drawn, explicit in ((kernels, explicit_kernels), (residuals, explicit_residuals)):
        error = explicit.std(axis=0) / np.sqrt(draws)
        assert np.all(np.abs(drawn.mean(axis=0) - explicit.mean(axis=0)) < 6 * error)
        assert drawn.std(axis=0) == pytest.approx(explicit.std(axis=0), rel=0.06)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_optimum_is_the_minimum(steps: int) -> None:
    rng = np.random.default_rng(5)
    x, y = lab.data(GENERIC, rng)
    found = lab.losses(*lab.initialize(x, y, width=50, draws=3, rng=rng), steps)
    for i, rate in enumerate(found.optima()):
        searched = minimize_scalar(lambda r, i=i: found.at(np.full(3, r))[i], bounds=(0.1, 60), method="bounded")
        assert rate == pytest.approx(searched.x, rel=1e-4)


def test_the_limit_is_the_kernel_of_the_data() -> None:
    """At T = 1 the best rate is m y^T K y / (y^T K^2 y); with X X^T = I it is m d and nothing is left."""
    rng = np.random.default_rng(6)
    x, y = lab.data(GENERIC, rng)
    kernel = x @ x.T / lab.DIMENSIONS
    best = lab.losses(kernel[None], -y[None], 1).optima()[0]
    assert best == pytest.approx(lab.SAMPLES * (y @ kernel @ y) / (y @ kernel @ kernel @ y), rel=1e-12)
    x, y = lab.data(ORTHOGONAL, rng)
    limit = lab.losses(x @ x.T[None] / lab.DIMENSIONS, -y[None], 1)
    assert limit.optima()[0] == pytest.approx(lab.SAMPLES * lab.DIMENSIONS, rel=1e-12)
    assert limit.at(limit.optima())[0] == pytest.approx(0.0, abs=1e-28)


@pytest.mark.parametrize("seed", [0, 1])
def test_generic_data_is_fast(seed: int) -> None:
    outcome = lab.study(replace(GENERIC, widths=_LARGE), draws=1500, rng=np.random.default_rng(seed))
    assert outcome.slopes == pytest.approx((-0.5, -0.5, -1.0), abs=0.06)
    assert outcome.transfer.verdict is Verdict.FAST
    assert outcome.ratios[-1] < 0.3 * outcome.ratios[0]


@pytest.mark.parametrize(("steps", "slopes"), [(1, (-1.0, -0.5, -1.0)), (2, (-2.0, -0.5, -2.0))])
def test_orthogonal_data_is_not_fast(steps: int, slopes: tuple[float, float, float]) -> None:
    """The optimum converges all the same; at T = 2 the curvature vanishes, and c is not (h/2) b^2."""
    case = replace(ORTHOGONAL, steps=steps, widths=_LARGE)
    outcome = lab.study(case, draws=1500, rng=np.random.default_rng(2))
    assert outcome.slopes == pytest.approx(slopes, rel=0.08)
    assert outcome.transfer.verdict is Verdict.SLOW
    assert outcome.transfer.kappa.value == pytest.approx(0.0, abs=0.08)


def test_the_labs_own_widths() -> None:
    for case, verdict in zip(lab.CASES, (Verdict.FAST, Verdict.SLOW), strict=True):
        outcome = lab.study(case, draws=1000, rng=np.random.default_rng(0))
        assert outcome.slopes == pytest.approx(case.expected, abs=0.1)
        assert outcome.transfer.verdict is verdict


def test_linear_network_prints_and_writes(tmp_path: Path) -> None:
    shown = invoke("lab", "linear-network", "--draws", 100, "--out", tmp_path)
    assert (shown.exit_code, shown.stdout.count("expected")) == (0, 2)
    document = json.loads((tmp_path / "linear_network.json").read_text())
    assert document == json.loads(invoke("lab", "linear-network", "--draws", 100, "--json").stdout)
    assert document["outcomes"][0]["transfer"]["verdict"] == "fast"
    assert document["outcomes"][1]["transfer"]["verdict"] != "fast"
    assert (tmp_path / "linear_network.svg").exists()
