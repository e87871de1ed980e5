"""What moves with width: the optimum, and the loss at it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drift import Drift, predict_optimum
from analysis.figures import style
from analysis.figures.target import Target
from analysis.fit import SweepFit
from analysis.loss_law import LossLaw, predict_loss
from analysis.optimum import Optimum
from analysis.surface import Series

_LEAST_SPAN = 3.0  # octaves a panel shows at least: a tenth of an octave should look like one


@style.styled
def drift(fit: SweepFit, targets: Sequence[Target] = ()) -> Figure:
    """A panel a series, all of the same height in octaves: each width's optimum, the law through them, the plan.

    Optima at an edge are hollow: they are bounds, and no law is fitted to them.
    """
    figure, axes = style.panels(len(fit.series), height=3.6)
    drifts = {found.series: found for found in fit.drifts}
    widths = {o.width for o in fit.optima} | {target.width for target in targets}
    shown: list[list[Optimum | Target]] = [
        [*fit.optima_of(series), *(target for target in targets if target.series == series)] for series in fit.series
    ]
    span = max([_LEAST_SPAN, *(_reach(points)[1] - _reach(points)[0] + 0.6 for points in shown if points)])
    for series, points, ax in zip(fit.series, shown, axes, strict=True):
        for point in points:
            _draw_place(ax, point)
        if series in drifts:
            _draw_law(ax, drifts[series], max(widths))
        if points:
            low, high = _reach(points)
            ax.set_ylim((low + high - span) / 2, (low + high + span) / 2)
        style.width_axis(ax, widths or [1])
        style.octave_axis(ax.yaxis)
        ax.set_title(f"{style.wrapped(series)}\n{_finding(drifts.get(series))}")
    style.label_rows(axes, "optimal learning rate at base width" if fit.hp == "lr" else f"optimal {fit.hp}")
    style.legend_below(figure, _legend(fit, targets))
    return figure


@style.styled
def loss_against_width(fit: SweepFit, targets: Sequence[Target] = ()) -> Figure:
    """A line a series: loss at the optimum with its interval, the law, and the target's expected and measured.

    More series than there are colors share no panel: they come in several, the best first.
    """
    groups = _groups(fit)
    figure, axes = style.panels(len(groups), height=4.6)
    laws = {law.series: law for law in fit.loss_laws}
    widths = {o.width for o in fit.optima} | {target.width for target in targets}
    for group, ax in zip(groups, axes, strict=True):
        looks = style.series_looks(group)
        for rank, (series, look) in enumerate(looks.items()):
            dodge = 2 ** (0.06 * (rank - (len(looks) - 1) / 2))
            _draw_losses(ax, fit.optima_of(series), look, dodge)
            if series in laws:
                _draw_loss_law(ax, laws[series], look["color"], max(widths))
            for target in targets:
                if target.series == series:
                    _draw_target_loss(ax, target, look, dodge)
        style.width_axis(ax, widths or [1])
        ax.set_title(style.wrapped(_wider([laws[series] for series in group if series in laws])))
        if len(groups) > 1:
            ax.legend(handles=[style.key(str(series), **look) for series, look in looks.items()], fontsize=8.5)
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    style.label_rows(axes, "validation loss at the optimum (nats per token)")
    keys: list[Artist] = []
    if len(groups) == 1:
        keys += [style.key(str(series), **look) for series, look in style.series_looks(groups[0]).items()]
    keys.append(style.key("law fitted over width", linestyle="--"))
    if targets:
        keys.append(style.key(f"expected, {fit.level:.0%} interval", marker="_", markersize=11, markeredgewidth=2))
    if any(target.planned for target in targets):
        keys.append(style.key("measured at the plan", **style.measured_star("white")))
    style.legend_below(figure, keys)
    return figure


def _groups(fit: SweepFit) -> list[list[Series]]:
    """The series in their order, or where there are too many colors to tell apart, a panel's worth each, best first."""
    series, most = list(fit.series), len(style.OKABE_ITO)
    if len(series) <= most:
        return [series]
    last = {one: optima[-1].loss for one in series if (optima := fit.optima_of(one))}
    ranked = sorted(series, key=lambda one: last.get(one, float("inf")))
    return [ranked[start : start + most] for start in range(0, len(ranked), most)]


def _between(first: int, last: int) -> list[int]:
    """Widths to draw a law at."""
    return sorted({round(width) for width in np.geomspace(first, last, 40).tolist()})


def _reach(points: Sequence[Optimum | Target]) -> tuple[float, float]:
    """Lowest and highest log2 value or interval end."""
    ends = [point.log2_value for point in points]
    ends += [end for p in points if p.interval for end in (p.interval.low, p.interval.high)]
    return min(ends), max(ends)


def _draw_place(ax: Axes, point: Optimum | Target) -> None:
    color = style.TARGET_COLOR if isinstance(point, Target) else style.OPTIMUM_COLOR
    hollow = isinstance(point, Optimum) and point.edge is not None
    ax.errorbar(
        point.width,
        point.log2_value,
        yerr=style.bars(point.interval, point.log2_value),
        fmt="D" if isinstance(point, Target) else "o",
        color=color,
        markerfacecolor="white" if hollow else color,
        markersize=7,
        capsize=4,
        elinewidth=1.6,
        zorder=3,
    )


def _draw_law(ax: Axes, found: Drift, last: int) -> None:
    widths = _between(found.widths[0], last)
    values = [predict_optimum(found, width).log2_value for width in widths]
    ax.plot(widths, values, "--", color=style.GRAY, linewidth=1.2, zorder=2)


def _finding(found: Drift | None) -> str:
    if found is None:
        return "optima at fewer than two widths"
    low, high = found.slope_interval.low, found.slope_interval.high
    verdict = "moves with width" if found.resolved else "no drift resolved"
    return f"{verdict}: {found.slope:+.2f} ({low:+.2f} to {high:+.2f})\noctaves an octave of width"


def _legend(fit: SweepFit, targets: Sequence[Target]) -> list[Artist]:
    optimum = {"color": style.OPTIMUM_COLOR, "marker": "o", "markersize": 7}
    keys: list[Artist] = [style.key(f"optimum, {fit.level:.0%} interval", **optimum)]
    if any(found.edge for found in fit.optima):
        keys.append(style.key("at the edge: a bound", markerfacecolor="white", **optimum))
    keys.append(style.key("law the plan rests on", linestyle="--"))
    if targets:
        plan = f"planned for width {targets[0].width}"
        keys.append(style.key(plan, marker="D", color=style.TARGET_COLOR, markersize=7))
    return keys


def _draw_losses(ax: Axes, optima: Sequence[Optimum], look: style.Look, dodge: float) -> None:
    for optimum in optima:
        bars = style.bars(optimum.loss_interval, optimum.loss)
        face = look["color"] if optimum.edge is None else "white"
        ax.errorbar(
            optimum.width * dodge,
            optimum.loss,
            yerr=bars,
            fmt=look["marker"],
            color=look["color"],
            markerfacecolor=face,
            markersize=6,
            capsize=3,
        )


def _draw_loss_law(ax: Axes, law: LossLaw, color: str, last: int) -> None:
    widths = _between(law.widths[0], last)
    ax.plot(widths, [predict_loss(law, width).loss for width in widths], "--", color=color, linewidth=1.2)


def _draw_target_loss(ax: Axes, target: Target, look: style.Look, dodge: float) -> None:
    if target.loss is not None:
        bars = style.bars(target.loss_interval, target.loss)
        ax.errorbar(
            target.width * dodge, target.loss, yerr=bars, fmt="_", markersize=11, color=look["color"], capsize=3
        )
    if target.planned is not None and target.planned.mean_loss is not None:
        ax.plot(target.width * dodge, target.planned.mean_loss, zorder=4, **style.measured_star(look["color"]))


def _wider(laws: Sequence[LossLaw]) -> str:
    if not laws:
        return "loss over width: fewer than three widths"
    worse = [str(law.series) for law in laws if not law.wider_is_better]
    return f"wider is not better at every step for {', '.join(worse)}" if worse else "wider is better at every step"
