"""A sweep's runs, trained anew with their trajectories taken apart (`proxy_models.trajectory`), and what they show."""

import math
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.interval import Floats
from analysis.trajectory import TopLosses, TrajectoryStudy, study
from proxy_models.accounting import training_flops
from proxy_models.config import RunConfig
from proxy_models.data import TokenData
from proxy_models.trajectory import Decomposition, Following, Part, decompose_run
from sweeps.spec import SpecError, SweepSpec, axes_of, run_config


def plan(spec: SweepSpec, optimizer: str, seeds: int) -> tuple[RunConfig, ...]:
    """The spec's runs over width, lr and its first seeds; any other axis is at its middle.

    Raises:
        SpecError: no such optimizer, or fewer seeds than wanted.
    """
    if optimizer not in spec.optimizers:
        raise SpecError(
            f"{spec.file}: optimizers: has no {optimizer!r}. Give --optimizer one of: {', '.join(spec.optimizers)}."
        )
    if seeds > len(spec.run.seeds):
        raise SpecError(
            f"{spec.file}: run.seeds: has {len(spec.run.seeds)}, fewer than the {seeds} of --seeds. Ask for fewer."
        )
    return tuple(
        run_config(spec, optimizer, width=width, seed=seed, overrides={"lr": lr})
        for width in sorted(spec.run.widths)
        for lr in sorted(axes_of(spec, optimizer)["lr"])
        for seed in spec.run.seeds[:seeds]
    )


def work(run: RunConfig, following: Following) -> float:
    """In FLOPs: the run's own, and those of the gradients at the snapshots."""
    return training_flops(run) * (1 + following.gradients(run.steps) / run.steps)


Done = tuple[RunConfig, Decomposition | None]  # None: it diverged


def decompose_all(
    runs: Sequence[RunConfig], data: TokenData, *, following: Following, workers: int, on_done: Callable[[Done], None]
) -> list[Done]:
    """Every run with its decomposition, in the order of `runs`. The numbers do not depend on `workers`.

    A worker is a process with one thread of torch: threads of one small matrix product wait for each other. With one
    worker it is this process, and torch keeps one thread.
    """
    if workers == 1:
        torch.set_num_threads(1)
        found = []
        for run in runs:
            found.append((run, decompose_run(run, data, following=following)))
            on_done(found[-1])
        return found
    # Forked, a process would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(data, following)) as pool:
        futures = {pool.submit(_decompose, run): run for run in sorted(runs, key=training_flops, reverse=True)}
        done = {}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            on_done((futures[future], future.result()))
    return [(run, done[run]) for run in runs]


_of_worker: tuple[TokenData, Following]  # of this process, where it is a worker


def _begin(data: TokenData, following: Following) -> None:
    """Once a process, so that the data is not sent with every run."""
    global _of_worker
    torch.set_num_threads(1)
    _of_worker = data, following


def _decompose(run: RunConfig) -> Decomposition | None:
    data, following = _of_worker
    return decompose_run(run, data, following=following)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All decompositions of one optimizer, and the study of them."""

    optimizer: str
    following: Following
    decompositions: tuple[Decomposition, ...]
    diverged: tuple[RunConfig, ...]
    study: TrajectoryStudy

    @property
    def errors(self) -> tuple[float, ...]:
        """How far the parts' sum is from the change of the loss, of every run, nats."""
        return tuple(item.linearized - item.change for item in self.decompositions)

    @property
    def best(self) -> Decomposition:
        """The run of the largest width that ended lowest."""
        largest = max(item.run.model.width for item in self.decompositions)
        return min(
            (item for item in self.decompositions if item.run.model.width == largest), key=lambda item: item.losses[-1]
        )

    def to_json(self) -> dict[str, Any]:
        """A document for json.dumps. Losses in nats, k from 1; a run's `parts` are sums over the depth."""
        return {
            "schema_version": 1,
            "optimizer": self.optimizer,
            "following": {name: getattr(self.following, name) for name in Following.__slots__},
            "study": self.study.to_json(),
            "largest_linearization_error": max(map(abs, self.errors)),
            "runs": [_run_json(item) for item in self.decompositions],
            "diverged": [_place_json(run) for run in self.diverged],
        }


def assemble(optimizer: str, following: Following, outcomes: Sequence[Done]) -> Outcome:
    """Means over seeds of the top-k losses, compared over width.

    Raises:
        FitError: too few widths, or too few learning rates at which every run converged.
    """
    done = tuple(item for _, item in outcomes if item is not None)
    diverged = tuple(run for run, item in outcomes if item is None)
    return Outcome(
        optimizer=optimizer,
        following=following,
        decompositions=done,
        diverged=diverged,
        study=study(_curves(done, {(run.model.width, run.hparams.lr) for run in diverged})),
    )


def _curves(done: Sequence[Decomposition], diverged: set[tuple[int, float]]) -> Iterator[TopLosses]:
    seeds: dict[int, dict[float, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    for item in done:
        width, lr = item.run.model.width, item.run.hparams.lr
        if (width, lr) not in diverged:
            seeds[width][lr].append(np.array(item.top))
    for width, by_lr in seeds.items():
        yield TopLosses(
            width=width,
            log2_values=np.log2(sorted(by_lr)),
            top=np.stack([np.mean(by_lr[lr], axis=0) for lr in sorted(by_lr)]),
        )


def kinds(item: Decomposition) -> Mapping[str, Floats]:
    """Top-k losses of every kind of matrix, summed over the depth, (width,)."""
    found: dict[str, Floats] = {}
    for part in item.parts:
        if len(part.top) > 1:
            kind = _kind(part)
            found[kind] = found.get(kind, np.zeros(len(part.top))) + np.array(part.top)
    return found


def _kind(part: Part) -> str:
    """blocks.1.mlp.up.weight is an mlp.up."""
    *path, _ = part.name.split(".")
    return ".".join(path[2:] if path[0] == "blocks" else path)


def _place_json(run: RunConfig) -> dict[str, Any]:
    return {"width": run.model.width, "log2_lr": math.log2(run.hparams.lr), "seed": run.seed}


def _run_json(item: Decomposition) -> dict[str, Any]:
    return _place_json(item.run) | {
        "start_loss": item.losses[0],
        "averaged_loss": item.losses[-1],
        "last_iterate_loss": item.last_iterate_loss,
        "validation_loss": item.validation_loss,
        "change": item.change,
        "linearized": item.linearized,
        "vectors": sum(part.total for part in item.parts if len(part.top) == 1),
        "top": list(item.top),
        "parts": {kind: top.tolist() for kind, top in kinds(item).items()},
    }
