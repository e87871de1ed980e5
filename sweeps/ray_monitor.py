"""What the driver hears of a sweep that Ray Tune runs: results as their files appear, workers that were lost."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune

from sweeps.basin import PARAMETER, Basin, OnSuggest
from sweeps.pack import Pack
from sweeps.progress import WRITE_SECONDS, read_progress
from sweeps.provenance import provenance
from sweeps.ray_worker import BASIN, PACK
from sweeps.run import BackendError, Interrupted, OnEvent, PackStarted, TrialFinished, TrialProgress
from sweeps.stopping import Stopping, stopped_results
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult

_POLL_SECONDS = 0.5
_POLL_SHARE = 0.05  # of the driver's time, at most


class Monitor(tune.Callback):  # type: ignore[misc]
    """Tells of trials as their files appear. Tune calls it from its loop, several times a second.

    Only the trials of running packs are looked for, so that a long sweep costs no more a second than a short one.
    """

    def __init__(
        self,
        *,
        pack_of: Callable[[Mapping[str, Any]], Pack],  # of a Tune trial's config
        store: ResultStore,
        on_event: OnEvent,
        received: Sequence[int],
    ) -> None:
        self.pack_of, self.store, self.on_event, self.received = pack_of, store, on_event, received
        self.running: dict[str, Pack] = {}  # by Tune's trial id
        self.told: set[str] = set()  # ids of trials whose result is known
        self.lost: list[Any] = []  # Tune's trials whose worker died
        self.stop = ""  # why a worker says that the sweep cannot go on
        self.next_poll = 0.0
        self.next_look = 0.0  # at the workers' own reports

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pack = self.pack_of(trial.config)
        self.running[trial.trial_id] = pack
        self.on_event(PackStarted(trials=pack.trials))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.received:  # the handler's exception was swallowed on its way
            raise Interrupted(self.received[0])
        self.raise_if_stopped()
        start = time.monotonic()
        if start >= self.next_poll:
            for pack in self.running.values():
                self.report_finished(pack)
            if start >= self.next_look:
                self.report_progress()
                self.next_look = start + WRITE_SECONDS
            now = time.monotonic()
            self.next_poll = now + max(_POLL_SECONDS, (now - start) / _POLL_SHARE)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.stop = self.stop or result.get("stop", "")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.report_finished(self.running.pop(trial.trial_id))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.lost.append(trial)

    def raise_if_stopped(self) -> None:
        if self.stop:
            raise BackendError(f"a worker cannot go on: {self.stop}")

    def report_finished(self, pack: Pack) -> None:
        """Send an event for each result of a pack, and each trial of it stopped early, since the last call."""
        for trial in (trial for trial in pack.trials if trial.trial_id not in self.told):
            result = self.store.read_one(trial.trial_id) or self._stopped(trial, pack.stopping)
            if result is not None:
                self.told.add(trial.trial_id)
                self.on_event(TrialFinished(result=result))

    def _stopped(self, trial: Trial, rule: Stopping | None) -> TrialResult | None:
        stop = None if rule is None else self.store.read_stop(trial.trial_id)
        return None if stop is None else stopped_results([trial], {trial.trial_id: stop}, rule).get(trial.trial_id)

    def report_progress(self) -> None:
        """Send an event for each trial that a worker says it trains."""
        running = {trial.trial_id: trial for pack in self.running.values() for trial in pack.trials}
        for worker in read_progress(self.store.folder):
            for one in worker.running:
                if one.trial_id in running and one.trial_id not in self.told:
                    self.on_event(TrialProgress(trial=running[one.trial_id], step=one.step))

    def finish(self) -> None:
        """After the last trial: the last events, and the lost.

        Raises:
            BackendError: a worker said that the sweep cannot go on.
        """
        for pack in self.running.values():
            self.report_finished(pack)
        self.raise_if_stopped()
        for lost in self.lost:
            self.record_lost(lost)

    def record_lost(self, lost: Any) -> None:
        """Record why the trials of a pack whose worker died have no result."""
        error = describe_loss(lost.get_pickled_error() or lost.get_error())
        for trial in self.pack_of(lost.config).trials:
            if trial.trial_id not in self.told:
                self.store.record_failure(trial, error, provenance())


def pack_monitor(packs: Sequence[Pack], **monitor: Any) -> Monitor:
    """A monitor of a sweep whose packs are known."""
    return Monitor(pack_of=lambda config: packs[config[PACK]], **monitor)


class BasinMonitor(Monitor):
    """A monitor that tells of learning rates as they are suggested, before they run."""

    def __init__(self, *, basins: Sequence[Basin], on_suggest: OnSuggest, **monitor: Any) -> None:
        super().__init__(pack_of=lambda config: basins[config[BASIN]].pack_at(config[PARAMETER]), **monitor)
        self.basins, self.on_suggest = basins, on_suggest

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune calls this before the worker gets the trial."""
        self.on_suggest(self.basins[trial.config[BASIN]], trial.config[PARAMETER])
        ids = [one.trial_id for one in self.pack_of(trial.config).trials]
        self.told.update(one for one in ids if self.store.is_committed(one))
        super().on_trial_start(iteration, trials, trial, **info)


def describe_loss(error: object) -> str:
    """One line, without addresses and paths: the first of Ray's many, or the last if it holds a traceback."""
    lines = str(error).strip().splitlines() or [""]
    has_traceback = any(line.startswith("Traceback") or "creation task" in line for line in lines)
    return f"a worker was lost: {type(error).__name__}: {lines[-1] if has_traceback else lines[0]}"
