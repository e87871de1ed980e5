"""Small networks on scikit-learn's digits, trained by Muon side by side: what `muon_digits` measures on.

A 64-32-32-10 network with ReLU and no biases on 1797 images of 8 x 8 pixels, every weight trained by

    M <- beta M + (1 - beta) g
    C = beta M + (1 - beta) g with Nesterov's step, M without
    W <- (1 - lr wd) W - lr polar(C)

on batches drawn with replacement. Tensors are (settings, seeds, fan_out, fan_in).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.interval import Floats
from analysis.sfo_bound import MuonSetting, check_decay
from proxy_models.checks import ConfigError
from proxy_models.optimizers.orthogonalize import orthogonalize
from proxy_models.optimizers.rules import Averaged, Coefficients, State

SIZES = (64, 32, 32, 10)
EVALUATED = 512  # images, the first ones, whose loss is followed: the same for all runs
# The spectral norm of an update is lr: REACH is how far a weight may go, in that norm, over a whole run. Large batches
# reach a loss of 0.1 within a fifth of it, and what has not come there by the end fluctuates around a floor.
REACH = 6.0
_FIRST = 0.4  # of that distance, before the loss is followed: by then it has come down to 1.5 or so
_PER_OCTAVE = 8  # evaluations
_SMOOTHED = 3  # the last evaluations, over which a loss is averaged: a quarter octave of steps


class Images(NamedTuple):
    """Pixels (1797, 64), centered and together of unit variance, and digits (1797,)."""

    pixels: Tensor
    digits: Tensor


@cache
def images() -> Images:
    """scikit-learn's digits.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the digits come with scikit-learn, which is not installed; "
            "install it from the checkout: pip install -c constraints.txt -e '.[labs]'"
        ) from error
    loaded = load_digits()
    pixels = torch.tensor(loaded.data, dtype=torch.float32)
    pixels = pixels - pixels.mean(dim=0)
    return Images(pixels / pixels.std(), torch.tensor(loaded.target))


class Gradients(NamedTuple):
    """Mean cross-entropies (settings, seeds), nats, and gradients in the shapes of the weights."""

    losses: Tensor
    weights: list[Tensor]


def initialize(n_settings: int, seeds: Sequence[int]) -> list[Tensor]:
    """Equal networks for all settings: variance 2 / fan_in, and 1 / fan_in in the last layer."""
    weights = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(SIZES)):
        gain = 1.0 if layer == len(SIZES) - 2 else 2.0
        drawn = torch.stack([torch.randn(fan_out, fan_in, generator=_generator(seed, layer)) for seed in seeds])
        weights.append((drawn * math.sqrt(gain / fan_in)).repeat(n_settings, 1, 1, 1))
    return weights


def gradients(weights: Sequence[Tensor], x: Tensor, digits: Tensor) -> Gradients:
    """In closed form, on x (seeds, 64, batch) and digits (seeds, batch)."""
    activations = [x]
    for weight in weights[:-1]:
        activations.append((weight @ activations[-1]).clamp_(min=0))
    logits = weights[-1] @ activations[-1]  # (settings, seeds, 10, batch)
    n_settings, _, _, batch = logits.shape
    right = digits[None, :, None].expand(n_settings, -1, 1, -1)
    losses = (logits.logsumexp(dim=2) - logits.gather(2, right)[:, :, 0]).mean(dim=-1)
    pull = logits.softmax(dim=2).scatter_add_(2, right, torch.full_like(right, -1, dtype=logits.dtype)).div_(batch)
    found: list[Tensor] = []
    for layer in reversed(range(len(weights))):
        found.append(pull @ activations[layer].mT)
        if layer:
            pull = (weights[layer].mT @ pull).mul_(activations[layer] > 0)
    return Gradients(losses, found[::-1])


def losses(weights: Sequence[Tensor], x: Tensor, digits: Tensor) -> Tensor:
    """Mean cross-entropies (settings, seeds), nats, on x (64, n) and digits (n,)."""
    activation = x
    for weight in weights[:-1]:
        activation = (weight @ activation).clamp_(min=0)
    logits = weights[-1] @ activation
    picked = logits.gather(2, digits.expand(*logits.shape[:2], 1, -1))[:, :, 0]
    return (logits.logsumexp(dim=2) - picked).mean(dim=-1)


@dataclass(kw_only=True, slots=True)
class Stack:
    """Networks of settings that differ in momentum and weight decay, updated in place."""

    weights: list[Tensor]
    states: list[State]
    rule: Averaged
    coefficients: Coefficients
    shrinks: Tensor  # (settings, 1, 1, 1): lr * weight_decay
    lr: float

    @classmethod
    def of(cls, settings: Sequence[MuonSetting], lr: float, seeds: Sequence[int]) -> "Stack":
        """Raises:
        FitError: lr * weight_decay is above 1.
        ValueError: settings with and without Nesterov's step, which need a stack each.
        """
        (nesterov,) = {setting.nesterov for setting in settings}
        for setting in settings:
            check_decay(lr, setting.weight_decay)
        weights, rule = initialize(len(settings), seeds), Averaged(transform=_polar, nesterov=nesterov)
        return cls(
            weights=weights,
            states=[rule.init(weight) for weight in weights],
            rule=rule,
            coefficients=_coefficients(_column([setting.momentum for setting in settings])),
            shrinks=_column([lr * setting.weight_decay for setting in settings]),
            lr=lr,
        )

    def step(self, found: Sequence[Tensor], count: int) -> None:
        """One update of every weight; `count` is 1 for the first."""
        for weight, state, gradient in zip(self.weights, self.states, found, strict=True):
            direction = self.rule.direction(gradient, state, self.coefficients, count)
            weight.mul_(1 - self.shrinks).sub_(direction, alpha=self.lr)

    def keep(self, rows: Tensor) -> None:
        """Go on with these settings alone."""
        self.weights = [weight[rows] for weight in self.weights]
        self.states = [{name: part[rows] for name, part in state.items()} for state in self.states]
        self.coefficients = _coefficients(self.coefficients.momentum[rows])
        self.shrinks = self.shrinks[rows]


def _polar(x: Tensor, c: Coefficients) -> Tensor:
    return orthogonalize(x, schedule="polar_express", n_steps=5, dtype="float32")


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def _coefficients(momentum: Tensor) -> Coefficients:
    """Of a rule that has a momentum and nothing else."""
    none = torch.zeros(())
    return Coefficients(beta1=none, beta2=none, eps=none, momentum=momentum, orthogonal_frac=none, sign_lr_ratio=none)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + stream)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """The loss of one setting at one batch and learning rate, over its seeds."""

    setting: MuonSetting
    batch: int  # examples
    lr: float
    steps: tuple[int, ...]  # (e,) at which the loss was taken
    losses: Floats  # (seeds, e) nats; NaN from where every seed was below the target

    @property
    def budget(self) -> int:
        return self.steps[-1]

    def steps_to(self, target: float, rows: NDArray[np.intp] | None = None) -> float | None:
        """Steps until the mean loss of the seeds, averaged over a quarter octave of steps, is at the target.

        Interpolated in the logarithms of steps and loss. None where it was not reached. `rows` are seeds, repeated or
        left out, for a bootstrap.
        """
        curve = (self.losses if rows is None else self.losses[rows]).mean(axis=0)
        smooth = np.array([curve[max(i + 1 - _SMOOTHED, 0) : i + 1].mean() for i in range(len(curve))])
        below = np.flatnonzero(smooth <= target)
        if not below.size:
            return None
        at = int(below[0])
        if at == 0:
            return float(self.steps[0])
        log_losses, log_steps = np.log(smooth[at - 1 : at + 1]), np.log(self.steps[at - 1 : at + 1])
        return float(np.exp(np.interp(-math.log(target), -log_losses, log_steps)))


def evaluations(lr: float) -> tuple[int, ...]:
    """The steps at which a run's loss is taken, the last one its end."""
    n = int(_PER_OCTAVE * math.log2(REACH / _FIRST))
    steps = {round(REACH / lr * 2.0 ** (-k / _PER_OCTAVE)) for k in range(n + 1)}
    return tuple(sorted(step for step in steps if step >= 1))


def train(settings: Sequence[MuonSetting], *, batch: int, lr: float, seeds: Sequence[int], target: float) -> list[Run]:
    """One run a setting, until every seed's smoothed loss is below the target or the reach is used up.

    All settings see the same images in the same order.

    Raises:
        ConfigError: scikit-learn is not installed.
        FitError: lr * weight_decay is above 1.
        ValueError: settings with and without Nesterov's step.
    """
    pixels, digits = images()
    stack, steps = Stack.of(settings, lr, seeds), evaluations(lr)
    drawn = torch.stack([_order(seed, batch, steps[-1], len(digits)) for seed in seeds])  # (seeds, steps, batch)
    shown, wanted = pixels[:EVALUATED].T, digits[:EVALUATED]
    found = np.full((len(settings), len(seeds), len(steps)), np.nan)
    alive = np.arange(len(settings))
    for i, (before, at) in enumerate(zip((0, *steps), steps, strict=False)):
        for step in range(before, at):
            index = drawn[:, step]
            stack.step(gradients(stack.weights, pixels[index].mT, digits[index]).weights, step + 1)
        found[alive, :, i] = losses(stack.weights, shown, wanted).double().numpy()
        recent = found[alive, :, max(i + 1 - _SMOOTHED, 0) : i + 1].mean(axis=-1)
        going = ~(recent <= target).all(axis=-1)
        if not going.all():
            alive = alive[going]
            stack.keep(torch.from_numpy(going))
        if not alive.size:
            break
    return [
        Run(setting=setting, batch=batch, lr=lr, steps=steps, losses=curve)
        for setting, curve in zip(settings, found, strict=True)
    ]


def _order(seed: int, batch: int, n_steps: int, n_images: int) -> Tensor:
    return torch.randint(n_images, (n_steps, batch), generator=_generator(seed, 100 + batch))
