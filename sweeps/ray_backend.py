"""Ray Tune as executor. The only file that imports ray.

Tune gets one axis, the packs. Workers commit results themselves, so nothing that Tune knows is needed again:
its files go to a temporary folder, a resumed sweep is a new Tune run over what is missing, and `Tuner.restore`
is not used (it can lose a grid without an error).
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from proxy_models.data import DataError, DataSource
from sweeps.pack import Pack
from sweeps.provenance import provenance
from sweeps.run import BackendError, Interrupted, OnEvent, PackStarted, TrialFinished, raising_interrupted
from sweeps.store import ResultStore, StoreError

_SETTINGS: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files a trial and twice the memory
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own makes Ctrl-C look like success
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even with verbose=0
    "RAY_USAGE_STATS_ENABLED": "0",
}
_POLL_SECONDS = 0.5
_PROBE_SECONDS = 10.0


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
        with (
            _cluster(self.address, workers),
            raising_interrupted() as received,
            _scratch_folder(None if self.address is None else shared.folder) as scratch,
        ):
            monitor = _Monitor(packs=packs, store=shared, on_event=on_event, received=received)
            _tuner(packs, shared, data_source, workers, scratch, monitor).fit()
            monitor.report_finished()
            monitor.raise_if_stopped()
            monitor.record_lost()


def _tuner(
    packs: Sequence[Pack],
    store: ResultStore,
    data_source: DataSource,
    workers: int,
    scratch: Path,
    monitor: "_Monitor",
) -> tune.Tuner:
    trainable = tune.with_parameters(_PackRunner, packs=packs, store=store, data_source=data_source)
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"pack": tune.grid_search(list(range(len(packs))))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=workers),
        run_config=tune.RunConfig(
            storage_path=str(scratch),
            verbose=0,
            # A lost pack is tried again by the sweep itself, which knows what the pack had finished.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[monitor],
        ),
    )


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


class _Monitor(tune.Callback):  # type: ignore[misc]
    """Tells of trials as their files appear. Tune calls it from its loop, several times a second."""

    def __init__(
        self, *, packs: Sequence[Pack], store: ResultStore, on_event: OnEvent, received: Sequence[int]
    ) -> None:
        self.packs, self.store, self.on_event, self.received = packs, store, on_event, received
        self.waiting = {trial.trial_id for pack in packs for trial in pack.trials}
        self.lost: list[Any] = []  # Tune's trials, which are packs, whose worker died
        self.stop = ""  # why a worker says that the sweep cannot go on
        self.next_poll = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_event(PackStarted(trials=self.packs[trial.config["pack"]].trials))

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

    def record_lost(self) -> None:
        """Record why the trials of packs whose worker died have no result."""
        for lost in self.lost:
            error = _describe_loss(lost.get_pickled_error() or lost.get_error())
            for trial in self.packs[lost.config["pack"]].trials:
                if trial.trial_id in self.waiting:
                    self.store.record_failure(trial, error, provenance())


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
