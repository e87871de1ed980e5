"""Trials in this process, one after the other, without Ray: the same worker code, the same files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.pack import Pack
from sweeps.run import BackendError, OnEvent, PackStarted
from sweeps.store import ResultStore

if TYPE_CHECKING:
    from proxy_models.data import DataSource


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """One worker: this process. Sets torch to one thread and deterministic kernels, and leaves it so."""

    def execute(
        self,
        packs: Sequence[Pack],
        *,
        store: ResultStore,
        data_source: "DataSource",
        workers: int,
        on_event: OnEvent,
    ) -> None:
        """See `sweeps.run.Backend`.

        Raises:
            BackendError: more than one worker is asked for.
            DataError, StoreError: as `sweeps.worker.run_pack`.
        """
        from sweeps.worker import prepare_process, run_pack

        if workers != 1:
            raise BackendError(f"the local backend is one process: workers must be 1, got {workers}. Or use ray.")
        prepare_process()
        for pack in packs:
            on_event(PackStarted(trials=pack.trials))
            run_pack(pack, data_source=data_source, store=store, on_event=on_event)
