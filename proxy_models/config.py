"""Everything that determines a run's numbers, as frozen records. Knows nothing of torch, ray or disks."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from proxy_models.checks import ints_to_floats, require
from proxy_models.optimizer_config import OptimizerConfig, PlainOptimizerConfig, RankConfig, Switch, optimizer_from_dict

Parametrization = Literal["standard", "mup", "complete_p"]
WeightDecayInvariant = Literal["lr_wd", "timescale", "none"]
ScheduleName = Literal["wsd", "cosine"]
MlpKind = Literal["swiglu", "relu2"]

DEFAULT_DEPTH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. Aspect ratios and head_dim stay fixed while width varies."""

    width: int
    depth: int = DEFAULT_DEPTH
    head_dim: int = 16
    mlp: MlpKind = "swiglu"
    mlp_ratio: float = 3.0  # MLP width / width
    vocab_size: int = 256
    seq_len: int = 128
    tied_embeddings: bool = False
    qk_norm: bool = True
    attention_multiplier: float = 1.0  # attention logits are attention_multiplier * q.k / head_dim

    def __post_init__(self) -> None:
        ints_to_floats(self)
        for name in ("width", "depth", "head_dim", "vocab_size", "seq_len"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, got {value}")
        require(
            self.width % self.head_dim == 0,
            f"width must be a multiple of head_dim={self.head_dim}, got {self.width}; "
            f"the nearest widths are {self.width // self.head_dim * self.head_dim or self.head_dim} "
            f"and {(self.width // self.head_dim + 1) * self.head_dim}",
        )
        require(self.head_dim % 2 == 0, f"head_dim must be even (rotary positions), got {self.head_dim}")
        require(
            self.mlp_ratio > 0 and (self.width * self.mlp_ratio).is_integer(),
            f"mlp_ratio * width must be a positive whole number, got {self.mlp_ratio} * {self.width}",
        )
        require(
            self.attention_multiplier > 0,
            f"attention_multiplier must be above 0, got {self.attention_multiplier}",
        )

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


_ABOVE_ZERO = (
    "embedding_lr_ratio", "readout_lr_ratio", "vector_lr_ratio", "second_lr_ratio", "eps", "embedding_init_std",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "weight_decay", "warmup_tokens", "decay_tokens", "hidden_init_gain", "readout_init_gain", "orthogonal_frac",
    "sign_lr_ratio",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class HParams:
    """The numbers a sweep may vary, all at base width. Any field may be a sweep axis."""

    lr: float  # peak, HIDDEN matrices
    embedding_lr_ratio: float = 1.0  # peak lr of EMBEDDING over lr, at base width; likewise below
    readout_lr_ratio: float = 1.0
    vector_lr_ratio: float = 1.0
    weight_decay: float = 0.0  # decoupled: W <- W - lr*weight_decay*W; never on VECTOR
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95  # of averaged gradients: of Muon's relatives on HIDDEN, SCALE's READOUT, SGD everywhere
    orthogonal_frac: float = 0.5  # of the orthogonal part in an F- or S-Fanion's update
    sign_lr_ratio: float = 0.01  # an S-Fanion's sign part over its lr, at base width
    second_lr_ratio: float = 1.0  # lr after an optimizer switch over lr
    clip_norm: float | None = 1.0  # global gradient norm; None: no clipping
    batch_tokens: int = 1024
    warmup_tokens: int = 0
    decay_tokens: int = 0  # length of the final decay of a wsd schedule
    final_lr_frac: float = 0.0  # lr at the end over peak lr
    hidden_init_gain: float = 1.0  # std * sqrt(fan_in)
    embedding_init_std: float = 1.0
    readout_init_gain: float = 0.0  # std * sqrt(fan_in) at base width; 0: readout starts at zero

    def __post_init__(self) -> None:
        ints_to_floats(self)
        for field in fields(self):
            value = getattr(self, field.name)
            require(value is None or math.isfinite(value), f"{field.name} must be finite, got {value}")
        require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        for name in _ABOVE_ZERO:
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in _AT_LEAST_ZERO:
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "momentum"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        require(0 <= self.final_lr_frac <= 1, f"final_lr_frac must be in [0, 1], got {self.final_lr_frac}")
        require(self.batch_tokens >= 1, f"batch_tokens must be at least 1, got {self.batch_tokens}")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"clip_norm must be above 0, or none for no clipping, got {self.clip_norm}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchChange:
    """Other batches from some point of a run on: a probe of the critical batch size, or a batch warm-up."""

    at_tokens: int  # trained before
    batch_tokens: int  # from then on: a multiple of the batch before
    lr_ratio: float = 1.0  # lr from then on over lr before
    beta2: float | None = None  # from then on; None: as before

    def __post_init__(self) -> None:
        ints_to_floats(self)
        for name in ("at_tokens", "batch_tokens"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            math.isfinite(self.lr_ratio) and self.lr_ratio > 0,
            f"lr_ratio must be above 0 and finite, got {self.lr_ratio}",
        )
        require(
            self.beta2 is None or 0 <= self.beta2 < 1,
            f"beta2 must be in [0, 1), got {self.beta2}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run, whole: two runs with equal configs and data give equal losses."""

    model: ModelConfig
    optimizer: OptimizerConfig
    hparams: HParams
    base_width: int
    train_tokens: int
    validation_tokens: int
    seed: int  # initial weights and data order
    parametrization: Parametrization = "mup"
    weight_decay_invariant: WeightDecayInvariant = "lr_wd"
    schedule: ScheduleName = "wsd"
    base_depth: int | None = None  # of complete_p alone, the only one with a rule for depth
    batch_change: BatchChange | None = None

    def __post_init__(self) -> None:
        hp, seq_len = self.hparams, self.model.seq_len
        require(self.base_width >= 1, f"base_width must be at least 1, got {self.base_width}")
        require(
            (self.base_depth is not None) == (self.parametrization == "complete_p"),
            f"base_depth must be given with parametrization 'complete_p' and with no other, got base_depth="
            f"{self.base_depth} with {self.parametrization!r}",
        )
        require(
            self.base_depth is None or self.base_depth >= 1, f"base_depth must be at least 1, got {self.base_depth}"
        )
        require(self.seed >= 0, f"seed must be at least 0, got {self.seed}")
        require(
            hp.batch_tokens % seq_len == 0,
            f"batch_tokens must be a multiple of seq_len={seq_len}, got {hp.batch_tokens}",
        )
        require(
            self.train_tokens >= hp.batch_tokens and self.train_tokens % hp.batch_tokens == 0,
            f"train_tokens must be a positive multiple of batch_tokens={hp.batch_tokens}, got {self.train_tokens}",
        )
        require(
            hp.warmup_tokens + hp.decay_tokens <= self.train_tokens,
            f"warmup_tokens + decay_tokens must not exceed train_tokens={self.train_tokens}, "
            f"got {hp.warmup_tokens} + {hp.decay_tokens}",
        )
        require(
            self.validation_tokens >= 2 * seq_len,
            f"validation_tokens must be at least two sequences ({2 * seq_len} tokens), got {self.validation_tokens}",
        )
        for _, phase in self._optimizers():
            _require_rank_fits(phase, self.model)
        if isinstance(self.optimizer, Switch):
            self._require_switch_within(self.optimizer)
        if self.batch_change is not None:
            self._require_change_within(self.batch_change)

    @property
    def width_mult(self) -> float:
        """m = width / base_width."""
        return self.model.width / self.base_width

    @property
    def depth_mult(self) -> float:
        """m_L = depth / base_depth; 1 where no rule looks at depth."""
        return 1.0 if self.base_depth is None else self.model.depth / self.base_depth

    @property
    def steps(self) -> int:
        change = self.batch_change
        if change is None:
            return self.train_tokens // self.hparams.batch_tokens
        return self._change_step(change) + (self.train_tokens - change.at_tokens) // change.batch_tokens

    def batch_tokens_of(self, step: int) -> int:
        """Tokens of the step-th update, from 0."""
        change = self.batch_change
        changed = change is not None and step >= self._change_step(change)
        return change.batch_tokens if change is not None and changed else self.hparams.batch_tokens

    def tokens_before(self, step: int) -> int:
        """Tokens of the first `step` updates."""
        change = self.batch_change
        first = step if change is None else min(step, self._change_step(change))
        tokens = first * self.hparams.batch_tokens
        return tokens if change is None else tokens + (step - first) * change.batch_tokens

    @property
    def largest_batch_tokens(self) -> int:
        return self.batch_tokens_of(self.steps - 1)

    def _change_step(self, change: BatchChange) -> int:
        return change.at_tokens // self.hparams.batch_tokens

    @property
    def phases(self) -> tuple[tuple[int, "RunConfig"], ...]:
        """(first step, the run as if nothing were ever changed) of each optimizer, or lr and beta2, in turn."""
        change, hp = self.batch_change, self.hparams
        if change is not None:
            beta2 = hp.beta2 if change.beta2 is None else change.beta2
            changed = replace(hp, lr=hp.lr * change.lr_ratio, beta2=beta2)
            return (
                (0, replace(self, batch_change=None)),
                (self._change_step(change), replace(self, batch_change=None, hparams=changed)),
            )
        lr, ratio = self.hparams.lr, self.hparams.second_lr_ratio
        return tuple(
            (start, replace(self, optimizer=optimizer, hparams=replace(self.hparams, lr=lr * ratio if start else lr)))
            for start, optimizer in self._optimizers()
        )

    def _optimizers(self) -> tuple[tuple[int, PlainOptimizerConfig], ...]:
        """(first step, optimizer) of each phase."""
        if not isinstance(self.optimizer, Switch):
            return ((0, self.optimizer),)
        tokens = self.optimizer.at_tokens
        at = self.train_tokens - self.hparams.decay_tokens if tokens is None else tokens
        return (0, self.optimizer.first), (math.ceil(at / self.hparams.batch_tokens), self.optimizer.second)

    def _require_switch_within(self, switch: Switch) -> None:
        require(
            switch.at_tokens is not None or (self.schedule == "wsd" and self.hparams.decay_tokens > 0),
            "at_tokens must be given where the schedule has no decay to switch at: a wsd schedule with decay_tokens "
            f"above 0, got schedule={self.schedule!r} with decay_tokens={self.hparams.decay_tokens}",
        )
        (_, _), (step, _) = self._optimizers()
        last = self.train_tokens - self.hparams.batch_tokens
        require(
            1 <= step < self.steps,
            f"at_tokens must leave a step to each optimizer, got a switch at step {step} of {self.steps} "
            f"({self.hparams.batch_tokens} tokens each); at_tokens can be {self.hparams.batch_tokens} to {last}",
        )

    def _require_change_within(self, change: BatchChange) -> None:
        batch_tokens = self.hparams.batch_tokens
        require(
            not isinstance(self.optimizer, Switch), "batch_change must not be given where the optimizer is switched"
        )
        require(
            change.batch_tokens % batch_tokens == 0,
            f"batch_tokens of a batch_change must be a multiple of the batch before, {batch_tokens}, "
            f"got {change.batch_tokens}",
        )
        require(
            change.at_tokens % batch_tokens == 0,
            f"at_tokens must be whole batches of {batch_tokens} tokens, got {change.at_tokens}",
        )
        left = self.train_tokens - change.at_tokens
        require(
            left >= change.batch_tokens and left % change.batch_tokens == 0,
            f"at_tokens must leave whole batches of {change.batch_tokens} of {self.train_tokens} tokens, "
            f"got {change.at_tokens}, which leaves {left}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `run_config_from_dict` is the inverse."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """`to_dict` without the fields that are at their default: what a trial's id is made of.

        So a field added later, with a default that means what was done before, leaves every id as it was. To
        change a default is to change what old ids mean: raise `sweeps.trial.NUMERICS_VERSION` with it.
        """
        return _without_defaults(self)


def first_steps(run: RunConfig, *, steps: int, batch_tokens: int) -> RunConfig:
    """The first steps alone, at the peak lr throughout; an optimizer switch, if any, comes half way."""
    optimizer = run.optimizer
    if isinstance(optimizer, Switch):
        optimizer = replace(optimizer, at_tokens=batch_tokens * max(1, steps // 2))
    hparams = replace(run.hparams, batch_tokens=batch_tokens, warmup_tokens=0, decay_tokens=0)
    tokens = batch_tokens * steps
    return replace(run, optimizer=optimizer, hparams=hparams, train_tokens=tokens, schedule="wsd", batch_change=None)


def _require_rank_fits(optimizer: PlainOptimizerConfig, model: ModelConfig) -> None:
    """The smaller side of every hidden matrix must have room for the rank."""
    if isinstance(optimizer, RankConfig):
        side = min(model.width, model.mlp_width)
        require(
            optimizer.rank_of(side) <= side,
            f"rank must be at most the smaller side of every hidden matrix, {side} at width {model.width}, "
            f"got {optimizer.rank}; the nearest is {side}",
        )


def _without_defaults(record: Any) -> dict[str, Any]:
    kept = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if is_dataclass(value):
            kept[field.name] = _without_defaults(value)
        elif field.name == "name" or value != field.default:  # an optimizer's name is all that some have
            kept[field.name] = value
    return kept


def run_config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Inverse of `RunConfig.to_dict`.

    Raises:
        ConfigError: a value out of range.
        KeyError, TypeError: not the shape that `to_dict` writes.
    """
    return RunConfig(
        **{
            **values,
            "model": ModelConfig(**values["model"]),
            "optimizer": optimizer_from_dict(values["optimizer"]),
            "hparams": HParams(**values["hparams"]),
            "batch_change": None if values.get("batch_change") is None else BatchChange(**values["batch_change"]),
        }
    )
