"""The report's words and tables, from records alone. No figures, no files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.drift import Drift
from analysis.fit import SweepFit
from analysis.optimum import Optimum
from analysis.surface import label_of
from proxy_models.accounting import memory
from sweeps.trial import TrialResult, TrialStatus
from transfer.console import duration
from transfer.plan import Estimate, OptimizerPlan, TransferPlan
from transfer.tables import estimate, flops, interval, power_of_two, size
from transfer.verification import OptimizerVerification, Verification

if TYPE_CHECKING:
    from proxy_models.coord_check import CoordCheck


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """Cells as text. Columns in `words` hold prose and are set flush left."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSection:
    """One optimizer's plan."""

    title: str
    table: TextTable
    run: str
    rests_on: str
    caveats: tuple[str, ...]


def summary(results: Sequence[TrialResult], planned: int, fit: SweepFit) -> str:
    """One sentence on what was run."""
    diverged = sum(result.status is TrialStatus.DIVERGED for result in results)
    names = ", ".join(dict.fromkeys(surface.optimizer for surface in fit.surfaces))
    widths = ", ".join(str(width) for width in sorted({surface.width for surface in fit.surfaces}))
    missing = planned - len(results)
    return (
        f"{len(results)} of {planned} trials of {names} at widths {widths}"
        + (f", {diverged} diverged" if diverged else ", none diverged")
        + (f". {missing} are missing: the fits below are of an unfinished sweep." if missing else ".")
    )


def headline(plan: TransferPlan | None, verification: Verification | None) -> Iterable[str]:
    """What to do, optimizer by optimizer, in a sentence each."""
    if plan is None:
        return
    measured = verification.by_optimizer() if verification else {}
    for optimizer in plan.optimizers:
        low_high = optimizer.log2_lr.interval
        assert low_high is not None
        yield (
            f"{optimizer.optimizer}: train width {plan.target_width} at lr {power_of_two(optimizer.log2_lr.value)} at "
            f"base width (optimum {low_high.level:.0%} likely within 2^{low_high.low:.2f} to 2^{low_high.high:.2f}). "
            + _measured_sentence(measured.get(optimizer.optimizer), optimizer.expected_loss)
        )


def _measured_sentence(measured: OptimizerVerification | None, expected: Estimate | None) -> str:
    if measured is None:
        return "Not yet tried at the target: `mutransfer verify`."
    if measured.planned_loss is None or measured.excess_loss is None:
        return "Tried at the target, it diverged: do not use it."
    better = {-1: "half of it", 0: "", 1: "twice of it"}[measured.best_octaves or 0]
    found = (
        f"{better} did better by {measured.excess_loss:.3f} nats ({measured.planned_loss:.3f} against "
        f"{measured.best_loss:.3f})."
        if better
        else f"it was the best of three: loss {measured.planned_loss:.3f}."
    )
    return f"Tried at the target, {found}{_surprise(measured, expected)}"


def _surprise(measured: OptimizerVerification, expected: Estimate | None) -> str:
    """A second sentence where the loss came out other than the loss law expected."""
    if measured.in_interval is not False or expected is None or expected.interval is None:
        return ""
    low, high = expected.interval.low, expected.interval.high
    assert measured.planned_loss is not None
    side = "lower" if measured.planned_loss < low else "higher"
    return f" That is {side} than the {low:.3f} to {high:.3f} expected: do not lean on the loss law over these widths."


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


def drift_lines(fit: SweepFit) -> Iterable[str]:
    """How each optimum moves, and whether wider is better."""
    laws = {law.series: law for law in fit.loss_laws}
    for drift in fit.drifts:
        law = laws.get(drift.series)
        better = "" if law is None else (
            " Wider is better at every step." if law.wider_is_better else " Wider is NOT better at every step."
        )  # fmt: skip
        yield (
            f"{drift.optimizer}: {drift.slope:+.2f}{interval(drift.slope_interval, 2)} octaves of lr an octave of "
            "width, "
            f"{'resolved' if drift.resolved else 'not resolved from 0'}; the optima span {drift.range_octaves:.2f} "
            f"octaves.{better}"
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
                    _power(role.rule.lr),
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
            f"m = {run.width_mult:g}."
        ),
        rests_on=plan.rests_on,
        caveats=plan.caveats,
    )


def _power(exponent: float) -> str:
    return "constant" if exponent == 0 else f"m^{exponent:g}"


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


def check_lines(check: "CoordCheck | None", parametrization: str) -> Iterable[str]:
    """The verdict under each parametrization that was measured."""
    if check is None:
        return
    for name in dict.fromkeys(slope.parametrization for slope in check.slopes):
        failures = check.failures(name)
        verdict = "every activation is flat" if not failures else f"{len(failures)} activations are not flat"
        role = "this sweep's rules" if name == parametrization else "in contrast"
        yield f"{name} ({role}): {verdict}, to a slope of ±{check.tolerance:g}."


def check_table(check: "CoordCheck | None") -> TextTable | None:
    """The slopes after the last step, one row an activation, one column an (optimizer, parametrization)."""
    if check is None:
        return None
    last = max(slope.step for slope in check.slopes)
    columns = list(dict.fromkeys((s.optimizer, s.parametrization) for s in check.slopes))
    slopes: Mapping[tuple[str, str, str], float] = {
        (s.tap, s.optimizer, s.parametrization): s.slope for s in check.slopes if s.step == last
    }
    taps = dict.fromkeys(s.tap for s in check.slopes if s.step == last)
    return TextTable(
        columns=(f"slope after {last} steps", *(f"{optimizer}, {name}" for optimizer, name in columns)),
        rows=tuple((tap, *(f"{slopes.get((tap, *c), float('nan')):+.2f}" for c in columns)) for tap in taps),
    )


def flags(fit: SweepFit) -> tuple[str, ...]:
    """Every reason to doubt, with what to do."""
    doubts = [
        f"{optimum.optimizer}, width {optimum.width}: {flag.advice}" for optimum in fit.optima for flag in optimum.flags
    ]
    for skipped in fit.skipped:
        where = "" if skipped.width is None else f", width {skipped.width}"
        doubts.append(f"{skipped.optimizer}{where}: no {skipped.what.replace('_', ' ')}: {skipped.reason}")
    return tuple(doubts)


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
