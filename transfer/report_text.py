"""The report's sentences, from records alone. No figures, no files."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from analysis.fit import SweepFit
from sweeps.trial import TrialResult, TrialStatus
from transfer.plan import Estimate, TransferPlan
from transfer.tables import interval, power_of_two
from transfer.verification import OptimizerVerification, Verification

if TYPE_CHECKING:
    from proxy_models.coord_check import CoordCheck


def summary(results: Sequence[TrialResult], planned: int, fit: SweepFit, *, n_stopped: int = 0) -> str:
    """One sentence on what was run."""
    diverged = sum(result.status is TrialStatus.DIVERGED for result in results)
    names = ", ".join(dict.fromkeys(surface.optimizer for surface in fit.surfaces))
    widths = ", ".join(str(width) for width in sorted({surface.width for surface in fit.surfaces}))
    missing = planned - len(results) - n_stopped
    return (
        f"{len(results)} of {planned} trials of {names} at widths {widths}"
        + (f", {diverged} diverged" if diverged else ", none diverged")
        + (f", {n_stopped} more stopped early" if n_stopped else "")
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


def check_lines(check: "CoordCheck | None", parametrization: str) -> Iterable[str]:
    """The verdict under each parametrization that was measured."""
    if check is None:
        return
    for name, axis in dict.fromkeys((slope.parametrization, slope.axis) for slope in check.slopes):
        failures = check.failures(name, axis)
        verdict = "every activation is flat" if not failures else f"{len(failures)} activations are not flat"
        role = "this sweep's rules" if name == parametrization else "in contrast"
        over = f", over {axis}" if len(check.axes) > 1 else ""
        yield f"{name} ({role}{over}): {verdict}, to a slope of ±{check.tolerance:g}."


def flags(fit: SweepFit) -> tuple[str, ...]:
    """Every reason to doubt, with what to do."""
    doubts = [
        f"{optimum.optimizer}, width {optimum.width}: {flag.advice}" for optimum in fit.optima for flag in optimum.flags
    ]
    for skipped in fit.skipped:
        where = "" if skipped.width is None else f", width {skipped.width}"
        doubts.append(f"{skipped.optimizer}{where}: no {skipped.what.replace('_', ' ')}: {skipped.reason}")
    return tuple(doubts)
