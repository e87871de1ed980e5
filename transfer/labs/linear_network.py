"""A shallow linear network, where every draw's optimum and its limit are known exactly.

The setting of Sakai and Imaizumi ("Fast learning rate transfer in shallow linear networks at growing horizons", 2026):
f(x) = V^T W1 W0 x with muP's initialization W0 ~ N(0, 1/d), W1 ~ N(0, 1/n), V ~ N(0, 1/n^2), of which W1 is trained by
T steps of gradient descent on the square loss of m samples. The residuals after T steps are

    chi_T = (I - eta A_n / m)^T chi_0,    A_n = ||V||^2 H H^T,    H = X W0^T    (m x n)

and A_n tends to K = X X^T / d, chi_0 to -y. With at least two active eigenvalues of K transfer is fast at a fixed T:
a ~ n^-1/2, b ~ n^-1/2, c ~ n^-1. With X X^T = I it is not, although b shrinks: a ~ n^-T and c ~ n^-T.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wishart

from analysis.fast_transfer import FastTransfer, fast_transfer_from_gaps
from analysis.interval import Floats
from transfer.labs.rates import rates_json

SAMPLES, DIMENSIONS = 4, 8
_HALVINGS = 60  # of the bracket of the optimum: to the last bit


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A data set, a horizon, and the widths to draw."""

    name: str
    orthogonal: bool  # X X^T = I
    steps: int
    widths: tuple[int, ...]
    expected: tuple[float, float, float]  # slopes of log a, b and c over log width, as n grows


CASES = (
    Case(
        name="generic data",
        orthogonal=False,
        steps=5,
        widths=tuple(2**k for k in range(6, 14)),
        expected=(-0.5, -0.5, -1.0),
    ),
    Case(
        name="orthogonal data",
        orthogonal=True,
        steps=1,
        widths=tuple(2**k for k in range(6, 13)),
        expected=(-1.0, -0.5, -1.0),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The gaps of every draw, their slopes and the verdict."""

    case: Case
    a: Floats  # (widths, draws): |phi_n* - phi_inf*|
    b: Floats  # |log2(eta*_n / eta*_inf)|
    c: Floats  # phi_inf(eta*_n) - phi_inf*
    transfer: FastTransfer

    @property
    def medians(self) -> tuple[tuple[float, ...], ...]:
        """Of a, b and c, each over the widths."""
        return tuple(tuple(np.median(gaps, axis=1).tolist()) for gaps in (self.a, self.b, self.c))

    @property
    def slopes(self) -> tuple[float, float, float]:
        """Of the logarithms of the medians over the logarithm of the width."""
        a, b, c = np.polyfit(np.log(self.case.widths), np.log(self.medians).T, 1)[0].tolist()
        return a, b, c

    @property
    def ratios(self) -> tuple[float, ...]:
        """Median c over median a at each width: it falls where transfer is fast."""
        a, _, c = self.medians
        return tuple(cost / gap for cost, gap in zip(c, a, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "case": asdict(self.case),
            "medians": dict(zip("abc", self.medians, strict=True)),
            "slopes": self.slopes,
            "c_over_a": self.ratios,
            "transfer": rates_json(self.transfer),
        }


class Losses(NamedTuple):
    """(1/2m) sum_j power_j (1 - eta eigenvalue_j / m)^2T as a function of eta, one a row."""

    eigenvalues: Floats  # (rows, m) ascending
    powers: Floats  # (rows, m): squared components of the first residuals along the eigenvectors
    steps: int

    def at(self, rates: Floats) -> Floats:
        """(rows,)."""
        mean: Floats = (self.powers * self._left(rates) ** (2 * self.steps)).mean(axis=1)
        return mean / 2

    def optima(self) -> Floats:
        """The learning rates of the lowest losses, (rows,), by bisection: the derivative only rises with the rate."""
        m = self.eigenvalues.shape[1]
        low, high = m / self.eigenvalues[:, -1], m / self.eigenvalues[:, 0]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            falling = (self.powers * self.eigenvalues * self._left(middle) ** (2 * self.steps - 1)).sum(axis=1) > 0
            low, high = np.where(falling, middle, low), np.where(falling, high, middle)
        best: Floats = (low + high) / 2
        return best

    def _left(self, rates: Floats) -> Floats:
        """What a step leaves of each component, (rows, m)."""
        left: Floats = 1 - rates[:, None] * self.eigenvalues / self.eigenvalues.shape[1]
        return left


def study(case: Case, *, draws: int, rng: np.random.Generator) -> Outcome:
    """The gaps of `draws` initializations at each width, on one data set."""
    x, y = data(case, rng)
    limit = losses(x @ x.T[None] / DIMENSIONS, -y[None], case.steps)
    best = limit.optima()
    gaps = []
    for width in case.widths:
        own = losses(*initialize(x, y, width=width, draws=draws, rng=rng), case.steps)
        rates = own.optima()
        loss_gap, transfer_gap = np.abs(own.at(rates) - limit.at(best)), limit.at(rates) - limit.at(best)
        gaps.append((loss_gap, np.abs(np.log2(rates / best)), transfer_gap))
    a, b, c = (np.stack(kind) for kind in zip(*gaps, strict=True))
    return Outcome(case=case, a=a, b=b, c=c, transfer=fast_transfer_from_gaps(case.widths, a, b, c, rng=rng))


def data(case: Case, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """X (m, d) and y (m,), standard normal; or X with orthonormal rows."""
    x = rng.standard_normal((SAMPLES, DIMENSIONS))
    if case.orthogonal:
        x = np.linalg.qr(x.T).Q.T
    return x, rng.standard_normal(SAMPLES)


def initialize(x: Floats, y: Floats, *, width: int, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A_n (draws, m, m) and chi_0 (draws, m), from their exact laws: no matrix of size n is drawn.

    H has n independent columns from N(0, K), so H H^T is Wishart's, and n^2 ||V||^2 is chi-squared. W1 enters by the
    first outputs H W1^T V alone, which given H and V are N(0, A_n / n).
    """
    v_square = rng.chisquare(width, size=draws) / width**2
    gram = wishart(df=width, scale=x @ x.T / DIMENSIONS).rvs(draws, random_state=rng)
    kernels = v_square[:, None, None] * gram
    outputs = np.linalg.cholesky(kernels / width) @ rng.standard_normal((draws, len(y), 1))
    return kernels, outputs[..., 0] - y


def losses(kernels: Floats, residuals: Floats, steps: int) -> Losses:
    """After `steps` steps, from A_n (rows, m, m) and chi_0 (rows, m)."""
    eigenvalues, vectors = np.linalg.eigh(kernels)
    return Losses(eigenvalues, (residuals[:, None] @ vectors)[:, 0] ** 2, steps)
