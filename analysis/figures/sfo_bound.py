"""The figure of Muon's bound: steps and examples against batch, minimizers, predicted ratios next to measured ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.figures import style
from analysis.interval import Interval
from analysis.sfo_bound import SHAPE_ONLY, BoundFit, PredictedRatio

_OVER_TOP = 1.25  # of the axis: where batches that did not reach the target stand
_DODGE = 0.11  # of a row between two learning rates' ratios
_PALEST = 0.85  # of viridis
_LEGEND_ROOM = 2.4  # of the largest ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Steps to the target against batch, one setting at one learning rate."""

    label: str
    lr: float
    batches: tuple[int, ...]
    steps: tuple[float | None, ...]  # None: not reached
    fit: BoundFit | None

    @property
    def reached(self) -> list[tuple[int, float]]:
        """Batches that reached the target, and their steps."""
        return [(b, t) for b, t in zip(self.batches, self.steps, strict=True) if t is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """b* of a setting over a reference's at one learning rate."""

    label: str
    lr: float
    predicted: PredictedRatio
    measured: float | None
    interval: Interval | None
    supported: bool


@style.styled
def bound_study(curves: Sequence[Curve], *, shown: Sequence[str], lr: float, ratios: Sequence[Ratio]) -> Figure:
    """Steps and examples of the settings `shown` at `lr`, all fitted b* over lr, and ratios. Examples are the unit.

    Raises:
        ValueError: no curves.
    """
    figure, (steps, sfo, minimizers, compared) = style.panels(4 if curves else 0, height=4.0)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    colors = {label: style.OKABE_ITO[i % len(style.OKABE_ITO)] for i, label in enumerate(labels)}
    markers = {label: style.MARKERS[i % len(style.MARKERS)] for i, label in enumerate(labels)}
    here = [curve for curve in curves if curve.lr == lr and curve.label in shown]
    for curve in here:
        _draw_steps(steps, curve, colors[curve.label], markers[curve.label])
        _draw_sfo(sfo, curve, colors[curve.label], markers[curve.label])
    _mark_unreached(steps, here, colors, markers)
    batches = {batch for curve in curves for batch in curve.batches}
    ticks = {batch for batch in batches if batch & (batch - 1) == 0} or batches  # powers of two
    for ax, name in ((steps, "steps to the target"), (sfo, "examples to the target, b T(b)")):
        style.width_axis(ax, ticks)
        ax.set_yscale("log")
        _plain_log(ax.yaxis)
        ax.set_xlabel("batch (examples)")
        ax.set_ylabel(name)
    reached = [b for curve in here for b, _ in curve.reached]
    if reached:
        sfo.set_xlim(left=min(reached) / 1.4)
    steps.set_title(f"lr {lr:g} at every batch: lines T(b) fitted,\nopen at the top: not reached")
    sfo.set_title("stars: fitted minimizer b*, 90% interval;\nopen squares: lowest measured")
    _draw_minimizers(minimizers, curves, colors, markers)
    _draw_ratios(compared, ratios)
    keys = [style.key(label, color=colors[label], marker=markers[label]) for label in labels]
    style.legend_below(figure, keys)
    figure.suptitle(f"Muon's bound. {SHAPE_ONLY.capitalize()}")
    return figure


def _draw_steps(ax: Axes, curve: Curve, color: str, marker: str) -> None:
    reached = curve.reached
    ax.plot([b for b, _ in reached], [t for _, t in reached], marker, color=color)
    if curve.fit is not None:
        batches = _above_pole(curve.fit, curve.batches[-1])
        ax.plot(batches, curve.fit.form.steps(batches), color=color, linewidth=1.2)


def _draw_sfo(ax: Axes, curve: Curve, color: str, marker: str) -> None:
    examples = [(b, b * t) for b, t in curve.reached]
    if not examples:
        return
    ax.plot([b for b, _ in examples], [e for _, e in examples], marker, color=color)
    batch, lowest = min(examples, key=lambda pair: pair[1])
    ax.plot(batch, lowest, "s", color=color, markerfacecolor="none", markersize=11)
    if curve.fit is None:
        return
    form = curve.fit.form
    batches = _above_pole(curve.fit, curve.batches[-1])
    ax.plot(batches, form.sfo(batches), color=color, linewidth=1.2)
    bars = style.bars(curve.fit.interval, form.best_batch)
    ax.errorbar(form.best_batch, form.least_sfo, xerr=bars, fmt="*", color=color, markersize=12,
                markeredgecolor="black", markeredgewidth=0.6, capsize=3, zorder=4)  # fmt: skip


def _above_pole(fit: BoundFit, last: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """From where the form takes no more than the slowest batch measured did."""
    slowest = max(fit.steps)
    pole = fit.form.y / (1 - fit.form.steps_at_infinity / slowest)
    return np.geomspace(min(pole**2, fit.batches[0]), last, 200)


def _mark_unreached(ax: Axes, curves: Sequence[Curve], colors: dict[str, str], markers: dict[str, str]) -> None:
    top = max((t for curve in curves for _, t in curve.reached), default=1.0) * _OVER_TOP
    for i, curve in enumerate(curves):
        never = [b for b, t in zip(curve.batches, curve.steps, strict=True) if t is None]
        level = top * _OVER_TOP ** (0.35 * i)
        ax.plot(never, [level] * len(never), markers[curve.label], color=colors[curve.label], markerfacecolor="none")


def _draw_minimizers(ax: Axes, curves: Sequence[Curve], colors: dict[str, str], markers: dict[str, str]) -> None:
    lrs = sorted({curve.lr for curve in curves})
    for i, label in enumerate(colors):
        fits = [(curve.lr, curve.fit) for curve in curves if curve.label == label and curve.fit is not None]
        if not fits:
            continue
        places = [lr * 2.0 ** (0.09 * (i - (len(colors) - 1) / 2)) for lr, _ in fits]
        best = [fit.form.best_batch for _, fit in fits]
        ax.plot(places, best, color=colors[label], linewidth=0.8)
        for place, (_, fit), value in zip(places, fits, best, strict=True):
            ax.errorbar(place, value, yerr=style.bars(fit.interval, value), fmt=markers[label],
                        color=colors[label], capsize=2, elinewidth=1.2)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(lrs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("learning rate, the same at every batch")
    ax.set_ylabel("fitted b* (examples)")
    ax.set_title("b* rises with the learning rate;\nby the bound it would level off")


def _draw_ratios(ax: Axes, ratios: Sequence[Ratio]) -> None:
    rows = list(dict.fromkeys(ratio.label for ratio in ratios))
    lrs = sorted({ratio.lr for ratio in ratios})
    viridis = colormaps["viridis"]
    shades = {lr: to_hex(viridis(_PALEST * i / max(len(lrs) - 1, 1))) for i, lr in enumerate(lrs)}
    for ratio in ratios:
        y = rows.index(ratio.label) + _DODGE * (lrs.index(ratio.lr) - (len(lrs) - 1) / 2)
        if ratio.measured is not None:
            face = shades[ratio.lr] if ratio.supported else "white"
            ax.errorbar(ratio.measured, y, xerr=style.bars(ratio.interval, ratio.measured), fmt="o", markersize=4,
                        color=shades[ratio.lr], markerfacecolor=face, elinewidth=1.3)  # fmt: skip
    for row, label in enumerate(rows):
        predicted = next(ratio.predicted for ratio in ratios if ratio.label == label)
        span = [row - 0.4, row + 0.4]
        ax.plot([predicted.older] * 2, span, color=style.TARGET_COLOR, linewidth=2.2, linestyle="-")
        if predicted.contested and predicted.newer is not None:
            ax.plot([predicted.newer] * 2, span, color=style.TARGET_COLOR, linewidth=2.2, linestyle=":")
    ax.axvline(1, color=style.GRAY, linewidth=0.9)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_yticks(range(len(rows)), [style.wrapped(label, characters=20) for label in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("b* over the reference's")
    ax.set_title("bars predicted (dotted: newer derivation),\ndots measured; open: a hyperbola fits better")
    handles = [style.key(f"lr {lr:g}", color=shades[lr], marker="o", markersize=4) for lr in lrs]
    ax.set_xlim(right=ax.get_xlim()[1] * _LEGEND_ROOM)
    ax.legend(handles=handles, fontsize=9, loc="lower right", handletextpad=0.1, borderpad=0.2, labelspacing=0.25)


def _plain_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of every decade, written out."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
