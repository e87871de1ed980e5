"""What an optimizer did to hidden matrices during one trial."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import style

_PANELS: Mapping[str, tuple[tuple[str, str], ...]] = {  # y-label: quantities, each with a line style
    "update, RMS": (("update_rms", "-"),),
    "update, spectral norm": (("update_spectral_norm", "-"),),
    "momentum, effective rank": (("momentum_effective_rank", "-"),),
    "momentum, singular values": (
        ("momentum_sigma_q90", "--"),
        ("momentum_sigma_q50", "-"),
        ("momentum_sigma_q10", ":"),
    ),
    "polar factor, relative error": (("polar_error", "-"),),
}
_QUANTILES = {"90 %": "--", "median": "-", "10 %": ":"}


@style.styled
def optimizer_diagnostics(frame: pd.DataFrame, optimizer: str) -> Figure:
    """A panel a quantity over steps, logarithmic; a color a kind of layer, geometric means over depth.

    Raises:
        ValueError: no diagnostics.
    """
    present = {label: lines for label, lines in _PANELS.items() if set(frame["quantity"]) & {name for name, _ in lines}}
    figure, axes = style.panels(len(present), height=3.0)
    kinds = list(dict.fromkeys(frame["kind"]))
    colors = {kind: style.OKABE_ITO[i % len(style.OKABE_ITO)] for i, kind in enumerate(kinds)}
    for ax, (label, lines) in zip(axes, present.items(), strict=True):
        for name, line in lines:
            for kind in kinds:
                _draw(ax, frame[(frame["quantity"] == name) & (frame["kind"] == kind)], color=colors[kind], line=line)
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_title(style.wrapped(optimizer))
    keys = [style.key(kind.replace(".", " "), color=color, linestyle="-") for kind, color in colors.items()]
    if "momentum, singular values" in present:
        keys += [style.key(f"quantile: {name}", linestyle=line) for name, line in _QUANTILES.items()]
    style.legend_below(figure, keys)
    return figure


def _draw(ax: Axes, rows: pd.DataFrame, *, color: str, line: str) -> None:
    positive = rows[rows["value"] > 0]
    mean = np.exp(np.log(positive["value"]).groupby(positive["step"]).mean())
    ax.plot(mean.index, mean.to_numpy(), color=color, linestyle=line, marker="o", markersize=2.5, linewidth=1.2)
