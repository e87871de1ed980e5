"""The pre-flight gate: the coordinate check of a spec, cached by content."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxy_models.config import Parametrization, RunConfig, first_steps
from sweeps.files import replace_file
from sweeps.spec import SweepSpec, axes_of, run_config
from sweeps.trial import NUMERICS_VERSION, canonical_json
from transfer.gate_processes import measure

if TYPE_CHECKING:
    from proxy_models.coord_check import CoordCheck
    from proxy_models.data import TokenData

CHECK_FILE = "check.json"
CONTRAST: Parametrization = "standard"


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
        failures = self.check.failures(self.parametrization)
        if failures:
            steepest = "; ".join(f"{s.optimizer} {s.tap} after {s.step} steps: {s.slope:+.2f}" for s in failures[:3])
            raise GateError(
                f"the coordinate check failed under '{self.parametrization}': {len(failures)} activations change with "
                f"width by more than width^+-{self.check.tolerance:g} ({steepest}). Optima are not expected to "
                "transfer. Use parametrization = 'mup', look at `mutransfer check`, or sweep anyway with --no-check."
            )


def check_runs(spec: SweepSpec) -> tuple[tuple[str, RunConfig], ...]:
    """Each optimizer at the check's widths, under the spec's parametrization and, in contrast, `standard`.

    The learning rate is the lowest of the axis: small updates add up linearly, so a wrong power of width shows as
    itself, where large ones soon saturate the logits.
    """
    parametrizations = dict.fromkeys((spec.run.parametrization, CONTRAST))
    return tuple(
        (optimizer, replace(_check_run(spec, optimizer, width, seed), parametrization=parametrization))
        for parametrization in parametrizations
        for optimizer in spec.optimizers
        for width in spec.check_widths
        for seed in spec.check.seeds
    )


def _check_run(spec: SweepSpec, optimizer: str, width: int, seed: int) -> RunConfig:
    """Only the first steps, without schedule: how long the sweep's runs are is no matter to them or to the cache."""
    run = run_config(spec, optimizer, width=width, seed=seed, overrides={"lr": min(axes_of(spec, optimizer)["lr"])})
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


def _key(runs: Sequence[tuple[str, RunConfig]], spec: SweepSpec, fingerprint: str) -> str:
    content = [
        NUMERICS_VERSION,
        fingerprint,
        spec.check.steps,
        spec.check.tolerance,
        *[[name, run.identity()] for name, run in runs],
    ]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _measure(
    runs: Sequence[tuple[str, RunConfig]],
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
