"""Figures of the critical batch size: steps and tokens against batch, and the token ratio of two optimizers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.critical_batch import CriticalBatch, CriticalBatchFit, Verdict
from analysis.figures import style
from analysis.hyperbola import ZHANG_OVERHEAD
from analysis.token_ratio import TokenRatio
from analysis.tokens_to_loss import TokensToLoss

_MARGIN = 1.5  # factor of the batch axis beyond the batches
_POWERS = {1e12: "T", 1e9: "B", 1e6: "M", 1e3: "k"}
_PLAIN = 1e5  # batches below are written out: they are powers of two
_ARROW = 0.12  # length over the value
_DODGE = 1.06  # factor of the batch between two targets' ratios at one batch
_UPWARD = ("more", "at_least")


@style.styled
def steps_and_tokens(fit: CriticalBatchFit) -> Figure:
    """Two panels over batch: steps and tokens to each loss, their hyperbolas, both definitions of a critical batch.

    Stars and crosses have the batch's interval. What a horizon did not reach is an arrow from it. A hyperbola whose
    B_c is not measured is dotted and has no marks.

    Raises:
        ValueError: a fit without targets.
    """
    if not fit.records:
        raise ValueError("there is nothing to draw")
    figure, (left, right) = style.panels(2, height=4.6)
    looks = style.width_looks(range(len(fit.records)))
    batches = [point.batch_tokens for point in fit.points]
    grid = np.geomspace(min(batches) / _MARGIN, max(batches) * _MARGIN, 200)
    for i, (record, hyperbola) in enumerate(zip(fit.records, fit.hyperbolas, strict=True)):
        measured = record.verdict is Verdict.MEASURED
        points = [point for point in fit.points if point.target_loss == record.target_loss]
        for ax, by_step in ((left, True), (right, False)):
            curve = hyperbola.steps_at(grid) if by_step else hyperbola.tokens_at(grid)
            ax.plot(grid, curve, "-" if measured else ":", color=looks[i]["color"], linewidth=1.2, zorder=2)
            for point in points:
                _draw_tokens(ax, point, looks[i], by_step=by_step, dodge=_DODGE ** (i - (len(looks) - 1) / 2))
            for definition, marker in ((record, "*"), (fit.overheads[i], "P")):
                if definition.value is not None:
                    at = definition.value
                    height = float(hyperbola.steps_at(at) if by_step else hyperbola.tokens_at(at))
                    bars = style.bars(definition.interval, at)
                    ax.errorbar(at, height, xerr=bars, fmt=marker, ecolor="black", capsize=2, zorder=4,
                                elinewidth=0.9, **_mark(marker, looks[i]["color"]))  # fmt: skip
    for ax, name in ((left, "steps to the loss"), (right, "tokens to the loss")):
        _log_axes(ax, batches)
        ax.set_ylabel(name)
    left.set_title("S = S_min (1 + B_c / B)".replace("_min", "$_{min}$").replace("B_c", "B$_c$"))
    right.set_title("E = E_min (1 + B / B_c)".replace("_min", "$_{min}$").replace("B_c", "B$_c$"))
    figure.suptitle(f"{fit.optimizer}, width {fit.width}: {_finding(fit.records)}")
    keys: list[Artist] = [
        style.key(f"loss {record.target_loss:#.3g}", linestyle="-", **looks[i]) for i, record in enumerate(fit.records)
    ]
    keys += _legend(fit)
    style.legend_below(figure, keys)
    return figure


def _finding(records: Sequence[CriticalBatch]) -> str:
    values = [record.value for record in records if record.value is not None]
    if not values:
        return "no critical batch is measured"
    span = _tokens(min(values)) if len(values) == 1 else f"{_tokens(min(values))} to {_tokens(max(values))}"
    some = "" if len(values) == len(records) else f", not at {len(records) - len(values)} of {len(records)} losses"
    return f"hyperbola's B$_c$ of {span} tokens{some}"


def _legend(fit: CriticalBatchFit) -> list[Artist]:
    keys: list[Artist] = []
    if fit.measured:
        keys.append(
            style.key(
                f"hyperbola's B$_c$ (tokens doubled), {fit.level:.0%} interval", **_mark("*", "white"), marker="*"
            )
        )
        keys.append(style.key(f"{ZHANG_OVERHEAD:.0%} more tokens: 0.2 B$_c$", **_mark("P", "white"), marker="P"))
    if len(fit.measured) < len(fit.records):
        keys.append(style.key("B$_c$ not measured", linestyle=":"))
    if any(point.censored == "more" for point in fit.points):
        keys.append(style.key("not reached: more than this", marker="^"))
    if any(point.censored == "fewer" for point in fit.points):
        keys.append(style.key("reached before: fewer than this", marker="v"))
    return keys


def _mark(marker: str, color: str) -> style.Look:
    look = style.measured_star(color)
    return {name: value for name, value in look.items() if name != "marker"} | (
        {} if marker == "*" else {"markersize": 9}
    )


def _draw_tokens(ax: Axes, point: TokensToLoss, look: style.Look, *, by_step: bool, dodge: float) -> None:
    scale = point.batch_tokens if by_step else 1
    if point.censored is not None:
        # horizons are common to all targets, so that their bounds would lie on each other
        _draw_bound(ax, point.batch_tokens * dodge, point.tokens / scale, look["color"], point.censored)
        return
    bars = style.bars(point.interval, point.tokens)
    ax.errorbar(point.batch_tokens, point.tokens / scale, yerr=None if bars is None else np.array(bars) / scale,
                fmt=look["marker"], color=look["color"], capsize=3, elinewidth=1.2, zorder=3)  # fmt: skip


def _draw_bound(ax: Axes, at: float, value: float, color: str, bound: str) -> None:
    """An arrow from the bound to where the value is."""
    upward = bound in _UPWARD
    ax.errorbar(at, value, yerr=_ARROW * value, fmt="_", lolims=upward, uplims=not upward, color=color, markersize=5,
                capsize=2.5, elinewidth=1.0, zorder=3)  # fmt: skip


@style.styled
def token_ratio(ratio: TokenRatio, critical: CriticalBatchFit | None = None) -> Figure:
    """Tokens of one optimizer over another's to equal loss, against batch, with the first's critical batches.

    Ratios that a horizon bounds are arrows; those of which nothing is known are left out.

    Raises:
        ValueError: no ratio is known.
    """
    known = [point for point in ratio.points if point.value is not None]
    if not known:
        raise ValueError("there is nothing to draw")
    figure, (ax,) = style.panels(1, height=4.8)
    looks = dict(zip(ratio.target_losses, style.width_looks(range(len(ratio.target_losses))).values(), strict=True))
    for i, target in enumerate(ratio.target_losses):
        dodge = _DODGE ** (i - (len(looks) - 1) / 2)
        mine = [point for point in known if point.target_loss == target]
        exact = [point for point in mine if point.bound is None]
        color = looks[target]["color"]
        ax.plot([p.batch_tokens * dodge for p in exact], [p.value or 0 for p in exact], color=color, linewidth=0.9)
        for point in mine:
            value, at = point.value or 0.0, point.batch_tokens * dodge
            if point.bound is not None:
                _draw_bound(ax, at, value, color, point.bound)
                continue
            bars = style.bars(point.interval, value)
            ax.errorbar(at, value, yerr=bars, fmt=looks[target]["marker"], color=color, capsize=3, zorder=3)
    ax.axhline(1.0, color="black", linewidth=1.0)
    keys: list[Artist] = [style.key(f"loss {target:#.3g}", linestyle="-", **look) for target, look in looks.items()]
    for marked, color in (((critical.records if critical else ()), style.TARGET_COLOR),
                          ((critical.overheads if critical else ()), style.OKABE_ITO[5])):  # fmt: skip
        values = [record.value for record in marked if record.value is not None]
        if values:
            ax.axvspan(min(values) / 1.01, max(values) * 1.01, color=color, alpha=0.18, zorder=0)
            keys.append(style.key(f"{ratio.numerator}: {_defined(marked[0])}", color=color, marker="s", alpha=0.4))
    bounds = {point.bound for point in known}
    keys += [style.key("at least", marker="^")] if "at_least" in bounds else []
    keys += [style.key("at most", marker="v")] if "at_most" in bounds else []
    _batch_axis(ax, [point.batch_tokens for point in ratio.points])
    ax.set_ylabel(f"tokens of {ratio.numerator} / tokens of {ratio.denominator}, at equal loss")
    ax.set_title(
        f"width {ratio.width}; does the ratio grow with batch?\n" + style.wrapped(_growth(ratio), characters=90)
    )
    style.legend_below(figure, keys)
    return figure


def _defined(record: CriticalBatch) -> str:
    return "hyperbola's B$_c$" if record.overhead is None else f"{record.overhead:.0%} overhead"


def _growth(ratio: TokenRatio) -> str:
    slopes = [slope for slope in (ratio.everywhere, ratio.past_critical) if slope is not None]
    return "; ".join(f"{slope.where}: {slope.growth.value}" for slope in slopes)


def _tokens(value: float) -> str:
    """Tokens with three digits and a prefix."""
    for size, prefix in _POWERS.items():
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def _log_axes(ax: Axes, batches: Sequence[int]) -> None:
    _batch_axis(ax, batches)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 3.0), numticks=9))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _batch_axis(ax: Axes, batches: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(batches) / _MARGIN, max(batches) * _MARGIN)
    ax.xaxis.set_major_locator(LogLocator(base=4.0, numticks=9))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if value < _PLAIN else _tokens(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("batch (tokens)")
