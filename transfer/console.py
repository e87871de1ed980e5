"""The terminal: data on stdout, progress and messages on stderr, exit status from what went wrong.

Exit status: 0 done; 1 the work failed; 2 the input is wrong; 3 finished, but some trials failed;
130 and 143 interrupted, and the same command resumes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 15.0  # between plain progress lines
MIN_SHARE = 0.04  # of the work, before the rest is estimated from it: start-up still weighs too much


class TrialsFailed(Exception):
    """The sweep finished, but some trials have no result. Exit status 3."""


def say(message: str) -> None:
    """One line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else there."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Turn what a command raises into one message on stderr and an exit status, never a traceback for bad input."""
    from analysis.interval import FitError
    from proxy_models.checks import ConfigError
    from proxy_models.data import DataError
    from sweeps.run import BackendError, Interrupted
    from sweeps.spec import SpecError
    from sweeps.store import StoreError
    from transfer.folder import FolderError
    from transfer.gate import GateError
    from transfer.make_plan import PlanError
    from transfer.pack_check import PackCheckError

    try:
        yield
    except (SpecError, DataError, StoreError, FitError, PlanError, FolderError, ConfigError) as error:
        _exit(2, f"mutransfer: {error}")
    except (GateError, BackendError, PackCheckError) as error:
        _exit(1, f"mutransfer: {error}")
    except TrialsFailed as error:
        _exit(3, f"mutransfer: {error}")
    except Interrupted as error:
        _exit(error.exit_status, f"mutransfer: {error}; what is recorded stays. Run the same command to go on.")
    except KeyboardInterrupt:
        _exit(130, "mutransfer: interrupted; what is recorded stays. Run the same command to go on.")
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(1)


def _exit(status: int, message: str) -> None:
    say(message)
    sys.exit(status)


class Progress:
    """How far some work is and when it will be done: a bar on a terminal, plain lines elsewhere.

    Work is counted in any unit that is proportional to time, such as FLOPs.
    """

    def __init__(self, title: str, total: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self.title, self.total, self.now = title, total, now
        self.done, self.start, self.last_line = 0.0, now(), now()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self.bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(title, total=total, note="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, work: float, note: str) -> None:
        """Add finished work and show where it stands."""
        self.done += work
        text = f"{note}, {self._left()}"
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=text)
        elif self.now() - self.last_line >= LINE_SECONDS or self.done >= self.total:
            self.last_line = self.now()
            say(f"{self.title}: {100 * self.done / self.total:.0f}% ({text})")

    def _left(self) -> str:
        seconds = self.now() - self.start
        if self.done >= self.total:
            return f"took {duration(seconds)}"
        if self.done < MIN_SHARE * self.total:
            return "estimating the time left"
        return f"about {duration(seconds * (self.total - self.done) / self.done)} left"


def duration(seconds: float) -> str:
    """As people say it: 42 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
