"""A whole sweep's fits: surfaces, optima, drifts and loss laws, and what could not be fitted and why."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from analysis.attempt import attempt
from analysis.bootstrap import pool
from analysis.drift import Drift, fit_drift
from analysis.fast_transfer import FastTransfer, fast_transfer
from analysis.interval import FitError
from analysis.loss_law import LossLaw, fit_loss_law
from analysis.observations import from_results
from analysis.observed_fit import ObservedFit, fit_observed
from analysis.optimum import Optimum, fit_optimum
from analysis.penalty import Penalties, fit_penalties
from analysis.points import Points, points_near_lowest
from analysis.surface import DEPTH, NO_LABELS, Labels, Series, Setting, Surface, surfaces
from analysis.width_laws import joint_error
from sweeps.trial import TrialResult

SCHEMA_VERSION = 1

What = Literal["optimum", "drift", "loss_law", "fast_transfer", "penalties"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A fit that could not be made, and why."""

    what: What
    optimizer: str
    fixed: tuple[Setting, ...]
    width: int | None  # None: over all widths
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFit:
    """All that was fitted to one sweep, sorted by optimizer, setting and width, and the fits' settings."""

    hp: str
    band_nats: float
    n_bootstrap: int
    level: float
    surfaces: tuple[Surface, ...]
    optima: tuple[Optimum, ...]
    drifts: tuple[Drift, ...]
    loss_laws: tuple[LossLaw, ...]
    transfers: tuple[FastTransfer, ...]
    penalties: tuple[Penalties, ...]
    joint: ObservedFit | None  # of all hyperparameters at once, where the sweep has more than one numeric axis
    skipped: tuple[Skipped, ...]

    @property
    def series(self) -> tuple[Series, ...]:
        """What is followed over width: one an optimizer, or more where the sweep has a second axis."""
        return tuple(dict.fromkeys(surface.series for surface in self.surfaces))

    def optima_of(self, series: Series) -> tuple[Optimum, ...]:
        """By width, ascending."""
        return tuple(optimum for optimum in self.optima if optimum.series == series)

    def to_json(self) -> dict[str, Any]:
        """A document for json.dumps. Losses in nats; an interval is {low, high, level} or null.

        Keys: `schema_version` 1; `settings` (hp, band_nats, n_bootstrap, level); `n_stopped`, the number of trials that
        were stopped early; and lists of records with
        the fields of their classes: `surfaces` (and `mean_losses`, `standard_errors`, `censored`), `optima`
        (and `value`, `n_draws`, `flags` as {name, advice}), `drifts` (and `range_octaves`, `resolved`),
        `loss_laws` (and `wider_is_better`), `fast_transfer` (and `local_slopes`, `sentence`), `penalties`, `skipped`;
        and `joint`, an `ObservedFit` or null. `fixed` is an object. Bootstrap draws are left out: the same results
        and seed give them again.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": {name: getattr(self, name) for name in ("hp", "band_nats", "n_bootstrap", "level")},
            "n_stopped": sum(len(surface.stopped) for surface in self.surfaces),
            "surfaces": [_plain(s, "mean_losses", "standard_errors", "censored") for s in self.surfaces],
            "optima": [_optimum_json(optimum) for optimum in self.optima],
            "drifts": [_plain(drift, "range_octaves", "resolved") for drift in self.drifts],
            "loss_laws": [_plain(law, "wider_is_better") for law in self.loss_laws],
            "fast_transfer": [_transfer_json(transfer) for transfer in self.transfers],
            "penalties": [_penalties_json(penalties) for penalties in self.penalties],
            "joint": None if self.joint is None else self.joint.to_json(),
            "skipped": [_plain(skipped) for skipped in self.skipped],
        }


def fit_sweep(
    results: Iterable[TrialResult],
    *,
    rng: np.random.Generator,
    hp: str = "lr",
    band_nats: float = 0.05,
    n_bootstrap: int = 500,
    level: float = 0.9,
    labels: Labels = NO_LABELS,
) -> SweepFit:
    """Fit every surface of a sweep, then what moves with width. What cannot be fitted is in `skipped`.

    Depends on the set of results and on the state of `rng` alone, not on the order of the results. Each series
    draws from a stream of its own, so that adding an optimizer to a sweep leaves the others' fits as they were.

    Raises:
        FitError: no trial has a result, or `hp` is not a positive hyperparameter.
    """
    results = tuple(results)
    built = surfaces(results, hp, labels)
    if not built:
        raise FitError("no trial has a result yet; run the sweep first")
    seed = int(rng.integers(2**63))
    fits = []
    for series in dict.fromkeys(surface.series for surface in built):
        members = [surface for surface in built if surface.series == series]
        fits.append(
            _fit_series(members, rng=_stream(seed, series), band_nats=band_nats, n_bootstrap=n_bootstrap, level=level)
        )
    return SweepFit(
        hp=hp,
        band_nats=band_nats,
        n_bootstrap=n_bootstrap,
        level=level,
        surfaces=built,
        optima=tuple(optimum for fit in fits for optimum in fit.optima),
        drifts=tuple(fit.drift for fit in fits if isinstance(fit.drift, Drift)),
        loss_laws=tuple(fit.loss_law for fit in fits if isinstance(fit.loss_law, LossLaw)),
        transfers=tuple(fit.transfer for fit in fits if isinstance(fit.transfer, FastTransfer)),
        penalties=tuple(fit.penalties for fit in fits if isinstance(fit.penalties, Penalties)),
        joint=_fit_joint(results, built, np.random.default_rng([seed, 1]), n_bootstrap, level, labels),
        skipped=tuple(skipped for fit in fits for skipped in fit.skipped),
    )


def _stream(seed: int, series: Series) -> np.random.Generator:
    """Random numbers that depend on the seed and the series' name alone."""
    return np.random.default_rng([seed, *str(series).encode()])


class _SeriesFit(NamedTuple):
    optima: list[Optimum]
    drift: Drift | FitError
    loss_law: LossLaw | FitError
    transfer: FastTransfer | FitError
    penalties: Penalties | FitError
    skipped: list[Skipped]


def _fit_series(
    members: Sequence[Surface], *, rng: np.random.Generator, band_nats: float, n_bootstrap: int, level: float
) -> _SeriesFit:
    """One series over its widths, over which the spread between seeds is pooled: two seeds say little."""
    near = [attempt(points_near_lowest, surface, band_nats) for surface in members]
    optima = [
        attempt(
            fit_optimum,
            surface,
            band_nats=band_nats,
            n_bootstrap=n_bootstrap,
            rng=rng,
            level=level,
            seed_spread=pool(points.seed_spread for points in near if isinstance(points, Points)),
        )
        for surface in members
    ]
    found = [optimum for optimum in optima if isinstance(optimum, Optimum)]
    inner = [optimum for optimum in found if optimum.edge is None]  # at an edge: a bound, not a value
    drift = attempt(fit_drift, inner, rng=rng, level=level)
    law = attempt(fit_loss_law, inner, rng=rng, level=level)
    transfer = attempt(fast_transfer, inner, rng=rng, level=level)
    if isinstance(transfer, FastTransfer) and transfer.laws is not None:
        fitted = [surface for surface in members if surface.width in transfer.widths]
        transfer = replace(transfer, joint_error=joint_error(transfer.laws, fitted, band_nats))
    costs = attempt(fit_penalties, members, inner, band_nats=band_nats, rng=rng, level=level)
    tried: list[tuple[What, int | None, object]] = [
        *(("optimum", surface.width, optimum) for surface, optimum in zip(members, optima, strict=True)),
        ("drift", None, drift),
        ("loss_law", None, law),
        ("fast_transfer", None, transfer),
        ("penalties", None, costs),
    ]
    optimizer, fixed = members[0].series
    skipped = [
        Skipped(what=what, optimizer=optimizer, fixed=fixed, width=width, reason=str(outcome))
        for what, width, outcome in tried
        if isinstance(outcome, FitError)
    ]
    return _SeriesFit(found, drift, law, transfer, costs, skipped)


def _fit_joint(
    results: Sequence[TrialResult],
    built: Sequence[Surface],
    rng: np.random.Generator,
    n_bootstrap: int,
    level: float,
    labels: Labels,
) -> ObservedFit | None:
    """Over all numeric axes together; None where lr is the only one, an axis holds 0 or no basin has an optimum."""
    values: dict[str, set[Any]] = defaultdict(set)
    for surface in built:
        for name, value in surface.fixed:
            if name != DEPTH:
                values[name].add(value)
    numeric = [name for name, seen in sorted(values.items()) if len(seen) > 2 and all(_above_zero(v) for v in seen)]
    if not numeric:
        return None
    fitted = attempt(
        lambda: fit_observed(
            from_results(results, (built[0].hp, *numeric), labels), rng=rng, n_bootstrap=n_bootstrap, level=level
        )
    )
    return fitted if isinstance(fitted, ObservedFit) else None


def _above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _plain(record: Any, *derived: str) -> dict[str, Any]:
    """A record's fields, without bootstrap draws, and the named properties."""
    values = {**asdict(record), **{name: getattr(record, name) for name in derived}}
    values |= {"fixed": dict(record.fixed)}
    return {name: value for name, value in values.items() if name != "draws"}


def _transfer_json(transfer: FastTransfer) -> dict[str, Any]:
    return _plain(transfer, "local_slopes", "sentence") | {"verdict": transfer.verdict.value}


def _penalties_json(penalties: Penalties) -> dict[str, Any]:
    each = [asdict(one) | {"resolved": one.resolved} for one in penalties.penalties]
    return _plain(penalties) | {"penalties": each}


def _optimum_json(optimum: Optimum) -> dict[str, Any]:
    return {
        **_plain(optimum, "value"),
        "n_draws": len(optimum.draws),
        "flags": [{"name": flag.value, "advice": flag.advice} for flag in optimum.flags],
    }
