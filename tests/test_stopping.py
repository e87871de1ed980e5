"""Early stopping drops what cannot be near the optimum, leaves the fitted optimum as it was, and says what it did."""

import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from analysis.figures import loss_against_lr
from analysis.fit import fit_sweep
from analysis.flags import Flag
from analysis.optimum import fit_optimum
from analysis.surface import surfaces
from proxy_models.accounting import training_flops
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import AdamW, Muon, Switch
from sweeps.halving import Rungs, halving_packs
from sweeps.local_backend import LocalBackend
from sweeps.pack import Pack, make_packs
from sweeps.provenance import provenance
from sweeps.run import Backend, SweepOutcome, TrialFinished, run_sweep
from sweeps.spec import SpecError, load_spec
from sweeps.stopping import (
    KEPT_SHARE,
    NEIGHBORS,
    Floats,
    Stop,
    Stopping,
    kept_frac,
    line_of,
    stopped_result,
    to_stop,
)
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult, TrialStatus
from tests.analysis_helpers import planted_surface, trial_result
from tests.sweep_helpers import completed, diverged, read_sweep, start_driver, stop_after, trial, write_sweep
from tests.transfer_helpers import invoke
from transfer import folder as folders
from transfer import pipeline
from transfer.pipeline import BAND_NATS

# 128 steps: 12 of warmup, decay over the last half.
LINE = line_of(trial())
RUN = replace(
    LINE.run,
    train_tokens=4096,
    hparams=replace(LINE.run.hparams, warmup_tokens=384, decay_tokens=2048),
)
LINE = replace(LINE, run=RUN)
KEEP = 0.15
LOCAL = LocalBackend()


def curves(
    gaps: dict[float, float], step: int = 96, *, seeds: int = 2, noise: float = 0.001, rng_seed: int = 0
) -> dict[float, Floats]:
    """Constant gaps on a curve that the learning rates of a seed share, with noise of their own."""
    rng = np.random.default_rng(rng_seed)
    shared = 2 + 3 * np.exp(-np.arange(step) / 20) + 0.1 * rng.standard_normal((seeds, step))
    return {lr: shared + gap + noise * rng.standard_normal((seeds, step)) for lr, gap in gaps.items()}


def log2_dropped(stops: dict[float, Stop]) -> set[int]:
    return {round(float(np.log2(lr))) for lr in stops}


def grid(gaps: Sequence[float], first: int = -9) -> dict[float, float]:
    return {2.0 ** (first + i): gap for i, gap in enumerate(gaps)}


# --- the rule


def test_what_stays_far_is_dropped_and_why_is_said() -> None:
    stops = to_stop(curves(grid([1.4, 0.9, 0.2, 0.1, 0.0, 0.1, 0.2, 0.3])), LINE, keep_nats=KEEP)
    assert log2_dropped(stops) == {-9, -8}
    stop = stops[2.0**-8]
    assert (stop.step, stop.lr, stop.best_lr, stop.keep_nats) == (96, 2.0**-8, 2.0**-5, KEEP)
    assert stop.gap == pytest.approx(0.9, abs=0.01)
    assert stop.gap_se < 0.01
    # (96 - 12) / (128 - 12) of the steps after the warmup are done
    assert stop.threshold == pytest.approx(KEEP / (KEPT_SHARE * 84 / 116))
    assert stop.line_id == LINE.trial_id


@pytest.mark.parametrize("best", range(9))
def test_the_best_and_two_neighbors_to_each_side_always_stay(best: int) -> None:
    gaps = [0.0 if i == best else 9.0 for i in range(9)]
    dropped = log2_dropped(to_stop(curves(grid(gaps, 0)), LINE, keep_nats=KEEP))
    assert dropped <= {i for i in range(9) if abs(i - best) > NEIGHBORS}
    assert len(set(range(9)) - dropped) >= 3
    assert dropped


def test_at_most_half_are_dropped_at_a_rung_the_farthest_first() -> None:
    stops = to_stop(curves(grid([9.0] * 9 + [0.0], -9)), LINE, keep_nats=KEEP)
    assert log2_dropped(stops) == {-9, -8, -7, -6, -5}
    assert not to_stop(curves(grid([9.0, 9.0, 0.0, 9.0, 9.0])), LINE, keep_nats=KEEP), "all are neighbors"


def test_what_is_left_is_one_interval() -> None:
    gaps = [0.05, 3.0, 3.0, 0.1, 0.0, 0.1, 0.2, 0.3, 5.0]
    assert log2_dropped(to_stop(curves(grid(gaps, 0)), LINE, keep_nats=KEEP)) == {8}


@pytest.mark.parametrize(("step", "dropped"), [(12, set()), (13, set()), (64, {0, 1}), (96, {0, 1, 7, 8, 9})])
def test_none_during_the_warmup_and_above_the_best_none_before_the_decay(step: int, dropped: set[int]) -> None:
    gaps = grid([3.0, 2.0, 1.0, 0.2, 0.0, 0.2, 0.3, 1.0, 2.0, 3.0], 0)
    assert log2_dropped(to_stop(curves(gaps, step), LINE, keep_nats=KEEP)) == dropped


def test_none_before_the_optimizer_is_switched() -> None:
    switched = replace(RUN, optimizer=Switch(first=AdamW(), second=Muon()))
    assert kept_frac(switched, 63, below=True) == 0.0
    assert kept_frac(switched, 64, below=True) == kept_frac(RUN, 64, below=True) > 0


def test_noise_larger_than_the_gap_drops_nothing() -> None:
    gaps = grid([1.4, 0.9, 0.2, 0.1, 0.0, 0.1, 0.2, 0.3])
    calm, noisy = (to_stop(curves(gaps, noise=noise), LINE, keep_nats=KEEP) for noise in (0.01, 4.0))
    assert calm
    assert not noisy


def test_one_seed_is_judged_by_the_scatter_of_its_steps() -> None:
    gaps = grid([1.4, 0.9, 0.2, 0.1, 0.0, 0.1, 0.2, 0.3])
    assert log2_dropped(to_stop(curves(gaps, seeds=1, noise=0.01), LINE, keep_nats=KEEP)) == {-9, -8}
    assert not to_stop(curves(gaps, seeds=1, noise=0.8), LINE, keep_nats=KEEP)


def test_data_order_is_no_noise_for_curves_of_one_seed() -> None:
    shifts = np.array([0.0, 5.0])[:, None]  # seeds far apart
    paired = {lr: losses + shifts for lr, losses in curves(grid([1.4, 0.9, 0.2, 0.1, 0.0, 0.1, 0.2])).items()}
    assert log2_dropped(to_stop(paired, LINE, keep_nats=KEEP)) == {-9, -8}


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_what_is_kept_of_a_gap_grows_to_one(schedule: str) -> None:
    run = replace(RUN, schedule=schedule)
    for below in (True, False):
        fracs = [kept_frac(run, step, below=below) for step in range(1, run.steps)]
        assert fracs == sorted(fracs)
        assert (fracs[0], fracs[-1]) == (0.0, pytest.approx(1.0, abs=0.03))
    assert all(kept_frac(run, s, below=False) <= kept_frac(run, s, below=True) for s in range(1, run.steps))


def test_rungs_are_steps_of_the_run() -> None:
    assert Stopping().steps(RUN) == (32, 64, 96)
    assert Stopping(rungs=(0.5, 0.001, 0.501, 0.9999)).steps(RUN) == (64,)


# --- whether the optimum is biased


@dataclass(frozen=True)
class Simulated:
    """One planted sweep, trained to the end and with early stopping."""

    whole: list[TrialResult]
    kept: list[TrialResult]
    optimum: float
    curvature: float

    def excess(self, result: TrialResult) -> float:
        return self.curvature / 2 * (math.log2(result.trial.run.hparams.lr) - self.optimum) ** 2

    @property
    def dropped(self) -> list[TrialResult]:
        return [result for result in self.kept if result.status is TrialStatus.STOPPED]

    def places(self) -> tuple[float, float]:
        """The fitted optimum without and with early stopping."""
        (whole,), (kept,) = surfaces(self.whole), surfaces(self.kept)
        fit = partial(fit_optimum, band_nats=BAND_NATS, n_bootstrap=1)
        return fit(whole, rng=np.random.default_rng(0)).log2_value, fit(kept, rng=np.random.default_rng(0)).log2_value


def simulate(rng: np.random.Generator, share: tuple[float, float]) -> Simulated:
    """A parabola whose bottom lies up to two octaves lower before the decay than at the end.

    Of a gap at a rung, `share` (drawn between its ends for each learning rate) of `kept_frac` is left at the end.
    """
    log2_lrs, seeds = np.arange(-13.0, -2.0).tolist(), (3, 4)
    optimum, curvature, early = -7.5 + rng.uniform(-2, 2), rng.uniform(0.02, 0.1), rng.uniform(0, 2)
    left = {2.0**x: rng.uniform(*share) for x in log2_lrs}
    stops: dict[float, Stop] = {}
    for step in Stopping().steps(RUN):
        bottom = optimum - early * (1 - kept_frac(RUN, step, below=False))
        gaps = {
            2.0**x: curvature / 2 * (x - bottom) ** 2 / left[2.0**x] / max(kept_frac(RUN, step, below=x < bottom), 0.1)
            for x in log2_lrs
            if 2.0**x not in stops
        }
        stops |= to_stop(curves(gaps, step, noise=0.02, rng_seed=int(rng.integers(2**31))), LINE, keep_nats=KEEP)
    whole = [
        trial_result(2.5 + curvature / 2 * (x - optimum) ** 2 + 0.006 * rng.standard_normal(), lr=2.0**x, seed=seed)
        for x in log2_lrs
        for seed in seeds
    ]
    kept = [
        stopped_result(r.trial, stops[r.trial.run.hparams.lr]) if r.trial.run.hparams.lr in stops else r for r in whole
    ]
    return Simulated(whole, kept, optimum, curvature)


def test_the_fitted_optimum_is_not_biased_and_nothing_near_it_is_dropped() -> None:
    rng = np.random.default_rng(11)
    sweeps = [simulate(rng, (0.87, 1.5)) for _ in range(100)]
    places = np.array([sweep.places() for sweep in sweeps])
    standard_error = float(np.std(places[:, 0] - [sweep.optimum for sweep in sweeps]))
    shifts = places[:, 1] - places[:, 0]
    dropped = [sweep.excess(result) for sweep in sweeps for result in sweep.dropped]
    assert len(dropped) > 0.2 * sum(len(sweep.whole) for sweep in sweeps), "stopping was at work"
    assert min(dropped) > BAND_NATS
    assert abs(shifts.mean()) < 0.05 * standard_error
    assert np.abs(shifts).max() < standard_error


def test_the_simulation_would_show_a_rule_that_drops_too_much() -> None:
    rng = np.random.default_rng(11)
    sweeps = [simulate(rng, (0.15, 0.3)) for _ in range(60)]
    assert any(sweep.excess(result) < BAND_NATS for sweep in sweeps for result in sweep.dropped)


def load_benchmark() -> ModuleType:
    found = spec_from_file_location("early_stopping", Path(__file__).parents[1] / "benchmarks" / "early_stopping.py")
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = module_from_spec(found)  # its dataclasses look themselves up
    found.loader.exec_module(module)
    return module


def test_recorded_sweeps_bear_out_what_the_rule_relies_on() -> None:
    replays = load_benchmark()
    for name in ("quickstart", "quickstart_standard"):
        lines = replays.read(replays.RESULTS / name)
        assert min(replays.least_shares(lines).values()) > KEPT_SHARE
        for stopping in (Stopping(), Stopping(keep_nats=0.1)):
            assert replays.dropped(lines, stopping)["wrongly_dropped"] == 0


# --- what fits make of it


def test_a_stopped_value_bounds_the_optimum_and_is_not_taken_for_diverged() -> None:
    whole = [trial_result(2.5 + 0.02 * (x + 6.3) ** 2, lr=2.0**x, seed=s) for x in range(-9, -2) for s in (3, 4)]
    stop = Stop(step=9, lr=1.0, best_lr=2.0**-6, gap=3.0, gap_se=0.1, threshold=1.0, keep_nats=KEEP, line_id="l")
    ends = (2.0**-9, 2.0**-3)
    kept = [stopped_result(r.trial, stop) if r.trial.run.hparams.lr in ends else r for r in whole]
    (surface,) = surfaces(kept)
    assert surface.stopped == ((0, 0), (0, 1), (6, 0), (6, 1))
    assert surface.stopped_values == (-9.0, -3.0)
    assert surface.censored == (True, False, False, False, False, False, True)
    assert not any(surface.diverged)
    assert not surface.missing
    assert fit_optimum(surface, band_nats=0.1, n_bootstrap=5, rng=np.random.default_rng(1)).flags == ()


def test_the_figure_marks_what_was_stopped_apart_from_what_diverged() -> None:
    losses = {x: None if x == -2 else 2.5 + 0.02 * (x + 6.3) ** 2 for x in range(-10, -1)}
    results = [trial_result(loss, lr=2.0**x, seed=s) for x, loss in losses.items() for s in (3, 4)]
    stop = Stop(step=9, lr=1.0, best_lr=2.0**-6, gap=3.0, gap_se=0.1, threshold=1.0, keep_nats=KEEP, line_id="l")
    kept = [stopped_result(r.trial, stop) if r.trial.run.hparams.lr < 2.0**-8 else r for r in results]
    fit = fit_sweep(kept, rng=np.random.default_rng(1), band_nats=0.1, n_bootstrap=20)
    figure = loss_against_lr(fit)
    marks = {line.get_marker(): list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() in "+x"}
    assert marks == {"+": [-10.0, -9.0], "x": [-2.0]}
    assert {"stopped early", "diverged"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_lowest_loss_next_to_what_was_stopped_is_no_edge_and_is_flagged() -> None:
    surface = planted_surface(lambda x: 2.5 + 0.03 * (x + 9) ** 2, range(-9, -3), noise=0.001)
    rows = [(None, None), *surface.losses]
    bounded = replace(surface, log2_values=(-10.0, *surface.log2_values), losses=tuple(rows), stopped=((0, 0), (0, 1)))
    fit = partial(fit_optimum, band_nats=0.1, n_bootstrap=20)
    assert Flag.EDGE_LOW in fit(surface, rng=np.random.default_rng(1)).flags
    optimum = fit(bounded, rng=np.random.default_rng(1))
    assert optimum.edge is None
    assert optimum.interval is not None
    assert Flag.NEXT_TO_STOPPED in optimum.flags
    assert Flag.NEXT_TO_DIVERGED not in optimum.flags


# --- packs and rungs


def test_packs_hold_whole_lines_and_lines_that_are_past_their_rungs_are_trained_whole() -> None:
    lrs, decays = [2.0**-k for k in range(3, 9)], (0.0, 0.1, 0.2)
    trials = [trial(lr=lr, seed=s, weight_decay=wd) for lr in lrs for s in (1, 2) for wd in decays]
    rule = Stopping(keep_nats=0.3)
    recorded = completed(trial(lr=1.5, seed=1, weight_decay=0.2))
    packs = halving_packs(make_packs(trials, 5), rule, [recorded, diverged(trial(lr=2.5, seed=1))])
    assert sorted(t.trial_id for p in packs for t in p.trials) == sorted(t.trial_id for t in trials)
    whole = {line_of(t): p for p in packs for t in p.trials if p.stopping == rule}
    assert {line.run.hparams.weight_decay for line in whole} == {0.0, 0.1}
    assert all(len([t for t in p.trials if line_of(t) == line]) == 12 for line, p in whole.items())
    assert {t.run.hparams.weight_decay for p in packs if p.stopping is None for t in p.trials} == {0.2}
    together = halving_packs(make_packs(trials, 24), rule, [])
    assert sorted(len(p.trials) for p in together) == [12, 24]


class AtRung:
    """A pack of nine learning rates and two seeds whose gaps are known."""

    def __init__(self, folder: Path) -> None:
        self.store = ResultStore(folder)
        base = trial()
        run = replace(RUN, optimizer=base.run.optimizer)
        gaps = [3.0, 2.0, 1.0, 0.2, 0.0, 0.2, 0.3, 1.0, 2.0]
        self.gaps = grid(gaps)
        self.trials = tuple(
            replace(base, run=replace(run, seed=seed, hparams=replace(run.hparams, lr=lr)))
            for lr in self.gaps
            for seed in (1, 2)
        )

    def rungs(self) -> Rungs:
        return Rungs(Pack(trials=self.trials), Stopping(), self.store)

    def losses(self, step: int, without: Sequence[Trial] = ()) -> dict[int, torch.Tensor]:
        found = curves(self.gaps, step)
        return {
            i: torch.from_numpy(found[t.run.hparams.lr][t.run.seed - 1])
            for i, t in enumerate(self.trials)
            if t not in without
        }


@pytest.fixture
def at_rung(tmp_path: Path) -> AtRung:
    return AtRung(tmp_path)


def test_both_seeds_stop_and_the_reason_is_on_disk(at_rung: AtRung) -> None:
    halted = at_rung.rungs().halt(at_rung.trials)(64, at_rung.losses(64))
    assert list(halted) == [0, 1, 2, 3]
    stops = at_rung.store.read_stops()
    assert stops.keys() == {t.trial_id for t in at_rung.trials[:4]}
    assert {stop.step for stop in stops.values()} == {64}
    record = json.loads((at_rung.store.folder / "stopped" / f"{at_rung.trials[0].trial_id}.json").read_text())
    assert record["config"]["hparams"]["lr"] == 2.0**-9
    assert record["gap"] == pytest.approx(3.0, abs=0.01)
    assert not at_rung.store.committed_ids()


def test_a_rung_is_decided_once_also_after_a_restart(at_rung: AtRung) -> None:
    at_rung.rungs().halt(at_rung.trials)(64, at_rung.losses(64))
    again, left = at_rung.rungs(), at_rung.losses(64, at_rung.trials[:4])
    assert not again.halt(at_rung.trials)(64, left)
    assert list(again.halt(at_rung.trials)(96, at_rung.losses(96, at_rung.trials[:4]))) == [14, 15, 16, 17]


def test_a_line_that_lacks_a_member_stops_nothing_unless_it_diverged(at_rung: AtRung) -> None:
    lost = at_rung.trials[17:]
    assert not at_rung.rungs().halt(at_rung.trials)(64, at_rung.losses(64, lost))
    at_rung.store.commit(diverged(lost[0]))
    assert list(at_rung.rungs().halt(at_rung.trials)(64, at_rung.losses(64, lost))) == [0, 1, 2, 3]


def test_a_stop_of_a_rule_that_kept_less_is_not_in_force(at_rung: AtRung) -> None:
    at_rung.rungs().halt(at_rung.trials)(64, at_rung.losses(64))
    stricter = Rungs(Pack(trials=at_rung.trials), Stopping(keep_nats=0.9), at_rung.store)
    assert not stricter.stops
    assert Rungs(Pack(trials=at_rung.trials), Stopping(keep_nats=0.1), at_rung.store).stops


def test_a_damaged_stop_is_set_aside_and_its_trial_is_missing(at_rung: AtRung) -> None:
    at_rung.rungs().halt(at_rung.trials)(64, at_rung.losses(64))
    (at_rung.store.folder / "stopped" / f"{at_rung.trials[0].trial_id}.json").write_text('{"step": 3')
    warnings: list[str] = []
    assert len(at_rung.store.read_stops(warn=warnings.append)) == 3
    assert "holds no reason to stop" in warnings[0]
    assert len(list((at_rung.store.folder / "set_aside").iterdir())) == 1


def test_a_stopped_trial_is_no_result(at_rung: AtRung) -> None:
    stop = to_stop(curves(at_rung.gaps), LINE, keep_nats=KEEP)[2.0**-9]
    with pytest.raises(ValueError, match="a stopped trial has no result to commit"):
        at_rung.store.commit(stopped_result(at_rung.trials[0], stop))


# --- real sweeps

STOPPING_SPEC = """
[optimizers.adamw]
axes.lr = { log2_from = -14, log2_to = 2, log2_step = 2 }
[stopping]
rungs = [0.5, 0.75]
keep_nats = 0.1
"""


def write_stopping_sweep(folder: Path) -> tuple[Stopping, tuple[Trial, ...]]:
    """Eighteen trials of 40 steps, at learning rates that hardly learn and up to those that diverge."""
    folder.mkdir(exist_ok=True)
    write_sweep(folder, steps=40)
    text = (folder / "spec.toml").read_text()
    head = text[: text.index("[optimizers.adamw]")].replace("widths = [16, 32]", "widths = [16]")
    (folder / "spec.toml").write_text(head + STOPPING_SPEC)
    spec, trials = read_sweep(folder)
    assert spec.stopping_rule is not None
    return spec.stopping_rule, trials


def run(
    folder: Path,
    trials: Sequence[Trial],
    stopping: Stopping | None,
    mode: Mode = EAGER_LOOP,
    backend: Backend = LOCAL,
) -> tuple[SweepOutcome, list[TrialResult]]:
    events: list[TrialResult] = []
    outcome = run_sweep(
        trials,
        store=ResultStore(folder / "results"),
        data_source=load_spec(folder / "spec.toml").data_source(),
        backend=backend,
        workers=1,
        pack=partial(make_packs, size=3, mode=mode),
        stopping=stopping,
        on_event=lambda event: events.append(event.result) if isinstance(event, TrialFinished) else None,
    )
    return outcome, events


def statuses(outcome: SweepOutcome) -> dict[str, TrialStatus]:
    return {trial_id: result.status for trial_id, result in outcome.results.items()}


def test_a_sweep_stops_resumes_after_a_kill_and_finds_the_same_optimum(tmp_path: Path) -> None:
    stopping, trials = write_stopping_sweep(tmp_path / "whole")
    outcome, finished = run(tmp_path / "whole", trials, stopping)
    n_stopped = outcome.count(TrialStatus.STOPPED)
    assert n_stopped >= 4
    assert outcome.count(TrialStatus.FAILED) == 0
    assert len(trials) == len(finished)
    lowest = {t.trial_id for t in trials if t.run.hparams.lr == min(u.run.hparams.lr for u in trials)}
    assert lowest <= {r.trial_id for r in outcome.results.values() if r.status is TrialStatus.STOPPED}

    write_stopping_sweep(tmp_path / "killed")
    stop_after(start_driver(tmp_path / "killed", "local"), n_stopped + 2, signal.SIGKILL)
    resumed, fresh = run(tmp_path / "killed", trials, stopping)
    assert resumed.reused >= n_stopped + 2
    assert len(fresh) == len(trials) - resumed.reused > 0
    assert statuses(resumed) == statuses(outcome)
    assert all(resumed.results[i].same_numbers(result) for i, result in outcome.results.items())
    assert run(tmp_path / "killed", trials, stopping)[0].reused == len(trials)

    write_stopping_sweep(tmp_path / "stacked")
    stacked, _ = run(tmp_path / "stacked", trials, stopping, Mode(executor="stacked"))
    assert statuses(stacked) == statuses(outcome)

    unstopped, trained = run(tmp_path / "whole", trials, None)
    assert {r.trial_id for r in trained} == {i for i, s in statuses(outcome).items() if s is TrialStatus.STOPPED}
    assert unstopped.count(TrialStatus.STOPPED) == unstopped.count(TrialStatus.FAILED) == 0
    fits = [
        fit_optimum(surface, band_nats=BAND_NATS, n_bootstrap=100, rng=np.random.default_rng(2))
        for found in (outcome, unstopped)
        for surface in surfaces(found.results.values())
    ]
    assert fits[1].interval is not None
    assert fits[1].interval.low <= fits[0].log2_value <= fits[1].interval.high


@pytest.mark.ray
@pytest.mark.slow
def test_ray_stops_the_same_and_tells(tmp_path: Path) -> None:
    from sweeps.ray_backend import RayBackend

    stopping, trials = write_stopping_sweep(tmp_path / "local")
    local, _ = run(tmp_path / "local", trials, stopping)
    write_stopping_sweep(tmp_path / "ray")
    outcome, finished = run(tmp_path / "ray", trials, stopping, backend=RayBackend())
    assert all(outcome.results[i].same_numbers(result) for i, result in local.results.items())
    assert sorted(r.trial_id for r in finished) == sorted(t.trial_id for t in trials)
    assert outcome.count(TrialStatus.STOPPED) == sum(r.status is TrialStatus.STOPPED for r in finished) > 0


# --- what a user sees


@pytest.fixture
def reported(tmp_path: Path) -> tuple[Path, tuple[Trial, ...]]:
    """A folder in which two of nine learning rates were stopped, and four trials are missing."""
    rule, trials = write_stopping_sweep(tmp_path)
    spec, store = load_spec(tmp_path / "spec.toml"), ResultStore(tmp_path / "results")
    store.bind(name=spec.name, spec_text=spec.text, planned_ids=[t.trial_id for t in trials])
    folders.write_origin(store.folder, spec)
    for one in trials:
        log2_lr = round(math.log2(one.run.hparams.lr))
        if log2_lr <= -12:
            stop = Stop(
                step=30,
                lr=one.run.hparams.lr,
                best_lr=2.0**-6,
                gap=2.25,
                gap_se=0.0625,
                threshold=1.5,
                keep_nats=rule.keep_nats,
                line_id=line_of(one).trial_id,
            )
            store.record_stop(one, stop)
        elif log2_lr < 0:
            loss = 2.5 + 0.01 * (log2_lr + 8.7) ** 2 + 0.001 * one.run.seed
            store.commit(replace(completed(one, loss), provenance=provenance()))
    return store.folder, trials


def test_status_counts_what_was_stopped_as_neither_missing_nor_failed(reported: tuple[Path, tuple[Trial, ...]]) -> None:
    status = pipeline.status(reported[0])
    counts = (status.planned, status.completed, status.stopped, status.missing, status.failed_attempts)
    assert counts == (18, 10, 4, 4, 0)
    assert "stopped early" in invoke("status", reported[0]).stdout


def test_the_report_says_what_was_dropped_and_what_that_saved(reported: tuple[Path, tuple[Trial, ...]]) -> None:
    folder, trials = reported
    assert invoke("report", folder).exit_code == 0
    text = (folder / "report" / "report.md").read_text()
    section = text[text.index("## Stopped early") :]
    section = section[: section.index("\n## ")]
    assert "4 trials were stopped early" in section
    assert "more than 0.1 nats above the best" in section
    spent = 4 * training_flops(trials[0].run)
    saved = spent / 4  # after 30 of 40 steps
    assert f"which saved {saved / (10 * 1e9 + spent):.1%} of the model FLOPs" in section
    # A gap of 2.25, less two errors of 0.0625
    assert "| 6.1e-05 (2^-14.00) | 0.0156 (2^-6.00) | 30 | 40 | 2.250 | 2.125 | 1.500 |" in section
    assert section.count("| adamw | 16 |") == 2
    assert "4 more stopped early. 4 are missing" in text
    assert "<h2>Stopped early</h2>" in (folder / "report" / "index.html").read_text()
    assert json.loads((folder / "fits.json").read_text())["n_stopped"] == 4
    assert "Stopped early" not in report_without_section(folder)


def report_without_section(folder: Path) -> str:
    """Switched off, what was stopped is missing again."""
    spec = folder / "spec.toml"
    spec.write_text(spec.read_text().split("[stopping]")[0])
    assert pipeline.status(folder).missing == 8
    assert invoke("report", folder).exit_code == 0
    return (folder / "report" / "report.md").read_text()


# --- the spec


def test_stopping_is_off_unless_the_spec_has_its_section(tmp_path: Path) -> None:
    spec, _ = write_sweep(tmp_path)
    assert spec.stopping_rule is None
    with (tmp_path / "spec.toml").open("a") as file:
        file.write("[stopping]\n")
    assert load_spec(tmp_path / "spec.toml").stopping_rule == Stopping()
    assert Stopping().keep_nats > BAND_NATS


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (f"[stopping]\nkeep_nats = {0.99 * BAND_NATS}", r"stopping\.keep_nats: must be at least 0\.1, got 0\.099"),
        ("[stopping]\nrungs = [1.0]", r"stopping\.rungs\[0\]: must be below 1"),
        ("[stopping]\nrungs = []", r"stopping\.rungs: must have at least one value"),
        ('[stopping]\n[search]\nmethod = "telescope"', r"stopping: must be left out where search\.method"),
    ],
)
def test_a_section_that_cannot_be_is_refused(tmp_path: Path, section: str, message: str) -> None:
    write_sweep(tmp_path)
    with (tmp_path / "spec.toml").open("a") as file:
        file.write(section)
    with pytest.raises(SpecError, match=message):
        load_spec(tmp_path / "spec.toml")
