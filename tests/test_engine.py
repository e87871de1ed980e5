"""Planted step costs decide the modes and the packs; what is recorded or trained keeps its mode."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.config import RunConfig
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import AdamW
from sweeps.calibration import DoesNotFitError, Machine, StepCost
from sweeps.engine import plan_shapes
from sweeps.pack import Fork, shape_of
from sweeps.pack_size import Situation
from sweeps.shape_plans import (
    ENGINE,
    ENGINE_JSON,
    LOAD_SECONDS,
    ShapePlan,
    pack_seconds,
    packs_of,
    read_plans,
    shape_id_of,
    wall_seconds,
    write_plans,
)
from sweeps.spec_errors import SpecError
from sweeps.spec_models import EngineSection
from sweeps.store import StoreError
from sweeps.trial import Trial
from tests.sweep_helpers import trial

SCHEMA = Path(__file__).parent.parent / "transfer" / "engine.schema.json"
CPU = Machine(cpu="a processor", cores=2, gpu=None, gpus=0, torch="2.13.0", free_bytes=10**10, has_compiler=True)
GPU = replace(CPU, gpu="a card", gpus=1)
COMPILED = replace(EAGER_LOOP, compiled=True)
STEPS = 10  # of the helpers' trials


class Planted:
    """Step costs by mode: eager seconds by width, what compiling makes of them, and how stacking scales."""

    def __init__(
        self,
        eager: Mapping[int, float],
        *,
        compiled: float = 1.0,
        compile_seconds: float = 0.0,
        stacked: Mapping[int, float] | None = None,  # by members, the factor on a member's time
    ) -> None:
        self.eager, self.compiled, self.compile_seconds = eager, compiled, compile_seconds
        self.stacked = stacked or {}
        self.asked: list[tuple[int, Mode, int]] = []

    def __call__(self, run: RunConfig, mode: Mode, members: int) -> StepCost:
        self.asked.append((run.model.width, mode, members))
        seconds = self.eager[run.model.width] * (self.compiled if mode.compiled else 1.0)
        if mode.executor == "stacked":
            seconds *= self.stacked.get(members, 1.0)
        return StepCost(seconds=seconds, compile_seconds=self.compile_seconds if mode.compiled else 0.0)


def situation(trials: Sequence[Trial], machine: Machine = CPU, *, workers: int = 2, **more: Any) -> Situation:
    settings = EngineSection(**more.pop("settings", {}))
    return Situation(
        settings=settings, file="spec.toml", machine=machine, workers=workers, n_trials=len(trials), **more
    )


def some(n: int, *, width: int = 32, **hparams: Any) -> list[Trial]:
    return [trial(seed=seed, width=width, **hparams) for seed in range(n)]


def test_a_short_sweep_on_a_cpu_is_an_eager_loop_and_nothing_is_compiled_to_find_out() -> None:
    """4 trials of 10 steps of 1 s: compiling may save 8 s of 40, and takes 2 * (15 + 5)."""
    trials, measure = some(4), Planted({32: 1.0})
    (plan,) = plan_shapes(trials, situation(trials), measure)
    assert (plan.mode, plan.members, plan.seconds_per_step_member) == (EAGER_LOOP, 4, 1.0)
    assert measure.asked == [(32, EAGER_LOOP, 1)]
    assert "not compiled" in plan.why
    assert "save 8 s and take 40 s" in plan.why


@pytest.mark.parametrize(
    ("compiled", "compile_seconds", "pays"),
    [(0.8, 49.0, True), (0.8, 51.0, False), (0.99, 2.6, False), (1.2, 0.0, False)],
)
def test_a_long_sweep_is_compiled_if_that_pays_as_measured(compiled: float, compile_seconds: float, pays: bool) -> None:
    """50 trials of 10 steps of 1 s: 100 s saved at 0.8 against 2 workers' compiling."""
    trials, measure = some(50), Planted({32: 1.0}, compiled=compiled, compile_seconds=compile_seconds)
    (plan,) = plan_shapes(trials, situation(trials), measure)
    assert plan.mode == (COMPILED if pays else EAGER_LOOP)
    assert plan.seconds_per_step_member == pytest.approx(compiled if pays else 1.0)
    assert plan.compile_seconds == (compile_seconds if pays else 0.0)
    assert (32, COMPILED, 1) in measure.asked


def test_shapes_that_share_a_function_pay_for_it_together() -> None:
    """Two optimizers of 25 trials each: either alone may save 50 s, and must save 80; another batch size is another."""
    muon = some(25)
    adamw = [replace(one, run=replace(one.run, optimizer=AdamW())) for one in muon]
    measure = Planted({32: 1.0}, compiled=0.8, compile_seconds=15.0)
    together = plan_shapes([*muon, *adamw], situation([*muon, *adamw]), measure)
    assert [plan.mode for plan in together] == [COMPILED, COMPILED]
    assert [asked for asked in measure.asked if asked[1].compiled] == [(32, COMPILED, 1)]  # compiled once
    other = some(25, batch_tokens=64)  # half the steps
    assert {plan.mode for plan in plan_shapes([*muon, *other], situation(muon), measure)} == {EAGER_LOOP}


def test_no_compiler_is_said_and_refused_where_compiling_is_asked_for() -> None:
    trials, machine = some(40), replace(CPU, has_compiler=False)
    (plan,) = plan_shapes(trials, situation(trials, machine), Planted({32: 1.0}, compiled=0.1))
    assert (plan.mode, "no C++ compiler" in plan.why) == (EAGER_LOOP, True)
    with pytest.raises(SpecError, match=r"spec.toml: engine.compile: .*no C\+\+ compiler, got true. .* install g"):
        plan_shapes(trials, situation(trials, machine, settings={"compile": True}), Planted({32: 1.0}))


def test_an_explicit_choice_is_kept_though_it_does_not_pay() -> None:
    trials = some(2)
    settings = {"executor": "stacked", "compile": True, "dtype": "bfloat16", "device": "cpu"}
    (plan,) = plan_shapes(trials, situation(trials, GPU, settings=settings), Planted({32: 1.0}, compiled=2.0))
    assert plan.mode.name == "stacked-compiled-cpu-bfloat16"


def test_a_gpu_that_is_not_there_is_refused() -> None:
    trials = some(2)
    with pytest.raises(SpecError, match=r'spec.toml: engine.device: must be "auto" or "cpu" .* got "cuda"'):
        plan_shapes(trials, situation(trials, settings={"device": "cuda"}), Planted({32: 1.0}))


def test_on_a_gpu_a_pack_is_doubled_while_throughput_gains() -> None:
    """Of 100 members, 8 at a time: 16 gain 5 % only."""
    factors = {1: 1.0, 2: 0.55, 4: 0.3, 8: 0.2, 16: 0.19}
    trials, measure = some(100), Planted({32: 0.01}, stacked=factors)
    (plan,) = plan_shapes(trials, situation(trials, GPU, workers=1), measure)
    assert (plan.mode.name, plan.pack_size) == ("stacked-eager-cuda-float32", 8)
    assert plan.seconds_per_step_member == pytest.approx(0.002)
    assert max(members for _, _, members in measure.asked) == 16
    (slower,) = plan_shapes(trials, situation(trials, GPU, workers=1), Planted({32: 0.01}, stacked={1: 1.5, 2: 1.4}))
    assert slower.mode.name == "loop-eager-cuda-float32"


@pytest.mark.parametrize(
    ("seconds", "factor", "mode"),
    [(0.004, 0.5, "stacked"), (0.004, 0.8, "loop"), (0.02, 0.1, "loop")],
    ids=["worth it", "too small a gain", "too long a step to try"],
)
def test_a_cpu_stacks_short_steps_where_that_gains_much(seconds: float, factor: float, mode: str) -> None:
    trials, measure = some(16), Planted({32: seconds}, stacked={1: 1.2, 2: factor, 4: 0.95 * factor})
    (plan,) = plan_shapes(trials, situation(trials), measure)
    assert (plan.mode.executor, plan.mode.device) == (mode, "cpu")
    assert plan.pack_size == 2
    assert (seconds < 0.01) == any(asked.executor == "stacked" for _, asked, _ in measure.asked)


def test_a_stack_fits_into_memory_and_leaves_work_to_every_worker() -> None:
    trials, factors = some(100), {n: 1 / n for n in range(1, 101)}
    (free,) = plan_shapes(trials, situation(trials, GPU, workers=3), Planted({32: 1e-4}, stacked=factors))
    assert free.pack_size == 34
    tight = replace(GPU, free_bytes=10 * free.bytes_per_member)
    (held,) = plan_shapes(trials, situation(trials, tight, workers=1), Planted({32: 1e-4}, stacked=factors))
    assert held.pack_size == 8  # 80 % of ten
    chosen = situation(trials, tight, workers=1, settings={"pack_size": 50})
    (asked,) = plan_shapes(trials, chosen, Planted({32: 1e-4}, stacked={50: 0.1}))
    assert asked.pack_size == 50


def test_a_pack_that_does_not_fit_after_all_is_not_doubled_further() -> None:
    trials, planted = some(100), Planted({32: 1e-4}, stacked={n: 1 / n for n in range(1, 101)})

    def measure(run: RunConfig, mode: Mode, members: int) -> StepCost:
        if members > 4:
            raise DoesNotFitError("out of memory")
        return planted(run, mode, members)

    (plan,) = plan_shapes(trials, situation(trials, GPU, workers=1), measure)
    assert plan.pack_size == 4


def _planned(trials: Sequence[Trial], mode: Mode) -> dict[str, ShapePlan]:
    plans = plan_shapes(trials, situation(trials), Planted({16: 1.0, 32: 1.0, 64: 1.0}))
    return {plan.shape_id: replace(plan, mode=mode, seconds_per_step_member=0.5) for plan in plans}


def test_a_recorded_shape_keeps_its_mode_and_a_new_one_is_planned() -> None:
    trials, new = some(40), some(4, width=64)
    todo = [*trials[30:], *new]
    recorded = _planned(trials, COMPILED)
    kept, added = plan_shapes(todo, situation(todo, recorded=recorded), Planted({32: 1.0, 64: 1.0}))
    assert (kept.mode, kept.seconds_per_step_member, kept.members) == (COMPILED, 0.5, 10)
    assert (added.mode, added.members) == (EAGER_LOOP, 4)


def test_results_hold_their_mode_whatever_is_recorded() -> None:
    trials = some(400)
    held = {shape_id_of(trials[0]): EAGER_LOOP}
    fast = Planted({32: 1.0}, compiled=0.1)
    for recorded in ({}, _planned(trials, COMPILED)):
        (plan,) = plan_shapes(trials, situation(trials, recorded=recorded, held=held), fast)
        assert plan.mode == EAGER_LOOP


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": False}, r"engine.compile: must stay .*width 32 .*loop-compiled-cpu-float32\), got false"),
        ({"executor": "stacked"}, r"engine.executor: .*got stacked"),
        ({"dtype": "bfloat16"}, r"engine.dtype: .*got bfloat16.*--fresh"),
        ({"device": "cuda"}, r"engine.device: .*got cuda"),
    ],
)
def test_a_spec_may_not_contradict_results_but_a_mere_plan(settings: dict[str, Any], message: str) -> None:
    trials = some(4)
    recorded = _planned(trials, COMPILED)
    held = {shape_id: plan.mode for shape_id, plan in recorded.items()}
    with pytest.raises(SpecError, match=message):
        plan_shapes(trials, situation(trials, GPU, recorded=recorded, held=held, settings=settings), Planted({32: 1.0}))
    (plan,) = plan_shapes(trials, situation(trials, GPU, recorded=recorded, settings=settings), Planted({32: 1.0}))
    assert plan.mode != COMPILED


def test_results_of_a_gpu_need_one() -> None:
    trials = some(4)
    held = {shape_id_of(trials[0]): Mode(executor="stacked", device="cuda")}
    with pytest.raises(SpecError, match=r"engine.device: .*got a machine without a GPU"):
        plan_shapes(trials, situation(trials, held=held), Planted({32: 1.0}))


mixed = st.lists(
    st.builds(
        trial,
        lr=st.sampled_from([0.01, 0.02]),
        seed=st.integers(0, 9),
        width=st.sampled_from([16, 32, 64]),
        batch_tokens=st.sampled_from([16, 32]),
    ),
    unique=True,
    min_size=1,
    max_size=40,
)
settings = st.fixed_dictionaries(
    {"executor": st.sampled_from(["auto", "loop", "stacked"]), "pack_size": st.none() | st.integers(1, 9)}
)


@given(trials=mixed, settings=settings, workers=st.integers(1, 5), machine=st.sampled_from([CPU, GPU]))
def test_packs_hold_every_trial_once_in_its_shapes_mode_the_longest_first(
    trials: list[Trial], settings: dict[str, Any], workers: int, machine: Machine
) -> None:
    measure = Planted({16: 0.001, 32: 0.004, 64: 0.01}, stacked={1: 1.2, 2: 0.7, 4: 0.5})
    planned = plan_shapes(trials, situation(trials, machine, workers=workers, settings=settings), measure)
    plans = {plan.shape_id: plan for plan in planned}
    packs = packs_of(trials, plans, diagnose_every=3)
    assert sorted(one.trial_id for pack in packs for one in pack.trials) == sorted(one.trial_id for one in trials)
    for pack in packs:
        plan = plans[shape_of(pack.trials[0]).trial_id]
        assert (pack.mode, pack.diagnose_every) == (plan.mode, 3)
        assert len(pack.trials) <= plan.pack_size
        if settings["pack_size"] is None and plan.mode.executor == "stacked":
            assert plan.pack_size <= -(-plan.members // workers)
    seconds = [pack_seconds(pack, plans) for pack in packs]
    assert seconds == sorted(seconds, reverse=True)
    wall = wall_seconds(packs, plans, workers)
    assert max(seconds) <= wall <= sum(seconds) + 1e-9
    assert wall >= sum(seconds) / workers - 1e-9


def test_time_counts_what_is_trained_here_validation_and_loading() -> None:
    """10 steps of 2 s, validation of 64 tokens in batches of 32 at a third of a step: 20 + 4/3 s."""
    trials = some(4)
    (eager,) = plan_shapes(trials, situation(trials, settings={"pack_size": 1}), Planted({32: 2.0}))
    plans = {eager.shape_id: eager}
    packs = packs_of(trials, plans)
    one = 20 + 4 / 3
    assert [pack_seconds(pack, plans) for pack in packs] == pytest.approx([one] * 4)
    assert wall_seconds(packs, plans, 3) == pytest.approx(2 * one)
    branch = replace(packs[0], starts={packs[0].trials[0].trial_id: Fork(trunk_id="t", step=7)})
    assert pack_seconds(branch, plans) == pytest.approx(one - 14)
    compiled = {eager.shape_id: replace(eager, mode=COMPILED)}
    assert wall_seconds(packs, compiled, 3) == pytest.approx(2 * one + LOAD_SECONDS)


def test_the_record_round_trips_is_documented_and_refused_if_damaged(tmp_path: Path) -> None:
    """Regenerate the schema with: python -m sweeps.shape_plans > transfer/engine.schema.json"""
    assert read_plans(tmp_path) == {}
    plans = _planned([*some(3), *some(2, width=64)], COMPILED)
    write_plans(tmp_path, plans)
    assert read_plans(tmp_path) == plans
    assert json.loads((tmp_path / ENGINE).read_bytes())["shapes"][0]["mode"] == "loop-compiled-cpu-float32"
    schema = json.loads(SCHEMA.read_text())
    assert schema == ENGINE_JSON.json_schema()
    for record in (schema, schema["$defs"]["ShapePlan"]):
        assert all("description" in field for field in record["properties"].values())
    (tmp_path / ENGINE).write_text((tmp_path / ENGINE).read_text().replace("compiled", "guessed"))
    with pytest.raises(StoreError, match=r"engine.json is not a record of modes"):
        read_plans(tmp_path)
