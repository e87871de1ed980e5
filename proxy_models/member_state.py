"""One run's state between two steps, by parameter and not by stack: what a checkpoint holds.

It says nothing of packs, so a run that was trained in a pack of 64 goes on in a pack of 7, or alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from proxy_models.diagnostics import Diagnostic
from proxy_models.optimizers import OptimizerState


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
    train_seconds: float  # of the run's own
    inherited_steps: int = 0  # updates that another run made, whose state this one went on from
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def optimizer_state(self) -> OptimizerState:
        """What an optimizer loads."""
        return OptimizerState(tensors=self.optimizer, births=self.births, phase=self.phase)
