"""What a study of scales says, as tables of text for the report and the terminal, and as sentences."""

from collections.abc import Iterable, Sequence

from analysis.critical_batch import CriticalBatch, CriticalBatchFit
from analysis.hp_powers import BATCH, DEPTH, TOKENS, WIDTH
from analysis.interval import Interval
from analysis.observed_fit import short
from analysis.published_laws import HYPERBOLA, LawKind, band
from analysis.scale_study import OptimizerScales, ScaleStudy
from analysis.token_ratio import RatioPoint
from transfer.plan import OptimizerPlan, PlannedSetting, TransferPlan
from transfer.tables import interval
from transfer.text_table import TextTable

_SCALES = {BATCH: "batch, tokens fixed", TOKENS: "tokens, batch fixed", WIDTH: "width", DEPTH: "depth"}
_PUBLISHED: tuple[LawKind, ...] = ("lr", "batch", "critical_batch")


def _found(study: ScaleStudy | None) -> tuple[OptimizerScales, ...]:
    return study.optimizers if study else ()


def critical_table(study: ScaleStudy | None) -> TextTable | None:
    """Every critical batch that was sought by steps to a loss, under both definitions."""
    fits = [fit for found in _found(study) for fit in found.critical]
    if not fits:
        return None
    return TextTable(
        columns=(
            "optimizer",
            "width",
            "loss",
            "E_min, tokens",
            "S_min, steps",
            "B_c (hyperbola), tokens",
            "20% overhead, tokens",
            "with care",
        ),
        rows=tuple(
            _critical_row(record, overhead)
            for fit in fits
            for record, overhead in zip(fit.records, fit.overheads, strict=True)
        ),
        words=frozenset({0, 7}),
    )


def _critical_row(record: CriticalBatch, overhead: CriticalBatch) -> tuple[str, ...]:
    return (
        record.optimizer,
        str(record.width),
        f"{record.target_loss:.3f}",
        "-" if record.min_tokens is None else short(record.min_tokens),
        "-" if record.min_steps is None else short(record.min_steps),
        _batch(record),
        _batch(overhead),
        ", ".join(flag.value.replace("_", " ") for flag in record.flags),
    )


def _batch(record: CriticalBatch) -> str:
    if record.value is not None:
        return f"{short(record.value)}{_shortly(record.interval)}"
    bounds = [f"at least {short(record.at_least)}"] if record.at_least is not None else []
    bounds += [f"at most {short(record.at_most)}"] if record.at_most is not None else []
    return ", ".join(bounds) or "not resolved"


def critical_flags(fits: Iterable[CriticalBatchFit]) -> list[str]:
    """What the words in the last column mean, each once, and what was left out."""
    fits = list(fits)
    advice = dict.fromkeys(flag for fit in fits for record in fit.records for flag in record.flags)
    left_out = [
        f"{fit.optimizer}, width {fit.width}: loss {loss:.3f} is left out: {reason}"
        for fit in fits
        for loss, reason in fit.targets_left_out
    ]
    return [f"{flag.value.replace('_', ' ')}: {flag.advice}" for flag in advice] + left_out


def law_lines(study: ScaleStudy | None) -> list[str]:
    """How each critical batch moves with tokens, and lr with both."""
    lines = []
    for found in _found(study):
        if found.law is not None:
            q = found.law.over_tokens
            lines.append(
                f"{found.optimizer}: the critical batch grows as tokens^{q.value:.2f}{interval(q.interval, 2)}, "
                f"{q.rests_on} ({q.data_share:.0%} of its precision is from this sweep; prior {q.prior.mean:.2f} +- "
                f"{q.prior.sd:.2f} from {q.prior.source})."
            )
        if found.co_scaled is not None:
            power = found.co_scaled
            lines.append(
                f"{found.optimizer}: where the batch follows it, the best lr moves as tokens^{power.value:+.2f}"
                f"{interval(power.interval, 2)}, {power.rests_on}."
            )
    return lines


def powers_table(study: ScaleStudy | None) -> TextTable | None:
    """lr over every scale that was swept or has a prior."""
    rows = [
        (
            found.powers.series,
            _SCALES.get(scale, scale),
            f"{power.value:+.2f}{interval(power.interval, 2)}",
            power.rests_on,
            f"{power.data_share:.0%}",
            f"{power.prior.mean:+.2f} +- {power.prior.sd:.2f}",
            power.prior.source,
        )
        for found in _found(study)
        if found.powers is not None
        for scale, power in found.powers.powers.items()
        if scale in (*found.powers.swept, BATCH, TOKENS)
    ]
    if not rows:
        return None
    columns = ("optimizer", "over", "octaves of lr an octave", "rests on", "from this sweep", "prior", "of the prior")
    return TextTable(columns=columns, rows=tuple(rows), words=frozenset({0, 1, 3, 6}))


def cells_table(study: ScaleStudy | None) -> TextTable | None:
    """lr over batch alone, cell by cell."""
    rows = [
        (
            found.optimizer,
            *(short(value) for _, value in cell.scales),
            f"{len(cell.batches)}",
            f"{cell.value:+.2f}{interval(cell.interval, 2)}",
        )
        for found in _found(study)
        if found.by_cell is not None
        for cell in found.by_cell.cells
    ]
    first = next((c for f in _found(study) if f.by_cell for c in f.by_cell.cells), None)
    if first is None:
        return None
    names = tuple(name.replace("_", " ") for name, _ in first.scales)
    columns = ("optimizer", *names, "batches", "octaves of lr an octave of batch")
    return TextTable(columns=columns, rows=tuple(rows))


def branches_table(study: ScaleStudy | None) -> TextTable | None:
    """The local critical batch at every branch point."""
    rows = [
        (
            local.optimizer,
            str(local.width),
            short(local.at_tokens),
            short(local.trunk_batch_tokens),
            {"value": "", "at least": "at least ", "at most": "at most "}[local.bound]
            + f"{short(local.batch_tokens)}{_shortly(local.interval)}",
            local.definition,
        )
        for found in _found(study)
        for local in found.branches
    ]
    if not rows:
        return None
    columns = ("optimizer", "width", "at tokens", "trunk's batch", "local critical batch, tokens", "definition")
    return TextTable(columns=columns, rows=tuple(rows), words=frozenset({0, 5}))


def warmup_lines(study: ScaleStudy | None) -> list[str]:
    """Batch warm-ups that branches allow."""
    lines = []
    for found in _found(study):
        for width, stages in found.warmups:
            steps = ", then ".join(
                f"{short(stage.batch_tokens)} from {short(stage.from_tokens)} tokens on (lr times {stage.lr_ratio:.3g})"
                for stage in stages
            )
            what = "no larger batch is called for" if len(stages) == 1 else f"batches of {steps}"
            lines.append(f"{found.optimizer}, width {width}: {what}.")
    return lines


def noise_lines(study: ScaleStudy | None) -> list[str]:
    """The gradient noise scale of every trial that it was read of."""
    return [
        f"{found.optimizer}, width {record.width}, batch {record.batch_tokens}: {record.trend.sentence}."
        for found in _found(study)
        for record in found.noise
    ]


def ratio_table(study: ScaleStudy | None) -> TextTable | None:
    """Tokens of the first optimizer over another's, by batch: a column a batch, the middle target loss."""
    ratios = study.ratios if study else ()
    if not ratios:
        return None
    batches = sorted({point.batch_tokens for ratio in ratios for point in ratio.points})
    rows = []
    for ratio in ratios:
        for loss in ratio.target_losses:
            points = {point.batch_tokens: point for point in ratio.points if point.target_loss == loss}
            cells = (_ratio(points.get(batch)) for batch in batches)
            rows.append((f"{ratio.numerator} / {ratio.denominator}", str(ratio.width), f"{loss:.3f}", *cells))
    return TextTable(columns=("tokens of", "width", "loss", *(f"batch {short(b)}" for b in batches)), rows=tuple(rows))


def _ratio(point: RatioPoint | None) -> str:
    if point is None or point.value is None:
        return "-"
    if point.bound is not None:
        return f"{'>' if point.bound == 'at_least' else '<'} {point.value:.2f}"
    return f"{point.value:.2f}{interval(point.interval, 2)}"


def ratio_lines(study: ScaleStudy | None) -> list[str]:
    return [f"Width {ratio.width}: {ratio.says}." for ratio in (study.ratios if study else ())]


def timescale_lines(study: ScaleStudy | None) -> list[str]:
    """How the best timescale of weight decay moves with tokens per parameter."""
    lines = []
    for found in _found(study):
        if (law := found.timescale) is not None:
            power = law.over_tokens_per_param
            why = f" ({law.reason})" if law.reason else ""
            lines.append(
                f"{found.optimizer}: tau = {law.coefficient:.3g} (tokens/parameter)^{power.value:.2f}"
                f"{interval(power.interval, 2)} of the run; its height is {law.rests_on}{why}, its exponent "
                f"{power.rests_on}."
            )
    return lines


def unmeasured_lines(study: ScaleStudy | None) -> list[str]:
    """What is missing, and why."""
    return [
        f"{one.optimizer}{'' if one.width is None else f', width {one.width}'}: no {one.what}: {one.reason}"
        for one in (study.unmeasured if study else ())
    ]


def published_table(plan: TransferPlan | None) -> TextTable | None:
    """What published laws would say of the target, and how far they lie apart."""
    if plan is None or not plan.optimizers:
        return None
    tokens = plan.optimizers[0].run.train_tokens
    rows = []
    for kind in _PUBLISHED:
        found = band(kind, plan.n_params, tokens)
        unit = "" if kind == "lr" else " tokens"
        rows += [
            (
                {"lr": "lr", "batch": "batch", "critical_batch": f"critical batch ({HYPERBOLA.label})"}[kind],
                f"{prediction.law.name} (arXiv:{prediction.law.arxiv})",
                f"{prediction.value:.2e}" if kind == "lr" else short(prediction.value) + unit,
                {True: "yes", False: "no", None: "unknown"}[prediction.law.covers(plan.n_params, tokens)],
                f"{found.spread:.1f}x",
            )
            for prediction in found.predictions
        ]
    columns = ("what", "law", "at the target", "within its range", "spread of the laws")
    return TextTable(columns=columns, rows=tuple(rows), words=frozenset({0, 1}))


def settings_table(plan: OptimizerPlan) -> TextTable | None:
    """Every hyperparameter that scale moves, and what it rests on."""
    if not plan.settings:
        return None
    return TextTable(
        columns=("setting", "value", "interval", "rests on", "why"),
        rows=tuple((s.name, *setting_cells(s), s.rests_on, s.why) for s in plan.settings),
        words=frozenset({0, 3, 4}),
    )


def setting_cells(setting: PlannedSetting) -> tuple[str, str]:
    """Its value and interval."""
    return _plain(setting.value), "-" if setting.interval is None else _shortly(setting.interval).strip()


def warmup_line(plan: OptimizerPlan) -> str:
    """The plan's batch warm-up in words; empty where there is none."""
    steps = ", then ".join(
        f"{short(s.batch_tokens)} tokens from {short(s.from_tokens)} on (lr times {s.lr_ratio:.3g})"
        for s in plan.batch_warmup
    )
    return f"Batch warm-up that the widest proxy allowed, not in the run above: {steps}." if steps else ""


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 and float(value).is_integer() else f"{value:.4g}"


def _shortly(found: Interval | None) -> str:
    """' [low, high]' in three digits."""
    return "" if found is None else f" [{short(found.low)}, {short(found.high)}]"


def all_fits(study: ScaleStudy | None) -> Sequence[CriticalBatchFit]:
    return [fit for found in _found(study) for fit in found.critical]
