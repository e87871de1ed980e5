"""The random-features lab: a table solved elsewhere, closed forms, a simulation, and what the fits make of it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar, root

from analysis.fast_transfer import Verdict
from tests.transfer_helpers import invoke
from transfer.labs import rf_ridge as lab

# By another solver of the two equations in (m1, m2): penalty, risk, and the gaps a, b and c.
_TABLE = {
    4: (0.379207, 0.452766, 3.168e-2, 3.134e-2, 6.399e-5),
    8: (0.385047, 0.435881, 1.479e-2, 3.718e-2, 8.962e-5),
    16: (0.376782, 0.428306, 7.218e-3, 2.891e-2, 5.458e-5),
    32: (0.366528, 0.424670, 3.582e-3, 1.866e-2, 2.293e-5),
    64: (0.358671, 0.422876, 1.788e-3, 1.080e-2, 7.735e-6),
    128: (0.353725, 0.421982, 8.939e-4, 5.855e-3, 2.282e-6),
    256: (0.350927, 0.421535, 4.470e-4, 3.056e-3, 6.233e-7),
    512: (0.349433, 0.421312, 2.235e-4, 1.562e-3, 1.631e-7),
    1024: (0.348661, 0.421200, 1.118e-4, 7.900e-4, 4.174e-8),
}


def _four_digits(value: float) -> object:
    return pytest.approx(value, rel=0, abs=0.55 * 10 ** (math.floor(math.log10(value)) - 3))


@pytest.mark.parametrize("row", lab.rows(), ids=lambda row: str(row.width))
def test_the_table_to_four_digits(row: lab.Row) -> None:
    penalty, risk, *gaps = _TABLE[row.width]
    assert (row.penalty, row.risk) == (pytest.approx(penalty, abs=6e-7), pytest.approx(risk, abs=6e-7))
    assert [row.loss_gap, row.hp_gap, row.transfer_gap] == [_four_digits(gap) for gap in gaps]


def test_the_limit_in_closed_form() -> None:
    """At t = r^-1 and S = psi1 t^2 - (t-1)^2 of arXiv:2512.22768: the best penalty, its risk and its curvature."""
    mu = lab.features()
    assert (mu.linear, mu.target_linear) == (pytest.approx(0.930470, abs=6e-7), pytest.approx(0.733471, abs=6e-7))
    penalty, risk = lab.best(math.inf)
    assert penalty == pytest.approx(mu.linear * mu.unlearned / mu.target_linear - mu.nonlinear, rel=1e-12)

    def penalty_at(t: float) -> float:
        return mu.linear * lab.PSI1 / (t - 1) - mu.linear / t - mu.nonlinear

    t = 2.5
    closed = lab.PSI1 * (mu.unlearned * t**2 + mu.target_linear) / (lab.PSI1 * t**2 - (t - 1) ** 2)
    assert lab.risk(penalty_at(t), math.inf) == pytest.approx(closed, rel=1e-12)
    assert risk == pytest.approx(0.421088, abs=6e-7)
    step = 1e-3
    second = (lab.risk(penalty + step, math.inf) - 2 * risk + lab.risk(penalty - step, math.inf)) / step**2
    assert lab.curvature_in_the_limit() == pytest.approx(second, rel=1e-4)
    assert lab.curvature_in_the_limit() == pytest.approx(0.13384, abs=6e-6)


@pytest.mark.parametrize("psi2", [0.6, 3.0, 40.0])
@pytest.mark.parametrize("penalty", [0.05, 0.4, 3.0])
def test_risk_from_the_two_equations(psi2: float, penalty: float) -> None:
    """Both unknowns solved for, and differentiated by central differences."""
    mu, psi1 = lab.features(), lab.PSI1

    def unknowns(penalty: float) -> np.ndarray:
        """m1 and m2, followed from a large penalty, where both are about 1 / penalty."""

        def equations(logs: np.ndarray, at: float) -> list[float]:
            """Divided by m1 m2: without the solution m1 = m2 = 0."""
            m1, m2 = np.exp(logs)
            last = mu.linear * (at * m1 - 1)
            first = (m1 - m2) * (mu.nonlinear * m1 + mu.linear * m2) / (psi1 * m1 * m2)
            return [first + last, psi2 / psi1 * (mu.linear + (m2 - m1) / (psi1 * m1 * m2)) + last]

        logs = np.full(2, -math.log(100))
        for at in np.geomspace(100, penalty, 200):
            logs = root(equations, logs, args=(at,), tol=1e-14).x
        assert max(np.abs(equations(logs, penalty))) < 1e-12
        return np.asarray(np.exp(logs))

    step = 1e-4 * penalty
    slopes = (unknowns(penalty + step) - unknowns(penalty - step)) / (2 * step)
    wanted = -(mu.unlearned * slopes[0] + mu.target_linear * slopes[1]) / unknowns(penalty)[0] ** 2
    assert lab.risk(penalty, psi2) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("psi2", [4, 100, math.inf])
def test_the_best_penalty_is_the_minimum(psi2: float) -> None:
    penalty, risk = lab.best(psi2)
    searched = minimize_scalar(lambda log: lab.risk(2.0**log, psi2), bounds=(-6, 3), method="bounded")
    assert risk <= searched.fun
    assert penalty == pytest.approx(2.0**searched.x, rel=1e-4)


def test_a_simulated_regression_has_this_risk() -> None:
    """d = 100, 400 samples, 400 features; ridge regression and its error on new samples."""
    d, n, penalty, rng = 100, 400, 0.379, np.random.default_rng(1)
    scale = 1 / math.sqrt(lab.features().linear) * (1 - _tanh_square())  # sqrt(E tanh^2)
    relu_mean, relu_sd = 1 / math.sqrt(2 * math.pi), math.sqrt(0.5 - 0.5 / math.pi)

    def run() -> float:
        beta = rng.standard_normal(d)
        beta /= np.linalg.norm(beta)
        weights = rng.standard_normal((n, d)) / math.sqrt(d)

        def sample(size: int) -> tuple[np.ndarray, np.ndarray]:
            x = rng.standard_normal((size, d))
            y = (np.maximum(x @ beta, 0) - relu_mean) / relu_sd
            return np.tanh(x @ weights.T) / scale, y + math.sqrt(lab.NOISE_VARIANCE) * rng.standard_normal(size)

        (features, y), (new, new_y) = sample(4 * d), sample(2000)
        dual = np.linalg.solve(features @ features.T + n * penalty * np.eye(4 * d), y)
        return float(np.mean((new @ (features.T @ dual) - new_y) ** 2))

    risks = [run() for _ in range(40)]
    assert np.mean(risks) == pytest.approx(lab.risk(penalty, n / d), rel=0.02)


def _tanh_square() -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ np.tanh(nodes) ** 2 / weights.sum())


def test_the_verdict_of_the_smallest_widths_is_withheld() -> None:
    """The true gaps there look slow (beta < alpha/2), though transfer is fast: the tool must not say slow."""
    small, large = (lab.window(*ends, rng=np.random.default_rng(5)) for ends in lab.WINDOWS)
    assert small.true_slopes == pytest.approx((-1.034, -0.407, -0.806), abs=2e-3)
    assert small.transfer.verdict is Verdict.INCONCLUSIVE
    assert large.true_slopes == pytest.approx((-1.000, -0.945, -1.887), abs=2e-3)
    assert large.transfer.verdict is Verdict.FAST
    assert large.transfer.alpha.value == pytest.approx(1.0, abs=0.01)
    assert large.transfer.beta.interval.contains(0.85)


def test_rf_ridge_prints_and_writes(tmp_path: Path) -> None:
    shown = invoke("lab", "rf-ridge", "--out", tmp_path)
    assert (shown.exit_code, "0.347871" in shown.stdout) == (0, True)
    document = json.loads((tmp_path / "rf_ridge.json").read_text())
    assert document == json.loads(invoke("lab", "rf-ridge", "--json").stdout)
    assert [window["transfer"]["verdict"] for window in document["windows"]] == ["inconclusive", "fast"]
    assert (tmp_path / "rf_ridge.svg").exists()
