"""The optima of many cells at once, by one shape of basin that only moves, lifts and stretches from cell to cell.

loss = level_i + stretch(scales_i) * shape(log2_hps - optimum_i), with a shape without constant and linear terms, so
that `optimum_i` is where it is lowest (a shape-invariant model: Lawton, Sylvestre and Maggio, Technometrics 14, 1972).
What a cell cannot tell alone, the lopsidedness of its basin and the curvature of a flat one, all cells tell together;
and the error of a shape, being the same in every cell, moves the optima together and leaves their powers.
"""

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from analysis.cells import Bools, Cells
from analysis.interval import FitError, Floats
from analysis.response import fewest_in_band

_CUBIC_ROWS = 2  # points a coefficient from which the shape has cubic terms
_ROUNDS = 3  # of choosing the band by the fitted level: by the lowest point it would follow the noise
_STEPS = 50  # Levenberg-Marquardt
_SURE_ERRORS = 2  # that a curvature must be above 0
_CONVERGED = 1e-8  # relative decrease of the sum of squares


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedShape:
    """n cells, k hyperparameters, a scales, q directions in which the shape is uncertain. Octaves and nats.

    The covariance of optima i and j is `covariances[i]` where i = j, plus `common[i] @ common[j].T`.
    """

    log2_scales: Floats  # (n, a)
    log2_optima: Floats  # (n, k)
    levels: Floats  # (n,)
    covariances: Floats  # (n, k, k)
    common: Floats  # (n, k, q)
    hessian: Floats  # (k, k), nats per octave squared where every log2 scale is at its mean
    stretch_powers: Floats  # (a,): octaves of curvature per octave of scale
    residual_sd: float
    n_points: int

    def stretch(self, log2_scales: Floats) -> Floats:
        """How much steeper the basin is than at the mean log2 scales; (...,) of (..., a)."""
        factor: Floats = 2.0 ** ((log2_scales - self.log2_scales.mean(axis=0)) @ self.stretch_powers)
        return factor

    @property
    def stretches(self) -> Floats:
        """Of every cell, (n,)."""
        return self.stretch(self.log2_scales)


def fit_shared_shape(cells: Cells, starts: Floats) -> SharedShape:
    """Least squares over the points of all cells within the band above their level, from optima near `starts` (n, k).

    The shape is a cubic, or a quadratic where there are fewer than two points a coefficient.

    Raises:
        FitError: fewer points than coefficients, or a pooled loss that is flat or has no minimum.
    """
    log2_scales = np.log2(cells.keys[list(cells.scales)].to_numpy(dtype=np.float64))
    levels = cells.losses[:, 0].copy()
    lowest_few = (np.arange(cells.losses.shape[1]) < fewest_in_band(cells)[:, None]) & np.isfinite(cells.losses)
    in_band = _in_band(cells, levels, lowest_few)
    model = _Model.of(cells, log2_scales, int(in_band.sum()))
    state = model.start(starts, levels, in_band)
    for _ in range(_ROUNDS):
        state = model.fit(state, in_band)
        fresh = _in_band(cells, state.levels, lowest_few)
        if (fresh == in_band).all():
            break
        in_band = fresh
    return model.result(model.fit(state, in_band), in_band)


def _rank(log2_scales: Floats) -> int:
    """How many powers of the stretch the cells tell: none over a scale that takes one value or follows another."""
    return int(np.linalg.matrix_rank(log2_scales - log2_scales.mean(axis=0)))


def _in_band(cells: Cells, levels: Floats, always: Bools) -> Bools:
    inside: Bools = (cells.losses <= (levels + cells.band)[:, None]) | always
    return inside


@dataclass(frozen=True, slots=True)
class _State:
    levels: Floats  # (n,)
    optima: Floats  # (n, k)
    shared: Floats  # coefficients of the shape, then powers of the stretch


@dataclass(frozen=True, slots=True)
class _Normal:
    """Normal equations: levels and optima cell by cell, the shape's part shared. An arrow, solved by elimination."""

    own: Floats  # (n, p, p)
    cross: Floats  # (n, p, q)
    shared: Floats  # (q, q)
    own_gradient: Floats  # (n, p)
    shared_gradient: Floats  # (q,)

    def eliminated(self, damping: float) -> tuple[Floats, Floats]:
        """Inverse of each cell's block, and the Schur complement of the shared one."""
        p, q = self.own.shape[1], len(self.shared)
        own = self.own * (1 + damping * np.eye(p))
        inverse: Floats = np.asarray(np.linalg.pinv(own, hermitian=True), dtype=np.float64)
        schur = self.shared * (1 + damping * np.eye(q)) - (self.cross.transpose(0, 2, 1) @ inverse @ self.cross).sum(
            axis=0
        )
        return inverse, schur

    def step(self, damping: float) -> tuple[Floats, Floats]:
        inverse, schur = self.eliminated(damping)
        reduced = self.shared_gradient - np.einsum("npq,npr,nr->q", self.cross, inverse, self.own_gradient)
        shared = np.linalg.pinv(schur, hermitian=True) @ reduced
        return (inverse @ (self.own_gradient - self.cross @ shared)[..., None])[..., 0], shared


@dataclass(frozen=True, slots=True)
class _Model:
    cells: Cells
    log2_scales: Floats
    monomials: tuple[tuple[int, ...], ...]  # each the hyperparameters it multiplies

    @classmethod
    def of(cls, cells: Cells, log2_scales: Floats, n_rows: int) -> "_Model":
        k, n = len(cells.hps), len(cells.losses)
        quadratic, cubic = (tuple(combinations_with_replacement(range(k), degree)) for degree in (2, 3))
        own = n * (1 + k) + _rank(log2_scales)
        if n_rows <= own + len(quadratic):
            raise FitError(
                f"the shape of the basin needs more than {own + len(quadratic)} points near the minima of {n} cells, "
                f"got {n_rows}; add values around the minima"
            )
        enough = n_rows >= _CUBIC_ROWS * (own + len(quadratic) + len(cubic))
        return cls(cells, log2_scales, (*quadratic, *cubic) if enough else quadratic)

    @property
    def n_shape(self) -> int:
        return len(self.monomials)

    def start(self, starts: Floats, levels: Floats, in_band: Bools) -> _State:
        """The coefficients that fit best with the optima where they start and no stretch."""
        terms = self._terms((self.cells.log2_hps - starts[:, None])[in_band])
        heights = (self.cells.losses - levels[:, None])[in_band]
        coefficients = np.linalg.lstsq(terms, heights, rcond=None)[0]
        return _State(levels, starts, np.concatenate([coefficients, np.zeros(self.log2_scales.shape[1])]))

    def fit(self, state: _State, in_band: Bools) -> _State:
        """Levenberg-Marquardt."""
        damping, (square, normal) = 1e-3, self._linearize(state, in_band)
        for _ in range(_STEPS):
            own, shared = normal.step(damping)
            trial = _State(state.levels + own[:, 0], state.optima + own[:, 1:], state.shared + shared)
            trial_square, trial_normal = self._linearize(trial, in_band)
            if trial_square <= square:
                done = square - trial_square <= _CONVERGED * square
                state, square, normal, damping = trial, trial_square, trial_normal, damping / 5
                if done:
                    break
            else:
                damping *= 4
        return state

    def result(self, state: _State, in_band: Bools) -> SharedShape:
        square, normal = self._linearize(state, in_band)
        n, k = state.optima.shape
        df = int(in_band.sum()) - n * (1 + k) - self.n_shape - _rank(self.log2_scales)
        variance = square / max(df, 1)
        inverse, schur = normal.eliminated(0.0)
        shared_covariance = np.linalg.pinv(schur, hermitian=True) * variance
        self._require_minimum(state.shared, shared_covariance)
        values, vectors = np.linalg.eigh(shared_covariance)
        common = -(inverse @ normal.cross)[:, 1:] @ (vectors * np.sqrt(np.maximum(values, 0.0)))
        return SharedShape(
            log2_scales=self.log2_scales,
            log2_optima=state.optima,
            levels=state.levels,
            covariances=variance * inverse[:, 1:, 1:],
            common=common,
            hessian=self._hessian(state.shared),
            stretch_powers=state.shared[self.n_shape :],
            residual_sd=float(np.sqrt(variance)),
            n_points=int(in_band.sum()),
        )

    def _require_minimum(self, shared: Floats, covariance: Floats) -> None:
        """Refuse a least curvature that is not above its own error: noise alone looks like some basin."""
        values, vectors = np.linalg.eigh(self._hessian(shared))
        least, direction = float(values[0]), vectors[:, 0]
        weights = np.zeros(len(shared))  # least curvature = weights @ shared
        for i, hps in enumerate(self.monomials):
            weights[i] = 2 * direction[hps[0]] * direction[hps[1]] if len(hps) == 2 else 0.0
        error = max(float(weights @ covariance @ weights), 0.0) ** 0.5
        if least <= _SURE_ERRORS * error:
            raise FitError(
                "over all cells the loss is flat or a saddle around its lowest points, so it has no optimum in "
                f"{', '.join(self.cells.hps)} (least curvature {least:.2g}, standard error {error:.2g} nats per octave "
                "squared); add values further apart, or seeds"
            )

    def _terms(self, x: Floats) -> Floats:
        return np.stack([np.prod(x[..., list(hps)], axis=-1) for hps in self.monomials], axis=-1)

    def _slopes(self, x: Floats, coefficients: Floats) -> Floats:
        """Gradient of the shape, (n, m, k)."""
        slopes = np.zeros_like(x)
        for coefficient, hps in zip(coefficients, self.monomials, strict=True):
            for place, hp in enumerate(hps):
                others = [*hps[:place], *hps[place + 1 :]]
                slopes[..., hp] += coefficient * np.prod(x[..., others], axis=-1)
        return slopes

    def _hessian(self, shared: Floats) -> Floats:
        k = len(self.cells.hps)
        hessian = np.zeros((k, k))
        for coefficient, hps in zip(shared, self.monomials, strict=False):
            if len(hps) == 2:
                hessian[hps[0], hps[1]] += coefficient
                hessian[hps[1], hps[0]] += coefficient
        return hessian

    def _linearize(self, state: _State, in_band: Bools) -> tuple[float, _Normal]:
        """Sum of squares, and the normal equations of a step from here."""
        width = int(np.flatnonzero(in_band.any(axis=0))[-1]) + 1  # points are sorted by loss
        in_band, losses = in_band[:, :width], self.cells.losses[:, :width]
        x = np.where(in_band[..., None], self.cells.log2_hps[:, :width] - state.optima[:, None], 0.0)
        coefficients, powers = state.shared[: self.n_shape], state.shared[self.n_shape :]
        centered = self.log2_scales - self.log2_scales.mean(axis=0)
        stretch = 2.0 ** (centered @ powers)[:, None]
        terms = self._terms(x) * stretch[..., None]
        shape = terms @ coefficients
        residual = np.where(in_band, losses, 0.0) - np.where(in_band, state.levels[:, None] + shape, 0.0)
        own = np.concatenate([np.ones((*shape.shape, 1)), -self._slopes(x, coefficients) * stretch[..., None]], axis=-1)
        shared = np.concatenate([terms, np.log(2.0) * shape[..., None] * centered[:, None]], axis=-1)
        own, shared = own * in_band[..., None], shared * in_band[..., None]
        transposed, flat = own.transpose(0, 2, 1), shared.reshape(-1, shared.shape[-1])
        return float((residual**2).sum()), _Normal(
            own=transposed @ own,
            cross=transposed @ shared,
            shared=flat.T @ flat,
            own_gradient=(transposed @ residual[..., None])[..., 0],
            shared_gradient=flat.T @ residual.ravel(),
        )
