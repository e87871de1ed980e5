"""The sections of a spec that are about batches: what follows them, and how the critical batch size is measured."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from proxy_models.config import BatchChange, RunConfig
from sweeps.spec_file import Section
from sweeps.spec_types import distinct

MIN_BATCHES = 4  # a hyperbola has two parameters, and its bend must be seen from both sides
MIN_HORIZONS = 3  # tokens to a loss are read off between horizons

Measure = Literal["steps_to_loss", "branches", "noise_scale"]
Beta2 = Literal["half_life", "constant"]

_Tokens = Annotated[int, Field(ge=1)]
_SeveralTokens = Annotated[tuple[_Tokens, ...], Strict(False), AfterValidator(distinct)]


class BatchSection(Section):
    """What the values in the file mean at other batches than the one that they are given for."""

    reference_tokens: int = Field(ge=1)  # the batch that the values in the file are given for
    # The lr axis at another batch: its values times (batch / reference) ** lr_exponent. It only moves where the
    # optimum is looked for; how the optimum moves is fitted.
    lr_exponent: float = Field(default=0.0, ge=0, le=1)
    # half_life: beta2 ** (batch / reference), which forgets over as many tokens (Marek et al., arXiv:2507.07101)
    beta2: Beta2 = "half_life"

    def lr_at(self, lr: float, batch_tokens: int) -> float:
        """The value of the lr axis at a batch."""
        return float(lr * (batch_tokens / self.reference_tokens) ** self.lr_exponent)

    def beta2_at(self, beta2: float, batch_ratio: float) -> float:
        """The beta2 at so many times the batch that it is given for."""
        return beta2 if self.beta2 == "constant" else float(beta2**batch_ratio)


class BranchesSection(Section):
    """Probes that go on from a trunk with larger batches (Merrill et al., arXiv:2505.23971)."""

    at_tokens: _SeveralTokens
    window_tokens: _Tokens
    factors: _SeveralTokens = (1, 2, 4, 8, 16)  # over the trunk's batch
    lr_exponent: float = Field(default=0.5, ge=0, le=1)  # lr times factor ** lr_exponent
    tolerance_nats: float = Field(default=0.01, gt=0)
    lr: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # of the trunk; else the axis' middle

    @model_validator(mode="after")
    def _one_branch_goes_on(self) -> Self:
        if 1 not in self.factors or len(self.factors) < 3:
            raise ValueError(
                f"factors must hold 1, with which the others are compared, and two more, got {list(self.factors)}. "
                "Add some."
            )
        return self


class CriticalBatchSection(Section):
    """How the critical batch size is measured."""

    measure: Annotated[tuple[Measure, ...], Strict(False), AfterValidator(distinct)]
    # nats, of steps_to_loss; None: spread over what most batches reach
    target_losses: (
        Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False), AfterValidator(distinct)] | None
    ) = None
    branches: BranchesSection | None = None
    noise_every_steps: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _parts_go_with_measures(self) -> Self:
        if (self.branches is not None) != ("branches" in self.measure):
            raise ValueError(
                'branches goes with measure = ["branches"] and is needed by it, '
                f"got measure = {list(self.measure)}. Add or remove the table."
            )
        for key, measure in (("target_losses", "steps_to_loss"), ("noise_every_steps", "noise_scale")):
            if key in self.model_fields_set and measure not in self.measure:
                raise ValueError(f'{key} goes with measure = ["{measure}"], got {list(self.measure)}. Remove {key}.')
        return self


def branch_runs(trunk: RunConfig, branches: BranchesSection, batch: BatchSection | None) -> Iterator[RunConfig]:
    """Every probe of a trunk: at each point, one for each factor, without decay.

    Raises:
        ConfigError: a point or window that is no whole number of batches.
    """
    hp = trunk.hparams
    for at_tokens in branches.at_tokens:
        for factor in branches.factors:
            beta2 = None if batch is None or batch.beta2 == "constant" else batch.beta2_at(hp.beta2, factor)
            yield replace(
                trunk,
                hparams=replace(hp, decay_tokens=0),
                train_tokens=at_tokens + branches.window_tokens,
                batch_change=BatchChange(
                    at_tokens=at_tokens,
                    batch_tokens=factor * hp.batch_tokens,
                    lr_ratio=float(factor**branches.lr_exponent),
                    beta2=beta2,
                ),
            )
