"""Plans from planted sweeps: the right optimum, the table's numbers, honest caveats, a documented schema."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.fit import SweepFit, fit_sweep
from proxy_models.parametrization import scale_role
from proxy_models.roles import Role
from sweeps.trial import TrialResult
from tests.analysis_helpers import planted_results
from tests.transfer_helpers import planted_spec, target
from transfer.make_plan import PlanError, make_plan
from transfer.plan import PLAN_JSON, TransferPlan

SCHEMA = Path(__file__).parent.parent / "transfer" / "plan.schema.json"


def _fit(results: list[TrialResult]) -> SweepFit:
    return fit_sweep(results, rng=np.random.default_rng(3))


def _plan(folder: Path, *, run: str = "", target_text: str = "width = 512\n", **planted: Any) -> TransferPlan:
    spec = planted_spec(folder, run=run)
    return make_plan(spec, target(folder, target_text), _fit(planted_results(**planted)), digest="planted")


def test_planned_lr_is_the_planted_optimum_at_the_target(tmp_path: Path) -> None:
    """AdamW's optimum drifts as -6 - 32/width, so it is at -6.06 at 512; Muon's stays at -6.6."""
    plan = _plan(tmp_path)
    adamw, muon = plan.optimizers
    assert adamw.log2_lr.value == pytest.approx(-6 - 32 / 512, abs=0.12)
    assert muon.log2_lr.value == pytest.approx(-6.6, abs=0.08)
    for optimizer, truth in ((adamw, -6 - 32 / 512), (muon, -6.6)):
        assert optimizer.log2_lr.interval is not None
        assert optimizer.log2_lr.interval.contains(truth)
        assert optimizer.run.hparams.lr == pytest.approx(2.0**optimizer.log2_lr.value)
    assert "v + b/width" in adamw.rests_on
    assert "not resolved from 0" in muon.rests_on


def test_expected_loss_and_excess_cover_the_truth(tmp_path: Path) -> None:
    """Loss 1.3 + 1.2*(w/32)^-0.6; a miss of d octaves costs 0.1/2 d^2 nats."""
    adamw, muon = _plan(tmp_path).optimizers
    for optimizer, offset, truth in ((adamw, 0.0, -6 - 32 / 512), (muon, 0.07, -6.6)):
        assert optimizer.expected_loss is not None
        assert optimizer.expected_loss.interval is not None
        assert optimizer.expected_loss.interval.contains(1.3 + 1.2 * 16**-0.6 + offset)
        assert optimizer.expected_excess_loss is not None
        excess = 0.05 * (optimizer.log2_lr.value - truth) ** 2
        assert optimizer.expected_excess_loss.interval is not None
        assert excess <= optimizer.expected_excess_loss.interval.high
        assert 0 <= optimizer.expected_excess_loss.value < 0.02


def test_roles_are_the_tables_at_the_target(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    assert (plan.width_mult, plan.target_width) == (16.0, 512)
    adamw = plan.optimizers[0]
    by_role = {role.role: role for role in adamw.roles}
    lr = adamw.run.hparams.lr
    assert by_role[Role.HIDDEN].effective_lr == pytest.approx(lr / 16)
    assert by_role[Role.HIDDEN].weight_decay == pytest.approx(0.1 * 16)  # lr * weight_decay stays
    assert by_role[Role.READOUT].effective_lr == pytest.approx(4 * lr)
    assert by_role[Role.READOUT].forward_multiplier == pytest.approx(1 / 16)
    assert by_role[Role.EMBEDDING].effective_lr == pytest.approx(lr)
    for role, planned in by_role.items():
        scale = scale_role(adamw.run, role)
        assert (planned.effective_lr, planned.adam_eps) == (scale.effective_lr, scale.effective_eps)
    muon = {role.role: role for role in plan.optimizers[1].roles}
    assert muon[Role.HIDDEN].effective_lr == pytest.approx(plan.optimizers[1].run.hparams.lr)


def test_tied_embeddings_have_no_readout_role(tmp_path: Path) -> None:
    spec = planted_spec(tmp_path)
    spec = spec.model_copy(update={"model": {**spec.model, "tied_embeddings": True}})
    plan = make_plan(spec, target(tmp_path), _fit(planted_results()), digest="")
    assert {role.role for role in plan.optimizers[0].roles} == {Role.EMBEDDING, Role.HIDDEN, Role.VECTOR}


def test_a_longer_target_keeps_the_decay_share_and_says_what_it_does_not_know(tmp_path: Path) -> None:
    longer = "width = 512\ntrain_tokens = 25600\n"
    plan = _plan(tmp_path, run='weight_decay_invariant = "timescale"', target_text=longer)
    run = plan.optimizers[0].run
    assert run.train_tokens == 25600
    assert run.hparams.decay_tokens == 4 * 1280
    short = _plan(tmp_path, target_text="width = 512").optimizers[0].run
    assert run.hparams.lr == pytest.approx(short.hparams.lr * 4**-0.32)  # as published: arXiv:2409.19913
    kept = run.hparams.lr * run.hparams.weight_decay * 4
    assert kept == pytest.approx(short.hparams.lr * 0.1)  # lr * weight_decay * steps stays
    assert any("4 times the tokens (published prior)" in caveat for caveat in plan.optimizers[0].caveats)
    assert plan.optimizers[0].expected_loss is None
    (rests_on,) = {s.rests_on for s in plan.optimizers[0].settings if s.name == "lr"}
    assert rests_on == "published prior"
    same = _plan(tmp_path, target_text=longer).optimizers[0].run
    assert same.hparams.lr * same.hparams.weight_decay == pytest.approx(short.hparams.lr * 0.1)


def test_flags_become_caveats_and_edges_are_left_out(tmp_path: Path) -> None:
    """Cut the grid so that AdamW's optimum at width 32 (2^-7) falls at its lower edge."""
    results = [
        r
        for r, run in ((r, r.trial.run) for r in planted_results())
        if (run.model.width, run.optimizer.name) != (32, "adamw") or run.hparams.lr > 2**-6.5
    ]
    spec = planted_spec(tmp_path)
    adamw = make_plan(spec, target(tmp_path), _fit(results), digest="").optimizers[0]
    assert any("Width 32 was left out" in caveat and "edge" in caveat for caveat in adamw.caveats)
    assert any("No loss law" in caveat for caveat in adamw.caveats)
    assert adamw.expected_loss is None


def test_a_target_far_beyond_the_proxies_is_a_caveat(tmp_path: Path) -> None:
    near, far = (_plan(tmp_path, target_text=f"width = {width}\n").optimizers[0].caveats for width in (512, 1024))
    assert not any("times wider" in caveat for caveat in near)
    assert any("8 times wider than the widest proxy" in caveat for caveat in far)


def test_an_optimizer_without_optima_is_not_planned_and_says_why(tmp_path: Path) -> None:
    results = [r for r in planted_results() if r.trial.run.optimizer.name == "muon"]
    plan = make_plan(planted_spec(tmp_path), target(tmp_path), _fit(results), digest="")
    assert [p.optimizer for p in plan.optimizers] == ["muon"]
    assert plan.not_planned == (("adamw", "it has no results; finish the sweep"),)
    one_width = [r for r in results if r.trial.run.model.width == 64]
    with pytest.raises(PlanError, match=r"no optimizer can be transferred.*two widths"):
        make_plan(planted_spec(tmp_path), target(tmp_path), _fit(one_width), digest="")


def test_standard_parametrization_is_a_caveat(tmp_path: Path) -> None:
    plan = _plan(tmp_path, run='parametrization = "standard"')
    assert any("not expected to transfer" in caveat for caveat in plan.optimizers[0].caveats)


def test_plan_json_round_trips_and_its_schema_is_documented(tmp_path: Path) -> None:
    """Regenerate with: python -m transfer.plan > transfer/plan.schema.json"""
    plan = _plan(tmp_path)
    text = PLAN_JSON.dump_json(plan)
    assert PLAN_JSON.validate_json(text) == plan
    schema = json.loads(SCHEMA.read_text())
    assert schema == PLAN_JSON.json_schema()
    for record in (schema, *(schema["$defs"][name] for name in ("Estimate", "RolePlan", "OptimizerPlan"))):
        assert all("description" in field for field in record["properties"].values())
    assert PLAN_JSON.dump_json(replace(plan, inputs_digest="x")) != text
