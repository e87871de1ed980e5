"""Figures of the labs about fast transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.basin import Bools
from analysis.fast_transfer import FastTransfer
from analysis.figures import style
from analysis.figures.losses import draw_optimum, draw_surface
from analysis.interval import Floats
from analysis.optimum import Optimum
from analysis.surface import Surface

_COLORS = (style.OKABE_ITO[0], style.OKABE_ITO[2], style.OKABE_ITO[1])
_GAPS = ("a, loss gap", "b, gap of the optimum", "c, cost in the limit of the width's optimum")
_LABEL_OFFSETS = (2, -3, -9)  # points: a and c can end at one place
_LEAST_SPAN = 1.2  # octaves of the panel of optima
_HEADROOM_NATS = 0.1  # above the highest optimum


@dataclass(frozen=True, kw_only=True, slots=True)
class GapPanel:
    """True gaps over width. Slopes are of log gap over log width from `first` to `last`, both included."""

    title: str
    widths: tuple[float, ...]
    gaps: tuple[tuple[float, ...], ...]  # a, b, c, each over the widths; a and c in units of the loss
    slopes: tuple[float, ...]  # of a, b, c
    first: float
    last: float


@style.styled
def gaps_against_width(found: Sequence[GapPanel], *, width_label: str, hp_unit: str) -> Figure:
    """A panel an example: the three gaps on log axes, a line of the fitted slope; widths outside the fit are hollow.

    Raises:
        ValueError: no panels.
    """
    figure, axes = style.panels(len(found), height=4.4)
    for panel, ax in zip(found, axes, strict=True):
        widths = np.array(panel.widths)
        inside = (panel.first <= widths) & (widths <= panel.last)
        for i, (gaps, slope) in enumerate(zip(panel.gaps, panel.slopes, strict=True)):
            _draw_gap(ax, widths, np.array(gaps), inside, slope, i)
        ax.set_yscale("log")
        style.width_axis(ax, [round(width) for width in panel.widths])
        ax.set_xlim(widths[0] / 1.3, widths[-1] * 2.4)  # room for the slopes
        ax.tick_params(axis="x", labelrotation=45)
        ax.set_xlabel(width_label)
        ax.set_title(panel.title)
    style.label_rows(axes, f"gap to infinite width (b in {hp_unit})")
    keys = [style.key(name, color=_COLORS[i], marker=style.MARKERS[i], linestyle="-") for i, name in enumerate(_GAPS)]
    if any(panel.first > panel.widths[0] or panel.last < panel.widths[-1] for panel in found):
        keys.append(style.key("not fitted", marker="o", markerfacecolor="white"))
    style.legend_below(figure, keys)
    return figure


def _draw_gap(ax: Axes, widths: Floats, gaps: Floats, inside: Bools, slope: float, i: int) -> None:
    color, marker = _COLORS[i], style.MARKERS[i]
    ax.plot(widths[inside], gaps[inside], marker, color=color)
    ax.plot(widths[~inside], gaps[~inside], marker, color=color, markerfacecolor="white")
    x, y = np.log(widths[inside]), np.log(gaps[inside])
    line = np.exp(y.mean() + slope * (x - x.mean()))
    ax.plot(widths[inside], line, color=color, linewidth=1.3)
    end, offset = (widths[inside][-1], line[-1]), (6, _LABEL_OFFSETS[i])
    ax.annotate(f"{slope:+.2f}", end, xytext=offset, textcoords="offset points", color=color, fontsize=9)


@style.styled
def losses_and_optima(
    surfaces: Sequence[Surface], optima: Sequence[Optimum], transfer: FastTransfer | None, *, loss_label: str
) -> Figure:
    """Loss over the learning rate, a line a width with its optimum; and the optima over width with their law.

    Raises:
        ValueError: no surfaces.
    """
    figure, axes = style.panels(2 if surfaces else 0, height=4.4)
    looks = style.width_looks(surface.width for surface in surfaces)
    highest = max((mean for surface in surfaces for mean in surface.mean_losses if mean is not None), default=1.0)
    top = min(max(optimum.loss for optimum in optima) + _HEADROOM_NATS, highest)
    for surface in surfaces:
        draw_surface(axes[0], surface, looks[surface.width], top, 0.0)
    for optimum in optima:
        draw_optimum(axes[0], optimum, looks[optimum.width]["color"])
        _draw_place(axes[1], optimum, looks[optimum.width])
    low = min(optimum.loss for optimum in optima)
    axes[0].set_ylim(low - 0.08 * (top - low), top + 0.04 * (top - low))
    style.octave_axis(axes[0].xaxis)
    axes[0].set_xlabel("learning rate at base width")
    axes[0].set_ylabel(loss_label)
    axes[0].set_title("each width's optimum is a star")
    style.width_axis(axes[1], [surface.width for surface in surfaces])
    style.octave_axis(axes[1].yaxis)
    bottom, height = axes[1].get_ylim()[0], np.ptp(axes[1].get_ylim())
    lacking = max(_LEAST_SPAN - height, 0.0)
    axes[1].set_ylim(bottom - lacking / 2, bottom + height + lacking / 2)
    axes[1].yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], nbins=8))  # labels have one decimal
    axes[1].set_ylabel("optimal learning rate at base width")
    if transfer is not None and transfer.laws is not None:
        widths = np.geomspace(transfer.widths[0], transfer.widths[-1], 60)
        places = [transfer.laws.optimum_at(width)[0] for width in widths.tolist()]
        axes[1].plot(widths, places, "--", color=style.GRAY, linewidth=1.2, zorder=2)
        axes[1].set_title(_finding(transfer))
    keys = [style.key(f"width {width}", linestyle="-", **look) for width, look in looks.items()]
    style.legend_below(figure, [*keys, style.key("optimum, 90% interval", marker="*", markersize=11)])
    return figure


def _draw_place(ax: Axes, optimum: Optimum, look: style.Look) -> None:
    bars = style.bars(optimum.interval, optimum.log2_value)
    face = look["color"] if optimum.edge is None else "white"
    ax.errorbar(optimum.width, optimum.log2_value, yerr=bars, fmt=look["marker"], color=look["color"],
                markerfacecolor=face, markersize=7, capsize=4, elinewidth=1.6, zorder=3)  # fmt: skip


def _finding(transfer: FastTransfer) -> str:
    alpha, beta = transfer.alpha, transfer.beta
    return (
        f"{transfer.verdict.value}: alpha {alpha.value:.2f} ({alpha.interval.low:.2f} to {alpha.interval.high:.2f}),\n"
        f"beta {beta.value:.2f} ({beta.interval.low:.2f} to {beta.interval.high:.2f}), dashed"
    )
