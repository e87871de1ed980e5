"""Predicted against actual training time."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from analysis.figures import style
from analysis.timing import Timing


@style.styled
def predicted_time(timings: Sequence[Timing]) -> Figure:
    """Actual over predicted seconds against width, a series an optimizer; 1 is as predicted.

    Raises:
        ValueError: nothing was predicted.
    """
    ratios = {(t.optimizer, t.width, t.mode): t.ratio for t in timings if t.ratio is not None}
    if not ratios:
        raise ValueError("there is nothing to draw: no time was predicted")
    figure, (ax,) = style.panels(1, height=2.6)
    optimizers = list(dict.fromkeys(optimizer for optimizer, _, _ in ratios))
    for i, optimizer in enumerate(optimizers):
        points = sorted((width, ratio) for (name, width, _), ratio in ratios.items() if name == optimizer)
        widths, heights = zip(*points, strict=True)
        color, marker = style.OKABE_ITO[i % len(style.OKABE_ITO)], style.MARKERS[i % len(style.MARKERS)]
        ax.plot(widths, heights, marker=marker, color=color, label=optimizer)
    ax.axhline(1.0, color=style.GRAY, linestyle="--", linewidth=1.0)
    ax.set_ylim(min(0.5, 0.9 * min(ratios.values())), max(1.5, 1.1 * max(ratios.values())))
    style.width_axis(ax, [width for _, width, _ in ratios])
    ax.set_ylabel("actual / predicted time")
    ax.legend(ncols=min(len(optimizers), 4))
    return figure
