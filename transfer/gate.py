"""The pre-flight gate: the coordinate check of a spec, over width and over depth if it has any, cached by content."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from proxy_models.config import Parametrization, RunConfig, first_steps
from sweeps.files import replace_file
from sweeps.spec import SweepSpec, axes_of, run_config
from sweeps.trial import NUMERICS_VERSION, canonical_json
from transfer.gate_processes import CheckRun, Runs, measure

if TYPE_CHECKING:
    from proxy_models.coord_check import Axis, CoordCheck, CoordSlope
    from proxy_models.data import TokenData

CHECK_FILE = "check.json"
# What is shown beside the spec's own parametrization: the one that lacks the rule for this axis, and no other.
CONTRASTS: Mapping["Axis", Parametrization] = {"width": "standard", "depth": "mup"}
_REMEDIES: Mapping["Axis", str] = {"width": "mup", "depth": "complete_p"}


class GateError(RuntimeError):
    """The coordinate check failed: hyperparameters are not expected to transfer. The message names what grows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A coordinate check with what it judged."""

    parametrization: str
    check: "CoordCheck"
    from_cache: bool

    @property
    def passed(self) -> bool:
        return not self.check.failures(self.parametrization)

    def refuse_failure(self) -> None:
        """Raises GateError with the steepest activations."""
        failing = {axis: self.check.failures(self.parametrization, axis) for axis in self.check.axes}
        failing = {axis: slopes for axis, slopes in failing.items() if slopes}
        if failing:
            what = "; ".join(_in_words(axis, slopes, self.check.tolerance) for axis, slopes in failing.items())
            remedy = _REMEDIES["depth" if "depth" in failing else "width"]
            raise GateError(
                f"the coordinate check failed under '{self.parametrization}': {what}. Optima are not expected to "
                f"transfer. Use parametrization = '{remedy}', look at `mutransfer check`, or sweep anyway with "
                "--no-check."
            )


def _in_words(axis: "Axis", slopes: Sequence["CoordSlope"], tolerance: float) -> str:
    steepest = "; ".join(f"{s.optimizer} {s.tap} after {s.step} steps: {s.slope:+.2f}" for s in slopes[:3])
    return f"{len(slopes)} activations change with {axis} by more than {axis}^+-{tolerance:g} ({steepest})"


def check_runs(spec: SweepSpec) -> tuple[CheckRun, ...]:
    """Each optimizer at the check's sizes, under the spec's parametrization and, in contrast, one without the rule.

    The sizes are the check's widths at the sweep's least depth, then its depths at base width. The learning rate is
    the lowest of its axis: small updates add up linearly, so a wrong power of a size shows as itself, where large ones
    soon saturate the logits.
    """
    return (
        *_along("width", spec, (_ModelSize(width=width) for width in spec.check_widths)),
        *_along("depth", spec, (_ModelSize(width=spec.run.base_width, depth=depth) for depth in spec.check_depths)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _ModelSize:
    width: int
    depth: int | None = None  # None: the sweep's least


def _along(axis: "Axis", spec: SweepSpec, sizes: Iterable[_ModelSize]) -> Iterable[CheckRun]:
    compared = tuple(sizes)
    for parametrization in dict.fromkeys((spec.run.parametrization, CONTRASTS[axis])):
        for optimizer, size, seed in product(spec.optimizers, compared, spec.check.seeds):
            run = _check_run(spec, optimizer, size, seed)
            yield CheckRun(optimizer=optimizer, run=_under(parametrization, run), axis=axis)


def _under(parametrization: Parametrization, run: RunConfig) -> RunConfig:
    base_depth = run.base_depth if parametrization == "complete_p" else None
    return replace(run, parametrization=parametrization, base_depth=base_depth)


def _check_run(spec: SweepSpec, optimizer: str, size: _ModelSize, seed: int) -> RunConfig:
    """Only the first steps, without schedule: how long the sweep's runs are is no matter to them or to the cache."""
    lr = min(axes_of(spec, optimizer)["lr"])
    run = run_config(spec, optimizer, width=size.width, depth=size.depth, seed=seed, overrides={"lr": lr})
    batch_tokens = spec.check.batch_tokens or run.hparams.batch_tokens
    return first_steps(run, steps=spec.check.steps, batch_tokens=batch_tokens)


def coordinate_gate(
    spec: SweepSpec,
    data: "TokenData",
    folder: Path,
    *,
    processes: int = 1,
    on_run: Callable[[int, int], None] = lambda done, of: None,
) -> Gate:
    """The check of this spec on this data: from `folder`/check.json if that is the same check, else measured."""
    runs = check_runs(spec)
    key = _key(runs, spec, data.fingerprint)
    cached = _read(folder / CHECK_FILE, key)
    check = cached or _measure(runs, spec, data, processes, on_run)
    if cached is None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema_version": 1, "key": key, "check": asdict(check)}, separators=(",", ":"))
        replace_file(folder / CHECK_FILE, text.encode())
    return Gate(parametrization=spec.run.parametrization, check=check, from_cache=cached is not None)


def read_check(folder: Path) -> "CoordCheck | None":
    """The check in a results folder, whatever spec it was of; None if there is none."""
    return _read(folder / CHECK_FILE, None)


def _key(runs: Runs, spec: SweepSpec, fingerprint: str) -> str:
    content = [
        NUMERICS_VERSION,
        fingerprint,
        spec.check.steps,
        spec.check.tolerance,
        # Along width nothing more is said, as when it was the only axis: what was measured then stays known.
        *[[run.optimizer, run.run.identity(), *([] if run.axis == "width" else [run.axis])] for run in runs],
    ]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _measure(
    runs: Runs,
    spec: SweepSpec,
    data: "TokenData",
    processes: int,
    on_run: Callable[[int, int], None],
) -> "CoordCheck":
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_run(done, len(runs))

    points = measure(runs, data, steps=spec.check.steps, processes=processes, on_run=count)
    from proxy_models.coord_check import check_of

    return check_of(points, tolerance=spec.check.tolerance)


def _read(file: Path, key: str | None) -> "CoordCheck | None":
    """A damaged file counts as none: measuring again costs seconds."""
    from proxy_models.coord_check import CoordCheck, CoordPoint, CoordSlope

    try:
        content = json.loads(file.read_bytes())
        if key is not None and content["key"] != key:
            return None
        check = content["check"]
        return CoordCheck(
            points=tuple(CoordPoint(**point) for point in check["points"]),
            slopes=tuple(CoordSlope(**slope) for slope in check["slopes"]),
            tolerance=check["tolerance"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
