"""The report's sentences say what the records say, also when that is bad news."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.fit import fit_sweep
from analysis.interval import Interval
from proxy_models.coord_check import CoordCheck, CoordSlope
from tests.analysis_helpers import planted_results
from tests.test_plan import _plan
from transfer.plan import Estimate
from transfer.report_tables import check_table, comparison_table
from transfer.report_text import headline
from transfer.verification import Measured, OptimizerVerification, Verification


def _verification(
    *, planned: float | None, best: float | None, octaves: int | None, inside: bool | None
) -> Verification:
    adamw = OptimizerVerification(
        optimizer="adamw",
        measured=(Measured(octaves=0, lr=0.01, losses=(planned,)),),
        planned_loss=planned,
        best_loss=best,
        best_octaves=octaves,
        log2_optimum=None,
        excess_loss=None if planned is None or best is None else planned - best,
        in_interval=inside,
    )
    return Verification(schema_version=1, sweep="planted", target_width=512, seeds=(0,), optimizers=(adamw,))


@pytest.mark.parametrize(
    ("verification", "said"),
    [
        (None, "Not yet tried at the target"),
        (_verification(planned=None, best=1.7, octaves=-1, inside=None), "it diverged: do not use it"),
        (_verification(planned=1.62, best=1.62, octaves=0, inside=True), "it was the best of three: loss 1.620."),
        (
            _verification(planned=1.65, best=1.62, octaves=-1, inside=True),
            "half of it did better by 0.030 nats (1.650 against 1.620).",
        ),
        (
            _verification(planned=1.52, best=1.51, octaves=1, inside=False),
            "twice of it did better by 0.010 nats (1.520 against 1.510). That is lower than the 1.550 to 1.660",
        ),
        (
            _verification(planned=1.7, best=1.7, octaves=0, inside=False),
            "loss 1.700. That is higher than the 1.550 to 1.660 expected",
        ),
    ],
)
def test_headline(tmp_path: Path, verification: Verification | None, said: str) -> None:
    plan = _plan(tmp_path)
    expected = Estimate(value=1.6, interval=Interval(low=1.55, high=1.66, level=0.9))
    plan = replace(plan, optimizers=tuple(replace(p, expected_loss=expected) for p in plan.optimizers))
    adamw, muon = headline(plan, verification)
    assert said in adamw
    assert "Not yet tried" in muon
    assert f"train width 512 at lr {plan.optimizers[0].run.hparams.lr:.3g} (2^" in adamw


def test_many_optimizers_check_table_has_each_ones_steepest() -> None:
    slopes = [
        CoordSlope(optimizer=optimizer, parametrization=p, tap=tap, step=step, slope=slope)
        for optimizer in ("adamw", "muon", "scale", "dion", "sgd")
        for p in ("mup", "standard")
        for step in (0, 4)
        for tap, slope in (("embedding", 0.01 * step), ("logits", -0.02 if p == "mup" else -0.7))
    ]
    few = check_table(CoordCheck(points=(), slopes=tuple(s for s in slopes if s.optimizer == "muon"), tolerance=0.2))
    assert few is not None
    assert few.columns == ("slope after 4 steps", "muon, mup", "muon, standard")
    assert few.rows == (("embedding", "+0.04", "+0.04"), ("logits", "-0.02", "-0.70"))
    many = check_table(CoordCheck(points=(), slopes=tuple(slopes), tolerance=0.2))
    assert many is not None
    assert many.columns == ("steepest slope after 4 steps", "mup", "standard")
    assert many.rows[1] == ("muon", "+0.04 embedding", "-0.70 logits")
    assert len(many.rows) == 5


def test_optimizers_side_by_side_come_best_first() -> None:
    results = planted_results(optimizers=("adamw", "muon"))
    fit = fit_sweep(results, rng=np.random.default_rng(1), n_bootstrap=50)
    table = comparison_table(fit, results, {})
    assert table is not None
    losses = [float(row[2].split()[0]) for row in table.rows]
    assert losses == sorted(losses)
    assert {(row[0], row[1]) for row in table.rows} == {("adamw", "128"), ("muon", "128")}
    one = [result for result in results if result.trial.run.optimizer.name == "muon"]
    alone = fit_sweep(one, rng=np.random.default_rng(1), n_bootstrap=50)
    assert comparison_table(alone, one, {}) is None
