"""The report: one self-contained page, the same in Markdown, and every figure as SVG and PNG."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis import figures
from analysis.fit import SweepFit
from analysis.noise_scale import KIND
from analysis.scale_study import ScaleStudy
from analysis.surface import Series
from analysis.timing import Timing, timings
from sweeps.shape_plans import read_plans
from sweeps.spec import SweepSpec
from sweeps.stages import Stage, read_stages
from sweeps.stopping import Stop
from sweeps.store import ResultStore
from sweeps.trial import TrialResult
from transfer import folder as folders
from transfer import pipeline, rates_tables, report_tables, report_text, scale_tables, stopping_tables
from transfer.console import say
from transfer.gate import read_check
from transfer.horizons import horizons_note
from transfer.plan import OptimizerPlan, TransferPlan
from transfer.report_figures import Drawn, scale_figures
from transfer.search_tables import stages_table
from transfer.timing_tables import timing_table
from transfer.verification import OptimizerVerification, Verification

if TYPE_CHECKING:
    import pandas as pd

    from proxy_models.coord_check import CoordCheck

REPORT = "report"
MOST_CURVES = 4  # optimizers whose coordinate check is drawn activation by activation


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """All that a report is made of, read from one results folder."""

    spec: SweepSpec
    planned: int
    results: tuple[TrialResult, ...]  # that the fits over width are of
    stopped: tuple[tuple[TrialResult, Stop], ...]
    other_results: tuple[TrialResult, ...]  # of other horizons and batches, and probes
    target_results: tuple[TrialResult, ...]
    labels: Mapping[str, str]
    fit: SweepFit
    scales: ScaleStudy | None
    stages: tuple[Stage, ...]  # of an adaptive search
    plan: TransferPlan | None
    verification: Verification | None
    check: "CoordCheck | None"
    timings: tuple[Timing, ...]
    diagnostics: tuple[tuple[str, TrialResult, "pd.DataFrame"], ...]  # an optimizer's best widest trial that has any


def write_report(folder: Path) -> Path:
    """Write report/ from what the folder holds, and return the page. Fits anew; plans and trains nothing.

    Raises:
        FitError, FolderError: no results yet, or no sweep.
    """
    material = read_material(folder)
    out = folder / REPORT
    drawn = tuple(draw(material))
    svgs = {d.stem: figures.save(d.figure, out, d.stem) for d in drawn}
    data = pipeline.load_tokens(material.spec)
    context = {
        **text_context(material, data.description, folders.read_times(folder)),
        "figures": [
            {"section": d.section, "stem": d.stem, "caption": d.caption, "svg": inline_svg(svgs[d.stem].read_text())}
            for d in drawn
        ],
    }
    for name, template, autoescape in (("index.html", "report.html.j2", True), ("report.md", "report.md.j2", False)):
        folders.write(out, name, _environment(autoescape=autoescape).get_template(template).render(context))
    return out / "index.html"


def read_material(folder: Path) -> Material:
    """Read a results folder; a plan or verification of other results than these is left out, and said so."""
    spec = folders.read_spec(folder)
    fitted = pipeline.fit(folder)
    recorded = fitted.recorded
    plan = folders.read_plan(folder / folders.PLAN) if (folder / folders.PLAN).is_file() else None
    if plan is not None and plan.inputs_digest != pipeline.digest(recorded.results):
        say(f"{folder / folders.PLAN} was made from other results than these: left out. Run `mutransfer transfer`.")
        plan = None
    return Material(
        spec=spec,
        planned=len(recorded.planned),
        results=recorded.results,
        stopped=recorded.stopped,
        other_results=recorded.elsewhere,
        target_results=recorded.others,
        labels=recorded.labels,
        fit=fitted.over_width,
        scales=fitted.scales,
        stages=tuple(read_stages(folder, spec)),
        plan=plan,
        verification=None if plan is None else _verification_of(plan, folder),
        check=read_check(folder),
        timings=timings(
            (*recorded.results, *recorded.elsewhere, *recorded.others), recorded.labels, read_plans(folder)
        ),
        diagnostics=tuple(_diagnostics(folder, recorded.results, recorded.labels)),
    )


def _diagnostics(
    folder: Path, results: Iterable[TrialResult], labels: Mapping[str, str]
) -> Iterable[tuple[str, TrialResult, "pd.DataFrame"]]:
    store = ResultStore(folder.resolve())
    ranked = sorted(
        (r for r in results if r.validation_loss is not None),
        key=lambda r: (-r.trial.run.model.width, r.validation_loss),
    )
    for name in dict.fromkeys(labels.values()):
        for result in (r for r in ranked if labels[r.trial_id] == name):
            frame = store.read_diagnostics(result.trial_id)
            matrices = None if frame is None else frame[frame["kind"] != KIND]
            if matrices is not None and len(matrices):
                yield name, result, matrices
                break


def _verification_of(plan: TransferPlan, folder: Path) -> Verification | None:
    """The folder's verification if it is of this plan."""
    verification = folders.read_verification(folder)
    if verification is not None and not verification.is_of(plan):
        say(f"{folder / folders.VERIFICATION} is of another plan than this: left out. Run `mutransfer verify`.")
        return None
    return verification


def text_context(material: Material, data_description: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Everything the templates need but figures."""
    plan, verification, fit, check = material.plan, material.verification, material.fit, material.check
    note = horizons_note(material.spec)
    return {
        "sweep": material.spec.name,
        "target_width": plan.target_width if plan else None,
        "level": f"{fit.level:.0%}",
        "summary": f"{_summary(material)} {note}".rstrip(),
        "headline": list(report_text.headline(plan, verification)),
        "headline_table": report_tables.headline_table(plan, verification),
        "comparison_table": report_tables.comparison_table(fit, material.results, material.labels),
        "optima_table": report_tables.optima_table(fit),
        "drift_lines": list(report_text.drift_lines(fit)),
        "verdict_lines": [f"{transfer.series}: {transfer.sentence}" for transfer in fit.transfers],
        "rates_table": rates_tables.rates_table(fit),
        "gaps_table": rates_tables.gaps_table(fit),
        "penalties_table": rates_tables.penalties_table(fit),
        "joint_table": rates_tables.joint_table(fit),
        "stages_table": stages_table(material.stages),
        "stopping_summary": stopping_tables.stopping_summary(material.results, material.stopped),
        "stopping_table": stopping_tables.stopping_table(material.stopped, material.labels, fit),
        **scales_context(material.scales, plan),
        "plan_tables": report_tables.plan_sections(plan),
        "not_planned": plan.not_planned if plan else (),
        "verification_table": report_tables.verification_table(verification),
        "check_lines": list(report_text.check_lines(check, material.spec.run.parametrization)),
        "check_table": report_tables.check_table(check),
        "flags": report_text.flags(fit),
        "timing_table": timing_table(material.timings),
        "provenance_table": report_tables.provenance_table(
            (*material.results, *material.other_results), material.target_results, data_description, seconds
        ),
        "spec_text": material.spec.text,
    }


def scales_context(scales: ScaleStudy | None, plan: TransferPlan | None) -> dict[str, Any]:
    """What the templates say of the scales beside width."""
    return {
        "has_scales": scales is not None,
        "critical_table": scale_tables.critical_table(scales),
        "critical_flags": scale_tables.critical_flags(scale_tables.all_fits(scales)),
        "ratio_table": scale_tables.ratio_table(scales),
        "ratio_lines": scale_tables.ratio_lines(scales),
        "powers_table": scale_tables.powers_table(scales),
        "cells_table": scale_tables.cells_table(scales),
        "law_lines": scale_tables.law_lines(scales),
        "branches_table": scale_tables.branches_table(scales),
        "warmup_lines": scale_tables.warmup_lines(scales),
        "noise_lines": scale_tables.noise_lines(scales),
        "timescale_lines": scale_tables.timescale_lines(scales),
        "unmeasured_lines": scale_tables.unmeasured_lines(scales),
        "published_table": None if scales is None else scale_tables.published_table(plan),
    }


def _summary(material: Material) -> str:
    return report_text.summary(material.results, material.planned, material.fit, n_stopped=len(material.stopped))


def draw(material: Material) -> Iterable[Drawn]:
    """Every figure that this material has the data for."""
    fit, targets = material.fit, figure_targets(material.plan, material.verification)
    yield Drawn(
        section="loss",
        stem="loss_against_lr",
        caption="Validation loss against the learning rate at base width. Each width's optimum is marked with its "
        f"{fit.level:.0%} interval; the vertical line is the plan for the target.",
        figure=figures.loss_against_lr(fit, targets),
    )
    yield Drawn(
        section="drift",
        stem="drift",
        caption="The optimal learning rate, at base width, against width. Flat is what transfer needs.",
        figure=figures.drift(fit, targets),
    )
    yield Drawn(
        section="drift",
        stem="loss_against_width",
        caption="Loss at the fitted optimum against width, the laws through it, and the target's expected loss.",
        figure=figures.loss_against_width(fit, targets),
    )
    if fit.transfers:
        yield Drawn(
            section="rates",
            stem="transfer_gaps",
            caption="How far each width is from the limit: in loss (a), and in what using its optimum there would cost "
            "(c), with intervals; dashed, the fitted laws. Transfer is fast where c falls more steeply than a.",
            figure=figures.transfer_gaps(fit.transfers),
        )
    if material.scales is not None:
        yield from scale_figures(material.scales, material.plan)
    if material.verification is not None:
        yield Drawn(
            section="measured",
            stem="predicted_against_measured",
            caption="The target: expected loss with its interval beside what was measured, and what missing the "
            "planned learning rate by an octave costs.",
            figure=figures.predicted_against_measured(targets),
        )
    if material.check is not None:
        yield Drawn(
            section="check",
            stem="coordinate_check",
            **_check_figure(material.check),
        )
    for name, result, frame in material.diagnostics:
        run = result.trial.run
        yield Drawn(
            section="diagnostics",
            stem=f"diagnostics_{name}",
            caption=f"{name} at width {run.model.width}, lr {run.hparams.lr:.3g}: what it did to the hidden matrices, "
            "by layer, geometric means over blocks. Singular values are those of the momentum at Frobenius norm 1.",
            figure=figures.optimizer_diagnostics(frame, name),
        )
    if any(timing.ratio is not None for timing in material.timings):
        yield Drawn(
            section="timing",
            stem="predicted_time",
            caption="Training time over what a few steps, measured beforehand, had predicted for the steps taken.",
            figure=figures.predicted_time(material.timings),
        )
    yield Drawn(
        section="curves",
        stem="loss_curves",
        caption="Smoothed training loss at the best learning rate tried, every seed.",
        figure=figures.loss_curves(material.results, material.labels),
    )


def _check_figure(check: "CoordCheck") -> dict[str, Any]:
    """Curves for a few optimizers, slopes alone for many."""
    if len({slope.optimizer for slope in check.slopes}) <= MOST_CURVES:
        against = " and against ".join(check.axes)
        caption = f"Root mean square of every activation against {against}, after the last step of the check."
        return {"caption": caption, "figure": figures.coordinate_check(check.points)}
    over = " and over ".join(check.axes)
    caption = f"How steep every activation is over {over}, after the last step of the check: 0 is flat."
    return {"caption": caption, "figure": figures.coordinate_slopes(check.slopes, check.tolerance)}


def figure_targets(plan: TransferPlan | None, verification: Verification | None) -> tuple[figures.Target, ...]:
    """The plan, and what was measured, as figures take them."""
    if plan is None:
        return ()
    measured = verification.by_optimizer() if verification else {}
    return tuple(_figure_target(p, plan.target_width, measured.get(p.optimizer)) for p in plan.optimizers)


def _figure_target(plan: OptimizerPlan, width: int, measured: OptimizerVerification | None) -> figures.Target:
    loss = plan.expected_loss
    return figures.Target(
        series=Series(plan.optimizer, plan.fixed),
        width=width,
        log2_value=plan.log2_lr.value,
        interval=plan.log2_lr.interval,
        loss=None if loss is None else loss.value,
        loss_interval=None if loss is None else loss.interval,
        measured=tuple(
            figures.MeasuredPoint(log2_value=math.log2(point.lr), losses=point.losses)
            for point in (measured.measured if measured else ())
        ),
    )


def inline_svg(text: str) -> str:
    """The <svg> element of a file, without the XML declaration that a page must not hold."""
    return text[text.index("<svg") :]


def _environment(*, autoescape: bool) -> Environment:
    return Environment(
        loader=PackageLoader("transfer"), autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True
    )
