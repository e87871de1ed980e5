"""Runs made elsewhere: where optima lie over the scales, the loss around them, and what missing them costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import chi2

from analysis.figures import style
from analysis.interval import Floats, Interval
from analysis.observed_fit import CellFit, short

# Nats above the lowest loss, of the bands that a loss map is colored in.
_BANDS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_OPTIMUM: style.Look = {"marker": "+", "markersize": 11, "markeredgewidth": 2, "color": "black"}
_MOST_TICKS = 4  # of an axis of scales, which are large numbers
_FINE = 60  # points of a law's line
_NEAR_OCTAVES = 2.5  # of the optimum: what an excess curve's height is chosen for
_PALEST = 0.85  # of viridis: beyond it, lines fade into white
_LEAST_EXCESS = 0.02  # nats a panel of excess curves shows at least

# log2 optimum of every hyperparameter at some scales
Law = Callable[[Mapping[str, float]], Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPoint:
    """The plan at the target's scales, in log2."""

    scales: Mapping[str, float]
    log2_values: tuple[float, ...]
    intervals: tuple[Interval | None, ...]


@style.styled
def optima_over_scales(
    hps: Sequence[str], cells: Sequence[CellFit], law: Law | None, target: PlannedPoint | None = None
) -> Figure:
    """A row a hyperparameter, a column a scale: each cell's optimum with its interval, the law, the plan.

    With several scales each optimum is first moved along the law to the target's other scales (without a target,
    those of the last cell), so that what is left is how it depends on the one that the panel shows.
    """
    scales = list(cells[0].scales)
    reference = target.scales if target else cells[-1].scales
    figure = Figure(figsize=(3.2 + 3.2 * len(scales), 2.9 * len(hps) + 0.6), layout="constrained")
    grid = figure.subplots(len(hps), len(scales), squeeze=False)
    for (row, column), ax in np.ndenumerate(grid):
        scale = scales[column]
        for cell in cells:
            shift = 0.0 if law is None else float(_moved(law, cell.scales, reference, scale)[row])
            _draw_place(
                ax, cell.scales[scale], cell.log2_values[row], cell.intervals[row], shift, hollow=not cell.in_law
            )
        if target is not None:
            _draw_plan(ax, target.scales[scale], target.log2_values[row], target.intervals[row])
        values = [cell.scales[scale] for cell in cells] + ([target.scales[scale]] if target else [])
        if law is not None:
            xs = np.geomspace(min(values), max(values), _FINE)
            ax.plot(xs, [law({**reference, scale: x})[row] for x in xs], "--", color=style.GRAY, linewidth=1.2)
        _scale_axis(ax, scale, values)
        style.octave_axis(ax.yaxis)
        if column == 0:
            ax.set_ylabel(f"optimal {hps[row]}")
    if law is not None and len(scales) > 1:
        others = ", ".join(f"{name} {short(value)}" for name, value in reference.items())
        figure.suptitle(f"optima moved along the law to the other scales of {others}")
    style.legend_below(figure, _optima_keys(cells, law, target))
    return figure


def _moved(law: Law, at: Mapping[str, float], reference: Mapping[str, float], scale: str) -> Floats:
    """How the law moves an optimum from a cell's other scales to the reference's, in octaves a hyperparameter."""
    return np.subtract(law({**reference, scale: at[scale]}), law(at))


def _draw_place(ax: Axes, x: float, value: float, interval: Interval | None, shift: float, *, hollow: bool) -> None:
    color = style.OPTIMUM_COLOR
    bars = style.bars(interval, value)
    face = "white" if hollow else color
    ax.errorbar(x, value + shift, yerr=bars, fmt="o", color=color, markerfacecolor=face, capsize=3, elinewidth=1.2)


def _draw_plan(ax: Axes, x: float, value: float, interval: Interval | None) -> None:
    bars = style.bars(interval, value)
    ax.errorbar(
        x, value, yerr=bars, fmt="D", color=style.TARGET_COLOR, markersize=7, capsize=4, elinewidth=1.8, zorder=4
    )


def _scale_axis(ax: Axes, name: str, values: Sequence[float]) -> None:
    """Logarithmic, with a few ticks of the values that there are."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.06, 1.05)
    ax.set_xscale("log")
    ax.set_xlim(low / margin, high * margin)
    ticks = np.geomspace(low, high, _MOST_TICKS) if high > low else [low]
    ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(name)


def _optima_keys(cells: Sequence[CellFit], law: Law | None, target: PlannedPoint | None) -> list[Artist]:
    place = {"color": style.OPTIMUM_COLOR, "marker": "o"}
    level = next((i.level for cell in cells for i in cell.intervals if i is not None), None)
    keys: list[Artist] = [style.key("optimum" + (f", {level:.0%} interval" if level else ""), **place)]
    if any(not cell.in_law for cell in cells):
        keys.append(style.key("left out of the law", markerfacecolor="white", **place))
    if law is not None:
        keys.append(style.key("law", linestyle="--"))
    if target is not None:
        keys.append(style.key("planned", marker="D", color=style.TARGET_COLOR, markersize=7))
    return keys


@style.styled
def loss_maps(hps: Sequence[str], cells: Sequence[CellFit]) -> Figure:
    """A panel a cell: excess loss over the first two hyperparameters, the optimum and its 90% region.

    Colors are linear between runs and end where the runs do. With a third hyperparameter, the best run of each pair
    is shown.
    """
    figure, axes = style.panels(len(cells), height=3.4)
    norm = BoundaryNorm(_BANDS, 256, extend="max")
    for cell, ax in zip(cells, axes, strict=True):
        _draw_map(ax, cell, norm)
        ax.grid(visible=False)
        ax.use_sticky_edges = False  # of the contours: runs at the border would be cut
        ax.margins(0.04)
        style.octave_axis(ax.xaxis)
        style.octave_axis(ax.yaxis)
        ax.set_xlabel(hps[0])
        ax.set_title(style.wrapped(cell.label))
    style.label_rows(axes, hps[1])
    bar = figure.colorbar(ScalarMappable(norm, "viridis_r"), ax=axes, ticks=_BANDS, extend="max", aspect=40)
    bar.set_label("loss above the optimum's (nats)")
    bar.ax.set_yticklabels([f"{band:g}" for band in _BANDS])
    keys: list[Artist] = [
        style.key("a run", marker="o", markersize=3, color="black"),
        style.key("optimum", **_OPTIMUM),
    ]
    if any(np.isfinite(cell.covariance).all() for cell in cells):
        keys.append(style.key("its 90% region", linestyle="-", color=style.TARGET_COLOR))
    if any(np.isnan(cell.losses).any() for cell in cells):
        keys.append(style.key("diverged", marker="x", color="black"))
    style.legend_below(figure, keys)
    return figure


def _draw_map(ax: Axes, cell: CellFit, norm: BoundaryNorm) -> None:
    ran = ~np.isnan(cell.losses)
    pairs, losses = _lowest_of_each(cell.points[ran][:, :2], cell.losses[ran])
    excess = np.clip(losses - cell.loss, 0.0, None)
    if len(pairs) >= 3 and all(len(set(column)) > 1 for column in pairs.T.tolist()):
        ax.tricontourf(pairs[:, 0], pairs[:, 1], excess, levels=list(_BANDS), norm=norm, cmap="viridis_r", extend="max")
    ax.plot(*pairs.T, ".", color="black", markersize=3)
    ax.plot(*cell.points[~ran][:, :2].T, "x", color="black", markersize=5)
    if np.isfinite(cell.covariance).all():
        ax.add_patch(_ellipse(cell.log2_values[:2], cell.covariance[:2, :2]))
    ax.plot(*cell.log2_values[:2], **_OPTIMUM, zorder=4)


def _lowest_of_each(pairs: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The distinct rows of `pairs`, each with its lowest loss."""
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    lowest = np.full(len(distinct), np.inf)
    np.minimum.at(lowest, which.ravel(), losses)
    return distinct, lowest


def _ellipse(center: Sequence[float], covariance: Floats, level: float = 0.9) -> Ellipse:
    """Where a normal distribution has `level` of its mass."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * np.sqrt(chi2.ppf(level, 2) * np.clip(values, 0.0, None))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    x, y = center
    return Ellipse((x, y), width, height, angle=angle, fill=False, color=style.TARGET_COLOR, linewidth=1.8, zorder=5)


@style.styled
def excess_curves(hps: Sequence[str], cells: Sequence[CellFit]) -> Figure:
    """A panel a hyperparameter: what missing the optimum costs, the others being the best tried; a line a cell."""
    figure, axes = style.panels(len(hps), height=3.6)
    losses = [cell.loss for cell in cells]
    norm = Normalize(min(losses), max(losses) if max(losses) > min(losses) else min(losses) + 1.0)
    viridis = colormaps["viridis"](np.linspace(0.0, _PALEST, 256))
    colors = ListedColormap(viridis)
    for index, (hp, ax) in enumerate(zip(hps, axes, strict=True)):
        near = [_LEAST_EXCESS]
        for cell in cells:
            ran = ~np.isnan(cell.losses)
            values, lowest = _lowest_of_each(cell.points[ran][:, [index]], cell.losses[ran])
            away, excess = values[:, 0] - cell.log2_values[index], lowest - cell.loss
            near += excess[np.abs(away) <= _NEAR_OCTAVES].tolist()
            ax.plot(away, excess, ".-", color=colors(norm(cell.loss)), linewidth=1.1, markersize=4, alpha=0.85)
        ax.axvline(0.0, color=style.GRAY, linewidth=0.8)
        top = float(np.quantile(near, 0.95))
        ax.set_ylim(min(near) - 0.05 * top, 1.1 * top)
        ax.set_xlabel(f"octaves of {hp} from the optimum")
    axes[0].set_ylabel("loss above the optimum's (nats)")
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=axes, aspect=30)
    bar.set_label("loss at the optimum (nats)")
    return figure
