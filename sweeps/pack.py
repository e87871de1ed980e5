"""Trials grouped for one worker: a pack shares its model, optimizer, horizon and data, so that it shares set-up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from proxy_models.accounting import training_flops
from proxy_models.config import HParams
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import Switch
from sweeps.stopping import Stopping
from sweeps.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """A point of one trial's training from which others go on."""

    trunk_id: str
    step: int  # updates done there


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Trials of one shape, trained by one worker one after the other or stacked."""

    trials: tuple[Trial, ...]
    mode: Mode = EAGER_LOOP
    diagnose_every: int | None = None  # steps between diagnostics; None: none are recorded
    noise_every: int | None = None  # steps between measurements of the gradient noise
    starts: Mapping[str, Fork] = field(default_factory=dict)  # trial id -> where it goes on, if it shares a start
    forks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # trial id -> steps at which others go on
    stopping: Stopping | None = None  # None: every trial is trained to its end

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("a pack must hold at least one trial, got none")
        shapes = {shape_of(trial) for trial in self.trials}
        if len(shapes) > 1:
            raise ValueError(f"the trials of a pack must have one shape, got {len(shapes)}: {shapes}")

    @property
    def flops(self) -> float:
        """Model FLOPs of all its trials."""
        return sum(training_flops(trial.run) for trial in self.trials)


def shape_of(trial: Trial) -> Trial:
    """The trial with its seed and its hyperparameters erased, but for batch_tokens, which sets tensor sizes.

    Where the optimizer is switched, the members must switch at one step, so the decay stays too.
    """
    hp = trial.run.hparams
    decay_tokens = hp.decay_tokens if isinstance(trial.run.optimizer, Switch) else 0
    erased = HParams(lr=1.0, batch_tokens=hp.batch_tokens, decay_tokens=decay_tokens)
    return replace(trial, run=replace(trial.run, seed=0, hparams=erased))


def make_packs(
    trials: Sequence[Trial],
    size: int,
    *,
    mode: Mode = EAGER_LOOP,
    diagnose_every: int | None = None,
    noise_every: int | None = None,
) -> tuple[Pack, ...]:
    """Split trials into packs of one shape and at most `size` trials, the most FLOPs first.

    Workers take packs in this order, so the last ones running are the shortest.

    Raises:
        ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"a pack's size must be at least 1 trial, got {size}")
    groups: dict[Trial, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(shape_of(trial), []).append(trial)
    packs = [
        Pack(
            trials=tuple(group[start : start + size]), mode=mode, diagnose_every=diagnose_every, noise_every=noise_every
        )
        for group in groups.values()
        for start in range(0, len(group), size)
    ]
    return tuple(sorted(packs, key=lambda pack: -pack.flops))
