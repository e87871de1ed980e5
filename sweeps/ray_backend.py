"""Ray Tune as executor. Only the modules `ray_*` of this package import ray.

Tune gets the packs one by one, or learning rates from `OptunaSearch`. Workers commit results themselves, so nothing
that Tune knows is needed again: its files go to a temporary folder, a resumed sweep is a new Tune run over what is
missing, and `Tuner.restore` is not used (it can lose a grid without an error).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from proxy_models.data import DataSource
from sweeps.basin import Basin, OnSuggest
from sweeps.pack import Pack
from sweeps.ray_cluster import cluster, scratch_folder
from sweeps.ray_monitor import BasinMonitor, Monitor, pack_monitor
from sweeps.ray_search import BasinSearch, PackSearch
from sweeps.ray_worker import BasinRunner, PackRunner, shared_data
from sweeps.run import OnEvent, raising_interrupted
from sweeps.store import ResultStore


@dataclass(frozen=True, slots=True)
class RayBackend:
    """Workers of one CPU and one torch thread each, on this machine or, with `address`, on a running cluster."""

    address: str | None = None
    gpus_per_worker: float = 0.0  # a fraction shares a GPU between workers; nothing keeps them from filling its memory

    def execute(
        self,
        packs: Sequence[Pack],
        *,
        store: ResultStore,
        data_source: DataSource,
        workers: int,
        on_event: OnEvent,
    ) -> None:
        """See `sweeps.run.Backend`. On a cluster, the results folder must be on storage that all nodes share.

        Raises:
            DataError: text that cannot be read.
            BackendError: Ray does not start, the cluster cannot be reached, or a worker can neither read the
                data nor record results.
            Interrupted: SIGINT or SIGTERM.
        """
        shared = ResultStore(store.folder.resolve())
        data = shared_data(data_source, [trial for pack in packs for trial in pack.trials])
        with self._session(shared, workers) as (scratch, received):
            monitor = pack_monitor(packs, store=shared, on_event=on_event, received=received)
            search = PackSearch(packs, folder=shared.folder, has_ended=monitor.told.__contains__)
            trainable = tune.with_parameters(PackRunner, packs=packs, store=shared, data=data)
            # Of workers that end a pack at the same moment Tune keeps as many as it has trials waiting, and one. On a
            # Ray of our own those that wait cannot run, for it has a CPU for each worker and no more.
            waiting = workers if self.address is None else 0
            self._run(trainable, search, len(packs), workers + waiting, scratch, monitor)

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
        data = shared_data(data_source, [trial for basin in basins for trial in basin.templates])
        with self._session(shared, workers) as (scratch, received):
            monitor = BasinMonitor(
                basins=basins, on_suggest=on_suggest, store=shared, on_event=on_event, received=received
            )
            trainable = tune.with_parameters(BasinRunner, basins=basins, store=shared, data=data)
            n_suggestions = sum(basin.n_suggestions for basin in basins)
            self._run(trainable, BasinSearch(basins), n_suggestions, workers, scratch, monitor)

    @contextmanager
    def _session(self, store: ResultStore, workers: int) -> Iterator[tuple[Path, Sequence[int]]]:
        """A cluster, a folder for Tune's own files, and the signals received so far."""
        with (
            cluster(self.address, workers=workers, gpus_per_worker=self.gpus_per_worker),
            raising_interrupted() as received,
            scratch_folder(None if self.address is None else store.folder) as scratch,
        ):
            yield scratch, received

    def _run(
        self, trainable: Any, search: Searcher, n_tasks: int, most_at_once: int, scratch: Path, monitor: Monitor
    ) -> None:
        """Have Tune run what the search suggests, so many tasks running or waiting at a time."""
        resources = {"cpu": 1.0} | ({"gpu": self.gpus_per_worker} if self.gpus_per_worker else {})
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=n_tasks, reuse_actors=True, max_concurrent_trials=most_at_once
            ),
            run_config=tune.RunConfig(
                storage_path=str(scratch),
                verbose=0,
                # A lost pack is tried again by the sweep itself, which knows what the pack had finished.
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[monitor],
            ),
        ).fit()
        monitor.finish()
