"""From a sweep's fits to a plan for the target: a pure function."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.drift import Drift, OptimumPrediction, predict_optimum
from analysis.equivalent import equivalent
from analysis.fast_transfer import FastTransfer, Verdict
from analysis.fit import SweepFit
from analysis.hp_powers import HpShift
from analysis.interval import FitError, Floats, percentile_interval
from analysis.loss_law import LossLaw, predict_loss
from analysis.optimum import Optimum
from analysis.scale_study import OptimizerScales, ScaleStudy
from analysis.surface import DEPTH
from proxy_models.accounting import n_params, training_bytes, training_flops
from proxy_models.checks import ConfigError
from proxy_models.config import RunConfig
from proxy_models.parametrization import residual_multiplier, scale_role, scaling_rule
from proxy_models.roles import Role
from sweeps.spec import SweepSpec, TargetSpec
from transfer.horizons import horizons_note
from transfer.plan import (
    SCHEMA_VERSION,
    Estimate,
    ExcessEquivalent,
    OptimizerPlan,
    RolePlan,
    TransferPlan,
    TransferVerdict,
)
from transfer.scale_plan import (
    TargetRun,
    planned_settings,
    planned_warmup,
    scale_caveats,
    target_run,
)

MOVE_SEED = 20_251_128  # pairs the draws of the optimum with those of its move


class PlanError(ValueError):
    """Fits that no plan can be made from. The message says what is missing and what to do."""


def make_plan(
    spec: SweepSpec, target: TargetSpec, fit: SweepFit, *, digest: str, scales: ScaleStudy | None = None
) -> TransferPlan:
    """Plan every optimizer with optima at two widths or more.

    Raises:
        PlanError: no optimizer has.
    """
    plans: list[OptimizerPlan] = []
    not_planned: list[tuple[str, str]] = []
    for name in spec.optimizers:
        evidence = _evidence(name, fit, proxy_depth(spec, target))
        if evidence is None:
            not_planned.append((name, _why_not(name, fit)))
        else:
            plans.append(_plan_optimizer(spec, target, evidence, fit, None if scales is None else scales.of(name)))
    if not plans:
        reasons = "; ".join(f"{name}: {why}" for name, why in not_planned)
        raise PlanError(f"no optimizer can be transferred. {reasons}")
    run = plans[0].run
    return TransferPlan(
        schema_version=SCHEMA_VERSION,
        sweep=spec.name,
        target_width=target.width,
        width_mult=run.width_mult,
        n_params=n_params(run.model),
        train_flops=training_flops(run),
        train_bytes=max(training_bytes(plan.run) for plan in plans),
        optimizers=tuple(plans),
        not_planned=tuple(not_planned),
        inputs_digest=digest,
        target_depth=run.model.depth,
        depth_mult=run.depth_mult,
        residual_multiplier=residual_multiplier(run),
    )


def proxy_depth(spec: SweepSpec, target: TargetSpec) -> int:
    """Depth of the proxies that the target is planned from: its own where they have it, otherwise their deepest."""
    return target.depth if target.depth in spec.depths else max(spec.depths)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evidence:
    """What one optimizer's plan rests on, at one setting of the sweep's other axes."""

    drift: Drift
    optima: tuple[Optimum, ...]  # by width, none at an edge
    loss_law: LossLaw | None
    transfer: FastTransfer | None
    no_transfer: str  # why there are no rates
    left_out: tuple[tuple[int, str], ...]  # width, why

    @property
    def widest(self) -> Optimum:
        return self.optima[-1]


def _evidence(name: str, fit: SweepFit, depth: int) -> _Evidence | None:
    """Of the settings of the other axes, the one with the lowest loss at its widest proxy; None without a drift.

    Depth is no such axis: a deeper model is better, and not the one that was asked for.
    """
    found = []
    for drift in (d for d in fit.drifts if d.optimizer == name and dict(d.fixed).get(DEPTH, depth) == depth):
        optima = fit.optima_of(drift.series)
        at_edge = [(o.width, "its optimum is at the edge of the grid") for o in optima if o.edge]
        unfitted = [
            (skipped.width, skipped.reason)
            for skipped in fit.skipped
            if (skipped.optimizer, skipped.fixed) == drift.series and skipped.width is not None
        ]
        laws = [law for law in fit.loss_laws if law.series == drift.series]
        found.append(
            _Evidence(
                drift=drift,
                optima=tuple(o for o in optima if not o.edge),
                loss_law=laws[0] if laws else None,
                transfer=next((t for t in fit.transfers if t.series == drift.series), None),
                no_transfer=next(
                    (
                        skipped.reason
                        for skipped in fit.skipped
                        if (skipped.optimizer, skipped.fixed, skipped.what) == (*drift.series, "fast_transfer")
                    ),
                    "",
                ),
                left_out=tuple(at_edge + unfitted),
            )
        )
    return min(found, key=lambda evidence: evidence.widest.loss) if found else None


def _why_not(name: str, fit: SweepFit) -> str:
    reasons = [skipped.reason for skipped in fit.skipped if skipped.optimizer == name]
    return "; ".join(dict.fromkeys(reasons)) or "it has no results; finish the sweep"


def _plan_optimizer(
    spec: SweepSpec, target: TargetSpec, evidence: _Evidence, fit: SweepFit, scales: OptimizerScales | None
) -> OptimizerPlan:
    drift = evidence.drift
    at_proxies = predict_optimum(drift, target.width)
    others = {name: value for name, value in drift.fixed if name != DEPTH}
    planned = _target_run(spec, target, drift.optimizer, {**others, "lr": at_proxies.value}, scales)
    run, optimum = planned.run, _moved(at_proxies, planned.shift)
    law = evidence.loss_law if _law_holds(spec, target) and planned.shift is None else None
    loss = predict_loss(law, target.width) if law is not None else None
    why = _rests_on(drift, at_proxies) + _at_depth(spec, target)
    (_, first), *switched = run.phases
    excess = _excess_draws(optimum, evidence.optima)
    return OptimizerPlan(
        optimizer=drift.optimizer,
        fixed=drift.fixed,
        run=run,
        log2_lr=Estimate(value=optimum.log2_value, interval=optimum.interval),
        rests_on="; ".join(filter(None, (why, planned.lr_move))),
        roles=tuple(_plan_role(first, role) for role in _roles_of(run)),
        expected_loss=None if loss is None else Estimate(value=loss.loss, interval=loss.interval),
        expected_excess_loss=None
        if excess is None
        else Estimate(value=float(excess.mean()), interval=percentile_interval(excess, optimum.interval.level)),
        excess_equivalent=None if excess is None or law is None else _equivalent(law, evidence, run, excess),
        fast_transfer=_verdict(evidence),
        caveats=(
            *_caveats(spec, target, evidence, optimum),
            *_depth_caveats(spec, target, evidence, fit),
            *scale_caveats(planned),
        ),
        switch_step=switched[0][0] if switched else None,
        roles_after_switch=tuple(_plan_role(phase, role) for _, phase in switched for role in _roles_of(run)),
        settings=planned_settings(spec, planned, optimum.interval, why),
        batch_warmup=planned_warmup(scales),
    )


def _target_run(
    spec: SweepSpec, target: TargetSpec, optimizer: str, hparams: Mapping[str, Any], scales: OptimizerScales | None
) -> TargetRun:
    """Raises PlanError where the fits give no run."""
    try:
        return target_run(spec, target, optimizer, hparams, scales)
    except (ConfigError, FitError) as error:
        raise PlanError(f"{optimizer}: no run can be planned for the target: {error}") from None


def _moved(optimum: OptimumPrediction, shift: HpShift | None) -> OptimumPrediction:
    """The prediction at the proxies' batch and tokens, taken to the target's."""
    if shift is None:
        return optimum
    draws = np.asarray(optimum.draws)
    draws = draws + np.resize(np.random.default_rng(MOVE_SEED).permutation(shift.draws), draws.shape)
    return replace(
        optimum,
        log2_value=optimum.log2_value + shift.log2_value,
        interval=percentile_interval(draws, optimum.interval.level),
        draws=tuple(draws.tolist()),
    )


def _roles_of(run: RunConfig) -> list[Role]:
    return [role for role in Role if not (role is Role.READOUT and run.model.tied_embeddings)]


def _plan_role(run: RunConfig, role: Role) -> RolePlan:
    scale = scale_role(run, role)
    std = None if role in (Role.HIDDEN, Role.VECTOR) else scale.init_std
    init = {
        Role.EMBEDDING: f"normal, std {scale.init_std:g}",
        Role.HIDDEN: f"normal, std {run.hparams.hidden_init_gain:g} / sqrt(fan_in)",
        Role.READOUT: f"normal, std {scale.init_std:.3g}" if scale.init_std else "zero",
        Role.VECTOR: "gains one, biases zero",
    }[role]
    return RolePlan(
        role=role,
        effective_lr=scale.effective_lr,
        weight_decay=scale.effective_weight_decay,
        init=init,
        init_std=std,
        forward_multiplier=scale.forward_multiplier,
        adam_eps=scale.effective_eps,
        rule=scaling_rule(run, role),
    )


def _verdict(evidence: _Evidence) -> TransferVerdict:
    if evidence.transfer is None:
        why = evidence.no_transfer or "no rates could be fitted"
        return TransferVerdict(verdict=Verdict.INCONCLUSIVE, probability_fast=None, sentence=f"Inconclusive: {why}.")
    found = evidence.transfer
    return TransferVerdict(verdict=found.verdict, probability_fast=found.probability_fast, sentence=found.sentence)


def _equivalent(law: LossLaw, evidence: _Evidence, run: RunConfig, excess: Floats) -> ExcessEquivalent | None:
    """FLOPs grow between the widest proxy and the target as some power of width; at the widest, as its square."""
    width, proxy = run.model.width, evidence.widest.width
    exponent = 2.0
    if width > proxy:
        narrower = replace(run, model=replace(run.model, width=proxy))
        exponent = float(np.log(training_flops(run) / training_flops(narrower)) / np.log(width / proxy))
    found = equivalent(law, width, float(excess.mean()), excess, flops_exponent=exponent)
    if found is None:
        return None
    return ExcessEquivalent(
        width_share=Estimate(value=found.width_share.value, interval=found.width_share.interval),
        compute_share=Estimate(value=found.compute_share.value, interval=found.compute_share.interval),
    )


def _excess_draws(optimum: OptimumPrediction, optima: Sequence[Optimum]) -> Floats | None:
    """curvature/2 * (planned - optimum)^2 for each of the optimum's draws, in nats.

    The curvature is that of the widest proxy with a parabola at its minimum, each draw with one of its own;
    assumed the same at the target. None where no proxy has one.
    """
    curved = [proxy for proxy in optima if proxy.method == "quadratic" and proxy.curvature > 0 and proxy.draws]
    if not curved:
        return None
    curvatures = np.maximum([draw.curvature for draw in curved[-1].draws], 0.0)
    misses = np.asarray(optimum.draws) - optimum.log2_value  # octaves
    excess: Floats = np.resize(curvatures, misses.shape) / 2 * misses**2
    return excess


def _law_holds(spec: SweepSpec, target: TargetSpec) -> bool:
    """A loss law over width is of proxies of one depth, and of targets of that depth."""
    return target.depth is None or target.depth in spec.depths


def _at_depth(spec: SweepSpec, target: TargetSpec) -> str:
    if target.depth is None:
        return ""
    proxies = f", at depth {proxy_depth(spec, target)}"
    return proxies if _law_holds(spec, target) else f"{proxies}; to depth {target.depth} by CompleteP's rules"


def _depth_caveats(spec: SweepSpec, target: TargetSpec, evidence: _Evidence, fit: SweepFit) -> Iterable[str]:
    """What the sweep says of the optimum over depth, where the target is deeper than every proxy."""
    if _law_holds(spec, target):
        return
    yield (
        f"The target, of depth {target.depth}, is deeper than every proxy: that its optimal lr is that of depth "
        f"{max(spec.depths)} is CompleteP's claim (arXiv:2505.01618), and its loss is not predicted."
    )
    width = evidence.widest.width
    others = {name: value for name, value in evidence.drift.fixed if name != DEPTH}
    optima = {
        dict(o.fixed).get(DEPTH, max(spec.depths)): o
        for o in fit.optima
        if not o.edge
        and (o.optimizer, o.width) == (evidence.drift.optimizer, width)
        and {name: value for name, value in o.fixed if name != DEPTH} == others
    }
    if len(optima) < 2:
        yield "Only one depth has an optimum at the widest proxy: whether it moves with depth was not seen."
        return
    places = ", ".join(f"{optima[depth].log2_value:+.2f} at depth {depth}" for depth in sorted(optima))
    yield f"Over depth at width {width}, the optimal log2 lr is {places}: see whether it moves before a costly run."


def _rests_on(drift: Drift, optimum: OptimumPrediction) -> str:
    widths = ", ".join(map(str, drift.widths))
    low_high = f"{drift.slope_interval.low:+.2f} to {drift.slope_interval.high:+.2f}"
    drifts = f"{drift.slope:+.2f} octaves an octave of width ({low_high})"
    if optimum.law == "constant":
        return f"the weighted mean of the optima at widths {widths}: their drift of {drifts} is not resolved from 0"
    law = {"finite_width": "v + b/width", "power_law": "v + b width^-beta"}[optimum.law]
    return f"{law} through the optima at widths {widths}: they drift by {drifts}"


def _caveats(spec: SweepSpec, target: TargetSpec, evidence: _Evidence, optimum: OptimumPrediction) -> Iterable[str]:
    for proxy in evidence.optima:
        for flag in proxy.flags:
            yield f"At width {proxy.width}: {flag.advice}"
    for width, reason in evidence.left_out:
        yield f"Width {width} was left out: {reason}"
    widest = max(spec.run.widths)
    if target.width > 4 * widest:
        yield (
            f"The target is {target.width / widest:.0f} times wider than the widest proxy; widths between would tell "
            "whether the drift goes on."
        )
    if spec.run.parametrization == "standard":
        yield "Under the standard parametrization optima move with width: a constant lr is not expected to transfer."
    if note := horizons_note(spec):
        yield note
    if optimum.interval.width > 2:
        yield (
            f"The optimum is known to {optimum.interval.width:.1f} octaves only: add seeds, or tokens to the trials, "
            "before a costly run."
        )
    if evidence.loss_law is None:
        yield "No loss law: it takes optima at three widths."
    elif not evidence.loss_law.wider_is_better:
        yield "Wider is not better among the proxies: find out why before trusting the plan."
