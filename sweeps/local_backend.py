"""Trials in this process, one after the other, without Ray: the same worker code, the same files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.basin import PARAMETER, Basin, OnSuggest, objective
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
        from sweeps.worker import run_pack

        _prepare(workers)
        for pack in packs:
            on_event(PackStarted(trials=pack.trials))
            run_pack(pack, data_source=data_source, store=store, on_event=on_event)

    def refine(
        self,
        basins: Sequence[Basin],
        *,
        store: ResultStore,
        data_source: "DataSource",
        workers: int,
        on_event: OnEvent,
        on_suggest: OnSuggest,
    ) -> None:
        """See `sweeps.basin.Refiner`. Raises as `execute`."""
        from optuna.trial import TrialState

        from sweeps.worker import run_pack

        _prepare(workers)
        for basin in basins:
            study = basin.study()
            for _ in range(basin.n_suggestions):
                asked = study.ask(fixed_distributions=dict(basin.space()))
                on_suggest(basin, asked.params[PARAMETER])
                pack = basin.pack_at(asked.params[PARAMETER])
                on_event(PackStarted(trials=pack.trials))
                run_pack(pack, data_source=data_source, store=store, on_event=on_event)
                loss = objective(store.read_one(trial.trial_id) for trial in pack.trials)
                study.tell(asked, loss, state=TrialState.PRUNED if loss is None else TrialState.COMPLETE)


def _prepare(workers: int) -> None:
    from sweeps.worker import prepare_process

    if workers != 1:
        raise BackendError(f"the local backend is one process: workers must be 1, got {workers}. Or use ray.")
    prepare_process()
