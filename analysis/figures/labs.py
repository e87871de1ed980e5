"""Figures of the labs."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.figures import style

_PUBLISHED: style.Look = {"marker": "v", "markersize": 9, "markeredgecolor": "black"}
Curve = tuple[Sequence[float], Sequence[float]]  # x and y


@style.styled
def descents(curves: Mapping[str, Sequence[Sequence[float]]], published: Mapping[str, int], goal: float) -> Figure:
    """Loss over iterations, a color a method, a line a start; published iterations to the goal as ticks on it.

    Raises:
        ValueError: no curves.
    """
    figure, (ax,) = style.panels(min(len(curves), 1), height=4.4)
    for i, (name, starts) in enumerate(curves.items()):
        color = style.OKABE_ITO[i % len(style.OKABE_ITO)]
        for losses in starts:
            ax.plot(range(len(losses)), losses, color=color, linewidth=1.1)
        ax.plot([published[name]], [goal], color=color, clip_on=False, **_PUBLISHED)
    ax.axhline(goal, color=style.GRAY, linewidth=1, linestyle=":")
    ax.set_yscale("log")
    ax.set_xlabel("iteration")
    ax.set_ylabel("loss")
    ax.set_title(f"iterations to a loss of {goal:g}")
    names = list(curves)
    keys = [style.key(name, color=style.OKABE_ITO[i % 7], linestyle="-") for i, name in enumerate(names)]
    style.legend_below(figure, [*keys, style.key("published", **_PUBLISHED)])
    return figure


@style.styled
def singular_value_maps(maps: Mapping[str, Curve]) -> Figure:
    """What each schedule makes of a singular value of a matrix of Frobenius norm 1.

    Raises:
        ValueError: no schedules.
    """
    figure, (ax,) = style.panels(min(len(maps), 1), height=4.4)
    for i, (name, (before, after)) in enumerate(maps.items()):
        line = style.LINE_STYLES[0 if i < len(style.OKABE_ITO) else 1]
        ax.plot(before, after, color=style.OKABE_ITO[i % len(style.OKABE_ITO)], linestyle=line, label=name)
    ax.axhline(1.0, color=style.GRAY, linewidth=1, linestyle=":")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("singular value, at Frobenius norm 1")
    ax.set_ylabel("singular value afterwards")
    ax.set_title("one is the exact polar factor")
    ax.legend(loc="lower right")
    return figure
