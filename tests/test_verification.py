"""Three learning rates at the target, and what is made of their losses."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.interval import Interval
from sweeps.trial import TrialResult, TrialStatus
from tests.test_plan import _plan
from transfer.plan import Estimate, TransferPlan
from transfer.verification import VERIFICATION_JSON, verification_trials, verify


def _results(plan: TransferPlan, losses: dict[tuple[str, int, int], float | None]) -> dict[str, TrialResult]:
    """Losses by (optimizer, octaves, seed)."""
    by_id = {}
    for trial in verification_trials(plan, "data", (0, 7)):
        planned = {p.optimizer: p.run.hparams.lr for p in plan.optimizers}[trial.run.optimizer.name]
        octaves = {0.5: -1, 1.0: 0, 2.0: 1}[trial.run.hparams.lr / planned]
        loss = losses[trial.run.optimizer.name, octaves, trial.run.seed]
        status = TrialStatus.DIVERGED if loss is None else TrialStatus.COMPLETED
        by_id[trial.trial_id] = TrialResult(
            trial=trial, status=status, validation_loss=loss, diverged_step=9 if loss is None else None
        )
    return by_id


def test_target_runs_are_the_plans_run_at_three_learning_rates(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    trials = verification_trials(plan, "data", (0, 7))
    assert len({trial.trial_id for trial in trials}) == 2 * 3 * 2
    assert {trial.run.model.width for trial in trials} == {512}
    assert plan.optimizers[0].run in {trial.run for trial in trials}


def test_excess_is_over_the_best_of_three_and_divergence_is_no_loss(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    expected = Estimate(value=1.6, interval=Interval(low=1.55, high=1.66, level=0.9))
    plan = replace(plan, optimizers=tuple(replace(p, expected_loss=expected) for p in plan.optimizers))
    adamw = {("adamw", o, s): loss for o, row in {-1: (1.62, 1.64), 0: (1.65, 1.67), 1: (1.9, None)}.items()
             for s, loss in zip((0, 7), row, strict=True)}  # fmt: skip
    muon = {("muon", o, s): loss for o in (-1, 0, 1) for s, loss in zip((0, 7), (1.7 + o, None), strict=True)}
    verified = verify(plan, _results(plan, adamw | muon), "data", (0, 7))
    first, second = verified.optimizers
    assert first.planned_loss == pytest.approx(1.66)
    assert (first.best_loss, first.best_octaves) == (pytest.approx(1.63), -1)
    assert first.excess_loss == pytest.approx(0.03)
    assert first.in_interval is True
    assert first.measured[2].mean_loss is None
    assert (second.planned_loss, second.best_loss, second.excess_loss, second.in_interval) == (None, None, None, None)
    assert VERIFICATION_JSON.validate_json(VERIFICATION_JSON.dump_json(verified)) == verified


def test_the_optimum_is_the_vertex_of_the_parabola_through_the_three(tmp_path: Path) -> None:
    """Planted at 0.3 octaves above the plan for AdamW; for Muon the lowest loss is at an end, so none is given."""
    plan = _plan(tmp_path)
    adamw = {("adamw", o, s): 1.9 + 0.07 * (o - 0.3) ** 2 for o in (-1, 0, 1) for s in (0, 7)}
    muon = {("muon", o, s): 1.9 + 0.07 * (o - 0.8) ** 2 for o in (-1, 0, 1) for s in (0, 7)}
    first, second = verify(plan, _results(plan, adamw | muon), "data", (0, 7)).optimizers
    assert first.log2_optimum == pytest.approx(plan.optimizers[0].log2_lr.value + 0.3)
    assert second.log2_optimum is None


def test_a_loss_outside_the_interval_is_said_to_be(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    losses = {(o, k, s): 9.0 + abs(k) for o in ("adamw", "muon") for k in (-1, 0, 1) for s in (0, 7)}
    verified = verify(plan, _results(plan, losses), "data", (0, 7))
    assert [v.in_interval for v in verified.optimizers] == [False, False]
    assert [v.excess_loss for v in verified.optimizers] == [0.0, 0.0]
    assert verified.is_of(plan)
    assert not verified.is_of(_plan(tmp_path, noise=0.01))
