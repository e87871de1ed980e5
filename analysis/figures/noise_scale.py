"""The gradient noise scale along training, beside critical batches that were measured otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.interval import Interval
from analysis.noise_scale import CAVEAT, NoiseScale, NoiseTrend

_BAND_ALPHA = 0.12
_ARROW_POINTS = 16  # of a lower bound


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredCritical:
    """A critical batch to compare with. `label` names its definition and what it was measured on."""

    label: str
    batch_tokens: float
    interval: Interval | None = None


@style.styled
def noise_scale_along_training(trends: Mapping[str, NoiseTrend], measured: Sequence[MeasuredCritical] = ()) -> Figure:
    """tr(Sigma)/|G|^2 in windows of tokens trained, a color a trial; horizontal lines for critical batches.

    A point's horizontal bar is its window, the vertical one its interval. A hollow point with an arrow is a window
    where |G|^2 was not told from 0: the noise scale is above the point. A window without even that is left out.

    Raises:
        ValueError: no trials.
    """
    figure, axes = style.panels(min(len(trends), 1), height=4.6)
    ax = axes[0]
    keys = []
    for i, (name, trend) in enumerate(trends.items()):
        look = {"color": style.OKABE_ITO[i % len(style.OKABE_ITO)], "marker": style.MARKERS[i % len(style.MARKERS)]}
        for window in trend.windows:
            _draw_window(ax, window, look)
        known = [(_center(window), window.value) for window in trend.windows if window.value is not None]
        if known:
            ax.plot(*np.transpose(known), color=look["color"], linewidth=1, zorder=2)
        keys.append(style.key(f"{name}: {_movement(trend)}", linestyle="-", **look))
    for line, critical in zip(_cycled(len(measured)), measured, strict=True):
        ax.axhline(critical.batch_tokens, color="black", linestyle=line, linewidth=1.2)
        if critical.interval is not None:
            ax.axhspan(critical.interval.low, critical.interval.high, color=style.GRAY, alpha=_BAND_ALPHA, linewidth=0)
        keys.append(style.key(critical.label, color="black", linestyle=line))
    if any(window.at_least is not None for trend in trends.values() for window in trend.windows):
        keys.append(style.key("lower bound: |G|² not told from 0", marker="o", markerfacecolor="white"))
    style.log_axis(ax, "x")
    style.log_axis(ax, "y")
    ax.set_xlabel("tokens trained")
    ax.set_ylabel(r"noise scale tr($\Sigma$)/|G|² (tokens)")
    ax.set_title(f"gradient noise scale: {CAVEAT}")
    figure.legend(handles=keys, loc="outside lower center", ncols=1)
    return figure


def _draw_window(ax: Axes, window: NoiseScale, look: style.Look) -> None:
    color, center, height = look["color"], _center(window), window.value or window.at_least
    if height is None:
        return
    ax.plot([window.from_tokens, window.to_tokens], [height, height], color=color, linewidth=1, alpha=0.6)
    if window.value is not None:
        bars = style.bars(window.interval, window.value)
        ax.errorbar(center, window.value, yerr=bars, fmt=look["marker"], color=color, elinewidth=1.4, capsize=3)
    else:
        ax.plot([center], [height], **look, markerfacecolor="white", zorder=3)
        ax.annotate("", (center, height), xytext=(0, _ARROW_POINTS), textcoords="offset points",
                    arrowprops={"arrowstyle": "<-", "color": color})  # fmt: skip


def _center(window: NoiseScale) -> float:
    return float(np.sqrt(window.from_tokens * window.to_tokens))


def _movement(trend: NoiseTrend) -> str:
    if trend.exponent is None or trend.interval is None:
        return "too few windows with a value for a trend"
    ends = f"{trend.exponent:+.2f} ({trend.interval.low:+.2f} to {trend.interval.high:+.2f})"
    return f"{trend.direction}, exponent {ends}"


def _cycled(n: int) -> list[style.LineStyle]:
    return [style.LINE_STYLES[(i + 1) % len(style.LINE_STYLES)] for i in range(n)]
