"""Training curves at each width's best learning rate."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.figures import style
from analysis.surface import NO_LABELS, Labels, Series, Surface, fields_of, label_of, surfaces
from sweeps.trial import TrialResult

_BURN_IN = 0.25  # of the tokens: losses before are cut off, to show how far apart the curves end


@style.styled
def loss_curves(results: Iterable[TrialResult], labels: Labels = NO_LABELS) -> Figure:
    """A panel a series: smoothed training loss over tokens, every seed, at the best learning rate tried."""
    results = list(results)
    by_series: dict[Series, list[Surface]] = defaultdict(list)
    for surface in surfaces(results, labels=labels):
        by_series[surface.series].append(surface)
    figure, axes = style.panels(len(by_series), height=3.6)
    looks = style.width_looks(surface.width for members in by_series.values() for surface in members)
    for (series, members), ax in zip(by_series.items(), axes, strict=True):
        best = {surface.width: _best_trials(surface, results, labels) for surface in members}
        for width, trials in best.items():
            for trial in trials:
                _draw_curve(ax, trial, looks[width]["color"])
        _cut_off_start(ax, [trial for trials in best.values() for trial in trials])
        ax.set_title(f"{style.wrapped(series)}\n{_finding(members)}")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_xlabel("training tokens")
    style.label_rows(axes, "training loss, smoothed (nats per token)")
    keys = [style.key(f"width {width}", color=look["color"], linestyle="-") for width, look in looks.items()]
    style.legend_below(figure, keys)
    return figure


def _best_value(surface: Surface) -> float | None:
    """log2 of the value with the lowest mean loss; None where every value diverged."""
    means = zip(surface.mean_losses, surface.log2_values, strict=True)
    return min(((mean, x) for mean, x in means if mean is not None), default=(None, None))[1]


def _best_trials(surface: Surface, results: Sequence[TrialResult], labels: Labels) -> list[TrialResult]:
    """Every seed's trial at the best value."""
    best = _best_value(surface)
    wanted = {**dict(surface.fixed), "model.width": surface.width}
    return [
        result
        for result in results
        if result.validation_loss is not None
        and label_of(result, labels) == surface.optimizer
        and wanted.items() <= (fields := fields_of(result)).items()
        and math.log2(fields[surface.hp]) == best
    ]


def _draw_curve(ax: Axes, result: TrialResult, color: str) -> None:
    ax.plot(_tokens(result), result.curve_losses, color=color, linewidth=1.1, alpha=0.85)


def _tokens(result: TrialResult) -> list[int]:
    return [result.trial.run.tokens_before(step) for step in result.curve_steps]


def _cut_off_start(ax: Axes, trials: Sequence[TrialResult]) -> None:
    later = [
        loss
        for trial in trials
        for tokens, loss in zip(_tokens(trial), trial.curve_losses, strict=True)
        if tokens >= _BURN_IN * trial.trial.run.train_tokens
    ]
    if later:
        margin = 0.05 * (max(later) - min(later))
        ax.set_ylim(min(later) - margin, max(later) + margin)


def _finding(members: Sequence[Surface]) -> str:
    best = [style.power_of_two(x) for surface in members if (x := _best_value(surface)) is not None]
    if len(set(best)) == 1:
        return f"best lr tried: {best[0]} at every width"
    return f"best lr tried, by width: {', '.join(best) or 'none converged'}"
