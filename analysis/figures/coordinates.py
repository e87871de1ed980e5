"""The coordinate check: the size of every activation against width."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Protocol

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures import style

_BAND = "#dcdcdc"
_BLOCK = re.compile(r"^block(\d+)\.")
Curves = Mapping[str, Mapping[int, float]]  # log RMS by tap and width


class CoordPoint(Protocol):
    """Root mean square of one activation (`tap`) in one run after `step` updates."""

    @property
    def optimizer(self) -> str: ...
    @property
    def parametrization(self) -> str: ...
    @property
    def tap(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def rms(self) -> float: ...


class CoordSlope(Protocol):
    """d log RMS / d log width of one activation (`tap`) after `step` updates."""

    @property
    def optimizer(self) -> str: ...
    @property
    def parametrization(self) -> str: ...
    @property
    def tap(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def slope(self) -> float: ...


@style.styled
def coordinate_check(points: Iterable[CoordPoint]) -> Figure:
    """RMS over width after the last step, log-log: a column an optimizer, a row a parametrization.

    Geometric means over seeds. A line a tap: color says which kind, line style which block. A tap that is exactly
    zero (a readout that starts at zero) has no place on a logarithmic axis and is left out.

    Raises:
        ValueError: no points.
    """
    points = list(points)
    if not points:
        raise ValueError("a coordinate check needs points, got none")
    last = max(point.step for point in points)
    panels = _curves(point for point in points if point.step == last)
    rows, columns = ([*dict.fromkeys(key[i] for key in panels)] for i in (0, 1))
    kinds = {kind: None for curves in panels.values() for kind in map(_kind, curves)}
    colors = dict(zip(kinds, style.OKABE_ITO * len(kinds), strict=False))
    figure = Figure(figsize=(max(7.0, 3.3 * len(columns)), 3.0 * len(rows) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey=True)
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        _draw_panel(grid[i, j], f"{column}, {row}", panels.get((row, column), {}), colors)
    for ax in grid[:, 0]:
        ax.set_ylabel(f"activation RMS after {last} step{'' if last == 1 else 's'}")
    style.legend_below(figure, _legend(colors, panels.values()))
    return figure


@style.styled
def coordinate_slopes(slopes: Iterable[CoordSlope], tolerance: float) -> Figure:
    """Every activation's slope after the last step: a row an optimizer, a column a parametrization, a color a kind.

    For more optimizers than `coordinate_check` shows at a glance. Within the band an activation counts as flat.

    Raises:
        ValueError: no slopes.
    """
    slopes = list(slopes)
    if not slopes:
        raise ValueError("a coordinate check needs slopes, got none")
    last = max(slope.step for slope in slopes)
    slopes = [slope for slope in slopes if slope.step == last]
    optimizers = list(dict.fromkeys(slope.optimizer for slope in slopes))
    parametrizations = list(dict.fromkeys(slope.parametrization for slope in slopes))
    kinds = dict.fromkeys(_kind(slope.tap) for slope in slopes)
    colors = dict(zip(kinds, style.OKABE_ITO * len(kinds), strict=False))
    size = (4.2 * len(parametrizations) + 1.6, 0.27 * len(optimizers) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(parametrizations), squeeze=False, sharex=True, sharey=True)[0]
    for ax, parametrization in zip(axes, parametrizations, strict=True):
        here = [slope for slope in slopes if slope.parametrization == parametrization]
        ax.axvspan(-tolerance, tolerance, color=_BAND, zorder=0)
        for slope in here:
            ax.plot(slope.slope, optimizers.index(slope.optimizer), "o", color=colors[_kind(slope.tap)], alpha=0.8)
        top = max(here, key=lambda slope: abs(slope.slope))
        ax.set_title(f"{parametrization}\nsteepest slope {top.slope:+.2f}: {top.optimizer}, {_in_words(top.tap)}")
        ax.set_xlabel("d log RMS / d log width")
    axes[0].set_yticks(range(len(optimizers)), optimizers)
    axes[0].invert_yaxis()
    keys: list[Artist] = [style.key(kind, color=color, marker="o") for kind, color in colors.items()]
    keys.append(style.key(f"flat: within {tolerance:g}", marker="s", markersize=10, color=_BAND))
    style.legend_below(figure, keys)
    return figure


def _curves(points: Iterable[CoordPoint]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Mean log RMS by (parametrization, optimizer), tap and width, in the order of the points."""
    cells: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for point in points:
        if point.rms > 0:
            panel = cells[point.parametrization, point.optimizer]
            panel[point.tap][point.width].append(float(np.log(point.rms)))
    return {
        key: {tap: {width: float(np.mean(logs)) for width, logs in by.items()} for tap, by in panel.items()}
        for key, panel in cells.items()
    }


def _draw_panel(ax: Axes, title: str, curves: Curves, colors: Mapping[str, str]) -> None:
    for tap, by_width in curves.items():
        widths = sorted(by_width)
        rms = np.exp([by_width[width] for width in widths])
        ax.plot(widths, rms, color=colors[_kind(tap)], linestyle=_line(tap), marker="o", markersize=3.5)
    style.width_axis(ax, {width for by_width in curves.values() for width in by_width} or {1})
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda rms, _: f"{rms:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_title(f"{title}\n{_steepest(curves)}")


def _steepest(curves: Curves) -> str:
    """The tap that width changes most, and its slope."""
    slopes = {
        tap: float(np.polyfit(np.log(sorted(logs)), [logs[width] for width in sorted(logs)], 1)[0])
        for tap, logs in curves.items()
        if len(logs) > 1
    }
    if not slopes:
        return "one width only"
    tap = max(slopes, key=lambda tap: abs(slopes[tap]))
    return f"steepest slope {slopes[tap]:+.2f}:\n{_in_words(tap)}"


def _in_words(tap: str) -> str:
    """`block3.mlp_hidden` -> `block 3 mlp hidden`."""
    return _BLOCK.sub(r"block \1 ", tap).replace("_", " ")


def _kind(tap: str) -> str:
    """`block3.mlp_hidden` -> `mlp hidden`."""
    return _BLOCK.sub("", tap).replace("_", " ")


def _block(tap: str) -> int | None:
    found = _BLOCK.match(tap)
    return int(found[1]) if found else None


def _line(tap: str) -> style.LineStyle:
    return style.LINE_STYLES[(_block(tap) or 0) % len(style.LINE_STYLES)]


def _legend(colors: Mapping[str, str], panels: Iterable[Curves]) -> list[Artist]:
    keys: list[Artist] = [style.key(kind, color=color, linestyle="-") for kind, color in colors.items()]
    taps = dict.fromkeys(tap for curves in panels for tap in curves)
    blocks = {block: _line(tap) for tap in taps if (block := _block(tap)) is not None}
    if len(blocks) > 1:
        keys += [style.key(f"block {block}", linestyle=line) for block, line in sorted(blocks.items())]
    return keys
