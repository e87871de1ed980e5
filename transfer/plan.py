"""The transfer plan: what to train the target with, what to expect, and what to doubt.

A plan is a pure function of a sweep's fits, its spec and the target. `plan.json` is this module's `TransferPlan`
as JSON; `plan.schema.json` beside this file documents every field.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from analysis.fast_transfer import Verdict
from analysis.interval import Interval
from analysis.surface import Setting
from proxy_models.config import RunConfig
from proxy_models.parametrization import ScalingRule
from proxy_models.roles import Role

SCHEMA_VERSION = 1


# The strings below the fields become the descriptions in plan.schema.json.
DOCUMENTED = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with a central interval."""

    __pydantic_config__ = DOCUMENTED
    value: float
    """Best estimate."""
    interval: Interval | None
    """Central interval at its `level`; null where the data give none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferVerdict:
    """Whether optima converge faster with width than the loss does."""

    __pydantic_config__ = DOCUMENTED
    verdict: Verdict
    """fast, slow or inconclusive."""
    probability_fast: float | None
    """Bootstrap probability that transfer is fast; null where no rates could be fitted."""
    sentence: str
    """The verdict in words, with what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExcessEquivalent:
    """The expected excess loss as what a tuned model could save and lose as little; shares between 0 and 1."""

    __pydantic_config__ = DOCUMENTED
    width_share: Estimate
    """Of the target's width."""
    compute_share: Estimate
    """Of the target's training FLOPs."""


Basis = Literal["measured here", "fitted here", "published prior", "given"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSetting:
    """One hyperparameter of the target's run, and what it rests on."""

    __pydantic_config__ = DOCUMENTED
    name: str
    """A field of the run's hyperparameters."""
    value: float
    """At base width."""
    interval: Interval | None
    """Of the value expected to be best; null where it is given, or nothing tells its error."""
    rests_on: Basis
    """measured here, at such scales; fitted here, by a law through measurements; a published prior; or given."""
    why: str
    """In words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchStagePlan:
    """One stage of a batch warm-up that branches from the proxies' trunks allowed."""

    __pydantic_config__ = DOCUMENTED
    from_tokens: float
    """Trained before it."""
    batch_tokens: float
    """Tokens a step in it."""
    lr_ratio: float
    """lr over the first stage's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolePlan:
    """What one role of parameters gets at the target."""

    __pydantic_config__ = DOCUMENTED
    role: Role
    """What the parameters do: embedding, hidden, readout or vector."""
    effective_lr: float
    """Peak learning rate, after the width rules and the role's ratio."""
    weight_decay: float
    """Decoupled: W <- W - effective_lr * weight_decay * W."""
    init: str
    """How to draw the initial entries, in words."""
    init_std: float | None
    """Standard deviation of the initial entries where one number holds for the whole role, otherwise null."""
    forward_multiplier: float
    """Factor on the layer's output."""
    adam_eps: float
    """Adam's eps after the width rules; unused where the optimizer does not treat this role with Adam."""
    rule: ScalingRule
    """Powers of width_mult, and those called depth_ of depth_mult, that gave these numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerPlan:
    """One optimizer's settings at the target. Losses in nats per token, on the sweep's held-out set."""

    __pydantic_config__ = DOCUMENTED
    optimizer: str
    """Its name in the spec."""
    fixed: tuple[Setting, ...]
    """The sweep's other axes and the values chosen for them."""
    run: RunConfig
    """The whole target run; its hyperparameters are at base width, `roles` has them at the target's."""
    log2_lr: Estimate
    """log2 of the learning rate expected to be optimal at the target, at base width; the plan takes its value."""
    rests_on: str
    """What the learning rate was extrapolated from, in words."""
    roles: tuple[RolePlan, ...]
    """Settings of every role that the model has; up to the switch, where the optimizer is switched."""
    expected_loss: Estimate | None
    """At the planned learning rate, by the loss law over widths; null where none could be fitted."""
    expected_excess_loss: Estimate | None
    """Over the loss at the target's own optimum: the price of not knowing it exactly."""
    caveats: tuple[str, ...]
    """Reasons to doubt the plan, each with what to do."""
    excess_equivalent: ExcessEquivalent | None = None
    """The expected excess in width and compute; null without a loss law with intervals."""
    fast_transfer: TransferVerdict | None = None
    """Whether small proxies pay off; null in plans made before this was judged."""
    switch_step: int | None = None
    """The first step of the second optimizer, where the optimizer is switched, otherwise null."""
    roles_after_switch: tuple[RolePlan, ...] = ()
    """Settings of every role from there on."""
    settings: tuple[PlannedSetting, ...] = ()
    """What scale moves, each with what it rests on; empty in plans made before this was said."""
    batch_warmup: tuple[BatchStagePlan, ...] = ()
    """Seen to do no harm on the widest proxy, at its tokens; `run` does not use it. Empty where it was not measured."""

    @property
    def named_roles(self) -> tuple[tuple[str, RolePlan], ...]:
        """Every role's settings under a name for tables; after a switch, those that it changes."""
        later = [
            (f"{r.role.value} from step {self.switch_step}", r) for r in self.roles_after_switch if r not in self.roles
        ]
        return (*((role.role.value, role) for role in self.roles), *later)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferPlan:
    """One plan for every optimizer of a sweep that could be fitted."""

    __pydantic_config__ = DOCUMENTED
    schema_version: int
    """Of this document."""
    sweep: str
    """Name of the sweep."""
    target_width: int
    """Width of the target's residual stream."""
    width_mult: float
    """Target width over base width."""
    n_params: int
    """The target's non-embedding parameters."""
    train_flops: float
    """Model FLOPs of the target's whole run."""
    train_bytes: int
    """Peak bytes of the target's run in float32; the largest of the optimizers."""
    optimizers: tuple[OptimizerPlan, ...]
    """In the spec's order."""
    not_planned: tuple[tuple[str, str], ...]
    """Optimizers without a plan, each with the reason."""
    inputs_digest: str
    """SHA-256 over the trial ids and losses that the fits saw."""
    target_depth: int | None = None
    """The target's number of blocks; null in plans made before depth was planned."""
    depth_mult: float = 1.0
    """Target depth over base depth; 1 where no rule looks at depth."""
    residual_multiplier: float = 1.0
    """Factor on what every residual branch adds."""


PLAN_JSON: TypeAdapter[TransferPlan] = TypeAdapter(TransferPlan)


if __name__ == "__main__":
    import json

    print(json.dumps(PLAN_JSON.json_schema(), indent=1, sort_keys=True))
