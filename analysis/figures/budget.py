"""The frontier of designs: expected excess loss against budget."""

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.budget import Design, Frontier
from analysis.figures import style

_COLORS = {"direct": style.OKABE_ITO[0], "transfer": style.OKABE_ITO[2]}
_MARKERS = {"direct": "s", "transfer": "o"}
_NAMES = {"direct": "direct tuning", "transfer": "transfer, tuned"}
_OFFSETS = {"direct": (4, 7), "transfer": (-4, -15)}  # points
_NEAR = 1.4  # a ratio of FLOPs: a width is not written next to a star
_STARS = (style.OKABE_ITO[1], style.OKABE_ITO[5])
_CHOSEN: style.Look = {"marker": "*", "markersize": 15, "markeredgecolor": "black", "linestyle": "none", "zorder": 5}


@style.styled
def budget_frontier(
    frontiers: Sequence[Frontier],
    budgets: Sequence[float],
    *,
    chosen: Sequence[Design] = (),
    budget: float | None = None,
    wanted_excess: float | None = None,
    fixed_target: bool = True,
) -> Figure:
    """Least excess within a budget, a step curve a kind of design, on log axes over the span of `budgets`.

    At each of `budgets` the best design is marked with the width it tunes at. Up to two chosen designs are stars;
    the user's budget and wanted excess are dashed lines.

    Raises:
        ValueError: no designs.
    """
    figure, (ax,) = style.panels(1 if any(front.designs for front in frontiers) else 0, height=4.6)
    last = max(budgets)
    least = min(design.flops for front in frontiers for design in front.designs[:1])
    keys: list[Artist] = []
    for front in (front for front in frontiers if front.designs):
        _draw_curve(ax, front, last)
        keys.append(_draw_marks(ax, front, budgets, chosen))
    for color, design in zip(_STARS, chosen, strict=False):
        ax.plot(design.flops, design.excess_nats, color=color, **_CHOSEN)
        direct = f"tune and train {design.final_width}"
        text = direct if design.kind == "direct" else f"tune {design.proxy_width}, train {design.final_width}"
        keys.append(style.key(text, color=color, **_CHOSEN))
    if budget is not None:
        ax.axvline(budget, color=style.TARGET_COLOR, linestyle="--", linewidth=1.2, zorder=1)
    if wanted_excess is not None:
        ax.axhline(wanted_excess, color=style.GRAY, linestyle=":", linewidth=1.4, zorder=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(min(min(budgets), least) / 1.3, last * 1.3)
    ax.margins(y=0.12)
    ax.set_xlabel("budget (FLOPs), tuning and final run")
    over = "the target's own optimum" if fixed_target else "the limit of infinite width"
    ax.set_ylabel("expected excess loss (nats)")
    ax.set_title(f"excess over {over}")
    if budget is not None:
        keys.append(style.key("budget", color=style.TARGET_COLOR, linestyle="--"))
    if wanted_excess is not None:
        keys.append(style.key("wanted excess", linestyle=":"))
    style.legend_below(figure, keys)
    return figure


def _draw_curve(ax: Axes, front: Frontier, last: float) -> None:
    shown = [design for design in front.designs if design.flops <= last]
    if shown:  # the last design goes on being the best
        flops, excess = [d.flops for d in shown], [d.excess_nats for d in shown]
        ax.plot([*flops, last], [*excess, excess[-1]], drawstyle="steps-post", color=_COLORS[front.kind])


def _draw_marks(ax: Axes, front: Frontier, budgets: Sequence[float], chosen: Sequence[Design]) -> Artist:
    """The best design at each budget and its width, unless all have one or a star is near; the legend's entry."""
    best = dict.fromkeys(design for budget in budgets if (design := front.best(budget)) is not None)
    widths = {design.proxy_width for design in best}
    color, marker = _COLORS[front.kind], _MARKERS[front.kind]
    for design in best:
        place = (design.flops, design.excess_nats)
        ax.plot(*place, marker=marker, color=color)
        starred = any(star.kind == front.kind and _close(star.flops, design.flops) for star in chosen)
        if len(widths) > 1 and not starred:
            offset, text = _OFFSETS[front.kind], str(design.proxy_width)
            ax.annotate(text, place, xytext=offset, textcoords="offset points", ha="center", fontsize=9, color=color)
    where = f"width {widths.pop()}" if len(widths) == 1 else "the width written"
    return style.key(f"{_NAMES[front.kind]} at {where}", color=color, marker=marker, linestyle="-")


def _close(flops: float, others: float) -> bool:
    return max(flops, others) < _NEAR * min(flops, others)
