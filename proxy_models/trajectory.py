"""What a run's fall of the loss is made of, direction by direction: the trajectory decomposition.

Ghosh, Wu and Bietti ("Understanding the Mechanisms of Fast Hyperparameter Transfer", arXiv:2512.22768). Along the
averaged iterates w_t of a run the loss falls by nearly sum_t <g_t, delta w_t>. A matrix's part in a step is the trace
of its alignment matrix S(G, dW) = (G^T dW + dW^T G)/2; the eigenvalues that are largest in size, of either sign, are
its top-k part.

Two choices are made here. g_t is the mean of the gradient along a step, by Simpson's rule from both ends and the
middle: these runs have hundreds of steps where the paper's have thousands, and on the quick start at its highest
learning rates the gradients of the starts alone add up to a nat (a third) too much, those of both ends (trapezoidal
rule) to 0.1 to 0.2 nats too much, and these are off by 0.002 at most. And every g_t is of one fixed batch, so that the
sum is that of a change of one function, and checks against it: the training batches that would come next after the
run's last. None was trained on, and all runs of a seed share them, whatever their width and learning rate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxy_models.checks import require
from proxy_models.config import RunConfig
from proxy_models.data import TokenData
from proxy_models.roles import Role
from proxy_models.stacks import Stack
from proxy_models.train import Job, Watch, train
from proxy_models.training import Training


@dataclass(frozen=True, kw_only=True, slots=True)
class Following:
    """How the iterates of a run are averaged, how often they are looked at, and on how much data.

    The average's window 1/(1 - decay), a share of the run, and the interval, in steps, grow linearly over the first
    `ramp` of the run and then stay. Windows and intervals are those of the paper's GPT-2 runs (decay .995 to .996 of
    about 3800 steps, every 1 to 2 steps), scaled to the run's length; the ramp is that of its Llama runs (2000 of 7185
    steps). Their windows, from 0.7 % to 28 % of a run, leave the first iterates of a short run as they are.
    """

    first_window: float = 0.052
    last_window: float = 0.066
    ramp: float = 0.28
    first_interval: int = 1
    last_interval: int = 2
    gradient_batches: int = 4  # of the run's own size

    def __post_init__(self) -> None:
        require(
            0 < self.first_window <= self.last_window <= 1,
            f"windows must grow within (0, 1], got {self.first_window} to {self.last_window}",
        )
        require(0 < self.ramp <= 1, f"ramp must be in (0, 1], got {self.ramp}")
        require(
            1 <= self.first_interval <= self.last_interval,
            f"intervals must grow from at least 1, got {self.first_interval} to {self.last_interval}",
        )
        require(self.gradient_batches >= 1, f"gradient_batches must be at least 1, got {self.gradient_batches}")

    def gradients(self, steps: int) -> int:
        """How many of a training batch a run takes: at every snapshot but the first also one halfway to it."""
        return (2 * len(self.snapshots(steps)) - 1) * self.gradient_batches

    def decay(self, step: int, steps: int) -> float:
        """What the average keeps of itself at an update, from 1; a window of at most one step keeps nothing."""
        window = steps * self._grown(self.first_window, self.last_window, step, steps)
        return max(0.0, 1 - 1 / window)

    def snapshots(self, steps: int) -> tuple[int, ...]:
        """The updates after which the average is looked at: 0, the last, and those between at the intervals."""
        kept = [0]
        while kept[-1] < steps:
            kept.append(kept[-1] + round(self._grown(self.first_interval, self.last_interval, kept[-1], steps)))
        return (*kept[:-1], steps)

    def _grown(self, first: float, last: float, step: int, steps: int) -> float:
        return first + (last - first) * min(1.0, step / (self.ramp * steps))


DEFAULT = Following()


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one parameter adds to the change of the loss, in nats."""

    name: str
    role: Role
    shape: tuple[int, ...]
    top: tuple[float, ...]  # of the k directions with the largest |eigenvalue|, k = 1 to the width; a vector's: all

    @property
    def total(self) -> float:
        return self.top[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decomposition:
    """One run's change of the loss, taken apart. Losses in nats per token, on the fixed batch."""

    run: RunConfig
    parts: tuple[Part, ...]
    snapshots: tuple[int, ...]  # updates done
    losses: tuple[float, ...]  # of the averaged iterate at each snapshot
    last_iterate_loss: float
    validation_loss: float  # of the last iterate

    @property
    def change(self) -> float:
        """Of the loss of the averaged iterates, from the first to the last."""
        return self.losses[-1] - self.losses[0]

    @property
    def linearized(self) -> float:
        """What the parts add up to: nearly `change`."""
        return sum(part.total for part in self.parts)

    @property
    def top(self) -> tuple[float, ...]:
        """The top-k loss: all vectors, and k directions of every matrix, k = 1 to the width."""
        width = self.run.model.width
        return tuple(sum(part.top[min(k, len(part.top) - 1)] for part in self.parts) for k in range(width))


def decompose_run(
    run: RunConfig, data: TokenData, *, following: Following = DEFAULT, on_step: Callable[[int], None] | None = None
) -> Decomposition | None:
    """Train a run and take its change of the loss apart; None if it diverges."""
    follower = _Follower(run, following)
    on_member_step = (lambda member, done, loss: on_step(done)) if on_step else None
    ((_, outcome),) = train([Job(run=run)], data, watch=Watch(on_step=on_member_step, follow=follower.follow))
    if outcome.validation_loss is None:
        return None
    assert follower.training is not None
    loss, _ = follower.loss_and_gradients(follower.training.weights)
    return Decomposition(
        run=run,
        parts=tuple(follower.parts()),
        snapshots=follower.snapshots,
        losses=tuple(follower.losses),
        last_iterate_loss=loss,
        validation_loss=outcome.validation_loss,
    )


def alignment_eigenvalues(gradients: Tensor, steps: Tensor) -> Tensor:
    """Eigenvalues of S(G, dW) of (..., m, n) matrices, largest |.| first: (..., n). Transposed, it is the row version.

    They add up to <G, dW>. S is formed and taken apart in float64.
    """
    product = gradients.double().mT @ steps.double()
    eigenvalues = torch.linalg.eigvalsh((product + product.mT) / 2)
    return eigenvalues.gather(-1, eigenvalues.abs().argsort(dim=-1, descending=True))


def top_parts(stack: Stack, gradients: Tensor, steps: Tensor, *, width: int) -> Tensor:
    """Sums over the top k directions, for k = 1 to the width, of (layers, *shape): (layers, width).

    The alignment matrix is on the side that is as long as the width, which every matrix of a model has: columns
    where both are, so that k means the same in all of them. Of a vector, the whole inner product: (layers, 1).
    """
    if stack.role is Role.VECTOR:
        return (gradients.double() * steps.double()).sum(-1, keepdim=True)
    if stack.shape[-1] != width:
        gradients, steps = gradients.mT, steps.mT
    return alignment_eigenvalues(gradients, steps).cumsum(-1)


@dataclass(slots=True)
class _Snapshot:
    weights: list[Tensor]
    gradients: list[Tensor]


@dataclass(slots=True)
class _Follower:
    """Keeps the average of one run's iterates, and adds up what its steps do."""

    run: RunConfig
    following: Following
    training: Training | None = None
    averages: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tops: list[Tensor] = field(default_factory=list)  # of each stack, (layers, width)
    last: _Snapshot | None = None
    windows: tuple[Tensor, ...] = ()
    snapshots: tuple[int, ...] = ()

    def follow(self, training: Training, done: int) -> None:
        if done == 0:
            self._begin(training)
        keep = self.following.decay(done, self.run.steps) if done else 0.0
        with torch.no_grad():
            for average, weight in zip(self.averages, training.weights, strict=True):
                average.lerp_(weight, 1 - keep)
        if done in self.snapshots:
            self._look(training)

    def _begin(self, training: Training) -> None:
        steps, batches = self.run.steps, self.following.gradient_batches
        self.training = training
        self.averages = [weight.detach().clone() for weight in training.weights]
        self.windows = tuple(training.windows(step) for step in range(steps, steps + batches))
        self.snapshots = self.following.snapshots(steps)

    def _look(self, training: Training) -> None:
        loss, gradients = self.loss_and_gradients(self.averages)
        now = _Snapshot([average.clone() for average in self.averages], gradients)
        self.losses.append(loss)
        if self.last is not None:
            parts = list(self._step_parts(training, self.last, now))
            self.tops = [a + b for a, b in zip(self.tops, parts, strict=True)] if self.tops else parts
        self.last = now

    def _step_parts(self, training: Training, before: _Snapshot, after: _Snapshot) -> Iterator[Tensor]:
        middle = [(a + b) / 2 for a, b in zip(before.weights, after.weights, strict=True)]
        _, halfway = self.loss_and_gradients(middle)
        for i, stack in enumerate(training.layouts):
            gradient = (before.gradients[i] + 4 * halfway[i] + after.gradients[i])[0] / 6
            step = (after.weights[i] - before.weights[i])[0]
            yield top_parts(stack, gradient, step, width=self.run.model.width)

    def loss_and_gradients(self, weights: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """Of the fixed batch, a training batch at a time."""
        assert self.training is not None
        leaves = [weight.detach().requires_grad_() for weight in weights]
        losses, gradients = zip(*(self.training.gradients(part, leaves) for part in self.windows), strict=True)
        means = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
        return torch.stack(losses).double().mean().item(), means

    def parts(self) -> Iterator[Part]:
        assert self.training is not None
        for stack, tops in zip(self.training.layouts, self.tops, strict=True):
            for name, top in zip(stack.names, tops.tolist(), strict=True):
                yield Part(name=name, role=stack.role, shape=stack.shape, top=tuple(top))
