"""A line through uncertain points with normal priors on its slopes: an answer from any number of points.

y = intercept + slopes . (x - center) + scatter + error, with errors of a known covariance and a scatter that is not.
For a given scatter the posterior is normal in closed form; the scatter is integrated over a grid, so intervals are of
a mixture of normals: with few points they are as wide as what the points leave open about the scatter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, t

from analysis.interval import FitError, Floats, Interval

RestsOn = Literal["measured here", "fitted here", "published prior"]
FITTED_SHARE = 0.5  # of a slope's posterior precision: with less from data it rests on the prior
_SCATTER_DF = 3  # half-Student's t: unlike a half-normal it lets the points say that they scatter much more
_MOST_SCATTER = 30.0  # scales of the prior
_GRID = 80  # values of the scatter, denser at 0
_REACH_SDS = 12.0  # beyond every component's mean: brackets a mixture's quantiles


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalPrior:
    """What is believed of a number before the data are seen, and why.

    Raises:
        ValueError: a standard deviation that is not above 0.
    """

    mean: float
    sd: float
    source: str

    def __post_init__(self) -> None:
        if not self.sd > 0:
            raise ValueError(f"a prior's sd must be above 0, got {self.sd}")

    def interval(self, level: float) -> Interval:
        """The central `level`."""
        reach = float(norm.ppf((1 + level) / 2)) * self.sd
        return Interval(low=self.mean - reach, high=self.mean + reach, level=level)


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """A fitted exponent: octaves of one quantity an octave of another."""

    value: float
    sd: float
    interval: Interval
    data_share: float  # of the posterior's precision that the data bring: 0 where the prior is all there is
    prior: NormalPrior

    @property
    def rests_on(self) -> RestsOn:
        """`fitted here` where the data bring at least half of the precision."""
        return "fitted here" if self.data_share >= FITTED_SHARE else "published prior"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinePosterior:
    """g values of the scatter with their posterior weights, and for each the normal posterior of 1 + a coefficients."""

    center: Floats  # (a,)
    weights: Floats  # (g,)
    scatter: Floats  # (g,) standard deviations, in the unit of y
    means: Floats  # (g, 1 + a)
    covariances: Floats  # (g, 1 + a, 1 + a)
    priors: tuple[NormalPrior, ...]  # (a,) of the slopes
    n_points: int

    @property
    def mean(self) -> Floats:
        """Of the intercept at the center and the slopes, (1 + a,)."""
        average: Floats = self.weights @ self.means
        return average

    @property
    def covariance(self) -> Floats:
        """(1 + a, 1 + a)."""
        off = self.means - self.mean
        spread: Floats = np.einsum("g,gij->ij", self.weights, self.covariances + off[:, :, None] * off[:, None, :])
        return spread

    def slope(self, index: int, *, level: float = 0.9) -> Power:
        """The slope over one x."""
        row = np.zeros(len(self.center) + 1)
        row[index + 1] = 1.0
        prior, variance = self.priors[index], float(self.covariance[index + 1, index + 1])
        return Power(
            value=float(self.mean[index + 1]),
            sd=variance**0.5,
            interval=self.combination(row, level=level),
            data_share=float(np.clip(1 - variance / prior.sd**2, 0.0, 1.0)),
            prior=prior,
        )

    def combination(self, row: Floats, *, level: float, new_point: bool = False) -> Interval:
        """Of row @ coefficients; of a further point there, with its scatter, where `new_point`."""
        return mixture_interval(*self._components(row, new_point), self.weights, level)

    def at(self, x: Floats, *, level: float = 0.9, new_point: bool = True) -> tuple[float, float, Interval]:
        """Mean, standard deviation and interval of y at x (a,)."""
        row = np.concatenate([[1.0], x - self.center])
        means, sds = self._components(row, new_point)
        mean = float(self.weights @ means)
        variance = float(self.weights @ (sds**2 + (means - mean) ** 2))
        return mean, variance**0.5, mixture_interval(means, sds, self.weights, level)

    def draws(self, rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        """Coefficients (n, 1 + a) and scatter (n,)."""
        which = rng.choice(len(self.weights), size=n, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)
        normals = rng.standard_normal((n, self.means.shape[1]))
        return self.means[which] + np.einsum("nij,nj->ni", roots[which], normals), self.scatter[which]

    def _components(self, row: Floats, new_point: bool) -> tuple[Floats, Floats]:
        variances = np.einsum("i,gij,j->g", row, self.covariances, row) + (self.scatter**2 if new_point else 0.0)
        return self.means @ row, np.sqrt(np.maximum(variances, 0.0))


def fit_line(
    x: Floats,
    y: Floats,
    covariance: Floats,
    slopes: Sequence[NormalPrior],
    *,
    scatter_sd: float,
    intercept: NormalPrior | None = None,
    center: Floats | None = None,
) -> LinePosterior:
    """The posterior of a line through n points x (n, a), y (n,) whose errors have `covariance` (n, n).

    `scatter_sd` is the scale of the half-Student's t that is the scatter's prior (3 degrees of freedom). The
    intercept, at `center` or else at the points' mean, has a flat prior unless one is given.

    Raises:
        FitError: no point and no prior for the intercept, or a covariance that is not positive definite.
    """
    n, a = x.shape
    if n == 0 and intercept is None:
        raise FitError("a line without any point needs a prior for its height; add points")
    center = (x.mean(axis=0) if n else np.zeros(a)) if center is None else center
    design = np.column_stack([np.ones(n), x - center])
    prior_precision = np.diag([0.0 if intercept is None else intercept.sd**-2, *(prior.sd**-2 for prior in slopes)])
    prior_mean = np.array([0.0 if intercept is None else intercept.mean, *(prior.mean for prior in slopes)])
    scatter = scatter_sd * np.sinh(np.linspace(0.0, np.arcsinh(_MOST_SCATTER), _GRID))
    log_prior = t.logpdf(scatter / scatter_sd, _SCATTER_DF) + np.log(np.gradient(scatter))
    try:
        roots = np.linalg.cholesky(covariance + (scatter**2)[:, None, None] * np.eye(n))
    except np.linalg.LinAlgError:
        raise FitError(
            "the points' errors must have a positive definite covariance; give each an error above 0"
        ) from None
    whitened = np.linalg.solve(roots, np.broadcast_to(np.column_stack([design, y]), (_GRID, n, a + 2)))
    rows, target = whitened[..., :-1], whitened[..., -1]
    precision = rows.transpose(0, 2, 1) @ rows + prior_precision
    moments = np.einsum("gni,gn->gi", rows, target) + prior_precision @ prior_mean
    covariances = np.linalg.inv(precision)
    means = np.einsum("gij,gj->gi", covariances, moments)
    square = (target**2).sum(axis=1) + prior_mean @ prior_precision @ prior_mean - (moments * means).sum(axis=1)
    log_determinant = 2 * np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    log_weight = log_prior - (square + log_determinant + np.linalg.slogdet(precision)[1]) / 2
    weights = np.exp(log_weight - log_weight.max())
    return LinePosterior(
        center=center,
        weights=weights / weights.sum(),
        scatter=scatter,
        means=means,
        covariances=covariances,
        priors=tuple(slopes),
        n_points=n,
    )


def mixture_interval(means: Floats, sds: Floats, weights: Floats, level: float) -> Interval:
    """The central `level` of a mixture of normals."""
    sds = np.maximum(sds, np.finfo(np.float64).tiny)
    low, high = float((means - _REACH_SDS * sds).min()), float((means + _REACH_SDS * sds).max())

    def above(value: float, share: float) -> float:
        return float(weights @ norm.cdf((value - means) / sds)) - share

    if low == high:
        return Interval(low=low, high=high, level=level)
    ends = [float(brentq(above, low, high, args=(share,))) for share in ((1 - level) / 2, (1 + level) / 2)]
    return Interval(low=ends[0], high=ends[1], level=level)
