"""The target beside the proxies: what was planned, what was expected, and what was measured."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import style
from analysis.interval import Interval
from analysis.surface import Series


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredPoint:
    """Losses (nats) at one value of the hyperparameter at the target, one a seed; None where it diverged."""

    log2_value: float
    losses: tuple[float | None, ...]

    @property
    def mean_loss(self) -> float | None:
        """None if any seed diverged, or none has run."""
        known = [loss for loss in self.losses if loss is not None]
        return statistics.fmean(known) if known and len(known) == len(self.losses) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One series at the target: planned log2 value and expected loss with intervals, and what was measured."""

    series: Series
    width: int
    log2_value: float
    interval: Interval | None = None
    loss: float | None = None
    loss_interval: Interval | None = None
    measured: tuple[MeasuredPoint, ...] = ()

    @property
    def planned(self) -> MeasuredPoint | None:
        """What was measured at the planned value."""
        nearest = min(self.measured, key=lambda point: abs(point.log2_value - self.log2_value), default=None)
        return nearest if nearest and abs(nearest.log2_value - self.log2_value) < 0.05 else None

    @property
    def best_loss(self) -> float | None:
        """The lowest mean loss measured."""
        return min((point.mean_loss for point in self.measured if point.mean_loss is not None), default=None)

    @property
    def excess_loss(self) -> float | None:
        """Loss at the planned value over the lowest measured (nats)."""
        if self.planned is None or self.planned.mean_loss is None or self.best_loss is None:
            return None
        return self.planned.mean_loss - self.best_loss


@style.styled
def predicted_against_measured(targets: Sequence[Target]) -> Figure:
    """Left: the expected loss with its interval, and what was measured. Right: the price of missing the plan."""
    figure, (left, right) = style.panels(2, height=3.8)
    looks = style.series_looks(target.series for target in targets)
    for row, target in enumerate(targets):
        _expected(left, row, target, looks[target.series]["color"])
        _price(right, target, looks[target.series])
    left.set_yticks(range(len(targets)), [style.wrapped(target.series, characters=18) for target in targets])
    left.set_ylim(len(targets) - 0.5, -0.5)
    left.set_xlabel(f"validation loss at width {targets[0].width} (nats per token)")
    left.set_title(_hits(targets))
    left.xaxis.set_major_locator(MaxNLocator(6))
    right.set_xlabel("octaves from the planned learning rate")
    right.set_ylabel("loss above the lowest\nmeasured (nats per token)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_title(_worst(targets))
    keys = [
        style.key("expected, with interval", marker="|", markersize=11, markeredgewidth=2),
        style.key("measured at the plan, one seed", marker="o", markersize=4, alpha=0.6),
        style.key("measured at the plan, mean", marker="*", markersize=12),
    ]
    keys += [style.key(str(series), linestyle="-", **look) for series, look in looks.items()]
    style.legend_below(figure, keys)
    return figure


def _expected(ax: Axes, row: int, target: Target, color: str) -> None:
    if target.loss is not None:
        bars = style.bars(target.loss_interval, target.loss)
        ax.errorbar(target.loss, row - 0.12, xerr=bars, fmt="|", markersize=11, color=color, capsize=3, elinewidth=2)
    if target.planned is not None:
        losses = [loss for loss in target.planned.losses if loss is not None]
        ax.plot(losses, [row + 0.3] * len(losses), "o", color=color, markersize=4, alpha=0.6)
        if target.planned.mean_loss is not None:
            ax.plot(target.planned.mean_loss, row + 0.12, **style.measured_star(color))


def _price(ax: Axes, target: Target, look: style.Look) -> None:
    if target.best_loss is None:
        return
    means = [
        (point.log2_value - target.log2_value, point.mean_loss - target.best_loss)
        for point in sorted(target.measured, key=lambda point: point.log2_value)
        if point.mean_loss is not None
    ]
    ax.plot(*zip(*means, strict=True), **look, markersize=6, label=str(target.series))


def _hits(targets: Sequence[Target]) -> str:
    judged = [
        target.loss_interval.contains(target.planned.mean_loss)
        for target in targets
        if target.loss_interval and target.planned and target.planned.mean_loss is not None
    ]
    if not judged:
        return "what was measured; no loss was expected"
    return f"{sum(judged)} of {len(judged)} measured losses lie in the expected interval"


def _worst(targets: Sequence[Target]) -> str:
    excess = [target.excess_loss for target in targets if target.excess_loss is not None]
    return f"planned: within {max(excess):.3f} nats of the best tried" if excess else "the plan was not measured"
