"""The TOML spec of a sweep: what a user writes, checked, and the grid of runs that it means.

Loads neither torch nor ray nor pandas: a command that only reads a spec starts at once.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from proxy_models.checks import ConfigError
from proxy_models.config import HParams, ModelConfig, RunConfig, first_steps
from proxy_models.optimizer_config import Scale
from proxy_models.parametrization import refuse_overshooting_decay
from sweeps.spec_batch import MIN_BATCHES, MIN_HORIZONS, branch_runs, unknown_names
from sweeps.spec_errors import SpecError, config_error, require, shown
from sweeps.spec_file import read_section
from sweeps.spec_models import RunSection, SweepSpec, TargetSpec
from sweeps.trial import Trial

__all__ = [
    "SpecError",
    "SweepSpec",
    "TargetSpec",
    "axes_of",
    "check_target",
    "labeled_trials",
    "load_spec",
    "load_target",
    "plan_trials",
    "run_config",
    "run_configs",
    "trunk_of",
]

DEFAULT_BATCH_TOKENS = next(field.default for field in fields(HParams) if field.name == "batch_tokens")
MIN_LR_VALUES = 3  # a parabola has three coefficients
MIN_CHECK_WIDTHS = 4  # fewer points do not tell a slope from noise
MIN_CHECK_DEPTHS = 4  # likewise


def load_spec(path: str | Path) -> SweepSpec:
    """Read a sweep spec and build every run of its grid.

    Raises:
        SpecError: the file, a key or a run of the grid is not usable.
    """
    spec = read_section(path, SweepSpec)
    _check_optimizers(spec)
    _check_widths(spec)
    _check_depths(spec)
    _check_batches(spec)
    run_configs(spec)
    _check_search(spec)
    _check_first_steps(spec)
    return spec


def load_target(path: str | Path) -> TargetSpec:
    """Read a target file. `check_target` compares it with a sweep.

    Raises:
        SpecError: the file or a key is not usable.
    """
    return read_section(path, TargetSpec)


def check_target(target: TargetSpec, spec: SweepSpec) -> None:
    """Raises SpecError if the sweep says nothing about this target: too narrow, of another depth, or not a run."""
    widest = max(spec.run.widths)
    require(
        target.width >= widest,
        target.file,
        "width",
        f"must be at least the widest proxy's, {widest}, got {target.width}. "
        "Transfer goes from small to large: raise it.",
    )
    _check_target_depth(target, spec)
    for name, seed in itertools.product(spec.optimizers, target.seeds):
        overrides = {} if target.batch_tokens is None else {"batch_tokens": target.batch_tokens}
        try:
            run_config(
                spec,
                name,
                width=target.width,
                depth=target.depth,
                seed=seed,
                overrides=overrides,
                train_tokens=target.train_tokens,
            )
        except ConfigError as error:
            field = _field_of(error)
            raise config_error(
                target.file, field if field in TargetSpec.model_fields else "train_tokens", error
            ) from None


def _check_target_depth(target: TargetSpec, spec: SweepSpec) -> None:
    """Only complete_p has a rule for depth; without one a depth that no proxy has is one that nothing is known of."""
    depths = sorted(spec.depths)
    require(
        target.depth is not None or len(depths) == 1,
        target.file,
        "depth",
        f"must be given where the sweep has several depths, {depths}. Add depth.",
    )
    if target.depth is None or target.depth in depths:
        return
    require(
        spec.run.parametrization == "complete_p",
        target.file,
        "depth",
        f"must be a depth of the proxies', {depths}, got {target.depth}: under {spec.run.parametrization!r} optima "
        'move with depth. Train proxies of that depth, or sweep with run.parametrization = "complete_p".',
    )
    require(
        target.depth > depths[-1],
        target.file,
        "depth",
        f"must be a depth of the proxies', {depths}, or above, got {target.depth}. "
        "Transfer goes from small to large: raise it.",
    )


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
        hparams = replace(hparams, beta2=spec.batch.beta2_at(hparams.beta2, hparams.batch_tokens))
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
            raise config_error(spec.file, _key_of(spec, optimizer, _field_of(error)), error) from None


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


def _field_of(error: ConfigError) -> str:
    """The field which a ConfigError is about: its message starts with the name."""
    return str(error).split(maxsplit=1)[0]


def _key_of(spec: SweepSpec, optimizer: str, field: str) -> str:
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


def _check_optimizers(spec: SweepSpec) -> None:
    require(bool(spec.optimizers), spec.file, "optimizers", "is empty. Add a table: [optimizers.adamw].")
    _check_disjoint(spec, "", spec.hparams, spec.axes)
    _check_decay(spec, "", spec.hparams, spec.axes)
    for name, own in spec.optimizers.items():
        _check_disjoint(spec, f"optimizers.{name}.", own.hparams, own.axes)
        _check_decay(spec, f"optimizers.{name}.", own.hparams, own.axes)
        values = axes_of(spec, name).get("lr", ())
        require(
            len(values) >= MIN_LR_VALUES,
            spec.file,
            _key_of(spec, name, "lr") if values else f"optimizers.{name}.axes.lr",
            f"must have at least {MIN_LR_VALUES} values, or no optimum can be fitted, got {list(values)}. "
            "Add values one octave apart.",
        )


def _check_search(spec: SweepSpec) -> None:
    """A search that adapts does so in lr, which then is the only axis of every optimizer, at one horizon."""
    if spec.search.method == "grid":
        return
    require(
        spec.stopping is None,
        spec.file,
        "stopping",
        f'must be left out where search.method is "{spec.search.method}", which chooses few learning rates at a time '
        "and needs the losses of all. Remove the section, or search a grid.",
    )
    require(
        len(spec.run.train_tokens) == 1,
        spec.file,
        "search.method",
        f'must be "grid" where run.train_tokens has several horizons, got "{spec.search.method}" with '
        f"{list(spec.run.train_tokens)}. Change it, or give run.train_tokens one number.",
    )
    require(
        len(spec.depths) == 1,
        spec.file,
        "search.method",
        f'must be "grid" where run.depths has several values, got "{spec.search.method}" with {list(spec.depths)}. '
        "Change it, or keep one depth.",
    )
    owners: dict[RunConfig, str] = {}
    for optimizer in spec.optimizers:
        for axis in sorted(axes_of(spec, optimizer).keys() - {"lr"}):
            raise SpecError(
                f'{spec.file}: search.method: must be "grid" where {axis} is an axis '
                f'({_key_of(spec, optimizer, axis)}), for only lr is searched, got "{spec.search.method}". Change it, '
                f"or give {axis} one value in hparams."
            )
        run = run_config(spec, optimizer, width=min(spec.run.widths), seed=0, overrides={"lr": 1e-3})
        owner = owners.setdefault(run, optimizer)
        require(
            owner == optimizer,
            spec.file,
            f"optimizers.{optimizer}",
            f"must differ from optimizers.{owner} in more than its lr, which is searched. Merge them, or change one.",
        )


def _check_disjoint(
    spec: SweepSpec, prefix: str, hparams: Mapping[str, Any], axes: Mapping[str, tuple[Any, ...]]
) -> None:
    for name in sorted(hparams.keys() & axes.keys()):
        raise SpecError(
            f"{spec.file}: {prefix}hparams.{name}: must not be an axis as well ({prefix}axes.{name}), "
            f"got {hparams[name]} here. Remove one of the two."
        )


def _check_decay(spec: SweepSpec, prefix: str, hparams: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
    """The length of the decay is said once."""
    for table, keys in (("hparams", hparams), ("axes", axes)):
        require(
            spec.run.decay_frac is None or "decay_tokens" not in keys,
            spec.file,
            f"{prefix}{table}.decay_tokens",
            f"must not be given beside run.decay_frac, which sets it, got {shown(keys.get('decay_tokens'))}. "
            "Remove one of the two.",
        )


def _check_widths(spec: SweepSpec) -> None:
    """Every width named in the spec, trained or not, must be a model."""
    require(
        len(spec.check_widths) >= MIN_CHECK_WIDTHS,
        spec.file,
        "check.widths",
        f"must have at least {MIN_CHECK_WIDTHS} values to show a slope, got {list(spec.check_widths)}. Add one.",
    )
    keys = {"run.base_width": (spec.run.base_width,), "run.widths": spec.run.widths}
    for key, widths in (keys | {"check.widths": spec.check_widths}).items():
        for width in widths:
            try:
                ModelConfig(width=width, **spec.model)
            except ConfigError as error:
                field = _field_of(error)
                raise config_error(spec.file, key if field == "width" else f"model.{field}", error) from None


def _check_depths(spec: SweepSpec) -> None:
    """Depth is said once, and every depth of the check is a model."""
    require(
        spec.run.depths is None or "depth" not in spec.model,
        spec.file,
        "model.depth",
        f"must not be given beside run.depths, got {shown(spec.model.get('depth'))}. Remove one of the two.",
    )
    complete = spec.run.parametrization == "complete_p"
    require(
        complete == (spec.run.base_depth is not None),
        spec.file,
        "run.base_depth",
        'must be given with parametrization = "complete_p" and with no other, got '
        f'{shown(spec.run.base_depth)} with "{spec.run.parametrization}". Add or remove it; the least proxy depth is '
        "a good base.",
    )
    require(
        not spec.check_depths or len(spec.check_depths) >= MIN_CHECK_DEPTHS,
        spec.file,
        "check.depths",
        f"must have at least {MIN_CHECK_DEPTHS} values to show a slope, got {list(spec.check_depths)}. Add one.",
    )


def _check_batches(spec: SweepSpec) -> None:
    """Hyperparameters that follow the batch are said once, and what a critical batch size is measured on is planned."""
    for name in spec.optimizers:
        axes = axes_of(spec, name)
        if spec.batch is not None and spec.batch.beta2 == "half_life":
            require(
                "beta2" not in axes,
                spec.file,
                _key_of(spec, name, "beta2"),
                'must not be an axis where batch.beta2 = "half_life" moves it with the batch, got '
                f'{list(axes.get("beta2", ()))}. Give it one value, or set batch.beta2 = "constant".',
            )
        if spec.critical_batch is not None and "steps_to_loss" in spec.critical_batch.measure:
            batches = axes.get("batch_tokens", ())
            require(
                len(batches) >= MIN_BATCHES,
                spec.file,
                _key_of(spec, name, "batch_tokens") if batches else "axes.batch_tokens",
                f"must have at least {MIN_BATCHES} values where critical_batch.measure has steps_to_loss, got "
                f"{list(batches)}. Add batches, from far below the critical batch to far above.",
            )
            require(
                len(spec.run.train_tokens) >= MIN_HORIZONS,
                spec.file,
                "run.train_tokens",
                f"must have at least {MIN_HORIZONS} horizons where critical_batch.measure has steps_to_loss, whose "
                f"losses are read off between them, got {list(spec.run.train_tokens)}. Add some.",
            )
    branches = None if spec.critical_batch is None else spec.critical_batch.branches
    for name in unknown_names({} if branches is None else branches.lr, spec.optimizers):
        raise SpecError(
            f"{spec.file}: critical_batch.branches.lr.{name}: must be an optimizer of this spec, "
            f"{sorted(spec.optimizers)}. Rename or remove it."
        )


def _check_first_steps(spec: SweepSpec) -> None:
    """The coordinate check's own widths and batch must make runs, of every optimizer."""
    for optimizer, width in itertools.product(spec.optimizers, spec.check_widths):
        try:
            run = run_config(spec, optimizer, width=width, seed=0)
            batch_tokens = spec.check.batch_tokens or run.hparams.batch_tokens
            first_steps(run, steps=spec.check.steps, batch_tokens=batch_tokens)
        except ConfigError as error:
            field = _field_of(error)
            keys = {"at_tokens": "check.steps", "rank": "check.widths"}
            raise config_error(spec.file, keys.get(field, "check.batch_tokens"), error) from None
