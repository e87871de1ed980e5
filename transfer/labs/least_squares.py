"""Muon and its relatives on a quadratic, against the iteration counts published for them.

The linear least squares of Kravatskiy et al. (arXiv:2512.09678, code alexlegeartis/Neon): F(X) = 1/2 <X, M X N> over
500 x 500 matrices, M and N with eigenvalues uniform in (0, 1) and random eigenvectors, X from normal entries of
standard deviation 0.1, constant learning rates as tuned there, three Jordan steps in bfloat16, Nesterov's step.

F-Muon's constant step ends in a cycle whose lowest loss is 0.7e-3 from most starts and about 1.6e-3 from the others,
on either side of the goal: whether it gets there turns on rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from proxy_models.optimizer_config import NSGD, FFanion, Muon, PlainOptimizerConfig, SFanion, SignSGD
from proxy_models.optimizers import update_rule
from proxy_models.optimizers.rules import Coefficients
from proxy_models.roles import Role

SIZE = 500
GOAL = 1e-3
MAX_ITERATIONS = 4000
SEEDS = (42, 43, 44)  # the published runs are of 42


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """An optimizer as tuned in the paper, and how many iterations it took there."""

    name: str
    config: PlainOptimizerConfig
    lr: float
    momentum: float
    orthogonal_frac: float = 0.5
    sign_lr_ratio: float = 0.01
    published_iterations: int


METHODS = (
    Method(
        name="S-Muon",
        config=SFanion(ns_steps=3, ns_dtype="bfloat16"),
        lr=0.011,
        momentum=0.9,
        published_iterations=890,
    ),
    Method(
        name="F-Muon",
        config=FFanion(ns_steps=3, ns_dtype="bfloat16"),
        lr=0.015,
        momentum=0.7,
        published_iterations=910,
    ),
    Method(name="NSGD", config=NSGD(), lr=0.08, momentum=0.95, published_iterations=1020),
    Method(
        name="Muon",
        config=Muon(ns_steps=3, ns_dtype="bfloat16"),
        lr=0.007,
        momentum=0.5,
        published_iterations=1060,
    ),
    Method(name="SignSGD", config=SignSGD(nesterov=True), lr=1.6e-4, momentum=0.95, published_iterations=2650),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """One method from one start. `losses` before each step, up to the first at or below GOAL."""

    method: str
    seed: int
    published_iterations: int
    losses: tuple[float, ...]

    @property
    def iterations(self) -> int | None:
        """Steps to GOAL; None where MAX_ITERATIONS did not reach it."""
        return len(self.losses) - 1 if self.losses[-1] <= GOAL else None

    @property
    def deviation(self) -> float | None:
        """Iterations over the published count, less one."""
        return None if self.iterations is None else self.iterations / self.published_iterations - 1

    def to_json(self) -> dict[str, Any]:
        losses = asdict(self)
        return losses | {
            "losses": self.losses[::10],
            "iterations": self.iterations,
            "deviation": self.deviation,
            "lowest": min(self.losses),
        }


def descend(method: Method, seed: int, *, size: int = SIZE, max_iterations: int = MAX_ITERATIONS) -> Descent:
    """Run one method from one start until GOAL, or max_iterations."""
    left, right, x = quadratic(seed, size)
    rule = update_rule(method.config, Role.HIDDEN)
    state, coefficients = rule.init(x), _coefficients(method)
    losses: list[float] = []
    for step in range(1, max_iterations + 2):
        gradient = left @ x @ right
        losses.append(0.5 * float((x * gradient).sum()))
        if not losses[-1] > GOAL:
            break
        x = x - method.lr * rule.direction(gradient, state, coefficients, step)
    return Descent(
        method=method.name, seed=seed, published_iterations=method.published_iterations, losses=tuple(losses)
    )


def descend_all(
    seeds: Sequence[int], *, on_done: Callable[[Descent], None] = lambda descent: None
) -> Iterator[Descent]:
    """Every method from every start."""
    for seed in seeds:
        for method in METHODS:
            descent = descend(method, seed)
            on_done(descent)
            yield descent


def in_published_order(descents: Sequence[Descent], seed: int) -> bool:
    """Whether S-Muon and F-Muon came before NSGD, NSGD before Muon, and Muon before SignSGD."""
    steps = {d.method: d.iterations for d in descents if d.seed == seed}
    blends, rest = (steps["S-Muon"], steps["F-Muon"]), (steps["NSGD"], steps["Muon"], steps["SignSGD"])
    if None in blends or None in rest:
        return False
    ranked = [max(n for n in blends if n is not None), *(n for n in rest if n is not None)]
    return ranked == sorted(set(ranked))


def quadratic(seed: int, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """M, N (size, size) and the start X (1, 1, size, size), float32."""
    generator = torch.Generator().manual_seed(seed)

    def positive() -> Tensor:
        vectors = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        values = torch.rand(size, generator=generator, dtype=torch.float64)
        return ((vectors * values) @ vectors.T).float()

    return positive(), positive(), 0.1 * torch.randn(1, 1, size, size, generator=generator)


def _coefficients(method: Method) -> Coefficients:
    unused = torch.ones(1)
    return Coefficients(
        beta1=unused,
        beta2=unused,
        eps=unused,
        momentum=torch.tensor(method.momentum),
        orthogonal_frac=torch.tensor(method.orthogonal_frac),
        sign_lr_ratio=torch.tensor(method.sign_lr_ratio),
    )
