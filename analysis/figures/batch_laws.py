"""Laws of batch, learning rate and weight decay beside what was published: B_c over tokens, lr over batch, tau."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from scipy.stats import norm

from analysis.batch_laws import BatchPrediction, CriticalBatchLaw
from analysis.figures import style
from analysis.hp_powers import CellPower
from analysis.interval import Floats
from analysis.observed_fit import short
from analysis.published_laws import (
    HYPERBOLA,
    LAWS,
    LR_OVER_BATCH,
    LR_OVER_BATCH_RANGE,
    LR_POWERS,
    BatchDefinition,
    LawKind,
    PublishedLaw,
)
from analysis.timescale import TimescaleLaw

_ROOM_OCTAVES = 0.7  # of lr above and below what is drawn
_STEPS = 40  # places a law is drawn at
_MARGIN = 2.0  # of the abscissa around everything drawn
_DEFAULT_RATIO = 20.0  # tokens per parameter, where nothing was measured
_PUBLISHED = style.OKABE_ITO[2:]  # colors: none is the target's
_BAND: style.Look = {"alpha": 0.18, "linewidth": 0}


@style.styled
def critical_batch_over_tokens(
    laws: Mapping[str, CriticalBatchLaw],
    *,
    target: tuple[float, float] | None = None,
    definition: BatchDefinition = HYPERBOLA,
) -> Figure:
    """A panel a series: measured critical batches, the law with its interval, and the published laws' band.

    `target` is its tokens and non-embedding parameters. The laws are drawn at the points' mean size.

    Raises:
        ValueError: nothing to draw.
    """
    figure, axes = style.panels(len(laws), height=4.6)
    for (name, law), ax in zip(laws.items(), axes, strict=True):
        tokens = [point.min_tokens for point in law.points] + ([target[0]] if target else [])
        at = np.geomspace(min(tokens) / _MARGIN, max(tokens) * _MARGIN, _STEPS)
        n_params = float(np.exp(law.center[1]))
        _draw_published(ax, "critical_batch", at, n_params, definition)
        found = [law.predict(d, n_params, definition=definition) for d in at.tolist()]
        _draw_law(ax, at, [(p.value, p.interval.low, p.interval.high) for p in found], style.OPTIMUM_COLOR)
        for point in law.points:
            value = point.as_defined(definition)
            reach = float(np.exp(norm.ppf((1 + law.level) / 2) * point.log_sd))
            ax.errorbar(
                point.min_tokens, value, yerr=[[value - value / reach], [value * reach - value]],
                fmt="o", color=style.OPTIMUM_COLOR, capsize=3, markersize=6, zorder=4,
            )  # fmt: skip
        if target is not None:
            _draw_target(ax, law.predict(target[0], target[1], definition=definition))
        style.log_axis(ax, "x")
        style.log_axis(ax, "y")
        q = law.over_tokens
        ax.set_title(
            f"{style.wrapped(name)}\nbatch ~ tokens^{q.value:.2f} ({q.interval.low:.2f} to {q.interval.high:.2f})\n"
            f"{q.rests_on}, {100 * q.data_share:.0f} % from data"
        )
        ax.set_xlabel("tokens to the target loss")
    style.label_rows(axes, f"critical batch (tokens; {definition.label})")
    point_key = {"color": style.OPTIMUM_COLOR, "marker": "o", "markersize": 6}
    keys: list[Artist] = [style.key("measured, 90% interval", **point_key), *_law_keys(style.OPTIMUM_COLOR)]
    if target is not None:
        keys.append(style.key(f"target of {short(target[1])} parameters", marker="D", color=style.TARGET_COLOR))
    _legend_below(figure, [*keys, *_published_keys("critical_batch")])
    return figure


@style.styled
def lr_over_batch(cells: Mapping[str, CellPower]) -> Figure:
    """A panel a cell: the optimum at every batch, the fitted exponent with its interval, the priors beside it.

    Raises:
        ValueError: nothing to draw.
    """
    figure, axes = style.panels(len(cells), height=3.9)
    for (name, cell), ax in zip(cells.items(), axes, strict=True):
        batches = np.array(cell.batches)
        at = np.geomspace(batches.min() / 1.3, batches.max() * 1.3, _STEPS)
        octaves = np.log2(at / cell.batch_center)
        low, high = (2.0 ** (cell.level_log2 + power * octaves) for power in LR_OVER_BATCH_RANGE)
        ax.fill_between(at, np.minimum(low, high), np.maximum(low, high), color=style.GRAY, **_BAND)
        for power in LR_POWERS:
            if power.scale == "batch_tokens":
                ax.plot(at, 2.0 ** (cell.level_log2 + power.value * octaves), ":", color=style.GRAY, linewidth=1.3)
        ax.plot(at, 2.0 ** (cell.level_log2 + LR_OVER_BATCH.mean * octaves), "--", color=style.GRAY, linewidth=1.3)
        ax.plot(at, 2.0 ** (cell.level_log2 + cell.value * octaves), color=style.OPTIMUM_COLOR, zorder=3)
        for batch, value, interval in zip(cell.batches, cell.log2_values, cell.intervals, strict=True):
            middle = 2.0**value
            bars = [[middle - 2.0**interval.low], [2.0**interval.high - middle]]
            ax.errorbar(batch, middle, yerr=bars, fmt="o", color=style.OPTIMUM_COLOR, capsize=3, zorder=4)
        style.log_axis(ax, "x")
        _lr_axis(ax)
        # An optimum that nothing bounds has a bar beyond the panel: it would flatten all others.
        steepest = cell.level_log2 + LR_OVER_BATCH_RANGE[1] * octaves
        seen = (*cell.log2_values, *steepest[[0, -1]])
        ax.set_ylim(2.0 ** (min(seen) - _ROOM_OCTAVES), 2.0 ** (max(seen) + _ROOM_OCTAVES))
        ax.set_title(
            f"{style.wrapped(name, characters=34)}\nlr ~ batch^{cell.value:.2f} "
            f"({cell.interval.low:.2f} to {cell.interval.high:.2f})"
        )
        ax.set_xlabel("batch (tokens)")
    style.label_rows(axes, "optimal peak learning rate at base width")
    style.legend_below(
        figure,
        [
            style.key("optimum, 90% interval", color=style.OPTIMUM_COLOR, marker="o"),
            style.key("fitted exponent", color=style.OPTIMUM_COLOR, linestyle="-"),
            style.key(f"prior, {LR_OVER_BATCH.mean:.2f}", linestyle="--", linewidth=1.3),
            style.key("square root, an upper bound", linestyle=":", linewidth=1.3),
            Patch(
                color=style.GRAY,
                **_BAND,
                label=f"prior's range, {LR_OVER_BATCH_RANGE[0]:g} to {LR_OVER_BATCH_RANGE[1]:g}",
            ),
        ],
    )
    return figure


@style.styled
def timescale_over_tokens_per_param(laws: Mapping[str, TimescaleLaw], *, target: float | None = None) -> Figure:
    """A panel a series: the best EMA timescale by cell, the law with its interval, and Power Lines' law.

    `target` is in tokens per parameter. Triangles are bounds: the best weight decay was the last one tried.

    Raises:
        ValueError: nothing to draw.
    """
    figure, axes = style.panels(len(laws), height=4.4)
    for (name, law), ax in zip(laws.items(), axes, strict=True):
        ratios = [found.tokens_per_param for found in law.optima] + ([target] if target else [])
        ratios = ratios or [_DEFAULT_RATIO]
        at = np.geomspace(min(ratios) / _MARGIN, max(ratios) * _MARGIN, _STEPS)
        found = [law.at(ratio) for ratio in at.tolist()]
        _draw_law(ax, at, [(p.tau, p.interval.low, p.interval.high) for p in found], style.OPTIMUM_COLOR)
        _draw_published(ax, "timescale", at, 1.0, None, per_param=True)
        for optimum in law.optima:
            marker = {"at least": "^", "at most": "v", None: "o"}[optimum.bound]
            bars = None
            if optimum.interval is not None:
                bars = [[optimum.tau - optimum.interval.low], [optimum.interval.high - optimum.tau]]
            ax.errorbar(
                optimum.tokens_per_param, optimum.tau, yerr=bars, fmt=marker, color=style.OPTIMUM_COLOR, capsize=3,
                markersize=6, markerfacecolor="white" if optimum.bound else style.OPTIMUM_COLOR, zorder=4,
            )  # fmt: skip
        if target is not None:
            place = law.at(target)
            bars = [[place.tau - place.interval.low], [place.interval.high - place.tau]]
            ax.errorbar(target, place.tau, yerr=bars, fmt="D", color=style.TARGET_COLOR, capsize=4, zorder=5)
        style.log_axis(ax, "x")
        style.log_axis(ax, "y")
        m = law.over_tokens_per_param
        height = "" if law.rests_on == m.rests_on else f"height {law.rests_on}, "
        ax.set_title(
            f"{style.wrapped(name)}\ntau = {law.coefficient:.2g} TPP^{m.value:.2f} "
            f"({m.interval.low:.2f} to {m.interval.high:.2f})\n{height}exponent: {m.rests_on}"
        )
        ax.set_xlabel("tokens per parameter")
    style.label_rows(axes, "EMA timescale, fraction of the run")
    keys: list[Artist] = [style.key("optimum, 90% interval", color=style.OPTIMUM_COLOR, marker="o")]
    bounds = {optimum.bound for law in laws.values() for optimum in law.optima if optimum.bound}
    for bound, marker in (("at least", "^"), ("at most", "v")):
        if bound in bounds:
            look = {"color": style.OPTIMUM_COLOR, "marker": marker, "markerfacecolor": "white"}
            keys.append(style.key(f"{bound} this: edge of the grid", **look))
    keys += _law_keys(style.OPTIMUM_COLOR)
    if target is not None:
        keys.append(style.key("target", marker="D", color=style.TARGET_COLOR))
    _legend_below(figure, [*keys, *_published_keys("timescale")])
    return figure


def _draw_law(ax: Axes, at: Floats, values: Sequence[tuple[float, float, float]], color: str) -> None:
    middle, low, high = (np.array(column) for column in zip(*values, strict=True))
    ax.fill_between(at, low, high, color=color, **_BAND)
    ax.plot(at, middle, color=color, zorder=3)


def _draw_published(
    ax: Axes, kind: LawKind, at: Floats, n_params: float, definition: BatchDefinition | None, *, per_param: bool = False
) -> None:
    """Each published law that needs no loss, and the band they span; critical batches converted to the definition."""
    tokens, curves = at * n_params if per_param else at, []
    for law, look in _published(kind).items():
        factor = law.definition.factor_to(definition) if law.definition and definition else 1.0
        curves.append(np.array([factor * law.at(n_params, d) for d in tokens.tolist()]))
        ax.plot(at, curves[-1], **look, zorder=3.5)
    ax.fill_between(at, np.min(curves, axis=0), np.max(curves, axis=0), color=_PUBLISHED[0], **_BAND)


def _published(kind: LawKind) -> dict[PublishedLaw, style.Look]:
    laws = [law for law in LAWS if law.kind == kind and not law.needs_loss]
    lines = cycle(style.LINE_STYLES[1:])
    return {law: {"color": _PUBLISHED[i], "linestyle": next(lines), "linewidth": 1.4} for i, law in enumerate(laws)}


def _published_keys(kind: LawKind) -> list[Artist]:
    return [style.key(f"{law.name} (arXiv:{law.arxiv})", **look) for law, look in _published(kind).items()]


def _legend_below(figure: Figure, keys: Sequence[Artist]) -> None:
    """At most three columns: the names of papers are long."""
    figure.legend(handles=list(keys), loc="outside lower center", ncols=min(3, len(keys)))


def _law_keys(color: str) -> list[Artist]:
    return [style.key("law", color=color, linestyle="-"), Patch(color=color, **_BAND, label="its interval")]


def _draw_target(ax: Axes, found: BatchPrediction) -> None:
    bars = [[found.value - found.interval.low], [found.interval.high - found.value]]
    ax.errorbar(found.min_tokens, found.value, yerr=bars, fmt="D", color=style.TARGET_COLOR, capsize=4, zorder=5)


def _lr_axis(ax: Axes) -> None:
    """Powers of two of a learning rate."""
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.power_of_two(float(np.log2(value)))))
