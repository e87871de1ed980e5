"""Width and depth swept together: the spec's grid, its target, the commands that read them, the plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.fit import fit_sweep
from sweeps.rows import from_parquet, to_parquet
from sweeps.spec import SpecError, SweepSpec, check_target, load_spec, load_target, run_config, run_configs
from sweeps.trial import TrialResult
from tests.analysis_helpers import planted_results
from tests.transfer_helpers import TINY_SPEC, invoke, write_tiny
from transfer.make_plan import make_plan
from transfer.plan import TransferPlan

COMPLETE_P = TINY_SPEC.format(parametrization="complete_p").replace("base_width", "base_depth = 2\nbase_width", 1)
DEEP = COMPLETE_P.replace("depth = 1\n", "", 1).replace("seeds", "depths = [2, 4, 8]\nseeds", 1)


def _spec(folder: Path, text: str = DEEP) -> SweepSpec:
    write_tiny(folder)
    (folder / "spec.toml").write_text(text)
    return load_spec(folder / "spec.toml")


def test_the_grid_is_widths_times_depths(tmp_path: Path) -> None:
    runs = run_configs(_spec(tmp_path))
    assert len(runs) == 2 * 3 * 3 * 5 * 2  # optimizers, widths, depths, lrs, seeds
    sizes = list(dict.fromkeys((run.model.width, run.model.depth) for run in runs))
    assert sizes == [(width, depth) for width in (16, 32, 64) for depth in (2, 4, 8)]
    assert {(run.model.depth, run.depth_mult) for run in runs} == {(2, 1.0), (4, 2.0), (8, 4.0)}


def test_a_run_is_of_the_least_depth_where_none_is_named(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    assert run_config(spec, "adamw", width=32, seed=0).model.depth == 2
    assert run_config(spec, "adamw", width=32, depth=16, seed=0).depth_mult == 8


def test_a_spec_without_depths_has_the_models_alone(tmp_path: Path) -> None:
    spec = _spec(tmp_path, COMPLETE_P)
    assert spec.depths == (1,)
    assert {run.depth_mult for run in run_configs(spec)} == {0.5}  # shallower than the base: a branch counts double
    assert _spec(tmp_path, TINY_SPEC.format(parametrization="mup").replace("depth = 1\n", "", 1)).depths == (2,)


def test_the_check_goes_over_depth_under_complete_p_alone_or_where_it_is_told_to(tmp_path: Path) -> None:
    assert _spec(tmp_path).check_depths == (2, 4, 8, 16)
    mup = TINY_SPEC.format(parametrization="mup")
    assert _spec(tmp_path, mup).check_depths == ()
    assert _spec(tmp_path, mup.replace("[check]", "[check]\ndepths = [1, 2, 3, 4]")).check_depths == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_depth = 2\n", "", r"run.base_depth: must be given with parametrization = \"complete_p\" .* got None"),
        ('"complete_p"', '"mup"', r"run.base_depth: must be given with .* got 2 with \"mup\""),
        ("[model]", "[model]\ndepth = 2", r"model.depth: must not be given beside run.depths, got 2"),
        ("[2, 4, 8]", "[2, 4, 4]", r"run.depths: must not have a value twice, got \[2, 4, 4\]"),
        ("[2, 4, 8]", "[0, 4]", r"run.depths\[0\]: must be at least 1, got 0"),
        ("[2, 4, 8]", "[]", r"run.depths: must have at least one value"),
        ("[check]", "[check]\ndepths = [2, 4, 8]", r"check.depths: must have at least 4 values .* got \[2, 4, 8\]"),
        ("base_depth = 2", "base_depth = 0", r"run.base_depth: must be at least 1, got 0"),
        ("[check]", '[search]\nmethod = "telescope"\n[check]', r'search.method: must be "grid" where run.depths has'),
    ],
)
def test_bad_specs_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DEEP
    with pytest.raises(SpecError, match=message):
        _spec(tmp_path, DEEP.replace(old, new, 1))


@pytest.mark.parametrize(
    ("parametrization", "depth", "refused"),
    [
        ("complete_p", None, "depth: must be given where the sweep has several depths"),
        ("complete_p", 4, None),
        ("complete_p", 8, None),
        ("complete_p", 32, None),
        ("complete_p", 6, r"depth: must be a depth of the proxies', \[2, 4, 8\], or above, got 6"),
        ("mup", 8, None),
        ("mup", 32, "got 32: under 'mup' optima move with depth"),
        ("standard", 32, "got 32: under 'standard' optima move with depth"),
    ],
)
def test_a_target_deeper_than_the_proxies_takes_a_rule_for_depth(
    tmp_path: Path, parametrization: str, depth: int | None, refused: str | None
) -> None:
    text = DEEP if parametrization == "complete_p" else DEEP.replace("base_depth = 2\n", "")
    spec = _spec(tmp_path, text.replace("complete_p", parametrization))
    (tmp_path / "target.toml").write_text("width = 64\n" + ("" if depth is None else f"depth = {depth}\n"))
    target = load_target(tmp_path / "target.toml")
    if refused is None:
        check_target(target, spec)
    else:
        with pytest.raises(SpecError, match=refused):
            check_target(target, spec)


def test_plan_shows_what_each_depth_costs(tmp_path: Path) -> None:
    _spec(tmp_path, DEEP.replace("[16, 32, 64]", "[16, 32]").replace("[2, 4, 8]", "[2, 4]", 1))
    result = invoke("plan", tmp_path / "spec.toml", "--json")
    assert result.exit_code == 0, result.output
    costs = json.loads(result.stdout)["costs"]
    assert {(row["optimizer"], row["width"], row["depth"], row["trials"]) for row in costs} == {
        (optimizer, width, depth, 10) for optimizer in ("adamw", "scale") for width in (16, 32) for depth in (2, 4)
    }


def test_memory_grows_with_depth(tmp_path: Path) -> None:
    _spec(tmp_path)
    (tmp_path / "target.toml").write_text("width = 64\ndepth = 32\n")
    result = invoke("memory", tmp_path / "spec.toml", "--target", tmp_path / "target.toml", "--json")
    assert result.exit_code == 0, result.output
    weights = {(row["width"], row["depth"]): row["weights"] for row in json.loads(result.stdout)["memory"]}
    assert set(weights) == {(width, depth) for width in (16, 32, 64) for depth in (2, 4, 8)} | {(64, 32)}
    blocks = [weights[64, depth] - weights[64, 2] for depth in (4, 8, 32)]
    assert blocks == [blocks[0], 3 * blocks[0], 15 * blocks[0]]


def _planted(*, depths: tuple[int, ...] = (2, 8), shift: float = 0.0) -> list[TrialResult]:
    """Each depth's losses 0.2 nats below the last one's, and its lr grid moved by `shift` octaves more."""
    return [
        replace(
            result,
            validation_loss=(result.validation_loss or 0.0) - 0.2 * i,
            trial=replace(result.trial, run=_at_depth(result.trial.run, depth, i * shift)),
        )
        for i, depth in enumerate(depths)
        for result in planted_results(optimizers=("adamw", "scale"), widths=(32, 64, 128))
    ]


def _at_depth(run: Any, depth: int, shift: float) -> Any:
    return replace(
        run,
        model=replace(run.model, depth=depth),
        parametrization="complete_p",
        base_depth=2,
        hparams=replace(run.hparams, lr=run.hparams.lr * 2.0**shift),
    )


def _plan(folder: Path, depth: int, **planted: Any) -> TransferPlan:
    spec = _spec(folder, DEEP.replace("[2, 4, 8]", "[2, 8]"))
    (folder / "target.toml").write_text(f"width = 256\ndepth = {depth}\n")
    fit = fit_sweep(_planted(**planted), rng=np.random.default_rng(3))
    assert {s.series.fixed for s in fit.surfaces} == {(("model.depth", 2),), (("model.depth", 8),)}
    return make_plan(spec, load_target(folder / "target.toml"), fit, digest="planted")


@pytest.mark.parametrize(("depth", "optimum"), [(2, -6.6), (8, -4.6)])
def test_a_plan_rests_on_the_proxies_of_the_targets_depth(tmp_path: Path, depth: int, optimum: float) -> None:
    """Though the deeper proxies have the lower loss."""
    scale = _plan(tmp_path, depth, shift=2.0).optimizers[1]
    assert scale.log2_lr.value == pytest.approx(optimum, abs=0.15)
    assert scale.run.model.depth == depth
    assert scale.rests_on.endswith(f", at depth {depth}")
    assert scale.expected_loss is not None


def test_a_deeper_target_is_planned_from_the_deepest_proxies_and_its_loss_is_not_predicted(tmp_path: Path) -> None:
    plan = _plan(tmp_path, 32, shift=0.5)
    scale = plan.optimizers[1]
    assert (plan.target_depth, plan.depth_mult, plan.residual_multiplier) == (32, 16.0, 1 / 16)
    assert scale.log2_lr.value == pytest.approx(-6.1, abs=0.15)
    assert scale.rests_on.endswith(", at depth 8; to depth 32 by CompleteP's rules")
    assert (scale.expected_loss, scale.excess_equivalent) == (None, None)
    assert scale.expected_excess_loss is not None
    assert any("deeper than every proxy" in caveat for caveat in scale.caveats)
    (seen,) = [caveat for caveat in scale.caveats if caveat.startswith("Over depth at width 128")]
    assert "at depth 2" in seen
    assert "at depth 8" in seen


def test_a_stored_trial_keeps_its_depths() -> None:
    result = _planted()[0]
    trial_id, read = from_parquet(to_parquet(result))
    assert (trial_id, read.trial.run) == (result.trial_id, result.trial.run)
    assert (read.trial.run.base_depth, read.trial.run.depth_mult) == (2, 1.0)


def test_a_budget_is_planned_at_one_depth(tmp_path: Path) -> None:
    _spec(tmp_path)
    result = invoke("plan", tmp_path / "spec.toml", "--optimizer", "adamw", "--budget", "1e15")
    assert result.exit_code == 2
    assert "run.depths: a budget is planned over width at one depth, got depths [2, 4, 8]" in result.stderr
