"""What Ray Tune runs next: packs as soon as they can start, or the learning rates that Optuna suggests."""

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sweeps.basin import Basin
from sweeps.checkpoints import fork_file
from sweeps.pack import Fork, Pack
from sweeps.ray_worker import BASIN, LOSS, PACK


class _FreshSearch(Searcher):  # type: ignore[misc]
    """A search that is never resumed."""

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file. It is never read: a resumed sweep is a new Tune run over what is missing."""
        Path(checkpoint_path).touch()


class PackSearch(_FreshSearch):
    """Packs in their order, but none before the states that its trials go on from are there.

    A state that cannot come any more is not waited for: its trunk has ended, or its worker was lost. The trial then
    trains from its beginning.
    """

    def __init__(self, packs: Sequence[Pack], *, folder: Path, has_ended: Callable[[str], bool]) -> None:
        """`has_ended` says of a trial's id that it has a result."""
        super().__init__()
        self.folder, self.has_ended = folder, has_ended
        self.members = [tuple(trial.trial_id for trial in pack.trials) for pack in packs]
        self.open = {trial_id for members in self.members for trial_id in members}  # of packs that have not ended
        self.missing = {i: _awaited(pack) for i, pack in enumerate(packs) if _awaited(pack)}
        self.ready = [i for i in range(len(packs)) if i not in self.missing]  # a heap
        self.running: dict[str, int] = {}  # Tune's trial id -> pack

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The first pack that can start; None, upon which Tune asks again within a tenth of a second."""
        self._look()
        if not self.ready:
            return None if self.missing else Searcher.FINISHED
        self.running[trial_id] = heapq.heappop(self.ready)
        return {PACK: self.running[trial_id]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.open.difference_update(self.members[self.running.pop(trial_id)])

    def _look(self) -> None:
        """Find out which packs can start now. Where nothing else could ever run, all can."""
        awaited = {fork for forks in self.missing.values() for fork in forks}
        arrived = {fork for fork in awaited if self._is_settled(fork)}
        if not self.ready and not self.running:
            arrived = awaited
        for i in [i for i, forks in self.missing.items() if forks <= arrived]:
            del self.missing[i]
            heapq.heappush(self.ready, i)

    def _is_settled(self, fork: Fork) -> bool:
        ended = fork.trunk_id not in self.open or self.has_ended(fork.trunk_id)
        return ended or fork_file(self.folder, fork).exists()


def _awaited(pack: Pack) -> set[Fork]:
    """States that other packs leave."""
    members = {trial.trial_id for trial in pack.trials}
    return {fork for fork in pack.starts.values() if fork.trunk_id not in members}


class BasinSearch(_FreshSearch):
    """One `OptunaSearch` a basin, taking turns, so that each sees many of its results before it suggests again."""

    def __init__(self, basins: Sequence[Basin]) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.searches = [_optuna_search(basin) for basin in basins]
        rounds = range(max(basin.n_suggestions for basin in basins))
        self.turns = [i for turn in rounds for i, basin in enumerate(basins) if turn < basin.n_suggestions]
        self.owners: dict[str, int] = {}  # Tune's trial id -> basin

    def suggest(self, trial_id: str) -> dict[str, Any]:
        basin = self.turns.pop(0)
        self.owners[trial_id] = basin
        return {BASIN: basin, **self.searches[basin].suggest(trial_id)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.searches[self.owners.pop(trial_id)].on_trial_complete(trial_id, result, error)


def _optuna_search(basin: Basin) -> OptunaSearch:
    """Optuna's suggestions, after what is known: values that diverged, which `evaluated_rewards` cannot say, too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = OptunaSearch(dict(basin.space()), metric=LOSS, mode="min", sampler=basin.sampler())
    for known in basin.known_trials():
        search.add_evaluated_point(known.params, known.value, pruned=known.state is optuna.trial.TrialState.PRUNED)
    return search
