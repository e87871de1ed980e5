"""Predicted against actual time, from planted results."""

from dataclasses import replace

import pytest

from analysis.figures import predicted_time
from analysis.timing import timings
from proxy_models.accounting import training_flops
from proxy_models.mode import EAGER_LOOP, Mode
from sweeps.shape_plans import ShapePlan, shape_id_of
from sweeps.trial import Trial, TrialResult
from tests.sweep_helpers import completed, diverged, trial
from transfer.timing_tables import timing_table

STEPS = 10  # of the helpers' trials
COMPILED = replace(EAGER_LOOP, compiled=True)


def _plan(of: Trial, seconds: float, mode: Mode = EAGER_LOOP) -> ShapePlan:
    return ShapePlan(
        shape_id=shape_id_of(of), optimizer="muon", width=of.run.model.width, mode=mode, pack_size=1, members=1,
        seconds_per_step_member=seconds, compile_seconds=0.0, bytes_per_member=1, why="planted",
    )  # fmt: skip


def _taken(result: TrialResult, *, steps: int, seconds: float, utilization: float = 0.5) -> TrialResult:
    flops = training_flops(result.trial.run) * steps / STEPS
    return replace(result, flops=flops, train_seconds=seconds, flops_utilization=utilization)


def test_time_is_predicted_for_the_steps_taken() -> None:
    """10 and 7 steps of 2 s, and 10 of 5 s at width 64."""
    narrow, wide = trial(seed=0), trial(seed=0, width=64)
    results = [
        _taken(completed(narrow), steps=10, seconds=25.0, utilization=0.4),
        _taken(diverged(trial(seed=1)), steps=7, seconds=26.0, utilization=0.6),
        _taken(completed(wide), steps=10, seconds=40.0),
    ]
    plans = {plan.shape_id: plan for plan in (_plan(narrow, 2.0), _plan(wide, 5.0))}
    first, second = timings(results, {narrow.trial_id: "mine", trial(seed=1).trial_id: "mine"}, plans)
    assert (first.optimizer, first.width, first.trials, first.mode) == ("mine", 32, 2, EAGER_LOOP.name)
    assert (first.predicted_seconds, first.actual_seconds) == (pytest.approx(34.0), 51.0)
    assert (first.ratio, first.flops_utilization) == (pytest.approx(1.5), pytest.approx(0.5))
    assert (second.optimizer, second.ratio) == ("muon", pytest.approx(0.8))
    table = timing_table((first, second))
    assert table is not None
    assert table.rows[0] == ("mine", "32", EAGER_LOOP.name, "2", "34 s", "51 s", "1.50", "50%")
    (ax,) = predicted_time((first, second)).axes
    heights = {line.get_label(): list(line.get_ydata()) for line in ax.lines[:2]}
    assert heights == {"mine": [pytest.approx(1.5)], "muon": [pytest.approx(0.8)]}


def test_nothing_is_predicted_of_another_mode_or_without_a_plan() -> None:
    one = trial()
    eager = _taken(completed(one), steps=10, seconds=25.0)
    compiled = replace(eager, trial=trial(seed=8), mode=COMPILED.name)
    found = timings([eager, compiled], {}, {shape_id_of(one): _plan(one, 2.0, COMPILED)})
    assert [(timing.mode, timing.predicted_seconds) for timing in found] == [
        (EAGER_LOOP.name, None),
        (COMPILED.name, pytest.approx(20.0)),
    ]
    (unknown,) = timings([eager], {}, {})
    table = timing_table((unknown,))
    assert table is not None
    assert table.rows[0][4:7] == ("-", "25 s", "-")
    with pytest.raises(ValueError, match="no time was predicted"):
        predicted_time((unknown,))
    assert timing_table(()) is None
