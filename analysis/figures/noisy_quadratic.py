"""The noisy quadratic model: steps, the best learning rate and the noise scale against the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.hyperbola import Hyperbola

_OVERHEAD: style.Look = {"marker": "*", "markersize": 12, "markeredgecolor": "black", "linestyle": "none", "zorder": 5}
_CURVE_POINTS = 120
_PER_OCTAVES = 2  # of batches: a tick at every second


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCurves:
    """What one target loss needs at each batch, all in examples; the best lr there, and its slopes of log lr."""

    target: float
    batches: tuple[float, ...]
    steps: tuple[float, ...]
    lrs: tuple[float, ...]
    noise_scales: tuple[float, ...]  # on arrival at the target
    hyperbola: Hyperbola
    overhead_batch: float  # 20 % above the hyperbola's E_min, on the measured curve
    slopes: tuple[float, float]  # well below the critical batch, and well above


@style.styled
def noisy_quadratic(found: Sequence[BatchCurves]) -> Figure:
    """Three panels over the batch, a color a target loss; the hyperbola's B_c is dashed in each.

    Raises:
        ValueError: no targets.
    """
    figure, axes = style.panels(3 if found else 0, height=4.4)
    for i, curves in enumerate(found):
        look = {"color": style.OKABE_ITO[i], "marker": style.MARKERS[i], "markersize": 4}
        _draw_steps(axes[0], curves, look)
        _draw_lrs(axes[1], curves, look)
        _draw_noise_scales(axes[2], curves, look)
    for ax in axes:
        ax.set_yscale("log")
        _batch_axis(ax, found[0].batches)
    axes[0].set_title(r"lines: $S = S_{min}\,(1 + B_c/B)$")
    axes[0].set_ylabel("steps to the target loss, at the best lr")
    axes[1].set_title("best learning rate")
    where = "slope of log lr over log $B$:\nbelow $B_c/8$, above $8 B_c$"
    axes[1].legend(title=where, loc="lower right", frameon=True, framealpha=1, edgecolor="none")
    axes[1].set_ylabel("best learning rate")
    axes[2].set_title("the noise scale is no critical batch")
    axes[2].set_ylabel(r"tr($\Sigma$)/|G|² at the target loss (examples)")
    keys = [
        style.key(f"loss {curves.target:g}", color=style.OKABE_ITO[i], marker=style.MARKERS[i])
        for i, curves in enumerate(found)
    ]
    keys += [
        style.key(r"hyperbola's $B_c$: examples $2 E_{min}$", linestyle="--"),
        style.key(r"measured: examples $1.2 E_{min}$", **{**_OVERHEAD, "color": style.GRAY}),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def _draw_steps(ax: Axes, curves: BatchCurves, look: style.Look) -> None:
    batches = np.geomspace(curves.batches[0], curves.batches[-1], _CURVE_POINTS)
    ax.plot(batches, curves.hyperbola.steps_at(batches), color=look["color"], linewidth=1.2)
    ax.plot(curves.batches, curves.steps, linestyle="none", **look)
    height = np.exp(np.interp(np.log(curves.overhead_batch), np.log(curves.batches), np.log(curves.steps)))
    ax.plot([curves.overhead_batch], [height], **{**_OVERHEAD, "color": look["color"]})
    ax.axvline(curves.hyperbola.critical_batch_tokens, color=look["color"], linewidth=1, linestyle="--")


def _draw_lrs(ax: Axes, curves: BatchCurves, look: style.Look) -> None:
    below, above = curves.slopes
    ax.plot(curves.batches, curves.lrs, linewidth=1.2, **look, label=f"{below:.2f}, {above:.2f}")
    ax.axvline(curves.hyperbola.critical_batch_tokens, color=look["color"], linewidth=1, linestyle="--")


def _draw_noise_scales(ax: Axes, curves: BatchCurves, look: style.Look) -> None:
    ax.plot(curves.batches, curves.noise_scales, linewidth=1.2, **look)
    ax.axhline(curves.hyperbola.critical_batch_tokens, color=look["color"], linewidth=1, linestyle="--")


def _batch_axis(ax: Axes, batches: Sequence[float]) -> None:
    style.width_axis(ax, [round(batch) for batch in batches[::_PER_OCTAVES]])
    ax.tick_params(axis="x", labelrotation=45)
    ax.set_xlabel("batch (examples)")
