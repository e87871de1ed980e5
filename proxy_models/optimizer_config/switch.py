"""One optimizer, then another."""

from dataclasses import dataclass
from typing import Literal

from proxy_models.checks import require
from proxy_models.optimizer_config.base import Scaling
from proxy_models.optimizer_config.plain import PlainOptimizerConfig
from proxy_models.roles import Role


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """`first` up to `at_tokens`, or without it up to the start of a wsd schedule's decay; then `second`.

    Each phase has its own width rule, on the same schedule; lr is second_lr_ratio times as large after the switch.
    Learning rates match in RMS, as in Xmodel-2.5's recipe of AdamW and then Muon (arXiv:2511.19496), where a Muon
    has shape_factor = "rms_match": at base width its updates are then as large as AdamW's at the same lr.

    `states`: `reset` starts the second phase's from zero; `keep` carries a role's over where the first optimizer
    has all that the second needs there, so Adam's whole state, or its first moment as Muon's momentum.
    """

    name: Literal["switch"] = "switch"
    first: PlainOptimizerConfig
    second: PlainOptimizerConfig
    at_tokens: int | None = None
    states: Literal["keep", "reset"] = "reset"

    def __post_init__(self) -> None:
        require(self.at_tokens is None or self.at_tokens >= 1, f"at_tokens must be at least 1, got {self.at_tokens}")

    def scaling(self, role: Role) -> Scaling:
        """The first phase's. Initialization and forward multipliers are the same for every optimizer."""
        return self.first.scaling(role)
