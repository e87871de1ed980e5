"""The figure of `scaling`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.figures import style

TITLES = {
    "width": "width",
    "depth": "depth (layers)",
    "batch_tokens": "batch (tokens)",
    "pack_size": "members of a stacked pack, width 32",
    "workers": "workers of a sweep, with Ray's start",
}


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write scaling.svg and scaling.png; returns the SVG's path."""
    return style.save(figure_of(rows), folder, "scaling")


@style.styled
def figure_of(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel an axis, seconds a trial on a logarithmic scale.

    Raises:
        ValueError: no rows.
    """
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = style.panels(len(axes_names), height=3.0)
    for ax, name in zip(axes, axes_names, strict=True):
        _panel(ax, name, [row for row in rows if row["axis"] == name])
    style.label_rows(axes, "seconds a trial of 100 steps")
    return figure


def _panel(ax: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = list(dict.fromkeys(row["line"] for row in rows))
    for line, look in style.series_looks(lines).items():
        places = [(row["value"], row["seconds_a_trial"]) for row in rows if row["line"] == line]
        ax.plot(*zip(*places, strict=True), label=line, **look)
    ticks = sorted({row["value"] for row in rows})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(TITLES[name])
    if len(lines) > 1:
        ax.legend()
