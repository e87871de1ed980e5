"""The target's run: what moves from the proxies along batch, tokens and weight decay, and what each number rests on."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.batch_laws import batch_for
from analysis.hp_powers import BATCH, TOKENS, HpShift, prior_hp_powers
from analysis.interval import Interval
from analysis.posterior_line import RestsOn
from analysis.scale_study import OptimizerScales
from analysis.timescale import weight_decay_for
from proxy_models.accounting import n_params
from proxy_models.config import HParams, RunConfig
from proxy_models.optimizer_config import Switch
from proxy_models.parametrization import refuse_overshooting_decay
from sweeps.spec import SweepSpec, TargetSpec, run_config
from transfer.plan import Basis, BatchStagePlan, PlannedSetting

SHIFT_SEED = 20_251_127  # of a shift's draws; fixed, so that equal results give equal plans


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A number for the target and what it rests on."""

    value: float
    rests_on: Basis
    why: str
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetRun:
    """The target's whole run, and how it came about."""

    run: RunConfig
    proxy: RunConfig  # of the fits over width, at the target's width
    batch: Chosen
    weight_decay: Chosen
    shift: HpShift | None  # of lr, octaves; None where neither batch nor tokens move

    @property
    def lr_rests_on(self) -> RestsOn:
        """The weakest of what its moves rest on."""
        strength: tuple[RestsOn, ...] = ("published prior", "fitted here", "measured here")
        bases = ["measured here"] if self.shift is None else [basis for _, basis in self.shift.rests_on]
        return min(bases, key=strength.index)  # type: ignore[arg-type]

    @property
    def lr_move(self) -> str:
        """In words; empty where it does not move."""
        if self.shift is None:
            return ""
        names = {BATCH: "batch", TOKENS: "tokens"}
        sources = dict(self.shift.rests_on)
        over = " and ".join(
            f"{2.0**octaves:.3g} times the {names[scale]} ({sources[scale]})"
            for scale, octaves in self.shift.log2_ratios
            if octaves
        )
        low, high = self.shift.interval.low, self.shift.interval.high
        return f"moved by {self.shift.log2_value:+.2f} [{low:+.2f}, {high:+.2f}] octaves for {over}"


def target_run(
    spec: SweepSpec,
    target: TargetSpec,
    optimizer: str,
    hparams: Mapping[str, Any],
    scales: OptimizerScales | None = None,
) -> TargetRun:
    """The sweep's settings, with these hyperparameters, at the target's width, depth, tokens and batch.

    `hparams` are best at the proxies' batch and longest horizon. A longer run keeps warmup_tokens, and the shares of
    the run before its decay and before an optimizer switch. lr moves by its powers over batch and tokens; weight decay
    by the timescale's law where the sweep fitted one, else by the spec's invariant; beta2 as the spec says.

    Raises:
        ConfigError: no such run can be.
        FitError: as `analysis.timescale.weight_decay_for`.
    """
    proxy = run_config(spec, optimizer, width=target.width, depth=target.depth, seed=target.seeds[0], overrides=hparams)
    tokens = target.train_tokens or proxy.train_tokens
    batch = _batch(target, proxy, scales, tokens)
    batch_tokens, hp = int(batch.value), proxy.hparams
    shift = _lr_shift(spec, scales, batch_tokens / hp.batch_tokens, tokens / proxy.train_tokens)
    longer = tokens / proxy.train_tokens
    config = proxy.optimizer
    if isinstance(config, Switch) and config.at_tokens is not None:
        config = replace(config, at_tokens=int(config.at_tokens * longer))
    beta2 = hp.beta2 if spec.batch is None else spec.batch.beta2_at(hp.beta2, batch_tokens / hp.batch_tokens)
    moved = replace(
        hp,
        lr=hp.lr if shift is None else hp.lr * shift.factor,
        batch_tokens=batch_tokens,
        beta2=beta2,
        decay_tokens=int(hp.decay_tokens * longer),
    )
    run = replace(proxy, optimizer=config, hparams=moved, train_tokens=tokens)
    decay = _weight_decay(run, proxy, scales)
    run = replace(run, hparams=replace(moved, weight_decay=decay.value))
    refuse_overshooting_decay(run)
    return TargetRun(run=run, proxy=proxy, batch=batch, weight_decay=decay, shift=shift)


def _batch(target: TargetSpec, proxy: RunConfig, scales: OptimizerScales | None, tokens: int) -> Chosen:
    """The target's own, or the largest at which its `overhead` is expected where a critical batch was measured."""
    own = proxy.hparams.batch_tokens
    if target.batch_tokens is not None:
        return Chosen(value=target.batch_tokens, rests_on="given", why="the target's own")
    if scales is None or scales.law is None:
        return Chosen(value=own, rests_on="given", why="the proxies', for no critical batch was measured")
    overhead = target.overhead
    expected = batch_for(scales.law, tokens / (1 + overhead), n_params(proxy.model), overhead=overhead)
    return Chosen(
        value=_allowed(expected.value, proxy.model.seq_len, tokens, own),
        rests_on=expected.rests_on,
        why=f"{overhead:.0%} more tokens than small batches need are expected at {expected.value:,.0f} tokens, by the "
        f"law of the critical batch over tokens (level measured here, power {scales.law.over_tokens.rests_on}); this "
        "is the largest power of two of sequences up to a tenth above that",
        interval=expected.interval,
    )


def _allowed(wanted: float, seq_len: int, tokens: int, own: int) -> int:
    """The largest power of two of sequences near `wanted` that divides the run; the proxies' where none does."""
    most = math.floor(math.log2(max(_ABOVE * wanted / seq_len, 1.0)))
    fitting = [seq_len * 2**k for k in range(most + 1) if tokens % (seq_len * 2**k) == 0]
    return max(fitting, default=own)


def _lr_shift(
    spec: SweepSpec, scales: OptimizerScales | None, batch_ratio: float, tokens_ratio: float
) -> HpShift | None:
    ratios = {BATCH: math.log2(batch_ratio), TOKENS: math.log2(tokens_ratio)}
    if not any(ratios.values()):
        return None
    powers = None if scales is None else scales.powers
    rng = np.random.default_rng(SHIFT_SEED)
    return (powers or prior_hp_powers(spec.name)).shift(ratios, rng=rng)


def _weight_decay(run: RunConfig, proxy: RunConfig, scales: OptimizerScales | None) -> Chosen:
    """Of a run whose lr, batch and tokens are set."""
    hp, own = run.hparams, proxy.hparams
    law = None if scales is None else scales.timescale
    if own.weight_decay == 0:
        return Chosen(value=0.0, rests_on="given", why="the sweep's: none")
    if law is not None and law.rests_on != "published prior":
        found = law.at(run.train_tokens / n_params(run.model))
        value = weight_decay_for(found.tau, batch_tokens=hp.batch_tokens, lr=hp.lr, train_tokens=run.train_tokens)
        low, high = (value * found.tau / tau for tau in (found.interval.high, found.interval.low))
        return Chosen(
            value=value,
            rests_on=found.rests_on,
            why=f"its timescale is to be {found.tau:.3g} of the run, by the law over tokens per parameter",
            interval=Interval(low=low, high=high, level=found.interval.level),
        )
    lr_ratio, steps_ratio = hp.lr / own.lr, run.steps / proxy.steps
    kept, divisor = {
        "lr_wd": ("lr * weight_decay", lr_ratio),
        "timescale": ("lr * weight_decay * steps", lr_ratio * steps_ratio),
        "none": ("weight_decay", 1.0),
    }[run.weight_decay_invariant]
    return Chosen(value=own.weight_decay / divisor, rests_on="given", why=f"{kept} stays as at the proxies")


def planned_settings(
    spec: SweepSpec, target: TargetRun, lr_interval: Interval, lr_why: str
) -> tuple[PlannedSetting, ...]:
    """What the scales move, and what does not move, with what each rests on. `lr_interval` is in log2."""
    hp = target.run.hparams
    follows = spec.batch is not None and spec.batch.beta2 == "half_life"
    beta2 = "the sweep's half life in tokens, at this batch" if follows else "the sweep's"
    lr = Chosen(
        value=hp.lr,
        rests_on=target.lr_rests_on,
        why="; ".join(filter(None, (lr_why, target.lr_move))),
        interval=Interval(low=2.0**lr_interval.low, high=2.0**lr_interval.high, level=lr_interval.level),
    )
    chosen = {
        "batch_tokens": target.batch,
        "lr": lr,
        "weight_decay": target.weight_decay,
        **_given(hp, "beta1", "the sweep's"),
        **_given(hp, "beta2", beta2),
        **_given(hp, "momentum", "the sweep's"),
        **_given(hp, "warmup_tokens", "the sweep's"),
        **_given(hp, "decay_tokens", "the sweep's share of the run"),
    }
    return tuple(
        PlannedSetting(name=name, value=float(c.value), interval=c.interval, rests_on=c.rests_on, why=c.why)
        for name, c in chosen.items()
    )


def _given(hp: HParams, name: str, why: str) -> dict[str, Chosen]:
    return {name: Chosen(value=getattr(hp, name), rests_on="given", why=why)}


def planned_warmup(scales: OptimizerScales | None) -> tuple[BatchStagePlan, ...]:
    """What branches from the widest proxy's trunk allowed; nothing where that is one batch throughout."""
    warmups = dict(() if scales is None else scales.warmups)
    stages = warmups[max(warmups)] if warmups else ()
    return tuple(BatchStagePlan(**stage._asdict()) for stage in stages) if len(stages) > 1 else ()


def scale_caveats(target: TargetRun) -> Iterable[str]:
    """What batch and tokens leave in doubt."""
    run, proxy = target.run, target.proxy
    if target.shift is not None:
        differ = [
            f"{run.train_tokens:,} tokens and the proxies on {proxy.train_tokens:,}"
            if run.train_tokens != proxy.train_tokens
            else "",
            f"batches of {run.hparams.batch_tokens:,} tokens and the proxies on {proxy.hparams.batch_tokens:,}"
            if run.hparams.batch_tokens != proxy.hparams.batch_tokens
            else "",
        ]
        yield (
            f"The target trains on {'; on '.join(filter(None, differ))}: the lr is {target.lr_move}. Its loss is not "
            "predicted: the laws over width hold at the proxies' tokens and batch."
        )
    if target.batch.interval is not None and target.batch.interval.high > 4 * target.batch.interval.low:
        yield (
            f"The batch is known to a factor of {target.batch.interval.high / target.batch.interval.low:.0f} only: "
            "measure the critical batch on longer proxies before a costly run."
        )
    shrinks = run.hparams.lr * run.hparams.weight_decay
    if shrinks > MOST_SHRINK:
        yield (
            f"lr * weight_decay is {shrinks:.2f} at the peak: a step forgets more than a tenth of the weights. It must "
            "stay at or below 1 (arXiv:2507.01598)."
        )


_ABOVE = 1.1  # times the batch that is wanted: it is known no better
MOST_SHRINK = 0.1  # of lr * weight_decay without a caveat; above 1 no run is planned
