"""How far a sweep is shown to be while its trials run."""

from sweeps.run import PackStarted, TrialFinished, TrialProgress
from sweeps.shape_plans import ShapePlan, shape_id_of
from tests.sweep_helpers import completed, trial
from transfer.console import Progress
from transfer.execution import _show

TRIALS = (trial(lr=0.02), trial(lr=0.04))
PLAN = ShapePlan(
    shape_id=shape_id_of(TRIALS[0]),
    optimizer="muon",
    width=32,
    mode="loop-eager-cpu-float32",
    pack_size=2,
    members=2,
    seconds_per_step_member=3.0,
    compile_seconds=0.0,
    bytes_per_member=1,
    why="",
)


def test_a_trial_counts_as_far_as_it_is_and_never_twice() -> None:
    one, other = TRIALS
    seconds = PLAN.seconds_of(one.run)
    progress = Progress("sweep", 2 * seconds)
    show = _show(progress, 2, {PLAN.shape_id: PLAN})
    show(PackStarted(trials=TRIALS))
    show(TrialProgress(trial=one, step=4))  # of ten
    assert progress.done == 0.4 * seconds
    show(TrialProgress(trial=one, step=2))  # its worker was lost, and it began anew
    assert progress.done == 0.4 * seconds
    show(TrialProgress(trial=other, step=5))
    assert progress.done == 0.9 * seconds
    for each in TRIALS:
        show(TrialFinished(result=completed(each)))
    assert progress.done == 2 * seconds
