"""The loss at the optimum over width, and what it will be at a target's."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize_scalar

from analysis.interval import FitError, Floats, Interval, percentile_interval
from analysis.optimum import Optimum
from analysis.power_law import EXPONENT_BOUNDS
from analysis.surface import Series, Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """loss = limit + reducible * (width / narrowest)**-exponent, in nats; `narrowest`: the smallest width."""

    limit: float
    reducible: float
    exponent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LossLaw:
    """Loss at the optimum over width for one optimizer, under two laws that few widths cannot tell apart."""

    optimizer: str
    fixed: tuple[Setting, ...]
    widths: tuple[int, ...]  # ascending
    losses: tuple[float, ...]
    pure: PowerLaw  # limit 0
    limited: PowerLaw  # limit in [0, smallest loss]
    draws: tuple[PowerLaw, ...]  # of what the prediction rests on; none where a loss has no interval
    level: float

    @property
    def series(self) -> Series:
        return Series(self.optimizer, self.fixed)

    @property
    def forms(self) -> tuple[PowerLaw, ...]:
        """The laws that a prediction is the mean of."""
        return (self.limited,) if _checked(self.widths) else (self.pure, self.limited)

    @property
    def wider_is_better(self) -> bool:
        """Whether the loss falls from each width to the next."""
        return all(wider < narrower for narrower, wider in pairwise(self.losses))


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPrediction:
    """The loss (nats) expected at a width with the hyperparameter at its optimum."""

    width: int
    loss: float
    interval: Interval | None


def fit_loss_law(optima: Sequence[Optimum], *, rng: np.random.Generator, level: float = 0.9) -> LossLaw:
    """Two laws: a line in log-log (limit 0), and least squares with a free limit.

    Through three widths the second goes exactly wherever its bounds allow, so nothing checks it. Beyond the
    data the two part, the first sinking to 0 and the second to its limit. From three widths draws therefore come half
    from each, and the prediction is the mean of the two; from four on, it is the second's. Every width counts equally.

    Raises:
        FitError: fewer than three widths, an optimum at an edge (a bound), or a loss not above 0.
    """
    optima = sorted(optima, key=lambda optimum: optimum.width)
    widths = np.array([optimum.width for optimum in optima])
    losses = np.array([optimum.loss for optimum in optima])
    if len(set(widths.tolist())) < 3:
        raise FitError(f"a loss law needs optima at three widths or more, got widths {widths.tolist()}")
    edges = [optimum.width for optimum in optima if optimum.edge]
    if edges:
        raise FitError(f"at widths {edges} the optimum is at an edge of the grid: extend it there first")
    if losses.min() <= 0:
        raise FitError(f"a power law needs losses above 0, got {losses.tolist()}")
    return LossLaw(
        optimizer=optima[0].optimizer,
        fixed=optima[0].fixed,
        widths=tuple(widths.tolist()),
        losses=tuple(losses.tolist()),
        pure=_fit_pure(widths, losses),
        limited=_fit_limited(widths, losses),
        draws=_draws(widths, optima, rng),
        level=level,
    )


def predict_loss(law: LossLaw, width: int) -> LossPrediction:
    """Mean of the two laws, and the interval of their pooled draws."""
    ratio = width / law.widths[0]

    def at(form: PowerLaw) -> float:
        return form.limit + form.reducible * float(ratio**-form.exponent)

    return LossPrediction(
        width=width,
        loss=sum(map(at, law.forms)) / len(law.forms),
        interval=percentile_interval([at(draw) for draw in law.draws], law.level) if law.draws else None,
    )


def _draws(widths: Floats, optima: Sequence[Optimum], rng: np.random.Generator) -> tuple[PowerLaw, ...]:
    """Each width's draws are shuffled: widths are independent trials, whatever order their draws came in."""
    if any(optimum.loss_interval is None for optimum in optima):
        return ()
    n_draws = min(len(optimum.draws) for optimum in optima)
    columns = [rng.choice([draw.loss for draw in o.draws], size=n_draws, replace=False) for o in optima]
    rows = np.column_stack(columns)
    rows = rows[(rows > 0).all(axis=1)]
    forms = (_fit_limited,) if _checked(widths) else (_fit_pure, _fit_limited)
    return tuple(forms[i % len(forms)](widths, row) for i, row in enumerate(rows))


def _checked(widths: Sequence[float] | Floats) -> bool:
    """Whether there are more widths than a law with a limit has parameters."""
    return len(widths) > 3


def _fit_pure(widths: Floats, losses: Floats) -> PowerLaw:
    slope, level = np.polyfit(np.log(widths / widths[0]), np.log(losses), 1)
    return PowerLaw(limit=0.0, reducible=float(np.exp(level)), exponent=float(-slope))


def _fit_limited(widths: Floats, losses: Floats) -> PowerLaw:
    """Least squares: given the exponent the other two are linear, so one search over it is left."""
    ratios, mean, lowest = widths / widths[0], float(losses.mean()), float(losses.min())

    def at(exponent: float) -> tuple[float, float, float]:
        falling = ratios**-exponent
        level = float(falling.mean())
        centered = falling - level
        slope = float(centered @ losses / (centered @ centered))
        limit = min(max(mean - slope * level, 0.0), lowest)
        reducible = float(max((losses - limit) @ falling / (falling @ falling), 0.0))
        return limit, reducible, float(np.sum((losses - limit - reducible * falling) ** 2))

    exponent = float(minimize_scalar(lambda e: at(e)[2], bounds=EXPONENT_BOUNDS, method="bounded").x)
    limit, reducible, _ = at(exponent)
    return PowerLaw(limit=limit, reducible=reducible, exponent=exponent)
