"""Optimizers for stacked tensors: update rules, which optimizer uses which, and one step that applies them."""

from proxy_models.optimizers.optimizer import (
    Observe,
    Optimizer,
    OptimizerState,
    Stepper,
    SwitchingOptimizer,
    Update,
    clip_factors,
    make_optimizer,
)
from proxy_models.optimizers.update_rules import update_rule

__all__ = [
    "Observe",
    "Optimizer",
    "OptimizerState",
    "Stepper",
    "SwitchingOptimizer",
    "Update",
    "clip_factors",
    "make_optimizer",
    "update_rule",
]
