"""The trajectory decomposition of one optimizer: top-k losses, residuals, the selected k, and spectra."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.figures import style
from analysis.interval import Floats
from analysis.trajectory import Place, TrajectoryStudy

_STAR: style.Look = {"marker": "*", "markersize": 12, "markeredgecolor": "black", "linestyle": "none", "zorder": 5}
_LARGEST: style.Look = {"linestyle": "--", "linewidth": 1.2, "markerfacecolor": "white"}


@style.styled
def trajectory_decomposition(
    study: TrajectoryStudy, spectra: Mapping[str, Floats], *, optimizer: str, spectrum_of: str
) -> Figure:
    """Six panels: total, top-k loss and residual over the learning rate; selected k; optima over a fixed k; spectra.

    A color a width. Where a width is compared with the largest, the largest's curve at the same k is dashed, in the
    width's color: equal curves mean that the top-k loss does not depend on the width. `spectra` are top-k losses of
    the run that `spectrum_of` names, by kind of matrix.
    """
    figure, axes = style.panels(6, height=3.6)
    looks = style.width_looks(item.width for item in study.curves)
    _draw_totals(axes[0], study, looks)
    _draw_tops(axes[1], study, looks)
    _draw_residuals(axes[2], study, looks)
    _draw_selected(axes[3], study, looks)
    _draw_places(axes[4], study, looks)
    _draw_spectra(axes[5], spectra, spectrum_of)
    for ax in axes[:4]:
        style.octave_axis(ax.xaxis)
        ax.set_xlabel("peak learning rate at base width")
    figure.suptitle(optimizer)
    keys = [style.key(f"width {width}", linestyle="-", **look) for width, look in looks.items()]
    largest = study.curves[-1].width
    same_k = {"linestyle": "--", "linewidth": 1.2}
    keys += [
        style.key("optimum", **{**_STAR, "color": style.GRAY}),
        style.key(f"width {largest} at that width's k", **same_k),
    ]
    style.legend_below(figure, keys)
    return figure


def _draw_totals(ax: Axes, study: TrajectoryStudy, looks: Mapping[int, style.Look]) -> None:
    for curves, where in zip(study.curves, study.total.places, strict=True):
        _draw_curve(ax, curves.log2_values, curves.total, where, looks[curves.width])
    spread = study.total.spread_octaves
    ax.set_title(f"total: optimum {_moves(spread)}")
    ax.set_ylabel("change of the loss (nats)")


def _draw_tops(ax: Axes, study: TrajectoryStudy, looks: Mapping[int, style.Look]) -> None:
    x = study.curves[0].log2_values
    for selection in study.selections:
        look = looks[selection.width]
        _draw_curve(ax, x, selection.top, selection.place, look)
        _draw_curve(ax, x, selection.largest_top, selection.largest_place, {**look, **_LARGEST})
    found = sum(selection.found for selection in study.selections)
    shifts = ", ".join(f"{selection.shift_octaves:+.2f}" for selection in study.selections)
    ax.set_title(
        f"top-k: optimum shifts {shifts} octaves"
        if found == len(study.selections)
        else f"top-k: k found for {found} of {len(study.selections)} widths"
    )


def _draw_residuals(ax: Axes, study: TrajectoryStudy, looks: Mapping[int, style.Look]) -> None:
    x = study.curves[0].log2_values
    for selection in study.selections:
        look = looks[selection.width]
        ax.plot(x, selection.residual, **look)
        ax.plot(x, selection.largest_residual, **{**look, **_LARGEST})
    steepest = max(slope for selection in study.selections for slope in selection.slopes)
    ax.set_title(f"residual: at most {steepest:.2f} nats an octave")


def _draw_selected(ax: Axes, study: TrajectoryStudy, looks: Mapping[int, style.Look]) -> None:
    x = study.curves[0].log2_values
    for selection in study.selections:
        look = looks[selection.width]
        ax.plot(x, selection.k, **look, linestyle="-" if selection.found else ":")
        ax.axhline(selection.width, color=look["color"], linewidth=0.8, linestyle=":")
    _power_axis(ax, "y", max(selection.width for selection in study.selections))
    ax.set_ylabel("selected k (dotted: all)")
    lost = [str(selection.width) for selection in study.selections if not selection.found]
    ax.set_title(f"no k found at width {', '.join(lost)}" if lost else "selected k")


def _draw_places(ax: Axes, study: TrajectoryStudy, looks: Mapping[int, style.Look]) -> None:
    for i, curves in enumerate(study.curves):
        look = looks[curves.width]
        k = [item.k for item in study.fixed if item.k is not None]
        y = [item.places[i].log2_value for item in study.fixed]
        ax.plot(k, y, color=look["color"])
        ax.plot([k[-1], curves.width], [y[-1], study.total.places[i].log2_value], color=look["color"], linewidth=0.8,
                linestyle=":")  # fmt: skip
        ax.plot([curves.width], [study.total.places[i].log2_value], **{**_STAR, "color": look["color"]})
    _power_axis(ax, "x", study.curves[-1].width)
    style.octave_axis(ax.yaxis)
    ax.set_xlabel("k, the same at every learning rate")
    ax.set_ylabel("optimal learning rate")
    ax.set_title(f"stable at {len(study.stable_k)} of {len(study.fixed)} fixed k")


def _draw_spectra(ax: Axes, spectra: Mapping[str, Floats], spectrum_of: str) -> None:
    for i, (kind, top) in enumerate(spectra.items()):
        color = style.OKABE_ITO[i % len(style.OKABE_ITO)]
        line = style.LINE_STYLES[i // len(style.OKABE_ITO)]
        ax.plot(np.arange(1, len(top) + 1), top / top[-1], color=color, linestyle=line, linewidth=1.2, label=kind)
    _power_axis(ax, "x", max(map(len, spectra.values())))
    ax.set_xlabel("k")
    ax.set_ylabel("top-k over all, by kind of matrix")
    ax.set_title(spectrum_of)
    ax.legend(fontsize=9, ncols=2, loc="lower right", handlelength=1.4, columnspacing=0.8)


def _draw_curve(ax: Axes, x: Floats, y: Floats, where: Place, look: style.Look) -> None:
    ax.plot(x, y, **look)
    height = np.interp(where.log2_value, x, y)
    ax.plot([where.log2_value], [height], **{**_STAR, "color": look["color"]})


def _moves(spread: float | None) -> str:
    return "at an edge of the grid" if spread is None else f"moves {spread:.2f} octaves"


def _power_axis(ax: Axes, which: str, largest: int) -> None:
    """From 1 to the largest k, logarithmic, ticks at powers of two."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=2)
    (ax.set_xlim if which == "x" else ax.set_ylim)(0.9, largest * 1.15)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
