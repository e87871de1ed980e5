"""The TOML spec of a sweep: what a user writes, checked, and the grid of runs that it means.

Loads neither torch nor ray nor pandas: a command that only reads a spec starts at once.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxy_models.checks import ConfigError
from proxy_models.config import ModelConfig, RunConfig, first_steps
from sweeps.grid import axes_of, field_of, key_of, labeled_trials, plan_trials, run_config, run_configs, trunk_of
from sweeps.spec_batch import MIN_BATCHES, MIN_HORIZONS
from sweeps.spec_errors import SpecError, config_error, require, shown
from sweeps.spec_file import read_section
from sweeps.spec_models import SweepSpec, TargetSpec

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
            field = field_of(error)
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
            key_of(spec, name, "lr") if values else f"optimizers.{name}.axes.lr",
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
                f'({key_of(spec, optimizer, axis)}), for only lr is searched, got "{spec.search.method}". Change it, '
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
                field = field_of(error)
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
                key_of(spec, name, "beta2"),
                'must not be an axis where batch.beta2 = "half_life" moves it with the batch, got '
                f'{list(axes.get("beta2", ()))}. Give it one value, or set batch.beta2 = "constant".',
            )
        if spec.critical_batch is not None and "steps_to_loss" in spec.critical_batch.measure:
            batches = axes.get("batch_tokens", ())
            require(
                len(batches) >= MIN_BATCHES,
                spec.file,
                key_of(spec, name, "batch_tokens") if batches else "axes.batch_tokens",
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
    for name in sorted((set() if branches is None else branches.lr.keys()) - spec.optimizers.keys()):
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
            field = field_of(error)
            keys = {"at_tokens": "check.steps", "rank": "check.widths"}
            raise config_error(spec.file, keys.get(field, "check.batch_tokens"), error) from None
