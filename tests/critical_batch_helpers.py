"""Curves of loss over tokens at each batch, planted: L = L0 + A E_min**-a with E_min (1 + B / B_c) = tokens."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from analysis.tokens_to_loss import BatchCurve

BATCHES = tuple(2**k for k in range(9, 18))
SEQ_LEN = 64
HORIZONS = (2_000_000, 8_000_000, 32_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """B_c = critical * (E_min / at)**power; the losses' law has the floor, scale and exponent of a small proxy's."""

    critical: float = 8000.0
    power: float = 0.55
    at: float = 8e6
    floor: float = 1.5
    scale: float = 80.0
    exponent: float = 0.3
    optimizer: str = "adamw"

    def min_tokens(self, loss: float) -> float:
        return float((self.scale / (loss - self.floor)) ** (1 / self.exponent))

    def critical_batch(self, loss: float) -> float:
        return float(self.critical * (self.min_tokens(loss) / self.at) ** self.power)

    def tokens(self, loss: float, batch: float) -> float:
        return self.min_tokens(loss) * (1 + batch / self.critical_batch(loss))

    def loss(self, tokens: float, batch: float) -> float:
        def off(log_excess: float) -> float:
            return float(np.log(self.tokens(self.floor + np.exp(log_excess), batch) / tokens))

        return float(self.floor + np.exp(brentq(off, -9.0, 60.0)))

    def curves(
        self,
        batches: tuple[int, ...] = BATCHES,
        horizons: tuple[int, ...] = HORIZONS,
        *,
        noise: float = 0.0,
        n_draws: int = 0,
        rng: np.random.Generator | None = None,
        unit: int = 1,
        true_losses: dict[int, np.ndarray] | None = None,
    ) -> list[BatchCurve]:
        """Losses with normal noise (nats), and parametric draws of it; tokens are given in 1 / `unit` tokens."""
        rng = rng or np.random.default_rng(0)
        curves = []
        for batch in batches:
            losses = true_losses[batch] if true_losses else self.losses(batch, horizons)
            seen = losses + noise * rng.standard_normal(len(horizons))
            draws = seen + noise * rng.standard_normal((n_draws, len(horizons)))
            curves.append(
                BatchCurve(
                    optimizer=self.optimizer,
                    width=64,
                    n_params=98_304,
                    batch_tokens=batch * unit,
                    train_tokens=tuple(horizon * unit for horizon in horizons),
                    losses=tuple(seen.tolist()),
                    draws=tuple(map(tuple, draws.tolist())),
                )
            )
        return curves

    def losses(self, batch: int, horizons: tuple[int, ...] = HORIZONS) -> np.ndarray:
        return np.array([self.loss(horizon, batch) for horizon in horizons])
