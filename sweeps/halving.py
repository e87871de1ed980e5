"""Successive halving within packs: which trials a pack holds for it, and what a worker does at a pack's rungs."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sweeps.pack import Pack, shape_of
from sweeps.stopping import Floats, Stop, Stopping, in_force, line_of, lines, to_stop
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult, TrialStatus

if TYPE_CHECKING:
    from torch import Tensor


def halving_packs(packs: Sequence[Pack], stopping: Stopping, done: Iterable[TrialResult]) -> tuple[Pack, ...]:
    """Packs of the same trials that hold whole lines, however small they were, the most FLOPs first.

    A line of which some trials are completed has passed its rungs: the others are not stopped.
    """
    passed = {line_of(result.trial) for result in done if result.status is TrialStatus.COMPLETED}
    by_shape: dict[Trial, list[Pack]] = {}
    for pack in packs:
        by_shape.setdefault(shape_of(pack.trials[0]), []).append(pack)
    regrouped: list[Pack] = []
    for group in by_shape.values():
        size = max(len(pack.trials) for pack in group)
        found = lines([trial for pack in group for trial in pack.trials])
        for rule in (None, stopping):
            chosen = [trials for line, trials in found.items() if (line in passed) == (rule is None)]
            regrouped += [replace(group[0], trials=trials, stopping=rule) for trials in _filled(chosen, size)]
    return tuple(sorted(regrouped, key=lambda pack: -pack.flops))


def _filled(groups: Iterable[Sequence[Trial]], size: int) -> list[tuple[Trial, ...]]:
    """Whole groups together, up to `size` trials or one group."""
    filled: list[tuple[Trial, ...]] = []
    for group in groups:
        if filled and len(filled[-1]) + len(group) <= size:
            filled[-1] += tuple(group)
        else:
            filled.append(tuple(group))
    return filled


class Rungs:
    """Says which members of a pack stop at a rung, after it has recorded why.

    A line decides a rung once, by all of its trials but those that diverged or were stopped before; where one of them
    is missing for another reason (it failed), nothing is stopped.
    """

    def __init__(self, pack: Pack, stopping: Stopping, store: ResultStore) -> None:
        self.stopping, self.store = stopping, store
        self.steps = stopping.steps(pack.trials[0].run)
        self.lines = lines(pack.trials)
        self.stops = in_force(store.read_stops(), stopping)

    def halt(self, trials: Sequence[Trial]) -> "Callable[[int, Mapping[int, Tensor]], Collection[int]]":
        """The `halt` of `train` for these trials of the pack, which are its members in this order."""

        def halted(step: int, losses: "Mapping[int, Tensor]") -> Collection[int]:
            curves = {trials[member]: np.asarray(losses[member], dtype=np.float64) for member in losses}
            fresh = {
                trial.trial_id: stop
                for line, planned in self.lines.items()
                if self._decides(line, planned, step, curves)
                for trial, stop in self._stops(line, planned, curves)
            }
            for trial in curves:
                if trial.trial_id in fresh:
                    self.store.record_stop(trial, fresh[trial.trial_id])
            self.stops |= fresh
            return [member for member in losses if trials[member].trial_id in fresh]

        return halted

    def _decides(self, line: Trial, planned: Sequence[Trial], step: int, curves: Mapping[Trial, Floats]) -> bool:
        line_id = line.trial_id
        if any(stop.line_id == line_id and stop.step >= step for stop in self.stops.values()):
            return False
        return all(trial in curves or self._ended(trial) for trial in planned)

    def _ended(self, trial: Trial) -> bool:
        if trial.trial_id in self.stops:
            return True
        result = self.store.read_one(trial.trial_id)
        return result is not None and result.status is TrialStatus.DIVERGED

    def _stops(self, line: Trial, planned: Sequence[Trial], curves: Mapping[Trial, Floats]) -> list[tuple[Trial, Stop]]:
        """Of every seed of a learning rate that is dropped. One that lacks a seed is not compared."""
        by_lr: dict[float, dict[int, Floats]] = {}
        for trial in planned:
            if trial in curves:
                by_lr.setdefault(trial.run.hparams.lr, {})[trial.run.seed] = curves[trial]
        seeds = sorted({trial.run.seed for trial in planned})
        whole = {lr: np.stack([own[seed] for seed in seeds]) for lr, own in by_lr.items() if len(own) == len(seeds)}
        if not whole:
            return []
        dropped = to_stop(whole, line, keep_nats=self.stopping.keep_nats)
        return [(trial, dropped[lr]) for trial in planned if (lr := trial.run.hparams.lr) in dropped]
