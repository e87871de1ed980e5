"""Noise between seeds, and draws of it, for two or three seeds.

Resampling two whole seeds gives three different outcomes, so residuals are resampled instead, of
loss = value effect + seed effect + residual. Seeds are paired (a seed sees the same data at every value), so
the seed effect lifts a whole curve and leaves its minimum where it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.interval import Floats


@dataclass(frozen=True, slots=True)
class Noise:
    """Residuals inflated by sqrt(cells / df), so that their mean square is unbiased, and df behind them."""

    residuals: Floats  # 1-D, nats
    df: int

    @property
    def sd(self) -> float:
        return float(np.sqrt(np.mean(self.residuals**2)))


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """Standard deviation of the seed effect (nats), and the degrees of freedom it was estimated with."""

    sd: float
    df: int


@dataclass(frozen=True, slots=True)
class TwoWay:
    """loss = value effect + seed effect + residual."""

    filled: Floats  # (values, seeds), missing cells as fitted
    noise: Noise | None  # None without degrees of freedom
    seed_spread: SeedSpread | None  # None with one seed


def residual_noise(residuals: Floats, df: int) -> Noise | None:
    """Noise from the residuals of a least-squares fit."""
    return Noise(residuals * np.sqrt(residuals.size / df), df) if df > 0 else None


def two_way(losses: Floats) -> TwoWay:
    """Least squares for the additive model; `losses` is (values, seeds), NaN where a trial is missing.

    With n values and S seeds and nothing missing, df = (n - 1)(S - 1).
    """
    n, n_seeds = losses.shape
    row, column = np.nonzero(~np.isnan(losses))
    design = np.hstack([np.eye(n)[row], np.eye(n_seeds)[column]])
    observed = losses[row, column]
    effects, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    value_effects, seed_effects = effects[:n], effects[n:]
    fitted = value_effects[:, None] + seed_effects
    noise = residual_noise(observed - fitted[row, column], len(observed) - int(rank))
    return TwoWay(
        filled=np.where(np.isnan(losses), fitted, losses),
        noise=noise,
        seed_spread=_seed_spread(seed_effects, noise, n) if n_seeds > 1 else None,
    )


def _seed_spread(effects: NDArray[np.floating[Any]], noise: Noise | None, n: int) -> SeedSpread:
    """Spread of the effects less what the noise of n losses leaves in each (the method of moments)."""
    residual = 0.0 if noise is None else noise.sd**2 / n
    return SeedSpread(float(np.sqrt(max(effects.var(ddof=1) - residual, 0.0))), len(effects) - 1)


def pool(spreads: Iterable[SeedSpread | None]) -> SeedSpread | None:
    """One spread from several surfaces: the square root of the mean variance, weighted by df."""
    known = [spread for spread in spreads if spread is not None]
    df = sum(spread.df for spread in known)
    return SeedSpread(float(np.sqrt(sum(s.df * s.sd**2 for s in known) / df)), df) if df else None


def draw_mean_noise(noise: Noise, *, shape: tuple[int, int], n_seeds: int, rng: np.random.Generator) -> Floats:
    """Noise of the mean over seeds, (draws, values).

    Each draw is also scaled by sqrt(df / chi2_df), which turns normal tails into Student's t: from so few
    residuals their size is itself uncertain. Without it 90% intervals covered 75 to 90%.
    """
    means: Floats = rng.choice(noise.residuals, size=(*shape, n_seeds)).mean(axis=2)
    scale: Floats = np.sqrt(noise.df / rng.chisquare(noise.df, size=(shape[0], 1)))
    return means * scale


def draw_seed_effect(spread: SeedSpread, *, n: int, n_seeds: int, rng: np.random.Generator) -> Floats:
    """How far the mean over these seeds lies from the mean over all seeds: Student's t, (n,)."""
    effects: Floats = rng.standard_t(spread.df, size=n) * (spread.sd / np.sqrt(n_seeds))
    return effects
