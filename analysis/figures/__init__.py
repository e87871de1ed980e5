"""Figures of a sweep: pure functions from records to matplotlib figures, and `save`. No global state is touched."""

from analysis.figures.coordinates import CoordPoint, CoordSlope, coordinate_check, coordinate_slopes
from analysis.figures.curves import loss_curves
from analysis.figures.diagnostics import optimizer_diagnostics
from analysis.figures.gaps import transfer_gaps
from analysis.figures.losses import loss_against_lr
from analysis.figures.scaling import drift, loss_against_width
from analysis.figures.style import save
from analysis.figures.target import MeasuredPoint, Target, predicted_against_measured
from analysis.figures.timing import predicted_time

__all__ = [
    "CoordPoint",
    "CoordSlope",
    "MeasuredPoint",
    "Target",
    "coordinate_check",
    "coordinate_slopes",
    "drift",
    "loss_against_lr",
    "loss_against_width",
    "loss_curves",
    "optimizer_diagnostics",
    "predicted_against_measured",
    "predicted_time",
    "save",
    "transfer_gaps",
]
