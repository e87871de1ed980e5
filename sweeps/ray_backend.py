"""Ray Tune as executor. The only file that imports ray.

Tune gets one axis, the packs, or learning rates one by one from `OptunaSearch`. Workers commit results themselves,
so nothing that Tune knows is needed again: its files go to a temporary folder, a resumed sweep is a new Tune run over
what is missing, and `Tuner.restore` is not used (it can lose a grid without an error).
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from proxy_models.data import DataError, DataSource
from sweeps.basin import PARAMETER, Basin, OnSuggest, objective
from sweeps.pack import Pack
from sweeps.provenance import provenance
from sweeps.run import BackendError, Interrupted, OnEvent, PackStarted, TrialFinished, raising_interrupted
from sweeps.store import ResultStore, StoreError
from sweeps.trial import Trial

_SETTINGS: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files a trial and twice the memory
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own makes Ctrl-C look like success
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even with verbose=0
    "RAY_USAGE_STATS_ENABLED": "0",
}
_POLL_SECONDS = 0.5
_PROBE_SECONDS = 10.0
_BASIN = "basin"  # index, in a Tune trial's config
_LOSS = "mean_validation_loss"  # over seeds, what Optuna minimizes


@dataclass(frozen=True, slots=True)
class RayBackend:
    """Workers of one CPU and one torch thread each, on this machine or, with `address`, on a running cluster."""

    address: str | None = None

    def execute(
        self,
        packs: Sequence[Pack],
        *,
        store: ResultStore,
        data_source: DataSource,
        workers: int,
        on_event: OnEvent,
    ) -> None:
        """See `sweeps.run.Backend`. On a cluster, results folder and data must be on storage that all nodes share.

        Raises:
            BackendError: Ray does not start, the cluster cannot be reached, or a worker can neither read the
                data nor record results.
            Interrupted: SIGINT or SIGTERM.
        """
        shared = ResultStore(store.folder.resolve())
        with self._session(shared, workers) as (scratch, received):
            monitor = _Monitor(
                trials_of=lambda config: packs[config["pack"]].trials,
                waiting={trial.trial_id for pack in packs for trial in pack.trials},
                store=shared,
                on_event=on_event,
                received=received,
            )
            trainable = tune.with_parameters(_PackRunner, packs=packs, store=shared, data_source=data_source)
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                param_space={"pack": tune.grid_search(list(range(len(packs))))},
                tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=workers),
                run_config=_run_config(scratch, monitor),
            ).fit()
            monitor.finish()

    def refine(
        self,
        basins: Sequence[Basin],
        *,
        store: ResultStore,
        data_source: DataSource,
        workers: int,
        on_event: OnEvent,
        on_suggest: OnSuggest,
    ) -> None:
        """See `sweeps.basin.Refiner`; raises as `execute`.

        Basins take turns, and as many learning rates are tried at a time as there are workers. With more than one
        worker, what Optuna suggests depends on which results it has seen.
        """
        shared = ResultStore(store.folder.resolve())
        with self._session(shared, workers) as (scratch, received):
            monitor = _BasinMonitor(
                basins=basins, on_suggest=on_suggest, store=shared, on_event=on_event, received=received
            )
            trainable = tune.with_parameters(_BasinRunner, basins=basins, store=shared, data_source=data_source)
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=_BasinSearch(basins),
                    num_samples=sum(basin.n_suggestions for basin in basins),
                    reuse_actors=True,
                    max_concurrent_trials=workers,
                ),
                run_config=_run_config(scratch, monitor),
            ).fit()
            monitor.finish()

    @contextmanager
    def _session(self, store: ResultStore, workers: int) -> Iterator[tuple[Path, Sequence[int]]]:
        """A cluster, a folder for Tune's own files, and the signals received so far."""
        with (
            _cluster(self.address, workers),
            raising_interrupted() as received,
            _scratch_folder(None if self.address is None else store.folder) as scratch,
        ):
            yield scratch, received


def _run_config(scratch: Path, monitor: "_Monitor") -> tune.RunConfig:
    return tune.RunConfig(
        storage_path=str(scratch),
        verbose=0,
        # A lost pack is tried again by the sweep itself, which knows what the pack had finished.
        failure_config=tune.FailureConfig(max_failures=0),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[monitor],
    )


class _BasinSearch(Searcher):  # type: ignore[misc]
    """One `OptunaSearch` a basin, taking turns, so that each sees many of its results before it suggests again."""

    def __init__(self, basins: Sequence[Basin]) -> None:
        super().__init__(metric=_LOSS, mode="min")
        self.searches = [_optuna_search(basin) for basin in basins]
        rounds = range(max(basin.n_suggestions for basin in basins))
        self.turns = [i for turn in rounds for i, basin in enumerate(basins) if turn < basin.n_suggestions]
        self.owners: dict[str, int] = {}  # Tune's trial id -> basin

    def suggest(self, trial_id: str) -> dict[str, Any]:
        basin = self.turns.pop(0)
        self.owners[trial_id] = basin
        return {_BASIN: basin, **self.searches[basin].suggest(trial_id)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.searches[self.owners.pop(trial_id)].on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file. It is never read: a resumed sweep is a new Tune run over what is missing."""
        Path(checkpoint_path).touch()


def _optuna_search(basin: Basin) -> OptunaSearch:
    """Optuna's suggestions, after what is known: values that diverged, which `evaluated_rewards` cannot say, too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = OptunaSearch(dict(basin.space()), metric=_LOSS, mode="min", sampler=basin.sampler())
    for known in basin.known_trials():
        search.add_evaluated_point(known.params, known.value, pruned=known.state is optuna.trial.TrialState.PRUNED)
    return search


class _PackRunner(tune.Trainable):  # type: ignore[misc]
    """A worker. Lives on from pack to pack, so torch and the data are loaded once."""

    def setup(self, config: dict[str, Any], packs: Sequence[Pack], store: ResultStore, data_source: DataSource) -> None:
        from sweeps.worker import prepare_process

        prepare_process()
        self.packs, self.store, self.data_source = packs, store, data_source

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune then sets `config` and calls `step` again."""
        return True

    def step(self) -> dict[str, Any]:
        """Run one pack. Its results are in the store; Tune hears that it is done, or why the sweep must stop."""
        from sweeps.worker import describe, run_pack

        pack = self.packs[self.config["pack"]]
        try:
            run_pack(pack, data_source=self.data_source, store=self.store, on_event=lambda event: None)
        except (DataError, StoreError, OSError) as error:
            return {"done": True, "stop": describe(error)}
        return {"done": True}


class _BasinRunner(tune.Trainable):  # type: ignore[misc]
    """A worker that trains all seeds at a suggested learning rate and tells Tune their mean loss."""

    def setup(
        self, config: dict[str, Any], basins: Sequence[Basin], store: ResultStore, data_source: DataSource
    ) -> None:
        from sweeps.worker import prepare_process

        prepare_process()
        self.basins, self.store, self.data_source = basins, store, data_source

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """As `_PackRunner`."""
        return True

    def step(self) -> dict[str, Any]:
        """Run one pack. No loss, where a seed diverged or failed, makes the trial a pruned one to Optuna."""
        from sweeps.worker import describe, run_pack

        pack = self.basins[self.config[_BASIN]].pack_at(self.config[PARAMETER])
        try:
            run_pack(pack, data_source=self.data_source, store=self.store, on_event=lambda event: None)
            loss = objective(self.store.read_one(trial.trial_id) for trial in pack.trials)
        except (DataError, StoreError, OSError) as error:
            return {"done": True, _LOSS: None, "stop": describe(error)}
        return {"done": True, _LOSS: loss}


class _Monitor(tune.Callback):  # type: ignore[misc]
    """Tells of trials as their files appear. Tune calls it from its loop, several times a second."""

    def __init__(
        self,
        *,
        trials_of: Callable[[Mapping[str, Any]], tuple[Trial, ...]],
        waiting: set[str],
        store: ResultStore,
        on_event: OnEvent,
        received: Sequence[int],
    ) -> None:
        self.trials_of, self.waiting = trials_of, waiting  # of a Tune trial's config; ids without a result
        self.store, self.on_event, self.received = store, on_event, received
        self.lost: list[Any] = []  # Tune's trials, which are packs, whose worker died
        self.stop = ""  # why a worker says that the sweep cannot go on
        self.next_poll = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_event(PackStarted(trials=self.trials_of(trial.config)))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.received:  # the handler's exception was swallowed on its way
            raise Interrupted(self.received[0])
        self.raise_if_stopped()
        if time.monotonic() >= self.next_poll:
            self.report_finished()
            self.next_poll = time.monotonic() + _POLL_SECONDS

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.stop = self.stop or result.get("stop", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.lost.append(trial)

    def raise_if_stopped(self) -> None:
        if self.stop:
            raise BackendError(f"a worker cannot go on: {self.stop}")

    def report_finished(self) -> None:
        """Send an event for each result that has appeared since the last call."""
        for trial_id in sorted(self.waiting & self.store.committed_ids()):
            result = self.store.read_one(trial_id)
            if result is not None:
                self.waiting.remove(trial_id)
                self.on_event(TrialFinished(result=result))

    def finish(self) -> None:
        """After the last trial: the last events, and the lost.

        Raises:
            BackendError: a worker said that the sweep cannot go on.
        """
        self.report_finished()
        self.raise_if_stopped()
        self.record_lost()

    def record_lost(self) -> None:
        """Record why the trials of packs whose worker died have no result."""
        for lost in self.lost:
            error = _describe_loss(lost.get_pickled_error() or lost.get_error())
            for trial in self.trials_of(lost.config):
                if trial.trial_id in self.waiting:
                    self.store.record_failure(trial, error, provenance())


class _BasinMonitor(_Monitor):
    """A monitor that learns of the trials as they are suggested, and tells of them before they run."""

    def __init__(self, *, basins: Sequence[Basin], on_suggest: OnSuggest, **monitor: Any) -> None:
        super().__init__(
            trials_of=lambda config: basins[config[_BASIN]].pack_at(config[PARAMETER]).trials, waiting=set(), **monitor
        )
        self.basins, self.on_suggest = basins, on_suggest

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune calls this before the worker gets the trial."""
        self.on_suggest(self.basins[trial.config[_BASIN]], trial.config[PARAMETER])
        self.waiting |= {one.trial_id for one in self.trials_of(trial.config)} - self.store.committed_ids()
        super().on_trial_start(iteration, trials, trial, **info)


def _describe_loss(error: object) -> str:
    """One line, without addresses and paths: the first of Ray's many, or the last if it holds a traceback."""
    lines = str(error).strip().splitlines() or [""]
    has_traceback = any(line.startswith("Traceback") or "creation task" in line for line in lines)
    return f"a worker was lost: {type(error).__name__}: {lines[-1] if has_traceback else lines[0]}"


@contextmanager
def _cluster(address: str | None, workers: int) -> Iterator[None]:
    """A Ray of our own for as long as this lasts, or a connection to a running one."""
    if address is not None and address.startswith("ray://"):
        raise BackendError(
            f"Ray Tune does not work well through Ray Client, got the address {address}. Run this command on the "
            "cluster with --address auto, or submit it as a Ray job."
        )
    os.environ.update(_SETTINGS)
    local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    if address is None:
        # Ray listens on all interfaces and asks for a token unless RAY_AUTH_MODE says otherwise: one of this
        # process's own keeps others out and the home folder untouched.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        _connect(address or "local", local)
        yield
    finally:
        ray.shutdown()


def _connect(address: str, local: Mapping[str, Any]) -> None:
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray itself would wait for minutes where nobody listens
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
        ray.init(
            address=address,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            **local,
        )
    except SystemExit:  # what Ray's own handler makes of a SIGTERM
        raise Interrupted(signal.SIGTERM) from None
    except Exception as error:
        raise BackendError(
            f"Ray does not start at address '{address}': {error}. Check the cluster with `ray status`, or use "
            "--backend local."
        ) from error


@contextmanager
def _scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A folder for Tune's own files, removed afterwards; on a cluster it lies where all nodes see it."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".ray-tune-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
