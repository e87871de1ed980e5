"""The coordinate check: the size of every activation against width, and against depth."""

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
_BLOCK = re.compile(r"^(?:block(\d+)|(first|last)_block)\.")
Curves = Mapping[str, Mapping[int, float]]  # log RMS by tap and width or depth


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
    def axis(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def rms(self) -> float: ...


class CoordSlope(Protocol):
    """d log RMS / d log size of one activation (`tap`) after `step` updates; a size is a width or a depth."""

    @property
    def optimizer(self) -> str: ...
    @property
    def parametrization(self) -> str: ...
    @property
    def tap(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def axis(self) -> str: ...
    @property
    def slope(self) -> float: ...


@style.styled
def coordinate_check(points: Iterable[CoordPoint]) -> Figure:
    """RMS over width or depth after the last step, log-log: a column an optimizer, a row a parametrization and axis.

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
    rows, columns = [*dict.fromkeys(row for row, _ in panels)], [*dict.fromkeys(column for _, column in panels)]
    kinds = {kind: None for curves in panels.values() for kind in map(_kind, curves)}
    colors = dict(zip(kinds, style.OKABE_ITO * len(kinds), strict=False))
    figure = Figure(figsize=(max(7.0, 3.3 * len(columns)), 3.0 * len(rows) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey=True)
    several = len({axis for _, axis in rows}) > 1
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        parametrization, axis = row
        title = f"{column}, {parametrization}{f', over {axis}' if several else ''}"
        _draw_panel(grid[i, j], title, axis, panels.get((row, column), {}), colors)
    for ax in grid[:, 0]:
        ax.set_ylabel(f"activation RMS after {last} step{'' if last == 1 else 's'}")
    style.legend_below(figure, _legend(colors, panels.values()))
    return figure


@style.styled
def coordinate_slopes(slopes: Iterable[CoordSlope], tolerance: float) -> Figure:
    """Every activation's slope after the last step: a row an optimizer, a column a parametrization and axis.

    A color a kind of activation.

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
    columns = list(dict.fromkeys((slope.parametrization, slope.axis) for slope in slopes))
    several = len({axis for _, axis in columns}) > 1
    kinds = dict.fromkeys(_kind(slope.tap) for slope in slopes)
    colors = dict(zip(kinds, style.OKABE_ITO * len(kinds), strict=False))
    size = (4.2 * len(columns) + 1.6, 0.27 * len(optimizers) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (parametrization, axis) in zip(panels, columns, strict=True):
        here = [slope for slope in slopes if (slope.parametrization, slope.axis) == (parametrization, axis)]
        ax.axvspan(-tolerance, tolerance, color=_BAND, zorder=0)
        for slope in here:
            ax.plot(slope.slope, optimizers.index(slope.optimizer), "o", color=colors[_kind(slope.tap)], alpha=0.8)
        top = max(here, key=lambda slope: abs(slope.slope))
        over = f", over {axis}" if several else ""
        ax.set_title(f"{parametrization}{over}\nsteepest slope {top.slope:+.2f}: {top.optimizer}, {_in_words(top.tap)}")
        ax.set_xlabel(f"d log RMS / d log {axis}")
    panels[0].set_yticks(range(len(optimizers)), optimizers)
    panels[0].invert_yaxis()
    keys: list[Artist] = [style.key(kind, color=color, marker="o") for kind, color in colors.items()]
    keys.append(style.key(f"flat: within {tolerance:g}", marker="s", markersize=10, color=_BAND))
    style.legend_below(figure, keys)
    return figure


_Panel = tuple[tuple[str, str], str]  # (parametrization, axis), optimizer


def _curves(points: Iterable[CoordPoint]) -> dict[_Panel, dict[str, dict[int, float]]]:
    """Mean log RMS by panel, tap and size, in the order of the points."""
    cells: dict[_Panel, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for point in points:
        if point.rms > 0:
            panel = cells[(point.parametrization, point.axis), point.optimizer]
            panel[point.tap][point.size].append(float(np.log(point.rms)))
    return {
        key: {tap: {size: float(np.mean(logs)) for size, logs in by.items()} for tap, by in panel.items()}
        for key, panel in cells.items()
    }


def _draw_panel(ax: Axes, title: str, axis: str, curves: Curves, colors: Mapping[str, str]) -> None:
    for tap, by_size in curves.items():
        sizes = sorted(by_size)
        rms = np.exp([by_size[size] for size in sizes])
        ax.plot(sizes, rms, color=colors[_kind(tap)], linestyle=_line(tap), marker="o", markersize=3.5)
    style.width_axis(ax, {size for by_size in curves.values() for size in by_size} or {1})
    ax.set_xlabel(axis)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda rms, _: f"{rms:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_title(f"{title}\n{_steepest(curves, axis)}")


def _steepest(curves: Curves, axis: str) -> str:
    """The tap that width, or depth, changes most, and its slope."""
    slopes = {
        tap: float(np.polyfit(np.log(sorted(logs)), [logs[size] for size in sorted(logs)], 1)[0])
        for tap, logs in curves.items()
        if len(logs) > 1
    }
    if not slopes:
        return f"one {axis} only"
    tap = max(slopes, key=lambda tap: abs(slopes[tap]))
    return f"steepest slope {slopes[tap]:+.2f}:\n{_in_words(tap)}"


def _in_words(tap: str) -> str:
    """`block3.mlp_hidden` -> `block 3 mlp hidden`, `last_block.mlp` -> `last block mlp`."""
    block = _block(tap)
    return _kind(tap) if block is None else f"{block} {_kind(tap)}"


def _kind(tap: str) -> str:
    """`block3.mlp_hidden` -> `mlp hidden`."""
    return _BLOCK.sub("", tap).replace("_", " ")


def _block(tap: str) -> str | None:
    """`block 3`, `first block`, or None for an activation that is in no block."""
    found = _BLOCK.match(tap)
    if found is None:
        return None
    return f"{found[2]} block" if found[1] is None else f"block {found[1]}"


def _line(tap: str) -> style.LineStyle:
    found = _BLOCK.match(tap)
    index = 0 if found is None else int(found[1] or found[2] == "last")
    return style.LINE_STYLES[index % len(style.LINE_STYLES)]


def _legend(colors: Mapping[str, str], panels: Iterable[Curves]) -> list[Artist]:
    keys: list[Artist] = [style.key(kind, color=color, linestyle="-") for kind, color in colors.items()]
    taps = dict.fromkeys(tap for curves in panels for tap in curves)
    blocks = {block: _line(tap) for tap in taps if (block := _block(tap)) is not None}
    if len(blocks) > 1:
        keys += [style.key(block, linestyle=line) for block, line in blocks.items()]
    return keys
