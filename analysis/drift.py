"""How an optimum moves with width, and where it will be at a target's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.interval import FitError, Floats, Interval, percentile_interval, robust_sd
from analysis.located import SHAPE_ERROR_STEPS
from analysis.optimum import Optimum
from analysis.surface import Series, Setting
from analysis.width_laws import fit_rows

_UNKNOWN_STEPS = 0.5  # without an interval: the optimum is between the lowest point's neighbors
_DEFAULT_DRAWS = 500  # when no optimum has draws of its own

Law = Literal["constant", "finite_width", "power_law"]

_FREE_EXPONENT = 4  # widths: through three, a law with a limit and an exponent goes exactly


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """The optimum over width for one optimizer, in log2(hp). `slope` is octaves of hp per octave of width."""

    optimizer: str
    hp: str
    fixed: tuple[Setting, ...]
    widths: tuple[int, ...]  # ascending
    log2_values: tuple[float, ...]
    errors: tuple[float, ...]  # standard deviations, octaves, with the floor
    slope: float
    slope_interval: Interval
    draws: tuple[tuple[float, ...], ...]  # log2 optimum of each bootstrap draw at each width

    @property
    def series(self) -> Series:
        return Series(self.optimizer, self.fixed)

    @property
    def range_octaves(self) -> float:
        """Highest minus lowest optimum."""
        return max(self.log2_values) - min(self.log2_values)

    @property
    def resolved(self) -> bool:
        """Whether the slope's interval excludes 0."""
        return not self.slope_interval.contains(0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimumPrediction:
    """The optimum expected at a width."""

    width: int
    law: Law
    log2_value: float
    interval: Interval  # log2
    draws: tuple[float, ...]  # log2

    @property
    def value(self) -> float:
        return float(2.0**self.log2_value)


def fit_drift(optima: Sequence[Optimum], *, rng: np.random.Generator, level: float = 0.9) -> Drift:
    """Weighted least squares for log2 optimum = intercept + slope * log2(width), weights 1 / error**2.

    An error is the spread of an optimum's bootstrap draws, at least a tenth of a grid step: from few seeds
    one width's noise comes out tiny by luck, and would then set the line alone. Every draw is refitted.
    Where the optima lie further off the line than their errors allow, all deviations are stretched by
    sqrt(chi2 / df) (the Birge ratio), so an erratic optimum gives a wide interval and not a confident slope.

    Raises:
        FitError: fewer than two widths, or an optimum at an edge (a bound, not a value).
    """
    optima = sorted(optima, key=lambda optimum: optimum.width)
    widths = np.array([optimum.width for optimum in optima])
    if len(set(widths.tolist())) < 2:
        raise FitError(f"a drift needs optima at two widths or more, got widths {widths.tolist()}")
    edges = [optimum.width for optimum in optima if optimum.edge]
    if edges:
        raise FitError(f"at widths {edges} the optimum is at an edge of the grid: extend it there first")
    n_draws = max(len(optimum.draws) for optimum in optima) or _DEFAULT_DRAWS
    draws = np.column_stack([_floored(optimum, n_draws, rng) for optimum in optima])
    values = np.array([optimum.log2_value for optimum in optima])
    errors = np.array([robust_sd(column) for column in draws.T])
    line = np.column_stack([np.ones(len(widths)), np.log2(widths)])
    slope, slope_draws = _predict(line, np.array([0.0, 1.0]), values, errors, draws)
    return Drift(
        optimizer=optima[0].optimizer,
        hp=optima[0].hp,
        fixed=optima[0].fixed,
        widths=tuple(widths.tolist()),
        log2_values=tuple(values.tolist()),
        errors=tuple(errors.tolist()),
        slope=slope,
        slope_interval=percentile_interval(slope_draws, level),
        draws=tuple(map(tuple, draws.tolist())),
    )


def predict_optimum(drift: Drift, width: int) -> OptimumPrediction:
    """The optimum at `width`: where the drift is not resolved the weighted mean, otherwise v + b / width.

    From four widths on it is v + b width**-beta instead, the exponent fitted too.

    The second is muP's correction at finite width (arXiv:2505.02222, x*(n) = x* - alpha/n). Few widths cannot
    tell it from a steady drift (v + b log width), nor an unresolved drift from none, so the draws, which the
    interval comes from, are shared equally among the laws left open: these two, and the mean when unresolved.
    """
    widths, values, errors = (np.array(part) for part in (drift.widths, drift.log2_values, drift.errors))
    draws, ones = np.array(drift.draws), np.ones(len(widths))
    fitted: dict[str, tuple[float, Floats]] = {}
    if len(widths) < _FREE_EXPONENT:
        laws = {
            "finite_width": (np.column_stack([ones, 1 / widths]), np.array([1.0, 1 / width])),
            "steady": (np.column_stack([ones, np.log2(widths)]), np.array([1.0, np.log2(width)])),
        }
        fitted = {name: _predict(design, at, values, errors, draws) for name, (design, at) in laws.items()}
    else:
        rows, _ = fit_rows(widths, values[:, None], draws[..., None], errors[:, None], lowest=-np.inf)
        at_width = rows.at(width)[:, 0]
        fitted = {"power_law": (float(at_width[0]), at_width[1:])}
    law: Law = "finite_width" if len(widths) < _FREE_EXPONENT else "power_law"
    if not drift.resolved:
        law, fitted["constant"] = "constant", _predict(ones[:, None], np.ones(1), values, errors, draws)
    pooled = np.concatenate([part[i :: len(fitted)] for i, (_, part) in enumerate(fitted.values())])
    return OptimumPrediction(
        width=width,
        law=law,
        log2_value=fitted[law][0],
        interval=percentile_interval(pooled, drift.slope_interval.level),
        draws=tuple(pooled.tolist()),
    )


def _floored(optimum: Optimum, n_draws: int, rng: np.random.Generator) -> Floats:
    """Draws of an optimum whose spread is at least the floor."""
    if not optimum.draws:
        return rng.normal(optimum.log2_value, _UNKNOWN_STEPS * optimum.step_octaves, size=n_draws)
    draws = rng.choice([draw.log2_value for draw in optimum.draws], size=n_draws, replace=False)
    short = (SHAPE_ERROR_STEPS * optimum.step_octaves) ** 2 - robust_sd(draws) ** 2
    lacking: Floats = draws + rng.normal(0.0, np.sqrt(max(short, 0.0)), size=n_draws)
    return lacking


def _predict(design: Floats, at: Floats, values: Floats, errors: Floats, draws: Floats) -> tuple[float, Floats]:
    """Weighted least squares on `values` and on each row of `draws`: `at` times the coefficients."""
    solve = np.linalg.pinv(design / errors[:, None]) / errors  # (coefficients, widths)
    coefficients = solve @ values
    df = len(values) - design.shape[1]
    chi2 = float(np.sum(((values - design @ coefficients) / errors) ** 2))
    birge = max(1.0, np.sqrt(chi2 / df)) if df else 1.0
    estimate = float(at @ coefficients)
    return estimate, estimate + birge * (draws @ solve.T @ at - estimate)
