"""Gaps to the limit over width: is what a proxy's optimum costs vanishing faster than the loss falls?"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fast_transfer import FastTransfer, Gaps
from analysis.figures import style
from analysis.width_laws import Quantity

_COLORS = (style.OKABE_ITO[0], style.OKABE_ITO[1])
_NAMES = ("a, loss gap", "c, cost of the width's optimum")
_DODGE = 1.04


@style.styled
def transfer_gaps(transfers: Sequence[FastTransfer]) -> Figure:
    """A panel a series: the loss gap and the transfer gap in nats, on log axes, with their laws and intervals.

    Raises:
        ValueError: no rates.
    """
    figure, axes = style.panels(len(transfers), height=4.0)
    for transfer, ax in zip(transfers, axes, strict=True):
        for i, kind in enumerate(("loss", "transfer")):
            _draw(ax, transfer, kind, i)
        ax.set_yscale("log")
        top = max(gaps.loss.value for gaps in transfer.gaps)
        ax.set_ylim(max(ax.get_ylim()[0], top * 1e-5), top * 3)
        style.width_axis(ax, [round(width) for width in transfer.widths])
        ax.set_xlabel("width")
        ax.set_title(f"{transfer.series}: {transfer.verdict.value}\n{transfer.kappa_in_words}")
    style.label_rows(axes, "gap to infinite width (nats)")
    style.legend_below(
        figure,
        [style.key(name, color=_COLORS[i], marker=style.MARKERS[i], linestyle="--") for i, name in enumerate(_NAMES)],
    )
    return figure


def _draw(ax: Axes, transfer: FastTransfer, kind: str, i: int) -> None:
    widths = np.array(transfer.widths)
    for width, gaps in zip(widths * _DODGE**i, transfer.gaps, strict=True):
        gap = _of(gaps, kind)
        bars = style.bars(gap.interval, gap.value)
        ax.errorbar(width, gap.value, yerr=bars, fmt=style.MARKERS[i], color=_COLORS[i], capsize=3, elinewidth=1.2)
    assert transfer.laws is not None
    laws = transfer.laws
    n = np.geomspace(widths[0], widths[-1], 40)
    if kind == "loss":
        line = [laws.loss_at(width) - laws.loss_limit.value for width in n.tolist()]
    else:
        limits = np.array([limit.value for limit in laws.optimum_limit])
        away = [float(np.sum((np.array(laws.optimum_at(width)) - limits) ** 2)) for width in n.tolist()]
        line = [laws.curvature.value / 2 * octaves_squared for octaves_squared in away]
    ax.plot(n, line, "--", color=_COLORS[i], linewidth=1.2)


def _of(gaps: Gaps, kind: str) -> Quantity:
    quantity: Quantity = getattr(gaps, kind)
    return quantity
