"""Random-features ridge regression, where transfer is provably fast, and whether the fits of a sweep see it.

The setting of Ghosh, Wu and Bietti (arXiv:2512.22768): y = sigma_*(<x, beta>) + noise with x ~ N(0, I_d) and
||beta|| = 1; the model <a, sigma(W x)> with W_ij ~ N(0, 1/d) and n features is fitted to N samples by ridge regression.
The hyperparameter is the ridge penalty, the width is psi2 = n/d, and N/d = psi1 as d grows. Its optimum first moves
away from its limit and only then converges, so exponents from the smallest widths have the wrong sign.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from analysis.fast_transfer import FastTransfer, fast_transfer
from analysis.optimum import fit_optimum
from analysis.surface import Surface
from transfer.labs.rates import rates_json

PSI1 = 4.0  # samples over dimensions
NOISE_VARIANCE = 1 / 16
WIDTHS = tuple(2**k for k in range(2, 11))  # psi2: features over dimensions
WINDOWS = ((4, 64), (64, 1024))  # psi2, both ends included
# Finer than any sweep's: a grid step counts for a tenth in an optimum's error, and the one of psi2 = 1024 is 0.003
# octaves from its limit.
_STEP_OCTAVES = 1 / 256
_HALF_GRID = 4  # points on either side of the one nearest to the optimum
_BAND_NATS = 1e-3  # all of the grid: 1/64 octave costs 1e-6
_N_BOOTSTRAP = 500
_TOLERANCE = 1e-15


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Shares of linear and other Hermite components of sigma = tanh (features) and sigma_* = ReLU (target).

    Both are centered and of unit norm under the standard normal, so the two shares of each add up to 1.
    """

    linear: float  # mu_1^2 = E[sigma'(z)]^2
    target_linear: float

    @property
    def nonlinear(self) -> float:
        return 1 - self.linear

    @property
    def unlearned(self) -> float:
        """Variance that no linear map of x explains: of the target, and of the noise."""
        return 1 - self.target_linear + NOISE_VARIANCE


@cache
def features() -> Features:
    """Of tanh by quadrature; of ReLU, E[sigma'] = 1/2 and the variance is 1/2 - 1/(2 pi)."""

    def mean(power: int) -> float:
        return float(quad(lambda z: norm.pdf(z) * np.tanh(z) ** power, -12, 12, epsabs=1e-14)[0])

    square = mean(2)
    return Features(linear=(1 - square) ** 2 / square, target_linear=0.25 / (0.5 - 0.5 / np.pi))


class _Curve(NamedTuple):
    """One point of the curve that penalty and risk lie on at one width."""

    penalty: float
    risk: float
    slope: float  # d risk / d r, times a positive factor


def _point(r: float, inverse_width: float) -> _Curve:
    """Penalty and risk from r = m2/m1, in closed form; `inverse_width` is 1/psi2, 0 for infinite width.

    The self-consistent equations for m1, m2 > 0 at a penalty l,

        (m1 - m2)(nonlinear m1 + linear m2)/psi1 + linear m1 m2 (l m1 - 1) = 0
        (psi2/psi1)(linear m1 m2 + (m2 - m1)/psi1) + linear m1 m2 (l m1 - 1) = 0,

    divided by m1^2 give u = 1/m1 and then l = u w as functions of r. The risk, noise included,

        R = -unlearned m1'/m1^2 - target_linear m2'/m1^2        (' = d/dl),

    becomes ((unlearned + target_linear r) u_r - target_linear u)/l_r. Both u and w grow with r where they are
    positive, so a penalty belongs to one r.
    """
    mu = features()
    linear, other = mu.linear, mu.nonlinear
    u = PSI1 * (linear * r / (1 - r) - inverse_width * (other + linear * r))
    u_r = PSI1 * linear * (1 / (1 - r) ** 2 - inverse_width)
    u_rr = PSI1 * linear * 2 / (1 - r) ** 3
    w = 1 - (1 - r) * (other / r + linear) / (PSI1 * linear)
    w_r = (other / r**2 + linear) / (PSI1 * linear)
    w_rr = -2 * other / (r**3 * PSI1 * linear)
    penalty_r, penalty_rr = u_r * w + u * w_r, u_rr * w + 2 * u_r * w_r + u * w_rr
    weight = mu.unlearned + mu.target_linear * r
    top, top_r = weight * u_r - mu.target_linear * u, weight * u_rr
    return _Curve(penalty=u * w, risk=top / penalty_r, slope=top_r * penalty_r - top * penalty_rr)


def _no_penalty(inverse_width: float) -> float:
    """The r at which the penalty is 0: the larger of the positive zeros of u and of w, both quadratics in r."""
    mu = features()
    linear, other = mu.linear, mu.nonlinear
    w = (linear, PSI1 * linear - linear + other, -other)
    u = (inverse_width * linear, linear - inverse_width * (linear - other), -inverse_width * other)
    return max(float(np.roots(c).max()) for c in (w, u))


def risk(penalty: float, width: float) -> float:
    """The limit of the test error (noise included) at one penalty and psi2 = width, which may be infinite."""
    low, q = _no_penalty(1 / width), 1 / width
    r = brentq(lambda r: _point(r, q).penalty - penalty, low, 1 - 1e-9, xtol=_TOLERANCE)
    return _point(r, q).risk


def best(width: float) -> tuple[float, float]:
    """The penalty with the lowest risk at psi2 = width, which may be infinite, and that risk.

    It is where the derivative vanishes, so it is as exact as floating point, not as its square root.
    """
    low, q = _no_penalty(1 / width), 1 / width
    point = _point(brentq(lambda r: _point(r, q).slope, low, 1 - 1e-9, xtol=_TOLERANCE), q)
    return point.penalty, point.risk


def curvature_in_the_limit() -> float:
    """Second derivative of the infinite-width risk in the penalty at its optimum (arXiv:2512.22768, appendix)."""
    mu = features()
    penalty, _ = best(np.inf)
    r = brentq(lambda r: _point(r, 0.0).penalty - penalty, _no_penalty(0.0), 1 - 1e-9, xtol=_TOLERANCE)
    t = 1 / r
    s = PSI1 * t**2 - (t - 1) ** 2
    penalty_t = -mu.linear * s / (t**2 * (t - 1) ** 2)
    return 2 * mu.unlearned * PSI1 / (s * penalty_t**2 * (PSI1 * t - t + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The optimum of one width, and its three gaps to infinite width."""

    width: int  # psi2
    penalty: float
    risk: float
    loss_gap: float
    hp_gap: float  # of the penalty
    transfer_gap: float


def rows() -> list[Row]:
    """Every width against the limit."""
    limit_penalty, limit_risk = best(np.inf)
    found = [(width, *best(width)) for width in WIDTHS]
    return [
        Row(
            width=width,
            penalty=penalty,
            risk=lowest,
            loss_gap=abs(lowest - limit_risk),
            hp_gap=abs(penalty - limit_penalty),
            transfer_gap=risk(penalty, np.inf) - limit_risk,
        )
        for width, penalty, lowest in found
    ]


def surface(width: int) -> Surface:
    """The exact risk around the optimum, as a sweep without noise would have measured it."""
    nearest = round(np.log2(best(width)[0]) / _STEP_OCTAVES)
    log2_values = [(nearest + i) * _STEP_OCTAVES for i in range(-_HALF_GRID, _HALF_GRID + 1)]
    return Surface(
        optimizer="ridge",
        width=width,
        hp="penalty",
        log2_values=tuple(log2_values),
        seeds=(0,),
        losses=tuple((risk(2.0**x, width),) for x in log2_values),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What the fits of a sweep say about some widths, and the slopes of the true gaps there."""

    first: int
    last: int
    true_slopes: tuple[float, float, float]  # of log a, b and c over log width
    transfer: FastTransfer

    def to_json(self) -> dict[str, Any]:
        ends = {"first": self.first, "last": self.last}
        return {**ends, "true_slopes": self.true_slopes, "transfer": rates_json(self.transfer)}


def window(first: int, last: int, *, rng: np.random.Generator) -> Window:
    """Surfaces, optima and verdict of the widths from first to last, as of a sweep."""
    inside = [row for row in rows() if first <= row.width <= last]
    optima = [fit_optimum(surface(r.width), band_nats=_BAND_NATS, n_bootstrap=_N_BOOTSTRAP, rng=rng) for r in inside]
    gaps = [(row.loss_gap, row.hp_gap, row.transfer_gap) for row in inside]
    a, b, c = np.polyfit(np.log([row.width for row in inside]), np.log(gaps), 1)[0].tolist()
    return Window(first=first, last=last, true_slopes=(a, b, c), transfer=fast_transfer(optima, rng=rng))
