"""Reasons to doubt an optimum, each with a sentence that says what to do."""

from enum import Enum


class Flag(Enum):
    """Why an optimum may not be what it seems."""

    EDGE_LOW = "edge_low"
    EDGE_HIGH = "edge_high"
    NEXT_TO_DIVERGED = "next_to_diverged"
    NEXT_TO_STOPPED = "next_to_stopped"
    SEVERAL_MINIMA = "several_minima"
    TOO_FEW_POINTS = "too_few_points"
    METHODS_DISAGREE = "methods_disagree"
    NO_INTERVAL = "no_interval"
    ONE_SEED = "one_seed"
    MOSTLY_DIVERGED = "mostly_diverged"
    MISSING_TRIALS = "missing_trials"

    @property
    def advice(self) -> str:
        """What it means, then what to do."""
        return _ADVICE[self]


_ADVICE = {
    Flag.EDGE_LOW: (
        "The lowest loss is at the smallest value tried, so the optimum may lie below; it is left out of "
        "what is fitted over width. Add smaller values."
    ),
    Flag.EDGE_HIGH: (
        "The lowest loss is at the largest value tried, so the optimum may lie above; it is left out of "
        "what is fitted over width. Add larger values."
    ),
    Flag.NEXT_TO_DIVERGED: (
        "The lowest loss is next to a value that diverged, so the optimum may be extrapolated towards it. "
        "Add values half a step apart there; until then stay at or below the last value that converged."
    ),
    Flag.NEXT_TO_STOPPED: (
        "The lowest loss is next to a value that was stopped early, so the optimum may be extrapolated towards it. "
        "Run the sweep again without [stopping] in the spec: it trains what was stopped to the end."
    ),
    Flag.SEVERAL_MINIMA: (
        "The loss has more than one minimum beyond noise, and which is lowest may change with width. "
        "Look at the figure, and add seeds and finer values between them."
    ),
    Flag.TOO_FEW_POINTS: (
        "Fewer than four values lie near the minimum, so nothing checks that it is shaped like a parabola. "
        "Add values half a step apart around it."
    ),
    Flag.METHODS_DISAGREE: (
        "The quadratic and the spline put the optimum more than half a grid step apart. "
        "Add values around it, or fit a narrower band."
    ),
    Flag.NO_INTERVAL: "Too few trials to estimate the noise, so there is no interval. Add a seed.",
    Flag.ONE_SEED: (
        "With one seed the interval rests on how far single trials lie off the parabola, and the loss "
        "has none. Add a seed."
    ),
    Flag.MOSTLY_DIVERGED: "More than half of the values diverged. Move the grid to smaller values.",
    Flag.MISSING_TRIALS: "Some trials have no result yet. Run the sweep again to finish it.",
}
