"""The plan that an import gives: hyperparameters for a target's scales, what to expect of them, and what to doubt.

A pure function of the observations, the fits' settings and the target. `plan.json` in an import's folder is this
module's `ImportedPlan` as JSON; `imported_plan.schema.json` beside this file documents every field.
"""

from dataclasses import dataclass

from pydantic import TypeAdapter

from transfer.plan import DOCUMENTED, Estimate

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class HparamPlan:
    """One hyperparameter at the target."""

    __pydantic_config__ = DOCUMENTED
    name: str
    """As the column map calls it."""
    value: float
    """What to train with, in the unit of the import: it costs least on average over where the optimum may be. In a
    lopsided basin it lies on the gentle side of the best estimate of the optimum."""
    low: float
    """Lower end of the interval of the optimum."""
    high: float
    """Upper end of the interval of the optimum."""
    log2_optimum: Estimate
    """log2 of the optimum expected at the target, with its interval."""
    law: str
    """What it was extrapolated with: each power of a scale with its interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesPlan:
    """One series' hyperparameters at the target. Losses in nats."""

    __pydantic_config__ = DOCUMENTED
    series: str
    """As the table of runs calls it."""
    hparams: tuple[HparamPlan, ...]
    """In the map's order."""
    expected_loss: Estimate | None
    """At the planned hyperparameters; null where no law of the loss over the scales could be fitted."""
    expected_excess_loss: Estimate
    """Over the loss at the target's own optimum: the price of not knowing it exactly."""
    cells: int
    """How many cells (combinations of scales) the laws rest on."""
    extrapolation: dict[str, float]
    """Of each scale, the target's value over the largest fitted one; below 1 inside the fitted range."""
    caveats: tuple[str, ...]
    """Reasons to doubt the plan, each with what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedPlan:
    """One plan for every series of an import that could be fitted."""

    __pydantic_config__ = DOCUMENTED
    schema_version: int
    """Of this document."""
    name: str
    """Name of the import."""
    target: dict[str, float]
    """The target's value of every scale."""
    series: tuple[SeriesPlan, ...]
    """By name."""
    not_planned: tuple[tuple[str, str], ...]
    """Series without a plan, each with the reason."""
    inputs_digest: str
    """SHA-256 over the SHA-256 of the table of runs and the text of its column map."""

    @property
    def all_caveats(self) -> tuple[str, ...]:
        """Every caveat with its series, and what is not planned."""
        doubts = [f"{planned.series}: {caveat}" for planned in self.series for caveat in planned.caveats]
        return (*doubts, *(f"{name}: not planned: {why}" for name, why in self.not_planned))


IMPORTED_PLAN_JSON: TypeAdapter[ImportedPlan] = TypeAdapter(ImportedPlan)


if __name__ == "__main__":
    import json

    print(json.dumps(IMPORTED_PLAN_JSON.json_schema(), indent=1, sort_keys=True))
