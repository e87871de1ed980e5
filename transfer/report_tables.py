"""The report's tables, from records alone: cells as text, for HTML and Markdown alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.drift import Drift
from analysis.fit import SweepFit
from analysis.optimum import Optimum
from analysis.surface import label_of
from proxy_models.accounting import memory
from proxy_models.config import RunConfig
from proxy_models.parametrization import residual_multiplier
from sweeps.trial import TrialResult
from transfer.console import duration
from transfer.plan import OptimizerPlan, TransferPlan
from transfer.scale_tables import settings_table, warmup_line
from transfer.tables import estimate, flops, interval, power_of_two, size
from transfer.text_table import TextTable
from transfer.verification import OptimizerVerification, Verification

if TYPE_CHECKING:
    from proxy_models.coord_check import CoordCheck, CoordSlope

_MOST_CHECK_COLUMNS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSection:
    """One optimizer's plan."""

    title: str
    table: TextTable
    run: str
    rests_on: str
    settings: TextTable | None
    warmup: str
    caveats: tuple[str, ...]


def headline_table(plan: TransferPlan | None, verification: Verification | None) -> TextTable | None:
    """Expected and measured, side by side."""
    if plan is None:
        return None
    measured = verification.by_optimizer() if verification else {}
    return TextTable(
        columns=("optimizer", "lr at base width", "expected loss", "measured", "expected excess", "measured excess"),
        rows=tuple(_headline_row(optimizer, measured.get(optimizer.optimizer)) for optimizer in plan.optimizers),
    )


def _headline_row(plan: OptimizerPlan, measured: OptimizerVerification | None) -> tuple[str, ...]:
    return (
        plan.optimizer,
        power_of_two(plan.log2_lr.value),
        estimate(plan.expected_loss),
        _number(measured.planned_loss if measured else None),
        estimate(plan.expected_excess_loss),
        _number(measured.excess_loss if measured else None),
    )


def comparison_table(fit: SweepFit, results: Sequence[TrialResult], labels: Mapping[str, str]) -> TextTable | None:
    """Loss, drift, memory and time of each series at its widest proxy, best first; None with a single one."""
    drifts = {drift.series: drift for drift in fit.drifts}
    rows = [
        (optima[-1], drifts.get(series), _trials_of(optima[-1], results, labels))
        for series in fit.series
        if (optima := fit.optima_of(series))
    ]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: row[0].loss)
    return TextTable(
        columns=("optimizer", "width", "best loss", "best lr", "drift, octaves an octave", "memory", "time a step"),
        rows=tuple(_comparison_row(*row) for row in rows),
    )


def _comparison_row(best: Optimum, drift: Drift | None, trials: Sequence[TrialResult]) -> tuple[str, ...]:
    run = trials[0].trial.run
    milliseconds = sorted(
        1e3 * run.hparams.batch_tokens / trial.tokens_per_second for trial in trials if trial.tokens_per_second > 0
    )
    return (
        str(best.series),
        str(best.width),
        f"{best.loss:.3f}{interval(best.loss_interval, 3)}",
        power_of_two(best.log2_value) + (f", {best.edge} edge" if best.edge else ""),
        "-" if drift is None else f"{drift.slope:+.2f}{interval(drift.slope_interval, 2)}",
        size(memory(run.model, run.optimizer).total),
        f"{milliseconds[len(milliseconds) // 2]:.1f} ms" if milliseconds else "-",
    )


def _trials_of(optimum: Optimum, results: Sequence[TrialResult], labels: Mapping[str, str]) -> Sequence[TrialResult]:
    return [
        result
        for result in results
        if label_of(result, labels) == optimum.optimizer and result.trial.run.model.width == optimum.width
    ]


def optima_table(fit: SweepFit) -> TextTable:
    """Every fitted optimum."""
    return TextTable(
        columns=("optimizer", "width", "lr", "interval, log2", "by spline", "loss", "nats/octave²", "flags"),
        rows=tuple(_optimum_row(optimum) for optimum in fit.optima),
        words=frozenset({0, 7}),
    )


def _optimum_row(optimum: Optimum) -> tuple[str, ...]:
    return (
        str(optimum.series),
        str(optimum.width),
        power_of_two(optimum.log2_value),
        interval(optimum.interval, 2).strip() or "-",
        f"2^{optimum.spline_log2_value:.2f}",
        f"{optimum.loss:.3f}{interval(optimum.loss_interval, 3)}",
        f"{optimum.curvature:.3f}",
        ", ".join(flag.value.replace("_", " ") for flag in optimum.flags),
    )


def plan_sections(plan: TransferPlan | None) -> tuple[PlanSection, ...]:
    """One section an optimizer."""
    return () if plan is None else tuple(_plan_section(optimizer) for optimizer in plan.optimizers)


def _plan_section(plan: OptimizerPlan) -> PlanSection:
    run, hp = plan.run, plan.run.hparams
    clip = "no clipping" if hp.clip_norm is None else f"gradients clipped to norm {hp.clip_norm:g}"
    return PlanSection(
        title=f"{plan.optimizer}: lr {power_of_two(plan.log2_lr.value)} at base width {run.base_width}",
        table=TextTable(
            columns=("role", "effective lr", "lr rule", "weight decay", "init", "forward multiplier", "Adam eps"),
            rows=tuple(
                (
                    name,
                    f"{role.effective_lr:.4g}",
                    _powers(role.rule.lr, role.rule.depth_lr),
                    f"{role.weight_decay:g}",
                    role.init,
                    f"{role.forward_multiplier:g}",
                    f"{role.adam_eps:.2g}",
                )
                for name, role in plan.named_roles
            ),
            words=frozenset({0, 4}),
        ),
        run=(
            f"{run.steps} steps of {hp.batch_tokens:,} tokens; schedule {run.schedule}: warmup over "
            f"{hp.warmup_tokens:,} tokens"
            + (f", decay over the last {hp.decay_tokens:,}" if run.schedule == "wsd" else "")
            + f", to {hp.final_lr_frac:g} of the peak; {clip}; parametrization {run.parametrization}, "
            f"m = {run.width_mult:g}{_depth_rule(run)}."
        ),
        rests_on=plan.rests_on,
        settings=settings_table(plan),
        warmup=warmup_line(plan),
        caveats=plan.caveats,
    )


def _powers(width: float, depth: float) -> str:
    """`m^-1`, `m^-0.5 m_L^1` or `constant`."""
    powers = (f"{size}^{power:.3g}" for size, power in (("m", width), ("m_L", depth)) if power != 0)
    return " ".join(powers) or "constant"


def _depth_rule(run: RunConfig) -> str:
    if run.base_depth is None:
        return ""
    return f", m_L = {run.depth_mult:g}: every residual branch times {residual_multiplier(run):.4g}"


def verification_table(verification: Verification | None) -> TextTable | None:
    """Losses at the target."""
    if verification is None:
        return None
    return TextTable(
        columns=(
            "optimizer",
            "planned lr / 2",
            "planned lr",
            "planned lr x 2",
            "optimum by parabola",
            "excess",
            "in predicted interval",
        ),
        rows=tuple(
            (
                v.optimizer,
                *("diverged" if point.mean_loss is None else f"{point.mean_loss:.3f}" for point in v.measured),
                "-" if v.log2_optimum is None else f"2^{v.log2_optimum:.2f}",
                _number(v.excess_loss),
                {True: "yes", False: "no", None: "-"}[v.in_interval],
            )
            for v in verification.optimizers
        ),
    )


def check_table(check: "CoordCheck | None") -> TextTable | None:
    """The slopes after the last step, one row an activation, one column an (optimizer, parametrization).

    Where these are too many for a page, one row an optimizer with its steepest.
    """
    if check is None:
        return None
    last = max(slope.step for slope in check.slopes)
    columns = list(dict.fromkeys((s.optimizer, _rules_of(s, check)) for s in check.slopes))
    if len(columns) > _MOST_CHECK_COLUMNS:
        return _steepest_table(check, last)
    slopes: Mapping[tuple[str, str, str], float] = {
        (s.tap, s.optimizer, _rules_of(s, check)): s.slope for s in check.slopes if s.step == last
    }
    taps = dict.fromkeys(s.tap for s in check.slopes if s.step == last)
    return TextTable(
        columns=(f"slope after {last} steps", *(f"{optimizer}, {name}" for optimizer, name in columns)),
        rows=tuple((tap, *(_signed(slopes.get((tap, *c))) for c in columns)) for tap in taps),
    )


def _rules_of(slope: "CoordSlope", check: "CoordCheck") -> str:
    """A column: the parametrization, and where the check goes along several axes, which."""
    return slope.parametrization if len(check.axes) == 1 else f"{slope.parametrization}, over {slope.axis}"


def _signed(slope: float | None) -> str:
    return "-" if slope is None else f"{slope:+.2f}"


def _steepest_table(check: "CoordCheck", last: int) -> TextTable:
    steepest: dict[tuple[str, str], CoordSlope] = {}
    for slope in (slope for slope in check.slopes if slope.step == last):
        key = (slope.optimizer, _rules_of(slope, check))
        if key not in steepest or abs(slope.slope) > abs(steepest[key].slope):
            steepest[key] = slope
    names = list(dict.fromkeys(parametrization for _, parametrization in steepest))
    return TextTable(
        columns=(f"steepest slope after {last} steps", *names),
        rows=tuple(
            (optimizer, *(f"{steepest[optimizer, name].slope:+.2f} {steepest[optimizer, name].tap}" for name in names))
            for optimizer in dict.fromkeys(optimizer for optimizer, _ in steepest)
        ),
    )


def provenance_table(
    results: Sequence[TrialResult],
    targets: Sequence[TrialResult],
    data_description: str,
    seconds: Mapping[str, float],
) -> TextTable:
    """Versions, hardware, commit, data, FLOPs, time and throughput."""
    everything = [*results, *targets]
    rows = [("data", f"{data_description}, fingerprint {', '.join({r.trial.data_fingerprint for r in results})}")]
    rows.append(("held-out set", _held_out(results)))
    keys = dict.fromkeys(key for result in everything for key in (result.provenance or {}))
    for key in (key for key in keys if key != "start_time_utc"):
        values = dict.fromkeys((result.provenance or {}).get(key, "unknown") for result in everything)
        rows.append((key.replace("_", " "), ", ".join(values)))
    starts = sorted(r.provenance["start_time_utc"] for r in everything if r.provenance)
    if starts:
        rows.append(("workers started, UTC", starts[0] if starts[0] == starts[-1] else f"{starts[0]} to {starts[-1]}"))
    rows += [
        (
            "model FLOPs",
            f"{flops(sum(r.flops for r in results))} proxies, {flops(sum(r.flops for r in targets))} target",
        ),
        ("training time, all workers", duration(sum(result.train_seconds for result in everything))),
        *((f"throughput at width {width}", text) for width, text in _throughput(everything)),
        *((f"time of the last run: {stage}", duration(value)) for stage, value in seconds.items()),
    ]
    return TextTable(columns=("what", "value"), rows=tuple(rows), words=frozenset({0, 1}))


def _held_out(results: Sequence[TrialResult]) -> str:
    tokens = ", ".join(f"{n:,}" for n in sorted({result.trial.run.validation_tokens for result in results}))
    errors = sorted(r.validation_loss_se for r in results if r.validation_loss_se is not None)
    if not errors:
        return f"{tokens} tokens"
    return (
        f"{tokens} tokens; standard error of a loss {errors[len(errors) // 2]:.3f} nats (median), mostly common to all "
        "trials: differences between them are known better"
    )


def _throughput(results: Sequence[TrialResult]) -> Iterable[tuple[int, str]]:
    for width in sorted({result.trial.run.model.width for result in results}):
        same = sorted((r for r in results if r.trial.run.model.width == width), key=lambda r: r.tokens_per_second)
        median = same[len(same) // 2]
        yield (
            width,
            (f"{median.tokens_per_second:,.0f} tokens/s a worker, {median.flops_utilization:.0%} of its matmul peak"),
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
