"""The short runs of a coordinate check, shared out among processes of one thread each. The numbers stay the same."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from proxy_models.accounting import training_flops
from proxy_models.config import RunConfig

if TYPE_CHECKING:
    from proxy_models.coord_check import Axis, CoordPoint
    from proxy_models.data import TokenData


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRun:
    """One short run of a coordinate check, and what it is compared along."""

    optimizer: str
    run: RunConfig
    axis: "Axis" = "width"


Runs = Sequence[CheckRun]
FLOPS_OF_A_PROCESS = 1e11  # about what a core does while another process loads torch


def measure(
    runs: Runs, data: "TokenData", *, steps: int, processes: int, on_run: Callable[[], None]
) -> "list[CoordPoint]":
    """The points of every run, in their order; trained here, and in other processes where that is worth it."""
    n = max(1, min(processes, int(sum(training_flops(run.run) for run in runs) / FLOPS_OF_A_PROCESS)))
    shares = [runs[i::n] for i in range(n)]  # neighbors differ in their seed alone, and cost the same
    with ExitStack() as stack:
        others = [stack.enter_context(_Other(share, data, steps)) for share in shares[1:]]
        measured = [_counted(_here(shares[0], data, steps), on_run)]
        measured += [_counted(other.points(), on_run) for other in others]
    return [point for i in range(len(runs)) for point in measured[i % n][i // n]]


def _counted(points: "Iterator[list[CoordPoint]]", on_run: Callable[[], None]) -> "list[list[CoordPoint]]":
    found = []
    for run in points:
        found.append(run)
        on_run()
    return found


def _here(runs: Runs, data: "TokenData", steps: int) -> "Iterator[list[CoordPoint]]":
    from proxy_models.coord_check import activation_sizes
    from sweeps.worker import prepare_process

    prepare_process()
    for run in runs:
        yield activation_sizes(run.optimizer, run.run, data, steps=steps, axis=run.axis)


def _send(runs: Runs, data: "TokenData", steps: int, connection: Connection) -> None:
    """What another process does. Ends without a word when the first one has gone, or was told to."""
    try:
        for points in _here(runs, data, steps):
            connection.send(points)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)


class _Other:
    """Another process with its share of the runs; ended when it is left."""

    def __init__(self, runs: Runs, data: "TokenData", steps: int) -> None:
        self.runs, self.data, self.steps = runs, data, steps
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_send, args=(runs, data, steps, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def __enter__(self) -> "_Other":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def points(self) -> "Iterator[list[CoordPoint]]":
        """Of each run; what the process does not tell, as it was lost, is measured here."""
        told = 0
        try:
            while told < len(self.runs):
                points = self.connection.recv()
                told += 1
                yield points
        except EOFError:
            yield from _here(self.runs[told:], self.data, self.steps)
