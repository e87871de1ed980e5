"""Optimizers that treat every entry alike, on every role."""

from dataclasses import dataclass
from typing import Literal

from proxy_models.optimizer_config.base import Scaling
from proxy_models.roles import Role


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay on every role (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"

    def scaling(self, role: Role) -> Scaling:
        """The row of `parametrization.RULES` that scales this role."""
        return "adam"


@dataclass(frozen=True, kw_only=True, slots=True)
class SGD:
    """M <- momentum*M + G on every role, stepping along M or, with Nesterov, G + momentum*M."""

    name: Literal["sgd"] = "sgd"
    nesterov: bool = False

    def scaling(self, role: Role) -> Scaling:
        """The row of `parametrization.RULES` that scales this role."""
        return "sgd"


@dataclass(frozen=True, kw_only=True, slots=True)
class SignSGD:
    """The sign of averaged gradients, on every role (Bernstein et al., arXiv:1802.04434)."""

    name: Literal["sign_sgd"] = "sign_sgd"
    nesterov: bool = False

    def scaling(self, role: Role) -> Scaling:
        """The row of `parametrization.RULES` that scales this role."""
        return "adam"
