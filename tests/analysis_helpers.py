"""Planted sweeps for tests of analysis: the truth is known, and away from 0 and 1."""

from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.flags import Flag
from analysis.interval import percentile_interval
from analysis.optimum import Draw, Optimum
from analysis.surface import Surface
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.optimizer_config import AdamW, Muon, OptimizerConfig, Scale
from sweeps.trial import Trial, TrialResult, TrialStatus

OPTIMIZERS: dict[str, OptimizerConfig] = {"adamw": AdamW(), "muon": Muon(), "scale": Scale()}


def trial_result(
    loss: float | None,
    *,
    lr: float,
    optimizer: OptimizerConfig | str = "adamw",
    width: int = 64,
    seed: int = 3,
    status: TrialStatus | None = None,
    curve: tuple[tuple[int, ...], tuple[float, ...]] = ((), ()),
    hparams: dict[str, Any] | None = None,
    **run: Any,
) -> TrialResult:
    """A finished trial, or a diverged one where `loss` is None."""
    settings = {"base_width": 32, "train_tokens": 6400, "validation_tokens": 512, **run}
    config = RunConfig(
        model=ModelConfig(width=width),
        optimizer=OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer,
        hparams=HParams(**{"lr": lr, "batch_tokens": 128, **(hparams or {})}),
        seed=seed,
        **settings,
    )
    status = status or (TrialStatus.DIVERGED if loss is None else TrialStatus.COMPLETED)
    return TrialResult(
        trial=Trial(run=config, data_fingerprint="planted"),
        status=status,
        validation_loss=loss,
        diverged_step=17 if status is TrialStatus.DIVERGED else None,
        curve_steps=curve[0],
        curve_losses=curve[1],
    )


def parabola(*, optimum: float, curvature: float = 0.12, floor: float = 2.7) -> Callable[[float], float]:
    """Loss over log2 lr."""
    return lambda log2_lr: floor + curvature / 2 * (log2_lr - optimum) ** 2


def planted_surface(
    loss: Callable[[float], float],
    log2_values: Any,
    *,
    seeds: int = 2,
    noise: float = 0.0,
    seed_spread: float = 0.0,
    diverges_above: float = np.inf,
    width: int = 64,
    rng: np.random.Generator | None = None,
    **fields: Any,
) -> Surface:
    """loss(log2_lr) + seed effect + noise, None above the divergence threshold."""
    rng = rng or np.random.default_rng(5)
    values = np.asarray(log2_values, dtype=float)
    curve = np.array([loss(value) for value in values])[:, None]
    losses = curve + noise * rng.standard_normal((len(values), seeds)) + seed_spread * rng.standard_normal(seeds)
    rows = [
        [None if value > diverges_above else cell for cell in row]
        for value, row in zip(values.tolist(), losses.tolist(), strict=True)
    ]
    return Surface(
        optimizer="adamw",
        width=width,
        log2_values=tuple(values.tolist()),
        seeds=tuple(range(3, 3 + seeds)),
        losses=tuple(map(tuple, rows)),
        **fields,
    )


def planted_optimum(
    width: int,
    log2_value: float,
    loss: float = 2.4,
    *,
    sd: float = 0.2,
    loss_sd: float = 0.004,
    n_draws: int = 400,
    flags: tuple[Flag, ...] = (),
    rng: np.random.Generator | None = None,
) -> Optimum:
    """An optimum with normal draws around it, on a one-octave grid; without an interval where n_draws is 0."""
    rng = rng or np.random.default_rng([17, width])
    places = (log2_value + sd * rng.standard_normal(n_draws)).tolist()
    losses = (loss + loss_sd * rng.standard_normal(n_draws)).tolist()
    return Optimum(
        optimizer="muon",
        width=width,
        hp="lr",
        fixed=(("weight_decay", 0.1),),
        log2_value=log2_value,
        interval=percentile_interval(places, 0.9) if n_draws else None,
        loss=loss,
        loss_interval=percentile_interval(losses, 0.9) if n_draws else None,
        curvature=0.12,
        method="quadratic",
        quadratic_log2_value=log2_value,
        spline_log2_value=log2_value,
        n_in_band=4,
        step_octaves=1.0,
        flags=flags,
        draws=tuple(Draw(place, loss, 0.12) for place, loss in zip(places, losses, strict=True)),
    )


def planted_results(
    *,
    optimizers: tuple[str, ...] = ("adamw", "muon"),
    widths: tuple[int, ...] = (32, 64, 128),
    seeds: tuple[int, ...] = (3, 4),
    log2_lrs: tuple[float, ...] = (-10, -9, -8, -7, -6, -5, -4),
    noise: float = 0.004,
    diverges_above: float = np.inf,
    **settings: Any,
) -> list[TrialResult]:
    """A whole sweep. AdamW's optimum drifts as -6 - 32/width, the others stay at -6.6; the loss there is
    1.3 + 1.2 * (width/32)**-0.6, and 0.07 more for each later optimizer."""
    rng = np.random.default_rng(8)
    results = []
    for optimizer in optimizers:
        for width in widths:
            best = -6.0 - 32 / width if optimizer == "adamw" else -6.6
            floor = 1.3 + 1.2 * (width / 32) ** -0.6 + 0.07 * optimizers.index(optimizer)
            loss = parabola(optimum=best, curvature=0.1, floor=floor)
            for seed in seeds:
                effect = 0.01 * rng.standard_normal()
                for log2_lr in log2_lrs:
                    value = None if log2_lr > diverges_above else loss(log2_lr) + effect + noise * rng.standard_normal()
                    results.append(
                        trial_result(value, lr=2.0**log2_lr, optimizer=optimizer, width=width, seed=seed, **settings)
                    )
    return results
