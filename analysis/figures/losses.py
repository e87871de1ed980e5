"""Loss against the learning rate, for every width."""

from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.target import Target
from analysis.fit import SweepFit
from analysis.optimum import Optimum
from analysis.surface import Surface

_HEADROOM_BANDS = 10  # above the worst optimum: a basin is seen whole, a cliff of nats does not flatten it
_DODGE = 0.14  # octaves between the marks of diverged widths


@style.styled
def loss_against_lr(fit: SweepFit, targets: Sequence[Target] = ()) -> Figure:
    """A panel a series, a line a width: seed means, single seeds, each optimum with its interval.

    At the top, values that diverged are crosses, those stopped early plus signs, losses beyond the panel triangles.
    Given a target: its planned value as a vertical line with its interval, and what was measured there.
    """
    figure, axes = style.panels(len(fit.series), height=4.1)
    looks = style.width_looks(surface.width for surface in fit.surfaces)
    above = False
    for series, ax in zip(fit.series, axes, strict=True):
        members = [surface for surface in fit.surfaces if surface.series == series]
        here = [target for target in targets if target.series == series]
        top = _top(members, here, fit.band_nats)
        above = above or any(mean > top for s in members for mean in s.mean_losses if mean is not None)
        for rank, surface in enumerate(members):
            draw_surface(ax, surface, looks[surface.width], top, _DODGE * (rank - (len(members) - 1) / 2))
        for optimum in fit.optima_of(series):
            draw_optimum(ax, optimum, looks[optimum.width]["color"])
        for target in here:
            _draw_target(ax, target, top)
        low, _ = ax.get_ylim()
        ax.set_ylim(low, top + 0.09 * (top - low))
        style.octave_axis(ax.xaxis)
        ax.set_xlabel("peak learning rate at base width" if fit.hp == "lr" else fit.hp)
        ax.set_title(f"{style.wrapped(series)}\n{_finding(fit.optima_of(series))}")
    style.label_rows(axes, "validation loss (nats per token)")
    style.legend_below(figure, _legend(fit, looks, targets, above=above))
    return figure


def _top(members: Sequence[Surface], targets: Sequence[Target], band_nats: float) -> float:
    """The highest loss drawn to scale."""
    means = [mean for surface in members for mean in surface.mean_losses if mean is not None]
    best = [min(known) for s in members if (known := [m for m in s.mean_losses if m is not None])]
    measured = [point.mean_loss for t in targets for point in t.measured if point.mean_loss is not None]
    if not means:
        return 1.0
    return max(min(max(means), max(best) + _HEADROOM_BANDS * band_nats), *measured, max(best))


def draw_surface(ax: Axes, surface: Surface, look: style.Look, top: float, dodge: float) -> None:
    rows = list(zip(surface.log2_values, surface.mean_losses, surface.seed_losses, strict=True))
    known = [(x, mean) for x, mean, _ in rows if mean is not None]
    ax.plot(*zip(*known, strict=True) if known else ([], []), **look, zorder=2)
    seeds = [(x, loss) for x, _, losses in rows for loss in losses if len(losses) > 1]
    ax.plot(*zip(*seeds, strict=True) if seeds else ([], []), ".", color=look["color"], markersize=4, alpha=0.55)
    high = [x + dodge for x, mean in known if mean > top]
    ax.plot(high, [top] * len(high), "^", color=look["color"], markersize=7, markerfacecolor="white", zorder=4)
    stopped = [x + dodge for x in surface.stopped_values]
    ax.plot(stopped, [top] * len(stopped), "+", color=look["color"], markersize=9, markeredgewidth=1.5, zorder=4)
    diverged = [x + dodge for x, diverged in zip(surface.log2_values, surface.diverged, strict=True) if diverged]
    ax.plot(diverged, [top] * len(diverged), "x", color=look["color"], markersize=7, markeredgewidth=2, zorder=4)


def draw_optimum(ax: Axes, optimum: Optimum, color: str) -> None:
    bars = style.bars(optimum.interval, optimum.log2_value)
    ax.errorbar(
        optimum.log2_value,
        optimum.loss,
        xerr=bars,
        fmt="*",
        color=color,
        markersize=10,
        markeredgecolor="black",
        markeredgewidth=0.8,
        ecolor="black",
        elinewidth=1.6,
        capsize=5,
        zorder=5,
    )


def _draw_target(ax: Axes, target: Target, top: float) -> None:
    ax.axvline(target.log2_value, color=style.TARGET_COLOR, linestyle="--", linewidth=1.3, zorder=1)
    if target.interval is not None:
        ax.axvspan(target.interval.low, target.interval.high, color=style.TARGET_COLOR, alpha=0.1, zorder=0)
    points = sorted(target.measured, key=lambda point: point.log2_value)
    means = [(point.log2_value, point.mean_loss) for point in points if point.mean_loss is not None]
    if means:
        ax.plot(*zip(*means, strict=True), "-D", color=style.TARGET_COLOR, zorder=3)
    diverged = [point.log2_value for point in points if None in point.losses]
    ax.plot(diverged, [top] * len(diverged), "x", color=style.TARGET_COLOR, markersize=7, markeredgewidth=2)


def _finding(optima: Sequence[Optimum]) -> str:
    inner = [optimum for optimum in optima if optimum.edge is None]
    if not inner:
        return "no optimum inside the grid"
    at_edge = "" if len(inner) == len(optima) else f", {len(optima) - len(inner)} at the edge"
    if len(inner) == 1:
        return f"optimum {style.power_of_two(inner[0].log2_value)} at width {inner[0].width}{at_edge}"
    first, last = inner[0], inner[-1]
    return (
        f"optimum {style.power_of_two(first.log2_value)} at width {first.width}, "
        f"{style.power_of_two(last.log2_value)} at {last.width}{at_edge}"
    )


def _legend(fit: SweepFit, looks: Mapping[int, style.Look], targets: Sequence[Target], *, above: bool) -> list[Artist]:
    keys: list[Artist] = [style.key(f"width {width}", linestyle="-", **look) for width, look in looks.items()]
    keys.append(style.key(f"optimum, {fit.level:.0%} interval", marker="*", markersize=11))
    if any(any(surface.diverged) for surface in fit.surfaces):
        keys.append(style.key("diverged", marker="x", markeredgewidth=2))
    if any(surface.stopped_values for surface in fit.surfaces):
        keys.append(style.key("stopped early", marker="+", markersize=9, markeredgewidth=1.5))
    if above:
        keys.append(style.key("loss above the panel", marker="^", markerfacecolor="white"))
    if targets:
        keys.append(
            style.key(f"planned for width {targets[0].width}, interval", color=style.TARGET_COLOR, linestyle="--")
        )
    if any(target.measured for target in targets):
        measured = f"measured at width {targets[0].width}"
        keys.append(style.key(measured, color=style.TARGET_COLOR, linestyle="-", marker="D"))
    return keys
