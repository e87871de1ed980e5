"""A Ray to run on: one of our own that starts and ends with a sweep, or a running cluster."""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ray

from sweeps.run import BackendError, Interrupted

_SETTINGS: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files a trial and twice the memory
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own makes Ctrl-C look like success
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's state is never read, and is rewritten whole each time
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even with verbose=0
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers import these while Ray and Tune start, not after a pack has been given to them.
    "RAY_preload_python_modules": "sweeps.ray_worker,sweeps.worker",
}
_PROBE_SECONDS = 10.0
_kept: ContextVar[bool] = ContextVar("_kept", default=False)


@contextmanager
def kept_cluster() -> Iterator[None]:
    """Within this, the Ray that the first sweep starts or reaches serves the next ones too, and ends with this."""
    before = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(before)
        ray.shutdown()


@contextmanager
def cluster(address: str | None, *, workers: int, gpus_per_worker: float) -> Iterator[None]:
    """A Ray of our own for as long as this lasts, a connection to a running one, or what `kept_cluster` keeps.

    Raises:
        BackendError: Ray does not start, the cluster cannot be reached, or it has no GPU to give.
    """
    if address is not None and address.startswith("ray://"):
        raise BackendError(
            f"Ray Tune does not work well through Ray Client, got the address {address}. Run this command on the "
            "cluster with --address auto, or submit it as a Ray job."
        )
    try:
        if not ray.is_initialized():
            _start(address, workers)
        _refuse_missing_gpus(gpus_per_worker)
        yield
    finally:
        if not _kept.get():
            ray.shutdown()


def _start(address: str | None, workers: int) -> None:
    os.environ.update(_SETTINGS)
    if address is not None:
        _connect(address, {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}})
        return
    # Ray listens on all interfaces and asks for a token unless RAY_AUTH_MODE says otherwise: one of this process's own
    # keeps others out and the home folder untouched.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _inherited("OMP_NUM_THREADS", "1"):  # a runtime_env costs a second: workers that wait are then of no use
        _connect("local", {"num_cpus": workers, "include_dashboard": False})


@contextmanager
def _inherited(name: str, value: str) -> Iterator[None]:
    """What processes that are started meanwhile find in their environment, and this one not afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _connect(address: str, options: Mapping[str, Any]) -> None:
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray itself would wait for minutes where nobody listens
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except SystemExit:  # what Ray's own handler makes of a SIGTERM
        raise Interrupted(signal.SIGTERM) from None
    except Exception as error:
        raise BackendError(
            f"Ray does not start at address '{address}': {error}. Check the cluster with `ray status`, or use "
            "--backend local."
        ) from error


def _refuse_missing_gpus(gpus_per_worker: float) -> None:
    """Tune would wait for them for ever."""
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if gpus_per_worker > gpus:
        raise BackendError(
            f"a worker is to have {gpus_per_worker:g} GPUs, and Ray has {gpus:g} in all. Use --gpus-per-worker only "
            "where there are GPUs, at most as many as there are."
        )


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A folder for Tune's own files, removed afterwards; on a cluster it lies where all nodes see it."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".ray-tune-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
