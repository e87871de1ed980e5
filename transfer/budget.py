"""What to spend a FLOPs budget on: from a spec, a target and perhaps a finished sweep to the designs of least excess.

What a finished sweep measures is used; the rest is assumed, from published numbers, and says so.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.bootstrap import Noise, two_way
from analysis.budget import (
    Design,
    Frontier,
    Priced,
    Rate,
    Search,
    TransferRates,
    best_design,
    cheapest_design,
    direct_exponent,
    frontier,
    transfer_exponent,
)
from analysis.drift import Drift
from analysis.fit import SweepFit
from analysis.loss_law import PowerLaw
from analysis.optimum import Optimum
from analysis.points import run_rows
from analysis.power_law import EXPONENT_BOUNDS
from analysis.surface import Series, Surface
from analysis.width_laws import Quantity, WidthLaws
from proxy_models.accounting import training_flops
from proxy_models.optimizer_config import AdamW, Muon, OptimizerConfig
from sweeps.spec import SpecError, SweepSpec, TargetSpec, axes_of, run_config
from transfer.make_plan import PlanError

COST_EXPONENT = 2.0  # FLOPs of a run over the width of a wide model, whose matrices are width**2
_POINTS = tuple(range(3, 65))  # a hyperparameter
_SEEDS = tuple(range(1, 33))
_WIDTHS_PER_OCTAVE = 8
_BEYOND = 10.0  # times the budget: how far the frontier is drawn, but for rounding up to half a decade
_WIDEST = 1e6  # wider than any model: where a search for a final width ends
_WIDEST_SHARE = 0.1  # of a wanted excess: a final width whose own gap is smaller is wider than any optimum


class _Published(NamedTuple):
    """Rates of one optimizer at width 128 in published sweeps."""

    alpha: float
    loss_amplitude: float  # nats
    optimum_amplitude: float  # octaves, at beta 1/2
    curvature: float  # nats per octave squared
    where: str


# arXiv:2512.22768, appendix: loss laws 13.16 n^-.52 and 12.93 n^-.50 (so 1.06 and 1.14 nats at width 128). Optima
# and curvatures as read off its figures: Adam's lr stays within a quarter of an octave over widths 128 to 2048,
# Muon's falls by 1.2 octaves, which at beta 1/2 is 1.6 octaves away from the limit at width 128.
_LLAMA = "a Llama of widths 128 to 2048 (arXiv:2512.22768)"
_ADAM = _Published(0.52, 1.06, 0.25, 0.12, f"Adam, {_LLAMA}")
_MUON = _Published(0.50, 1.14, 1.6, 0.06, f"Muon, {_LLAMA}")
_PUBLISHED_WIDTH = 128.0

_BETA = Rate(
    value=0.5,
    source="assumed",
    why="proved for linear networks (arXiv:2511.01734); .39 of a ReLU network and 1 of random features "
    "(arXiv:2512.22768) span it",
    span=(0.39, 1.0),
)
_NOISE = Rate(value=0.01, source="assumed", why="usual between seeds of small language models")
# Measured here: width 32, five seeds, lr from 2^-6 to 2^-4 an eighth of an octave apart. Were it 0, a finer grid would
# always beat another seed, for it averages noise as well and has less error of its own.
_NOISE_OCTAVES = Rate(
    value=0.5,
    source="assumed",
    why="residuals of the quick start's AdamW correlate by .54 over 1/8, .43 over 1/4 and .06 over 1/2 octave",
)
_GRID_ERROR = Rate(
    value=0.1,
    source="assumed",
    why="the parabola's shape, by interleaved one-octave grids of Step Law (arXiv:2503.04715)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetPlan:
    """The frontier of one optimizer, and the designs that were asked for."""

    sweep: str
    optimizer: str
    target_width: int | None  # None: the final width was free, and excess is over the limit of infinite width
    budget: float | None  # FLOPs
    wanted_excess: float | None  # nats
    rates: TransferRates
    direct: Frontier
    transfer: Frontier
    at_budget: Design | None  # None without a budget
    cheapest: Design | None  # None without a wanted excess
    exponents: tuple[float, float]  # of excess over FLOPs, direct and transfer, for a free final width
    snippets: tuple[str, ...]  # TOML, one a design asked for
    caveats: tuple[str, ...]

    @property
    def designs(self) -> tuple[Design, ...]:
        """Those that were asked for."""
        return tuple(design for design in (self.at_budget, self.cheapest) if design is not None)

    @property
    def budgets(self) -> tuple[float, ...]:
        """Round FLOPs from the cheapest design up to beyond those asked for: two a decade."""
        low = math.floor(2 * math.log10(least_flops(self.direct, self.transfer))) + 1
        high = math.ceil(2 * math.log10(_BEYOND * max(d.flops for d in self.designs)))
        return tuple(10 ** (step / 2) for step in range(low, high + 1))


def plan_budget(
    spec: SweepSpec,
    optimizer: str,
    *,
    budget: float | None = None,
    wanted_excess: float | None = None,
    target: TargetSpec | None = None,
    fit: SweepFit | None = None,
    fitted_spec: SweepSpec | None = None,
) -> BudgetPlan:
    """The frontier of direct tuning and transfer, the best design at a budget and the cheapest for an excess.

    `fit` is of a finished sweep, and `fitted_spec` that sweep's spec.

    Raises:
        SpecError: no such optimizer, an axis that octaves cannot space, a number that must be above 0 and is not, or
            several depths.
        PlanError: the budget covers no design, or no design reaches the excess; the message says what would do.
    """
    if optimizer not in spec.optimizers:
        raise SpecError(f"--optimizer must be one of {', '.join(spec.optimizers)}, got {optimizer!r}.")
    for option, value, unit in (("--budget", budget, "FLOPs"), ("--excess", wanted_excess, "nats")):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SpecError(f"{option} must be a finite number of {unit} above 0, got {value:g}.")
    _refuse_depths(spec, target, fitted_spec)
    rates = transfer_rates(spec, optimizer, fit)
    search = _search(spec, optimizer, rates, budget=budget, wanted_excess=wanted_excess, target=target)
    direct, transfer = (frontier(kind, rates, search) for kind in ("direct", "transfer"))
    if not direct.designs:
        raise PlanError(
            f"no grid of up to {_POINTS[-1]} values puts three into a basin of {rates.curvature.value:.3g} nats an "
            f"octave squared: narrow the lr axis, now {rates.range_octaves.value:g} octaves wide."
        )
    at_budget = None if budget is None else _at_budget(direct, transfer, budget, target)
    cheapest = None if wanted_excess is None else _cheapest(direct, transfer, wanted_excess)
    asked = [design for design in (at_budget, cheapest) if design is not None]
    n_hps = int(rates.n_hps.value)
    return BudgetPlan(
        sweep=spec.name,
        optimizer=optimizer,
        target_width=None if target is None else target.width,
        budget=budget,
        wanted_excess=wanted_excess,
        rates=rates,
        direct=direct,
        transfer=transfer,
        at_budget=at_budget,
        cheapest=cheapest,
        exponents=(
            direct_exponent(rates.alpha.value, n_hps=n_hps, cost_exponent=COST_EXPONENT),
            transfer_exponent(rates.alpha.value, rates.beta.value, n_hps=n_hps, cost_exponent=COST_EXPONENT),
        ),
        snippets=tuple(dict.fromkeys(snippet(spec, optimizer, design, target) for design in asked)),
        caveats=(
            *_rate_caveats(spec, rates, fitted_spec),
            *dict.fromkeys(_caveats(spec, optimizer, asked, budget, target)),
        ),
    )


def _refuse_depths(spec: SweepSpec, target: TargetSpec | None, fitted_spec: SweepSpec | None) -> None:
    """The rates are over width, and a design is priced at one depth: that of all its models."""
    depths = {*spec.depths, *(() if fitted_spec is None else fitted_spec.depths)}
    depths |= set() if target is None or target.depth is None else {target.depth}
    if len(depths) > 1:
        raise SpecError(
            f"{spec.file}: run.depths: a budget is planned over width at one depth, got depths {sorted(depths)}, the "
            "target's and the measured sweep's among them. Keep one depth for the planning."
        )


def least_flops(direct: Frontier, transfer: Frontier) -> float:
    """FLOPs of the cheapest design."""
    return min(front.designs[0].flops for front in (direct, transfer) if front.designs)


def transfer_rates(spec: SweepSpec, optimizer: str, fit: SweepFit | None = None) -> TransferRates:
    """Each rate from the fits of a finished sweep where they hold it, else assumed; range and axes from the spec.

    Raises:
        PlanError: the sweep has no optimum of this optimizer.
        SpecError: an axis that octaves cannot space.
    """
    published = _published(spec.optimizers[optimizer].config)
    measured = _Measured.of(fit, optimizer) if fit is not None else None
    reference = float(min(spec.run.widths) if measured is None else measured.optima[0].width)
    alpha, loss_amplitude = _loss_rates(measured, published, reference)
    beta, optimum_amplitude = _optimum_rates(measured, published, reference)
    curvature, gamma = _curvature_rates(measured, published, reference)
    tuned = tuned_axes(spec, optimizer)
    return TransferRates(
        reference_width=reference,
        alpha=alpha,
        loss_amplitude=loss_amplitude,
        beta=beta,
        optimum_amplitude=optimum_amplitude,
        curvature=curvature,
        gamma=gamma,
        noise=_NOISE if measured is None else measured.noise,
        noise_octaves=_NOISE_OCTAVES,
        grid_error=_GRID_ERROR,
        range_octaves=Rate(value=_edges(tuned["lr"])[1] - _edges(tuned["lr"])[0], source="given", why="the spec's lr"),
        n_hps=Rate(value=len(tuned), source="given", why=f"the spec's axes: {', '.join(tuned)}"),
    )


def _published(config: OptimizerConfig) -> _Published:
    """Of the optimizer itself, else of Adam."""
    match config:
        case Muon():
            return _MUON
        case AdamW():
            return _ADAM
        case _:
            return _ADAM._replace(where=f"none is published for {config.name}; {_ADAM.where}")


def tuned_axes(spec: SweepSpec, optimizer: str) -> dict[str, tuple[float, ...]]:
    """The axes of an optimizer that have several values, ascending.

    Raises:
        SpecError: one whose values are not real numbers above 0.
    """
    tuned = {name: values for name, values in axes_of(spec, optimizer).items() if len(values) > 1}
    for name, values in tuned.items():
        if not all(isinstance(value, float) and value > 0 for value in values):
            raise SpecError(
                f"{spec.file}: optimizers.{optimizer}: a budget is planned over axes of real numbers above 0, which "
                f"octaves space; axis {name} has {list(values)}. Fix {name} in hparams for the planning."
            )
    return {name: tuple(sorted(values)) for name, values in tuned.items()}


def snippet(spec: SweepSpec, optimizer: str, design: Design, target: TargetSpec | None) -> str:
    """The tables of a spec that run a design's tuning, to paste over the spec's own."""
    seeds = list(spec.run.seeds[: design.seeds])
    seeds += range(max(seeds) + 1, max(seeds) + 1 + design.seeds - len(seeds))
    after = "" if design.kind == "direct" else f", then train width {design.final_width} with what it finds"
    lines = [
        f"# tune at width {design.proxy_width}{after}",
        "[run]",
        f"widths = [{design.proxy_width}]",
        f"seeds = {seeds}",
    ]
    if design.kind == "direct" and target is not None and target.train_tokens is not None:
        lines.append(f"train_tokens = {target.train_tokens:_}")
    elif len(spec.run.train_tokens) > 1:
        lines.append(f"train_tokens = {spec.run.longest:_}")
    lines += ["", f"[optimizers.{optimizer}.axes]"]
    for name, values in tuned_axes(spec, optimizer).items():
        low, high = _edges(values)
        step = round((high - low) / design.points, 4)
        first = round((low + high) / 2 - step * (design.points - 1) / 2, 4)
        last = round(first + step * (design.points - 1), 4)
        lines.append(f"{name} = {{ log2_from = {first:g}, log2_to = {last:g}, log2_step = {step:g} }}")
    return "\n".join(lines) + "\n"


def _edges(values: Sequence[float]) -> tuple[float, float]:
    """log2 of the range that a grid searches: half a step beyond its first and last value."""
    logs = np.log2(values)
    half = float(np.median(np.diff(logs))) / 2
    return float(logs[0]) - half, float(logs[-1]) + half


def _search(
    spec: SweepSpec,
    optimizer: str,
    rates: TransferRates,
    *,
    budget: float | None,
    wanted_excess: float | None,
    target: TargetSpec | None,
) -> Search:
    """Proxies from the spec's narrowest width on, for below it nothing says that the laws hold."""

    def priced(width: int, train_tokens: int | None = None) -> Priced:
        run = run_config(spec, optimizer, width=width, seed=spec.run.seeds[0], train_tokens=train_tokens)
        return Priced(width, training_flops(run))

    least = min(spec.run.widths)
    head_dim = run_config(spec, optimizer, width=least, seed=spec.run.seeds[0]).model.head_dim
    if target is not None:
        widths = [*_widths(head_dim, least, target.width - 1), *(w for w in spec.run.widths if w < target.width)]
        finals = [priced(target.width, target.train_tokens)]
    else:
        widest = 2.0 * least
        if wanted_excess is not None:
            wanted_gap = rates.loss_amplitude.value / (_WIDEST_SHARE * wanted_excess)
            widest = max(widest, rates.reference_width * wanted_gap ** (1 / rates.alpha.value))
        if budget is not None:
            while widest < _WIDEST and priced(_multiple(head_dim, widest)).flops < 4 * _BEYOND * budget:
                widest *= 2
        widths = [*_widths(head_dim, least, min(widest, _WIDEST)), *spec.run.widths]
        finals = [priced(width) for width in sorted(set(widths))]
    return Search(
        proxies=tuple(priced(width) for width in sorted(set(widths))) or tuple(finals),
        finals=tuple(finals),
        points=_POINTS,
        seeds=_SEEDS,
        fixed_target=target is not None,
    )


def _widths(head_dim: int, least: float, most: float) -> list[int]:
    """Multiples of head_dim, at most eight an octave."""
    if most < least:
        return []
    steps = math.floor(_WIDTHS_PER_OCTAVE * math.log2(most / least))
    widths = {_multiple(head_dim, least * 2 ** (i / _WIDTHS_PER_OCTAVE)) for i in range(steps + 1)}
    return sorted(width for width in widths if least <= width <= most)


def _multiple(head_dim: int, width: float) -> int:
    return head_dim * max(1, round(width / head_dim))


def _at_budget(direct: Frontier, transfer: Frontier, budget: float, target: TargetSpec | None) -> Design:
    best = best_design((direct, transfer), budget)
    if best is not None:
        return best
    least = least_flops(direct, transfer)
    final = direct.designs[0].final_flops
    own = "" if target is None else f", of which the target's own run takes {final:.3g}"
    raise PlanError(
        f"--budget {budget:.3g} covers no grid and final run: the least that works is {rounded_up(least)} FLOPs{own}. "
        "Raise it, or plan for fewer train_tokens or narrower widths."
    )


def _cheapest(direct: Frontier, transfer: Frontier, wanted_excess: float) -> Design:
    cheapest = cheapest_design((direct, transfer), wanted_excess)
    if cheapest is not None:
        return cheapest
    best = best_design((direct, transfer), math.inf)
    assert best is not None
    raise PlanError(
        f"--excess {wanted_excess:g} is reached by no design with up to {_POINTS[-1]} values and {_SEEDS[-1]} seeds: "
        f"the least that works is {rounded_up(best.excess_nats)} nats. Raise it."
    )


def rounded_up(value: float) -> str:
    """Three digits, never below the value: a number to paste."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.2e}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What a finished sweep says of one optimizer, at the setting of its other axes with the lowest loss."""

    fit: SweepFit
    series: Series
    optima: tuple[Optimum, ...]  # by width, none at an edge
    laws: WidthLaws | None  # it takes four widths

    @property
    def widths(self) -> str:
        return ", ".join(str(optimum.width) for optimum in self.optima)

    @property
    def drift(self) -> Drift | None:
        return next((drift for drift in self.fit.drifts if drift.series == self.series), None)

    @property
    def limited_law(self) -> tuple[int, PowerLaw] | None:
        """The narrowest width and the loss law with a limit; None where the loss does not fall or a bound decided."""
        for law in (law for law in self.fit.loss_laws if law.series == self.series):
            if (
                law.limited.reducible > 0
                and 1.05 * EXPONENT_BOUNDS[0] < law.limited.exponent < 0.95 * EXPONENT_BOUNDS[1]
            ):
                return law.widths[0], law.limited
        return None

    @property
    def noise(self) -> Rate:
        """Pooled over widths, of values in the basin: residuals of loss = value effect + seed effect."""
        known = [noise for surface in self.surfaces if (noise := _basin_noise(surface, self.fit.band_nats)) is not None]
        if not known:
            return _NOISE
        df = sum(noise.df for noise in known)
        sd = math.sqrt(sum(noise.df * noise.sd**2 for noise in known) / df)
        return Rate(value=sd, source="measured", why=f"paired seeds near the optima, {df} degrees of freedom")

    @property
    def surfaces(self) -> Iterator[Surface]:
        """Those with an optimum inside."""
        widths = {optimum.width for optimum in self.optima}
        return (surface for surface in self.fit.surfaces if surface.series == self.series and surface.width in widths)

    @classmethod
    def of(cls, fit: SweepFit, optimizer: str) -> "_Measured":
        """Raises PlanError if nothing was measured."""
        inner = [optimum for optimum in fit.optima if optimum.optimizer == optimizer and optimum.edge is None]
        if not inner:
            known = ", ".join(dict.fromkeys(optimum.optimizer for optimum in fit.optima)) or "none"
            raise PlanError(
                f"the sweep given with --from has no optimum of {optimizer!r} inside its grid; it has optima of "
                f"{known}. Choose one of them with --optimizer, or leave --from out."
            )
        widest = max(optimum.width for optimum in inner)
        series = min((o for o in inner if o.width == widest), key=lambda optimum: optimum.loss).series
        optima = tuple(optimum for optimum in inner if optimum.series == series)
        laws = next((transfer.laws for transfer in fit.transfers if transfer.series == series), None)
        return cls(fit=fit, series=series, optima=optima, laws=laws)


def _basin_noise(surface: Surface, band_nats: float) -> Noise | None:
    """Of the values in the basin, at least the three that a parabola takes; None with one seed."""
    _, means, losses = run_rows(surface)
    return two_way(losses[means <= max(np.nanmin(means) + band_nats, np.sort(means)[2])]).noise


def _loss_rates(measured: _Measured | None, published: _Published, reference: float) -> tuple[Rate, Rate]:
    """alpha and the loss gap at the reference width."""
    if measured is not None and measured.laws is not None and _resolved(measured.laws.alpha):
        laws, why = measured.laws, f"losses at widths {measured.widths}, with a free limit"
        gap = laws.loss_amplitude.value * (reference / laws.narrowest) ** -laws.alpha.value
        if gap > 0:
            return _measured_pair(laws.alpha, gap, why)
    limited = measured.limited_law if measured is not None else None
    if limited is not None:
        narrowest, law = limited
        gap = law.reducible * (reference / narrowest) ** -law.exponent
        why = "a law of three parameters through the losses, which three widths only just fix"
        return (
            Rate(value=law.exponent, source="measured", why=why),
            Rate(value=gap, source="measured", why="the same law"),
        )
    gap = published.loss_amplitude * (reference / _PUBLISHED_WIDTH) ** -published.alpha
    return (
        Rate(value=published.alpha, source="assumed", why=published.where),
        Rate(value=gap, source="assumed", why="the same, carried there from width 128"),
    )


def _optimum_rates(measured: _Measured | None, published: _Published, reference: float) -> tuple[Rate, Rate]:
    """beta and the optimum's distance from its limit at the reference width."""
    if measured is not None and measured.laws is not None and _resolved(measured.laws.beta):
        laws, why = measured.laws, f"optima at widths {measured.widths}, with a free limit"
        gap = abs(laws.optimum_amplitude[0].value) * (reference / laws.narrowest) ** -laws.beta.value
        return _measured_pair(laws.beta, gap, why)
    if measured is not None and measured.drift is not None:
        drift = measured.drift
        octaves = float(np.log2(drift.widths[-1] / drift.widths[0]))
        first, last = ((width / reference) ** -_BETA.value for width in (drift.widths[0], drift.widths[-1]))
        sure = "" if drift.resolved else ", which noise alone could have made"
        why = f"the optimum's drift over widths {drift.widths[0]} to {drift.widths[-1]} at this beta{sure}"
        return _BETA, Rate(value=abs(drift.slope) * octaves / (first - last), source="measured", why=why)
    gap = published.optimum_amplitude * (reference / _PUBLISHED_WIDTH) ** -_BETA.value
    return _BETA, Rate(value=gap, source="assumed", why=f"{published.where}, carried there from width 128")


def _curvature_rates(measured: _Measured | None, published: _Published, reference: float) -> tuple[Rate, Rate]:
    """Curvature at the reference width and its exponent, which is 0 unless measured apart from it."""
    flat = Rate(value=0.0, source="assumed", why="one curvature at all widths")
    curved = [o for o in measured.optima if o.method == "quadratic" and o.curvature > 0] if measured else []
    if measured is None or not curved:
        return Rate(value=published.curvature, source="assumed", why=published.where), flat
    laws = measured.laws
    if laws is not None and laws.curvature.value > 0 and not laws.gamma.interval.contains(0.0):
        at_reference = laws.curvature.value * (reference / laws.widest) ** laws.gamma.value
        gamma, curvature = _measured_pair(laws.gamma, at_reference, f"curvatures at widths {measured.widths}")
        return curvature, gamma
    why = f"median of the parabolas at widths {', '.join(str(optimum.width) for optimum in curved)}"
    return Rate(value=float(np.median([o.curvature for o in curved])), source="measured", why=why), flat


def _measured_pair(exponent: Quantity, amplitude: float, why: str) -> tuple[Rate, Rate]:
    span = (exponent.interval.low, exponent.interval.high)
    return (
        Rate(value=exponent.value, source="measured", why=why, span=span),
        Rate(value=amplitude, source="measured", why="the same law"),
    )


def _resolved(exponent: Quantity) -> bool:
    """Whether the interval stays off the bounds of the fit: at one, the data did not decide the exponent."""
    return _inside(exponent.interval.low) and _inside(exponent.interval.high)


def _inside(exponent: float) -> bool:
    """Off the bounds of the fits of laws over width."""
    low, high = EXPONENT_BOUNDS
    return 1.05 * low < exponent < 0.95 * high


def _rate_caveats(spec: SweepSpec, rates: TransferRates, fitted_spec: SweepSpec | None) -> Iterator[str]:
    assumed = [name for name in ("alpha", "beta", "curvature", "noise") if getattr(rates, name).source == "assumed"]
    if assumed:
        yield (
            f"Assumed and not measured on this model: {', '.join(assumed)}. A small sweep, given with --from, measures "
            "them (alpha takes three widths, beta four, noise two seeds)."
        )
    if fitted_spec is not None:
        mine, theirs = (
            {"model": s.model, "hparams": s.hparams, "data": s.data, "train_tokens": s.run.longest,
             "parametrization": s.run.parametrization} for s in (spec, fitted_spec)
        )  # fmt: skip
        differing = [name for name in mine if mine[name] != theirs[name]]
        if differing:
            yield f"The sweep given with --from has another {', '.join(differing)}: its rates may not be this spec's."
    if spec.run.parametrization == "standard" and rates.optimum_amplitude.source == "assumed":
        yield "The assumed drift is muP's; under the standard parametrization optima move further. Measure it first."
    if not rates.useful:
        half = "half of alpha" if rates.gamma.value == 0 else "half of alpha + gamma"
        yield (
            f"beta {rates.beta.value:.2f} is not above {half}, {(rates.alpha.value + rates.gamma.value) / 2:.2f}: at "
            "large budgets direct tuning wins."
        )


def _caveats(
    spec: SweepSpec, optimizer: str, designs: Sequence[Design], budget: float | None, target: TargetSpec | None
) -> Iterator[str]:
    if target is not None and target.train_tokens not in (None, spec.run.longest):
        yield (
            f"The target trains on {target.train_tokens:,} tokens and the proxies on {spec.run.longest:,}; optima "
            "are known to shift along the token horizon (arXiv:2409.19913), which no design here accounts for."
        )
    if budget is not None and designs[0].flops < budget / 2:
        yield (
            f"{1 - designs[0].flops / budget:.0%} of the budget is left: no grid of up to {_POINTS[-1]} values and "
            f"{_SEEDS[-1]} seeds gains from it."
        )
    for design in designs:
        yield from _design_caveats(spec, optimizer, design)


def _design_caveats(spec: SweepSpec, optimizer: str, design: Design) -> Iterator[str]:
    if design.seeds == 1:
        yield (
            "With one seed only the parabola's misfit tells the noise, and the loss has no interval; a second seed "
            f"costs {design.tuning_flops:.2e} FLOPs more."
        )
    run = run_config(spec, optimizer, width=design.proxy_width, seed=spec.run.seeds[0])
    second = _multiple(run.model.head_dim, design.proxy_width / 2)
    if design.kind == "transfer" and second < design.proxy_width:
        narrower = run_config(spec, optimizer, width=second, seed=spec.run.seeds[0])
        share = training_flops(narrower) / training_flops(run)
        yield (
            f"The design takes the optimum of width {design.proxy_width} as it is (`mutransfer fit` gives it). "
            "`mutransfer transfer` extrapolates from two widths or more: adding "
            f"{second} costs {share * design.tuning_flops:.2e} FLOPs more."
        )
