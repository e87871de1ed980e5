"""Trunk and branch: runs that are the same up to some step train it once.

Two runs take the same steps for as long as their schedules and optimizers agree. Under `wsd` that is the stable phase
of runs that differ in their horizon or in their decay: the longest is the trunk, and the others go on from its state
at the step where they leave it. A branch's numbers are those of the run alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from proxy_models.accounting import training_flops
from proxy_models.config import RunConfig
from proxy_models.mode import Mode
from proxy_models.optimizer_config import Switch
from sweeps.pack import Fork, Pack
from sweeps.trial import Trial

MIN_SHARED_STEPS = 10  # fewer are not worth a state on disk and a wait for it
NO_MODES: Mapping[str, Mode] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Which trials go on from which others. A trunk passes every fork of its own, so there are no longer chains."""

    starts: Mapping[str, Fork]  # branch's trial id -> where it goes on

    @property
    def forks(self) -> Mapping[str, tuple[int, ...]]:
        """Trunk's trial id -> steps at which others go on, ascending."""
        steps: dict[str, set[int]] = {}
        for fork in self.starts.values():
            steps.setdefault(fork.trunk_id, set()).add(fork.step)
        return {trunk_id: tuple(sorted(at)) for trunk_id, at in steps.items()}


def shared_steps(run: RunConfig) -> int:
    """First step (from 0) that the run takes otherwise than the longest run of its `stable_part`, or its length."""
    leaves = [start for start, _ in run.phases[1:]]
    hp = run.hparams
    if run.schedule == "wsd" and hp.final_lr_frac < 1:
        # A step decays if less than decay_tokens are left at its middle: see `schedule_factor`.
        leaves.append((2 * (run.train_tokens - hp.decay_tokens) - hp.batch_tokens) // (2 * hp.batch_tokens) + 1)
    return min(leaves, default=run.steps)


def stable_part(trial: Trial) -> Trial:
    """The trial with all erased that acts after its shared steps: equal for trials that share their beginning."""
    run, hp = trial.run, trial.run.hparams
    decay_tokens, final_lr_frac, train_tokens = hp.decay_tokens, hp.final_lr_frac, run.train_tokens
    if run.schedule == "wsd":  # the shortest run that holds the warmup
        decay_tokens, final_lr_frac = 0, 0.0
        train_tokens = hp.batch_tokens * max(1, math.ceil(hp.warmup_tokens / hp.batch_tokens))
    erased = replace(
        run,
        optimizer=run.optimizer.first if isinstance(run.optimizer, Switch) else run.optimizer,
        hparams=replace(hp, second_lr_ratio=1.0, decay_tokens=decay_tokens, final_lr_frac=final_lr_frac),
        train_tokens=train_tokens,
        validation_tokens=2 * run.model.seq_len,
        batch_change=None,
    )
    return replace(trial, run=erased)


def plan_tree(
    trials: Sequence[Trial],
    modes: Mapping[str, Mode] = NO_MODES,
    *,
    trained: Sequence[Trial] = (),
    has_state: Callable[[Fork], bool] = lambda fork: False,
) -> Tree:
    """Of trials in one mode that share their beginning, all go on from the one whose shared steps are the most.

    `modes` are by trial id, all the same without them. Where a trial that was trained before has left the state, a
    trial goes on from that.
    """
    past = _by_stable_part(trained)
    starts: dict[str, Fork] = {}
    for part, alike in _by_stable_part(trials).items():
        if len(alike) == 1 and part not in past:
            continue
        rooted: dict[Mode | None, list[Trial]] = {}
        for trial in alike:
            kept = [Fork(trunk_id=other.trial_id, step=shared_steps(trial.run)) for other in past.get(part, ())]
            fork = next(filter(has_state, kept), None)
            if fork is None:
                rooted.setdefault(modes.get(trial.trial_id), []).append(trial)
            else:
                starts[trial.trial_id] = fork
        for group in rooted.values():
            starts |= _branches(group)
    return Tree(starts=starts)


def _by_stable_part(trials: Sequence[Trial]) -> Mapping[Trial, Sequence[Trial]]:
    groups: dict[Trial, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(stable_part(trial), []).append(trial)
    return groups


def _branches(group: Sequence[Trial]) -> dict[str, Fork]:
    """Where each trial leaves the trunk; a run's end is not a point to go on from."""
    trunk = max(group, key=lambda trial: (shared_steps(trial.run), trial.run.steps, trial.trial_id))
    steps = {trial.trial_id: shared_steps(trial.run) for trial in group if trial != trunk}
    return {
        trial_id: Fork(trunk_id=trunk.trial_id, step=step)
        for trial_id, step in steps.items()
        if MIN_SHARED_STEPS <= step < trunk.run.steps
    }


def flops_saved(pack: Pack) -> float:
    """Model FLOPs of what a pack's branches do not train anew."""
    branches = [(trial.run, pack.starts[trial.trial_id].step) for trial in pack.trials if trial.trial_id in pack.starts]
    return sum(training_flops(run) * run.tokens_before(step) / run.train_tokens for run, step in branches)


def plan_packs(
    trials: Sequence[Trial],
    pack: Callable[[Sequence[Trial]], Sequence[Pack]],
    *,
    trained: Sequence[Trial] = (),
    has_state: Callable[[Fork], bool] = lambda fork: False,
) -> tuple[Pack, ...]:
    """Packs with their starts and forks: trunks and lone trials first, then branches, each with the most FLOPs first.

    A pack of branches goes on from one step, and holds no trunk. See `plan_tree`.
    """
    packs = pack(trials)
    modes = {trial.trial_id: one.mode for one in packs for trial in one.trials}
    tree = plan_tree(trials, modes, trained=trained, has_state=has_state)
    if not tree.starts:
        return tuple(packs)
    waves: dict[int, list[Trial]] = {0: []}
    for trial in trials:
        fork = tree.starts.get(trial.trial_id)
        waves.setdefault(fork.step if fork else 0, []).append(trial)
    forks = tree.forks
    packs = [_within(one, tree.starts, forks) for wave in waves.values() for one in pack(wave)]
    return tuple(sorted(packs, key=lambda one: (bool(one.starts), flops_saved(one) - one.flops)))


def _within(pack: Pack, starts: Mapping[str, Fork], forks: Mapping[str, tuple[int, ...]]) -> Pack:
    """The pack with its own part of a tree."""
    ids = [trial.trial_id for trial in pack.trials]
    own_starts = {trial_id: starts[trial_id] for trial_id in ids if trial_id in starts}
    own_forks = {trial_id: forks[trial_id] for trial_id in ids if trial_id in forks}
    return replace(pack, starts=own_starts, forks=own_forks) if own_starts or own_forks else pack
