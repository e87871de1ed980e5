"""Predicted against measured at the target: the planned learning rate, and one octave either side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pydantic import TypeAdapter

from sweeps.trial import Trial, TrialResult
from transfer.plan import DOCUMENTED, OptimizerPlan, TransferPlan

SCHEMA_VERSION = 1
OCTAVES = (-1, 0, 1)  # around the planned lr


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one learning rate gave at the target."""

    __pydantic_config__ = DOCUMENTED
    octaves: int
    """From the planned lr."""
    lr: float
    """At base width."""
    losses: tuple[float | None, ...]
    """Nats, one a seed; None where it diverged."""

    @property
    def mean_loss(self) -> float | None:
        """Mean over seeds; None if any diverged."""
        losses = [loss for loss in self.losses if loss is not None]
        return fmean(losses) if len(losses) == len(self.losses) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerVerification:
    """One optimizer at the target."""

    __pydantic_config__ = DOCUMENTED
    optimizer: str
    """Its name in the spec."""
    measured: tuple[Measured, ...]
    """By octaves."""
    planned_loss: float | None
    """Nats; None if it diverged."""
    best_loss: float | None
    """Of the learning rates tried."""
    best_octaves: int | None
    """Where that was, in octaves from the planned lr."""
    log2_optimum: float | None
    """Vertex of the parabola through the three losses, log2 of lr at base width; None unless the middle is lowest."""
    excess_loss: float | None
    """Planned minus best, nats."""
    in_interval: bool | None
    """The planned loss lies in the predicted interval; None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Every planned optimizer measured at the target."""

    __pydantic_config__ = DOCUMENTED
    schema_version: int
    """Of this document."""
    sweep: str
    """Name of the sweep."""
    target_width: int
    """Width that was trained."""
    seeds: tuple[int, ...]
    """In the order of the losses."""
    optimizers: tuple[OptimizerVerification, ...]
    """In the plan's order."""

    def by_optimizer(self) -> dict[str, OptimizerVerification]:
        """By the optimizer's name."""
        return {verified.optimizer: verified for verified in self.optimizers}

    def is_of(self, plan: TransferPlan) -> bool:
        """Whether it measured what this plan plans: the same optimizers and learning rates at the same width."""
        planned = {p.optimizer: p.run.hparams.lr for p in plan.optimizers}
        measured = {v.optimizer: point.lr for v in self.optimizers for point in v.measured if point.octaves == 0}
        return (self.sweep, self.target_width, measured) == (plan.sweep, plan.target_width, planned)


VERIFICATION_JSON: TypeAdapter[Verification] = TypeAdapter(Verification)


def verification_trials(plan: TransferPlan, data_fingerprint: str, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """The target at the planned lr and one octave either side, for every optimizer and seed."""
    return tuple(
        _trial(optimizer, octaves, seed, data_fingerprint)
        for optimizer in plan.optimizers
        for octaves in OCTAVES
        for seed in seeds
    )


def verify(
    plan: TransferPlan, results: Mapping[str, TrialResult], data_fingerprint: str, seeds: Sequence[int]
) -> Verification:
    """Compare the plan with the results of its `verification_trials`.

    Raises:
        KeyError: a trial without a result.
    """
    return Verification(
        schema_version=SCHEMA_VERSION,
        sweep=plan.sweep,
        target_width=plan.target_width,
        seeds=tuple(seeds),
        optimizers=tuple(_verify(optimizer, results, data_fingerprint, seeds) for optimizer in plan.optimizers),
    )


def _trial(plan: OptimizerPlan, octaves: int, seed: int, data_fingerprint: str) -> Trial:
    hparams = replace(plan.run.hparams, lr=plan.run.hparams.lr * 2.0**octaves)
    return Trial(run=replace(plan.run, hparams=hparams, seed=seed), data_fingerprint=data_fingerprint)


def _verify(
    plan: OptimizerPlan, results: Mapping[str, TrialResult], data_fingerprint: str, seeds: Sequence[int]
) -> OptimizerVerification:
    measured = tuple(
        Measured(
            octaves=octaves,
            lr=plan.run.hparams.lr * 2.0**octaves,
            losses=tuple(
                results[_trial(plan, octaves, seed, data_fingerprint).trial_id].validation_loss for seed in seeds
            ),
        )
        for octaves in OCTAVES
    )
    planned = next(point.mean_loss for point in measured if point.octaves == 0)
    finite = [(point.mean_loss, point.octaves) for point in measured if point.mean_loss is not None]
    best, best_octaves = min(finite) if finite else (None, None)
    expected = plan.expected_loss
    return OptimizerVerification(
        optimizer=plan.optimizer,
        measured=measured,
        planned_loss=planned,
        best_loss=best,
        best_octaves=best_octaves,
        log2_optimum=_vertex(measured),
        excess_loss=None if planned is None or best is None else planned - best,
        in_interval=(
            None if planned is None or expected is None or expected.interval is None
            else expected.interval.contains(planned)
        ),
    )  # fmt: skip


def _vertex(measured: Sequence[Measured]) -> float | None:
    """Where the parabola through losses one octave apart is lowest; sought only between the outer two."""
    low, middle, high = (point.mean_loss for point in measured)
    if low is None or middle is None or high is None or not middle < min(low, high):
        return None
    return math.log2(measured[1].lr) + (low - high) / (2 * (low - 2 * middle + high))
