"""One run's state between two steps, by parameter and not by stack: what a checkpoint holds.

It says nothing of packs, so a run that was trained in a pack of 64 goes on in a pack of 7, or alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from proxy_models.diagnostics import Diagnostic


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberState:
    """All that the rest of a run depends on, and what its outcome will tell of the part that is done.

    Tensors are on the CPU and the state's own.
    """

    step: int  # updates done
    losses: Tensor  # (step,), float64: the training loss before each update, nats per token
    weights: Mapping[str, Tensor]  # by parameter's name
    optimizer: Mapping[str, Mapping[str, Tensor]]  # by parameter's name, then the rule's name for it
    births: Mapping[str, int]  # by parameter's name: the step count at which its optimizer state began
    phase: int  # index of the optimizer, of a switched one
    train_seconds: float
    diagnostics: tuple[Diagnostic, ...] = ()
