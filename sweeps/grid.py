"""The grid of runs that a spec means, and the probes that branch from it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from proxy_models.checks import ConfigError
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.optimizer_config import Scale
from proxy_models.parametrization import refuse_overshooting_decay
from sweeps.spec_batch import branch_runs
from sweeps.spec_errors import config_error, require
from sweeps.spec_models import RunSection, SweepSpec
from sweeps.trial import Trial

DEFAULT_BATCH_TOKENS = next(field.default for field in fields(HParams) if field.name == "batch_tokens")


def axes_of(spec: SweepSpec, optimizer: str) -> dict[str, tuple[Any, ...]]:
    """The values of each axis of one optimizer. Its own table, fixed or axis, wins over the shared ones."""
    own = spec.optimizers[optimizer]
    shared = {name: values for name, values in spec.axes.items() if name not in own.hparams}
    return {**shared, **own.axes}


def run_config(
    spec: SweepSpec,
    optimizer: str,
    *,
    width: int,
    seed: int,
    depth: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    train_tokens: int | None = None,
) -> RunConfig:
    """One run at any width. `overrides` are HParams fields; an axis they leave open takes its middle value.

    The batch then takes its reference, where there is one.

    An lr is taken as it is given, beta2 as that of the reference batch. Without `train_tokens` it is of the longest
    horizon, without `depth` of the sweep's least.

    Raises:
        ConfigError: no such run can be, for example a width that is no multiple of head_dim, or a weight decay
            that overshoots.
    """
    own = spec.optimizers[optimizer]
    middles = {name: values[(len(values) - 1) // 2] for name, values in axes_of(spec, optimizer).items()}
    if spec.batch is not None and "batch_tokens" in middles:
        middles["batch_tokens"] = spec.batch.reference_tokens
    run = spec.run
    horizon = run.longest if train_tokens is None else train_tokens
    hparams = HParams(**{**spec.hparams, **own.hparams, **middles, **(overrides or {})})
    if spec.batch is not None:
        ratio = hparams.batch_tokens / spec.batch.reference_tokens
        hparams = replace(hparams, beta2=spec.batch.beta2_at(hparams.beta2, ratio))
    if run.decay_frac is not None:
        batches = max(1, round(run.decay_frac * horizon / hparams.batch_tokens))
        hparams = replace(hparams, decay_tokens=batches * hparams.batch_tokens)
    config = RunConfig(
        model=ModelConfig(**{**spec.model, "width": width, "depth": min(spec.depths) if depth is None else depth}),
        optimizer=own.config,
        hparams=hparams,
        base_width=run.base_width,
        base_depth=run.base_depth,
        train_tokens=horizon,
        validation_tokens=run.validation_tokens,
        seed=seed,
        parametrization=run.parametrization,
        weight_decay_invariant=run.weight_decay_invariant,
        schedule=run.schedule,
    )
    refuse_overshooting_decay(config)
    _refuse_tied_readout_momentum(config)
    return config


def _refuse_tied_readout_momentum(run: RunConfig) -> None:
    """SCALE averages the readout's gradients alone, and a tied readout is its embedding, which it does not average."""
    if run.model.tied_embeddings and run.hparams.momentum > 0:
        for _, phase in run.phases:
            if isinstance(phase.optimizer, Scale):
                raise ConfigError(
                    "tied_embeddings must be false for scale, whose momentum is on the readout alone, got true; "
                    "untie them, or set its momentum to 0"
                )


def run_configs(spec: SweepSpec) -> tuple[RunConfig, ...]:
    """The whole grid: optimizer, then width, depth, horizon, the axes in the order of HParams, and seed.

    After each optimizer's own grid come its probes of the critical batch size.

    Raises:
        SpecError: a run that cannot be, with the key that made it so.
    """
    owners: dict[RunConfig, str] = {}
    for optimizer in spec.optimizers:
        for run in (*_grid_of(spec, optimizer, spec.run.widths), *_branches_of(spec, optimizer)):
            owner = owners.setdefault(run, optimizer)
            require(
                owner == optimizer,
                spec.file,
                f"optimizers.{optimizer}",
                f"must have runs of its own, got one that is also in optimizers.{owner} (width {run.model.width}, "
                f"lr {run.hparams.lr:g}, seed {run.seed}). Merge the two, or change one.",
            )
    return tuple(owners)


def labeled_trials(spec: SweepSpec, data_fingerprint: str) -> tuple[tuple[str, Trial], ...]:
    """What the spec alone plans on data with this fingerprint, each trial with its optimizer's name, none twice.

    That is the whole grid, or the grid at the smallest width where later trials are telescoped.
    """
    widths = (min(spec.run.widths),) if spec.search.method == "telescope" else spec.run.widths
    return tuple(
        (optimizer, Trial(run=run, data_fingerprint=data_fingerprint))
        for optimizer in spec.optimizers
        for run in (*_grid_of(spec, optimizer, widths), *_branches_of(spec, optimizer))
    )


def plan_trials(spec: SweepSpec, data_fingerprint: str) -> tuple[Trial, ...]:
    """The trials of `labeled_trials`."""
    return tuple(trial for _, trial in labeled_trials(spec, data_fingerprint))


def _grid_of(spec: SweepSpec, optimizer: str, widths: Sequence[int]) -> Iterator[RunConfig]:
    axes = axes_of(spec, optimizer)
    settings = itertools.product(*axes.values())
    grid = itertools.product(widths, spec.depths, spec.run.train_tokens, settings, spec.run.seeds)
    for width, depth, horizon, values, seed in grid:
        overrides = dict(zip(axes, values, strict=True))
        if spec.batch is not None:
            overrides["lr"] = spec.batch.lr_at(overrides["lr"], _batch_of(spec, optimizer, overrides))
        try:
            yield run_config(
                spec, optimizer, width=width, depth=depth, seed=seed, overrides=overrides, train_tokens=horizon
            )
        except ConfigError as error:
            raise config_error(spec.file, key_of(spec, optimizer, field_of(error)), error) from None


def _batch_of(spec: SweepSpec, optimizer: str, overrides: Mapping[str, Any]) -> int:
    given = {**spec.hparams, **spec.optimizers[optimizer].hparams, **overrides}
    batch_tokens: int = given.get("batch_tokens", DEFAULT_BATCH_TOKENS)
    return batch_tokens


def trunk_of(spec: SweepSpec, optimizer: str, *, width: int, depth: int, seed: int) -> RunConfig:
    """The run that one optimizer's probes of the critical batch size go on from, of the longest horizon.

    Raises:
        ConfigError: as `run_config`.
    """
    assert spec.critical_batch is not None
    assert spec.critical_batch.branches is not None
    lr = spec.critical_batch.branches.lr.get(optimizer)
    overrides = {} if lr is None else {"lr": lr}
    return run_config(spec, optimizer, width=width, depth=depth, seed=seed, overrides=overrides)


def _branches_of(spec: SweepSpec, optimizer: str) -> Iterator[RunConfig]:
    branches = None if spec.critical_batch is None else spec.critical_batch.branches
    if branches is None:
        return
    for width, depth, seed in itertools.product(spec.run.widths, spec.depths, spec.run.seeds):
        try:
            trunk = trunk_of(spec, optimizer, width=width, depth=depth, seed=seed)
            stable = trunk.train_tokens - trunk.hparams.decay_tokens
            beyond = [at_tokens for at_tokens in branches.at_tokens if at_tokens > stable]
            require(
                not beyond,
                spec.file,
                "critical_batch.branches.at_tokens",
                f"must lie within the trunk's stable phase, {stable:,} tokens of its {trunk.train_tokens:,}, got "
                f"{beyond}. Lower them, or train longer.",
            )
            uneven = [at_tokens for at_tokens in branches.at_tokens if at_tokens % trunk.hparams.batch_tokens]
            require(
                not uneven,
                spec.file,
                "critical_batch.branches.at_tokens",
                f"must be whole batches of the trunk's {trunk.hparams.batch_tokens} tokens, got {uneven}. Round them.",
            )
            yield from branch_runs(trunk, branches, spec.batch)
        except ConfigError as error:
            raise config_error(spec.file, "critical_batch.branches", error) from None


def field_of(error: ConfigError) -> str:
    """The field which a ConfigError is about: its message starts with the name."""
    return str(error).split(maxsplit=1)[0]


def key_of(spec: SweepSpec, optimizer: str, field: str) -> str:
    """The key that set `field`, or that would."""
    own = spec.optimizers[optimizer]
    tables: dict[str, Mapping[str, Any]] = {
        f"optimizers.{optimizer}.axes": own.axes,
        f"optimizers.{optimizer}.hparams": own.hparams,
        "axes": spec.axes,
        "hparams": spec.hparams,
    }
    for table, keys in tables.items():
        if field in keys:
            return f"{table}.{field}"
    if field in (name.name for name in fields(own.config)):
        return f"optimizers.{optimizer}.{field}"
    sections = {"width": "run.widths", "seed": "run.seeds"} | ({"depth": "run.depths"} if spec.run.depths else {})
    for section, record in (("run", RunSection), ("hparams", HParams), ("model", ModelConfig)):
        sections |= {name: f"{section}.{name}" for name in record.__annotations__ if name not in sections}
    return sections.get(field, f"optimizers.{optimizer}")
