"""Branches of a trunk at several times its batch, and the local critical batch along training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.branch_probes import BatchStage, LocalCriticalBatch
from analysis.figures import style

_MOST_LABELS = 8  # of branch points in a panel's legend
_HEADROOM_TOLERANCES = 6.0  # shown above the trunk's loss: far worse branches would flatten all others
_ARROW_POINTS = 18  # of a bound
_LEGEND_COLUMNS = 2
_DODGE = 1.05  # factor between series, along training
_PAST_END = 1.3  # how far a warm-up's last stage is drawn beyond the last branch point


@style.styled
def branch_probes(
    found: Sequence[LocalCriticalBatch], warmups: Mapping[str, tuple[BatchStage, ...]] | None = None
) -> Figure:
    """A panel an optimizer and width: loss against k, a line a branch point; and one of k* B along training.

    Losses are less the trunk's own (k = 1) at the same point, with the standard error over seeds; a star is k*. In the
    last panel a vertical bar is the interval and an arrow says that the point is a bound. `warmups` are drawn as steps,
    each in the color of the series of its name ("adamw, width 64").

    Raises:
        ValueError: nothing to draw.
    """
    series = _by_series(found)
    figure, axes = style.panels(len(series) + 1 if series else 0, height=4.2)
    for (name, points), ax in zip(series.items(), axes[:-1], strict=True):
        _draw_branches(ax, points)
        ax.set_title(name)
    style.label_rows(axes[:-1], "loss less that at k = 1 (nats)")
    keys = [
        style.key(
            "k*: largest within tolerance of every smaller k", marker="*", markersize=12, markeredgecolor="black"
        ),
        style.key("the tolerance, above k = 1", linestyle=":"),
    ]
    keys += _draw_along_training(axes[-1], series, warmups or {})
    figure.legend(handles=keys, loc="outside lower center", ncols=_LEGEND_COLUMNS)
    return figure


def _by_series(found: Sequence[LocalCriticalBatch]) -> dict[str, list[LocalCriticalBatch]]:
    series: dict[str, list[LocalCriticalBatch]] = {}
    for local in sorted(found, key=lambda local: local.at_tokens):
        series.setdefault(f"{local.optimizer}, width {local.width}", []).append(local)
    return series


def _draw_branches(ax: Axes, points: Sequence[LocalCriticalBatch]) -> None:
    looks = style.width_looks(range(len(points)))
    for i, local in enumerate(points):
        alive = [(k, loss) for k, loss in zip(local.factors, local.losses, strict=True) if loss is not None]
        factors, losses = np.array(alive).T
        label = f"{_short(local.at_tokens)} tokens" if i < _MOST_LABELS else None
        bars = None if local.loss_error is None else np.where(factors > 1, local.loss_error, 0.0)
        ax.errorbar(factors, losses - losses[0], yerr=bars, capsize=2, elinewidth=1, linewidth=1.2, label=label,
                    **looks[i])  # fmt: skip
        chosen = float(np.interp(local.factor, factors, losses) - losses[0])
        ax.plot([local.factor], [chosen], **style.measured_star(looks[i]["color"]), zorder=5)
    tolerance = max(local.tolerance for local in points)
    ax.axhline(tolerance, color=style.GRAY, linestyle=":", linewidth=1.2)
    ax.set_ylim(top=min(ax.get_ylim()[1], _HEADROOM_TOLERANCES * tolerance))
    _factor_axis(ax, sorted({k for local in points for k in local.factors}))
    ax.legend(title="branched at", loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")


def _factor_axis(ax: Axes, factors: Sequence[float]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(factors)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("k, batch over the trunk's")


def _draw_along_training(
    ax: Axes, series: Mapping[str, Sequence[LocalCriticalBatch]], warmups: Mapping[str, tuple[BatchStage, ...]]
) -> list[Line2D]:
    keys: list[Line2D] = []
    bounded = False
    end = _PAST_END * max(local.at_tokens for points in series.values() for local in points)
    for i, (name, points) in enumerate(series.items()):
        look: style.Look = {
            "color": style.OKABE_ITO[i % len(style.OKABE_ITO)],
            "marker": style.MARKERS[i % len(style.MARKERS)],
        }
        places = [local.at_tokens * _DODGE**i for local in points]
        ax.plot(places, [local.batch_tokens for local in points], linestyle="none", **look, zorder=3)
        for place, local in zip(places, points, strict=True):
            bars = style.bars(local.interval, local.batch_tokens)
            ax.errorbar(place, local.batch_tokens, yerr=bars, color=look["color"], capsize=3, elinewidth=1.2)
            if local.bound != "value":
                bounded = True
                reach = _ARROW_POINTS if local.bound == "at least" else -_ARROW_POINTS
                ax.annotate("", (place, local.batch_tokens), xytext=(0, reach), textcoords="offset points",
                            arrowprops={"arrowstyle": "<-", "color": look["color"], "linewidth": 1.6})  # fmt: skip
        keys.append(style.key(f"k* B, {name}", **look))
        if name in warmups:
            stages = warmups[name]
            starts = [max(stage.from_tokens, points[0].at_tokens / 2) for stage in stages]
            batches = [stage.batch_tokens for stage in stages]
            ax.step([*starts, end], [*batches, batches[-1]], where="post", color=look["color"], linestyle="--",
                    linewidth=1.2)  # fmt: skip
            keys.append(style.key(f"batch warm-up, {name}", color=look["color"], linestyle="--"))
    if bounded:
        keys.append(
            style.key(
                "bound: every branch tried was within tolerance, or none", marker=r"$\updownarrow$", markersize=10
            )
        )
    style.log_axis(ax, "x")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.margins(y=0.14)  # room for arrows
    ax.set_xlabel("tokens trained")
    ax.set_ylabel("local critical batch k* B (tokens)")
    first = next(iter(series.values()))[0]
    ax.set_title(style.wrapped(first.definition, characters=34))
    return keys


def _short(tokens: float) -> str:
    """1.5M for 1,500,000."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:.3g}{name}"
    return f"{tokens:.3g}"
