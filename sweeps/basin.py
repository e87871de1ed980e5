"""A basin whose learning rates Optuna chooses one after the other, whichever backend trains them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from proxy_models.mode import EAGER_LOOP, Mode
from sweeps.pack import Pack
from sweeps.run import OnEvent
from sweeps.stages import STEPS_PER_OCTAVE, snapped
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import FloatDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from proxy_models.data import DataSource

PARAMETER = "log2_lr"
# The grid is told to the sampler, so that fewer learning rates than its ten need be drawn blindly.
_STARTUP_TRIALS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Basin:
    """Where Optuna searches for the best learning rate of one optimizer at one width, and what it knows of it."""

    optimizer: str  # its name in the spec
    width: int
    low: float  # log2 lr, a whole number of steps
    high: float
    templates: tuple[Trial, ...]  # one a seed; their lr is to be replaced
    known: tuple[tuple[float, float | None], ...]  # log2 lr and mean loss, None: diverged
    n_suggestions: int  # still to be made
    sampler_seed: int
    diagnose_every: int | None = None
    mode: Mode = EAGER_LOOP

    def pack_at(self, log2_lr: float) -> Pack:
        """One trial a seed."""
        trials = tuple(
            replace(one, run=replace(one.run, hparams=replace(one.run.hparams, lr=2.0**log2_lr)))
            for one in self.templates
        )
        return Pack(trials=trials, mode=self.mode, diagnose_every=self.diagnose_every)

    def space(self) -> "dict[str, FloatDistribution]":
        """What Optuna samples: whole steps of log2 lr."""
        from optuna.distributions import FloatDistribution

        return {PARAMETER: FloatDistribution(self.low, self.high, step=1 / STEPS_PER_OCTAVE)}

    def sampler(self) -> "BaseSampler":
        """TPE with a seed of this basin's own, and another one where some of its suggestions were made before."""
        from optuna.samplers import TPESampler

        own = random.Random(f"{self.sampler_seed} {self.optimizer} {self.width} {len(self.known)}").getrandbits(31)
        return TPESampler(seed=own, n_startup_trials=_STARTUP_TRIALS)

    def known_trials(self) -> "Iterable[FrozenTrial]":
        """What is known inside of the basin, at the nearest steps, as Optuna's trials."""
        from optuna.trial import TrialState, create_trial

        for log2_lr, loss in self.known:
            nearest = snapped(log2_lr)
            if self.low <= nearest <= self.high:
                state = TrialState.PRUNED if loss is None else TrialState.COMPLETE
                params = {PARAMETER: nearest}
                yield create_trial(state=state, value=loss, params=params, distributions=dict(self.space()))

    def study(self) -> "Study":
        """A study in memory that knows what is known."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="minimize", sampler=self.sampler())
        study.add_trials(self.known_trials())
        return study


OnSuggest = Callable[[Basin, float], None]  # log2 lr; called before it is trained


class Refiner(Protocol):
    """A backend that trains what Optuna suggests."""

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
        """Return when every basin had its suggestions, each tried once; what failed leaves a recorded failure."""
        ...


def objective(results: Iterable[TrialResult | None]) -> float | None:
    """The mean loss over seeds; None where one diverged, or has no result."""
    losses = [None if result is None else result.validation_loss for result in results]
    numbers = [loss for loss in losses if loss is not None]
    return fmean(numbers) if len(numbers) == len(losses) else None
