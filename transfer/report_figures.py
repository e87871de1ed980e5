"""The figures of a study of scales, each with the section it belongs to and its caption."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.critical_batch import CriticalBatchFit
from analysis.figures.batch_laws import critical_batch_over_tokens, lr_over_batch, timescale_over_tokens_per_param
from analysis.figures.branch_probes import branch_probes
from analysis.figures.critical_batch import steps_and_tokens, token_ratio
from analysis.figures.noise_scale import MeasuredCritical, noise_scale_along_training
from analysis.hp_powers import CellPower
from analysis.observed_fit import short
from analysis.scale_study import ScaleStudy
from transfer.plan import TransferPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A figure, the section it belongs to, and what a reader should see in it."""

    section: str
    stem: str
    caption: str
    figure: "Figure"


def scale_figures(study: ScaleStudy, plan: TransferPlan | None) -> Iterable[Drawn]:
    """Every figure that the study has the data for."""
    for found in study.optimizers:
        for fit in found.critical:
            yield Drawn(
                section="critical",
                stem=f"critical_batch_{found.optimizer}_{fit.width}_{fit.n_params}",
                caption=f"{found.optimizer}, width {fit.width}: steps and tokens to each loss against batch. An arrow "
                "is a loss that no horizon tells: reached before the shortest, or not by the longest.",
                figure=steps_and_tokens(fit),
            )
    for ratio in study.ratios:
        own = study.of(ratio.numerator)
        fits = own.critical if own is not None else ()
        yield Drawn(
            section="ratio",
            stem=f"token_ratio_{ratio.numerator}_{ratio.denominator}_{ratio.width}",
            caption=f"Width {ratio.width}: tokens of {ratio.numerator} over those of {ratio.denominator}, to the same "
            f"loss at the same batch; above 1 {ratio.denominator} needs fewer.",
            figure=token_ratio(ratio, next((fit for fit in fits if fit.width == ratio.width), None)),
        )
    yield from _laws(study, plan)
    for found in study.optimizers:
        if found.branches:
            stages = {f"{found.optimizer}, width {width}": steps for width, steps in found.warmups if len(steps) > 1}
            yield Drawn(
                section="branches",
                stem=f"branches_{found.optimizer}",
                caption=f"{found.optimizer}: held-out loss of branches with k times the batch, less that of the trunk "
                "going on; a star is the largest that does no harm.",
                figure=branch_probes(found.branches, stages),
            )
    trends = {f"{f.optimizer}, width {record.width}": record.trend for f in study.optimizers for record in f.noise}
    if trends:
        lines = [_line(f.critical[-1]) for f in study.optimizers if f.critical and f.critical[-1].measured]
        yield Drawn(
            section="noise",
            stem="noise_scale",
            caption="Gradient noise scale along training, beside critical batches measured by steps to a loss. Its "
            "trend is what it is good for.",
            figure=noise_scale_along_training(trends, lines),
        )


def _line(fit: CriticalBatchFit) -> MeasuredCritical:
    record = fit.measured[-1]
    assert record.value is not None
    return MeasuredCritical(
        label=f"{fit.optimizer}, width {fit.width}: hyperbola's B_c at loss {record.target_loss:.2f}",
        batch_tokens=record.value,
        interval=record.interval,
    )


def _laws(study: ScaleStudy, plan: TransferPlan | None) -> Iterable[Drawn]:
    tokens = None if plan is None else float(plan.optimizers[0].run.train_tokens)
    laws = {found.optimizer: found.law for found in study.optimizers if found.law is not None}
    if laws:
        yield Drawn(
            section="critical",
            stem="critical_batch_over_tokens",
            caption="Critical batch (hyperbola, tokens) against the tokens that small batches need: what was measured, "
            "the law through it with its interval, and published laws.",
            figure=critical_batch_over_tokens(
                laws, target=None if plan is None or tokens is None else (tokens, float(plan.n_params))
            ),
        )
    cells = {
        _cell_name(found.optimizer, cell): cell
        for found in study.optimizers
        if found.by_cell is not None
        for cell in _ends(found.by_cell.cells)
    }
    if cells:
        yield Drawn(
            section="powers",
            stem="lr_over_batch",
            caption="The best lr against batch at the widest model, for its shortest and longest horizon; dashed, "
            "published rules.",
            figure=lr_over_batch(cells),
        )
    timescales = {found.optimizer: found.timescale for found in study.optimizers if found.timescale is not None}
    if timescales:
        yield Drawn(
            section="timescale",
            stem="timescale",
            caption="The best timescale of weight decay, as a share of the run, against tokens per parameter.",
            figure=timescale_over_tokens_per_param(
                timescales, target=None if plan is None or tokens is None else tokens / plan.n_params
            ),
        )


def _ends(cells: tuple[CellPower, ...]) -> tuple[CellPower, ...]:
    """Of the widest model, the shortest horizon and the longest: cells are sorted by their scales."""
    widest = [cell for cell in cells if cell.scales[:-1] == cells[-1].scales[:-1]]
    return (widest[0], widest[-1]) if len(widest) > 1 else tuple(widest)


def _cell_name(optimizer: str, cell: CellPower) -> str:
    scales = dict(cell.scales)
    return f"{optimizer}, width {short(scales['width'])}, {short(scales['train_tokens'])} tokens"
