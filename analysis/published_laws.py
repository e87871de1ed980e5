"""Published laws of learning rate, batch, critical batch and EMA timescale, as named priors: a band beside a fit.

No law here is a measurement of anybody else's model. Laws of one kind lie a factor of 2 to 5 apart at one (N, D), for
they were fitted to other data, schedules and definitions; `band` shows them together. Batches are in tokens wherever a
law was published in sequences: `unit` says in which, `value` has converted them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from analysis.interval import FitError
from analysis.posterior_line import NormalPrior

LawKind = Literal["lr", "batch", "critical_batch", "timescale"]
Horizon = Literal["batch fixed", "batch co-scaled"]
Scale = Literal["batch_tokens", "train_tokens", "width", "depth"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDefinition:
    """What a critical batch is, on the hyperbola E = E_min (1 + B/B_c) of tokens against batch (arXiv:1812.06162).

    `overhead` is the share of tokens beyond E_min that training with the critical batch costs. B_c itself costs 1,
    twice the tokens; a batch of 20 % overhead is 0.2 B_c (arXiv:2410.21676, which counts from ideal linear scaling).

    Raises:
        FitError: an overhead that is not above 0.
    """

    overhead: float = 1.0

    def __post_init__(self) -> None:
        if not self.overhead > 0:
            raise FitError(f"a critical batch's overhead must be above 0, such as 0.2 for 20 %, got {self.overhead}")

    @property
    def label(self) -> str:
        """In words."""
        return "hyperbola's constant" if self.overhead == 1.0 else f"{100 * self.overhead:g} % token overhead"

    def factor_to(self, other: "BatchDefinition") -> float:
        """What a critical batch of this definition is multiplied with to be one of the other."""
        return other.overhead / self.overhead


HYPERBOLA = BatchDefinition()
OVERHEAD_20 = BatchDefinition(overhead=0.2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedLaw:
    """One law. `value(n_params, train_tokens, loss)`: lr, tokens a batch, or tau in fractions of the run."""

    name: str
    arxiv: str
    kind: LawKind
    formula: str  # as published
    unit: str  # that the formula is in
    value: Callable[[float, float, float], float]
    needs_loss: bool = False
    definition: BatchDefinition | None = None  # of a critical batch
    horizon: Horizon | None = None  # of an lr's power over tokens
    n_params_range: tuple[float, float] | None = None  # that it was fitted on, where known
    train_tokens_range: tuple[float, float] | None = None
    note: str = ""

    def at(self, n_params: float, train_tokens: float, *, loss: float | None = None) -> float:
        """The law's prediction for non-embedding parameters, tokens and, where it needs it, a loss (nats a token).

        Raises:
            FitError: a number that is not above 0, or no loss where the law needs one.
        """
        if not (n_params > 0 and train_tokens > 0):
            raise FitError(f"{self.name} needs n_params and train_tokens above 0, got {n_params} and {train_tokens}")
        if self.needs_loss and (loss is None or not loss > 0):
            raise FitError(f"{self.name} predicts from the loss, in nats a token; give one above 0, got {loss}")
        return self.value(n_params, train_tokens, loss or 0.0)

    def covers(self, n_params: float, train_tokens: float) -> bool | None:
        """Whether it was fitted there; None where its range is not known."""
        if self.n_params_range is None and self.train_tokens_range is None:
            return None
        given = ((n_params, self.n_params_range), (train_tokens, self.train_tokens_range))
        return all(known is None or known[0] <= value <= known[1] for value, known in given)


def _compute(n_params: float, train_tokens: float) -> float:
    """FLOPs of training, about 6 a parameter and token."""
    return 6 * n_params * train_tokens


_MILLION = 1e6
_PORIAN_N = 108e6  # parameters of the model its laws are anchored at

LAWS: tuple[PublishedLaw, ...] = (
    PublishedLaw(
        name="Step Law",
        arxiv="2503.04715",
        kind="lr",
        formula="1.79 N^-0.713 D^0.307",
        unit="peak lr; N non-embedding parameters, D tokens",
        value=lambda n, d, _: 1.79 * n**-0.713 * d**0.307,
        horizon="batch co-scaled",
        n_params_range=(6e7, 1.1e9),
        train_tokens_range=(2e9, 1e11),
        note="AdamW, cosine to a fixed final lr of 1e-5, lr and batch tuned together",
    ),
    PublishedLaw(
        name="DeepSeek",
        arxiv="2401.02954",
        kind="lr",
        formula="0.3118 C^-0.1250",
        unit="peak lr; C FLOPs, non-embedding, here 6 N D",
        value=lambda n, d, _: 0.3118 * _compute(n, d) ** -0.1250,
        horizon="batch co-scaled",
        note="AdamW, multi-step schedule, N and D compute-optimal together",
    ),
    PublishedLaw(
        name="Porian",
        arxiv="2406.19146",
        kind="lr",
        formula="0.0047 (N / 108M)^(-1/3)",
        unit="peak lr; N parameters",
        value=lambda n, d, _: 0.0047 * (n / _PORIAN_N) ** (-1 / 3),
        note="AdamW at about 20 tokens a parameter, as OLMo's ladder uses it",
    ),
    PublishedLaw(
        name="Step Law",
        arxiv="2503.04715",
        kind="batch",
        formula="0.58 D^0.571",
        unit="tokens",
        value=lambda n, d, _: 0.58 * d**0.571,
        n_params_range=(6e7, 1.1e9),
        train_tokens_range=(2e9, 1e11),
        note="the batch of least loss",
    ),
    PublishedLaw(
        name="DeepSeek",
        arxiv="2401.02954",
        kind="batch",
        formula="0.2920 C^0.3271",
        unit="tokens; C FLOPs, non-embedding, here 6 N D",
        value=lambda n, d, _: 0.2920 * _compute(n, d) ** 0.3271,
        note="the batch of least loss, N and D compute-optimal together",
    ),
    PublishedLaw(
        name="Porian",
        arxiv="2406.19146",
        kind="batch",
        formula="160 (N / 108M)^(2/3)",
        unit="sequences of 2048 tokens",
        value=lambda n, d, _: 2048 * 160 * (n / _PORIAN_N) ** (2 / 3),
        note="at about 20 tokens a parameter, as OLMo's ladder uses it",
    ),
    PublishedLaw(
        name="Power Lines",
        arxiv="2505.13738",
        kind="batch",
        formula="0.0306 D^0.383",
        unit="sequences of 2048 tokens; D tokens",
        value=lambda n, d, _: 2048 * 0.0306 * d**0.383,
        n_params_range=(1.11e8, 3.3e9),
        note="the batch of least loss; AdamW, mup; unit from the agreement of its critical batch with others'",
    ),
    PublishedLaw(
        name="MiniCPM",
        arxiv="2404.06395",
        kind="batch",
        formula="1.21e9 / L^6.24",
        unit="tokens; L nats a token of C4",
        value=lambda n, d, loss: 1.21e9 / loss**6.24,
        needs_loss=True,
        note="the batch that reaches a loss with the fewest tokens; a loss of another tokenizer is not comparable",
    ),
    PublishedLaw(
        name="Power Lines",
        arxiv="2505.13738",
        kind="critical_batch",
        formula="0.0471 D^0.462",
        unit="sequences of 2048 tokens; D tokens",
        value=lambda n, d, _: 2048 * 0.0471 * d**0.462,
        definition=HYPERBOLA,
        n_params_range=(1.11e8, 3.3e9),
        note="AdamW, mup; D of the smallest batch; unit from the agreement with others'",
    ),
    PublishedLaw(
        name="Zhang",
        arxiv="2410.21676",
        kind="critical_batch",
        formula="22.91 D^0.47",
        unit="sequences of 512 tokens; D million tokens",
        value=lambda n, d, _: 512 * 22.91 * (d / _MILLION) ** 0.47,
        definition=OVERHEAD_20,
        n_params_range=(8.5e7, 1.2e9),
        note="AdamW, constant lr with averaged weights; unit from the agreement of its three laws",
    ),
    PublishedLaw(
        name="Kaplan",
        arxiv="2001.08361",
        kind="critical_batch",
        formula="2e8 / L^(1 / 0.21)",
        unit="tokens; L nats a token of WebText2",
        value=lambda n, d, loss: 2e8 / loss ** (1 / 0.21),
        needs_loss=True,
        definition=HYPERBOLA,
        note="a loss of another tokenizer is not comparable",
    ),
    PublishedLaw(
        name="Power Lines",
        arxiv="2505.13738",
        kind="timescale",
        formula="1.084 (D / N)^-0.527",
        unit="B / (lr wd D), a fraction of the run; lr of the hidden matrices in mup",
        value=lambda n, d, _: 1.084 * (d / n) ** -0.527,
        n_params_range=(1.11e8, 3.3e9),
        note="AdamW, wd multiplied by lr",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedPower:
    """An exponent of the learning rate over one scale, all others fixed."""

    name: str
    arxiv: str
    scale: Scale
    value: float
    condition: str
    upper_bound: bool = False  # where measurements lie below it


LR_POWERS: tuple[PublishedPower, ...] = (
    PublishedPower(
        name="square root",
        arxiv="2205.10287",
        scale="batch_tokens",
        value=0.5,
        condition="Adam's SDE at small batches, betas and eps scaled too; re-fits find less near 20 tokens a parameter",
        upper_bound=True,
    ),
    PublishedPower(
        name="Bjorck", arxiv="2409.19913", scale="train_tokens", value=-0.32, condition="batch fixed, 760M and more"
    ),
    PublishedPower(
        name="Step Law", arxiv="2503.04715", scale="train_tokens", value=0.307, condition="batch co-scaled, tuned too"
    ),
)

# q: Zhang has 0.47, Power Lines 0.462. The sd is a judgement, several times how far the two lie apart: theirs are AdamW
# on models of 85M parameters and more.
BATCH_OVER_TOKENS = NormalPrior(mean=0.465, sd=0.1, source="Zhang (arXiv:2410.21676), Power Lines (arXiv:2505.13738)")
# r: both find none beyond that of tokens (Zhang: N^0.087 at fixed tokens).
BATCH_OVER_PARAMS = NormalPrior(mean=0.0, sd=0.1, source="Zhang (arXiv:2410.21676), Power Lines (arXiv:2505.13738)")
# Re-fits of Step Law's runs by cell: median 0.27 to 0.40 by the way of fitting, 0.1 to 0.65 over cells.
LR_OVER_BATCH = NormalPrior(mean=0.35, sd=0.15, source="re-fits of Step Law's AdamW runs (arXiv:2503.04715)")
LR_OVER_BATCH_RANGE = (0.0, 0.6)  # a value that rests on the prior alone stays inside; the square root is its upper end
LR_OVER_TOKENS = NormalPrior(mean=-0.32, sd=0.15, source="Bjorck (arXiv:2409.19913), batch fixed")
# mup and CompleteP keep the optimum in place by construction; the sd is a judgement of what finite proxies drift.
LR_OVER_WIDTH = NormalPrior(mean=0.0, sd=0.2, source="mup (arXiv:2203.03466): constant at base width")
LR_OVER_DEPTH = NormalPrior(mean=0.0, sd=0.2, source="CompleteP (arXiv:2505.01618): constant at base depth")
# The sd is a judgement: other data, schedules and optimizers.
TIMESCALE_OVER_TPP = NormalPrior(mean=-0.527, sd=0.15, source="Power Lines (arXiv:2505.13738)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One law at one place."""

    law: PublishedLaw
    value: float  # tokens for a batch, of the band's definition


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorBand:
    """All laws of one kind at one place: what to expect and how far published laws lie apart. Not a measurement."""

    kind: LawKind
    definition: BatchDefinition | None
    predictions: tuple[Prediction, ...]
    left_out: tuple[str, ...]  # laws that predict from a loss, where none was given

    @property
    def low(self) -> float:
        return min(prediction.value for prediction in self.predictions)

    @property
    def high(self) -> float:
        return max(prediction.value for prediction in self.predictions)

    @property
    def spread(self) -> float:
        """Highest over lowest."""
        return self.high / self.low


def band(
    kind: LawKind,
    n_params: float,
    train_tokens: float,
    *,
    loss: float | None = None,
    definition: BatchDefinition = HYPERBOLA,
) -> PriorBand:
    """The predictions of every law of a kind for `n_params` (non-embedding) and `train_tokens`.

    Critical batches are converted to `definition`. `loss` (nats a token) admits the laws that predict from it.

    Raises:
        FitError: a number that is not above 0.
    """
    laws = [law for law in LAWS if law.kind == kind]
    usable = [law for law in laws if loss is not None or not law.needs_loss]
    return PriorBand(
        kind=kind,
        definition=definition if kind == "critical_batch" else None,
        predictions=tuple(
            Prediction(
                law=law,
                value=law.at(n_params, train_tokens, loss=loss)
                * (1.0 if law.definition is None else law.definition.factor_to(definition)),
            )
            for law in usable
        ),
        left_out=tuple(f"{law.name} predicts from a loss" for law in laws if law not in usable),
    )


def law_of(kind: LawKind, name: str) -> PublishedLaw:
    """One law by its name.

    Raises:
        FitError: there is none.
    """
    named = {law.name: law for law in LAWS if law.kind == kind}
    if name not in named:
        raise FitError(f"no published law of {kind} is called {name!r}; there are {', '.join(named)}")
    return named[name]
