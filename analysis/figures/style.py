"""What all figures share: sizes, colors, markers, axes in powers of two, and files that are equal when redrawn.

Drawn at page width (7 to 10 inches) with text of 9 points or more. Widths take a sequential palette whose palest
line still stands out from white, series take Okabe and Ito's colors; both survive common color blindness, and
each has its own marker too.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

from matplotlib import colormaps, style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.interval import Interval
from analysis.observed_fit import short
from analysis.surface import Series

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TARGET_COLOR = "#D55E00"
OPTIMUM_COLOR = "#1f3a5f"
GRAY = "#555555"
LineStyle = str | tuple[int, tuple[int, ...]]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_PALEST = 0.65  # of viridis: contrast 2.8 to 1 with white

STYLE: Mapping[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.hashsalt": "mutransfer",
    "svg.fonttype": "path",
    "savefig.facecolor": "white",
}

P = ParamSpec("P")
Look = Mapping[str, Any]  # matplotlib properties: color, marker


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the shared style, whatever the caller's settings."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", dict(STYLE)]):
            return draw(*args, **kwargs)

    return drawn


def panels(n: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with n panels, at most three a row.

    Raises:
        ValueError: nothing to draw.
    """
    if n < 1:
        raise ValueError("there is nothing to draw")
    columns = min(n, 3) if n != 4 else 2
    rows = -(-n // columns)
    figure = Figure(figsize=({1: 7.0, 2: 8.5, 3: 10.0}[columns], height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[n:]:
        ax.remove()
    return figure, list(grid.flat[:n])


def label_rows(axes: Sequence[Axes], text: str) -> None:
    """A y-label on the first panel of every row."""
    for ax in axes:
        spec = ax.get_subplotspec()
        if spec is not None and spec.is_first_col():
            ax.set_ylabel(text)


def legend_below(figure: Figure, keys: Sequence[Artist]) -> None:
    """One legend for all panels, as many columns as two inches each leave room for."""
    columns = min(len(keys), int(figure.get_figwidth() // 2))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns)


def key(label: str, **look: Any) -> Line2D:
    """A legend's entry: a gray marker without a line, unless told otherwise."""
    return Line2D([], [], label=label, **{"color": GRAY, "linestyle": "none", **look})


def measured_star(color: str) -> Look:
    """How the outcome of the plan is marked."""
    return {"marker": "*", "markersize": 12, "markeredgecolor": "black", "color": color}


def width_looks(widths: Iterable[int]) -> dict[int, Look]:
    """Color and marker for each width, dark to light."""
    ordered = sorted(set(widths))
    viridis = colormaps["viridis"]
    return {
        width: {"color": to_hex(viridis(_PALEST * i / max(len(ordered) - 1, 1))), "marker": MARKERS[i % len(MARKERS)]}
        for i, width in enumerate(ordered)
    }


def series_looks(series: Iterable[Series]) -> dict[Series, Look]:
    """Color and marker for each series."""
    return {
        name: {"color": OKABE_ITO[i % len(OKABE_ITO)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(dict.fromkeys(series))
    }


def octave_axis(axis: Axis) -> None:
    """Ticks 2^k on an axis of log2 values."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_two(value)))


def width_axis(ax: Axes, widths: Iterable[int]) -> None:
    """A logarithmic x-axis with a tick at each width."""
    ticks = sorted(set(widths))
    ax.set_xscale("log", base=2)
    ax.set_xlim(ticks[0] / 2**0.4, ticks[-1] * 2**0.4)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("width")


def power_of_two(log2_value: float) -> str:
    """2^k in mathtext: a whole k as it is, any other with one decimal."""
    return f"$2^{{{round(log2_value, 1):g}}}$"


def wrapped(text: object, *, characters: int = 42) -> str:
    """Broken into lines that fit a panel's title."""
    return textwrap.fill(str(text), characters)


def bars(interval: Interval | None, value: float) -> list[list[float]] | None:
    """An interval as matplotlib's error bars around a value, which may lie outside it."""
    if interval is None:
        return None
    return [[max(value - interval.low, 0.0)], [max(interval.high - value, 0.0)]]


def save(figure: Figure, folder: Path, stem: str) -> Path:
    """Write stem.svg and stem.png (150 dpi), the same bytes each time; returns the SVG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    svg = folder / f"{stem}.svg"
    with style.context(["default", dict(STYLE)]):
        figure.savefig(svg, metadata={"Date": None})
        figure.set_layout_engine("none")  # the PNG is laid out as the SVG is: doing it again takes as long as drawing
        figure.savefig(folder / f"{stem}.png", dpi=150, metadata={"Software": None})
    return svg


def log_axis(ax: Axes, which: Literal["x", "y"]) -> None:
    """Decades, with 2 and 5 where there is room, written as 20M. Call it when all is drawn."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
