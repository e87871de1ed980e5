"""Worker processes of a sweep that Ray Tune runs. Each lives on from pack to pack: torch and data are loaded once."""

import gc
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import tune

from proxy_models.data import DataError, DataSource, TokenData, load_data
from sweeps.pack import Pack
from sweeps.store import ResultStore, StoreError
from sweeps.trial import Trial

if TYPE_CHECKING:
    from sweeps.basin import Basin

PACK = "pack"  # index, in a Tune trial's config
BASIN = "basin"  # likewise
LOSS = "mean_validation_loss"  # over seeds, what Optuna minimizes


class _Runner(tune.Trainable):  # type: ignore[misc]
    """A process that is like new for each pack."""

    def prepare(self, store: ResultStore, data: DataSource | TokenData) -> None:
        from sweeps.worker import prepare_process

        prepare_process()
        self.store, self.data = store, data
        gc.freeze()  # what is loaded stays, so that collecting between packs need not look at it

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune then sets `config` and calls `step` again."""
        start_anew()
        return True

    def run(self, pack: Pack) -> str:
        """Run one pack. Its results are in the store; returns why the sweep must stop, else nothing."""
        from sweeps.worker import describe, run_pack

        try:
            run_pack(pack, data_source=self.data, store=self.store, on_event=lambda event: None)
        except (DataError, StoreError, OSError) as error:
            return describe(error)
        return ""


class PackRunner(_Runner):
    """A worker for known packs."""

    def setup(
        self, config: dict[str, Any], packs: Sequence[Pack], store: ResultStore, data: DataSource | TokenData
    ) -> None:
        self.prepare(store, data)
        self.packs = packs

    def step(self) -> dict[str, Any]:
        """Tell Tune that a pack is done, or why the sweep must stop."""
        return {"done": True, "stop": self.run(self.packs[self.config[PACK]])}


class BasinRunner(_Runner):
    """A worker that trains all seeds at a suggested learning rate and tells Tune their mean loss."""

    def setup(
        self, config: dict[str, Any], basins: "Sequence[Basin]", store: ResultStore, data: DataSource | TokenData
    ) -> None:
        self.prepare(store, data)
        self.basins = basins

    def step(self) -> dict[str, Any]:
        """No loss, where a seed diverged or failed, makes the trial a pruned one to Optuna."""
        from sweeps.basin import PARAMETER, objective

        pack = self.basins[self.config[BASIN]].pack_at(self.config[PARAMETER])
        stop = self.run(pack)
        loss = None if stop else objective(self.store.read_one(trial.trial_id) for trial in pack.trials)
        return {"done": True, "stop": stop, LOSS: loss}


def shared_data(source: DataSource, trials: Sequence[Trial]) -> DataSource | TokenData:
    """What workers are given of a source: of text its tokens, which Ray keeps once a node for all of them.

    A token file is left to the workers, who map it into memory. It must be where all nodes see it.

    Raises:
        DataError: text that cannot be read, or not trained on.
    """
    if source.kind == "tokens" or not trials:
        return source
    models = [trial.run.model for trial in trials]
    vocab_size, seq_len = min(model.vocab_size for model in models), max(model.seq_len for model in models)
    return load_data(source, vocab_size=vocab_size, seq_len=seq_len)


def start_anew() -> None:
    """Leave nothing of the last pack to the next: neither random states nor memory."""
    import torch

    from sweeps.worker import free_memory

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state, which a library might draw from
    torch.manual_seed(0)
    free_memory()
