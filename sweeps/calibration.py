"""What a training step takes on this machine: measured once in a few steps, and remembered.

Measurements are kept by machine, torch version and what was measured, in `mutransfer/calibration.json` in the user's
cache folder. A file that cannot be read or written costs a measurement and nothing else. torch is loaded only to
measure.
"""

import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter, ValidationError

from proxy_models.config import HParams, RunConfig
from proxy_models.mode import Mode
from sweeps.files import replace_file
from sweeps.provenance import cpu_model
from sweeps.trial import canonical_json

if TYPE_CHECKING:
    from proxy_models.data import TokenData

_SCHEMA_VERSION = 1
_WARM_UP_STEPS = 2
_STEPS = 5  # timed at most, of which the median counts
_SECONDS = 3.0  # after which no further step is timed


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """What one training step takes."""

    seconds: float  # a step, for each member of the pack
    compile_seconds: float = 0.0  # what the first step took longer
    peak_bytes: int | None = None  # for each member; None: the device does not tell

    def __post_init__(self) -> None:
        if not (0 < self.seconds < float("inf") and 0 <= self.compile_seconds < float("inf")):
            raise ValueError(f"a step takes a finite time above 0 s and compiling at least 0 s, got {self}")


class DoesNotFitError(RuntimeError):
    """So many members need more memory than there is."""


Measure = Callable[[RunConfig, Mode, int], StepCost]  # raises DoesNotFitError


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What training here depends on."""

    cpu: str
    cores: int
    gpu: str | None  # trade name of the first one that torch sees
    gpus: int
    torch: str  # version
    free_bytes: int  # memory of the GPU if there is one, else of the machine
    has_compiler: bool  # C++, which torch.compile needs

    @property
    def key(self) -> str:
        """What two machines share if a measurement on one holds on the other."""
        return f"{self.cpu}, {self.cores} cores, {self.gpu or 'no GPU'}, torch {self.torch}"


def this_machine() -> Machine:
    """The machine of this process; torch is loaded only where the system shows a GPU."""
    gpu, gpus, free_bytes = _gpu() if Path("/dev/nvidiactl").exists() else (None, 0, _free_memory())
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=gpu,
        gpus=gpus,
        torch=metadata.version("torch"),
        free_bytes=free_bytes,
        has_compiler=any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")),
    )


def _gpu() -> tuple[str | None, int, int]:
    """Name, number and free bytes of what torch sees."""
    import torch

    if not torch.cuda.is_available():
        return None, 0, _free_memory()
    return torch.cuda.get_device_name(0), torch.cuda.device_count(), int(torch.cuda.mem_get_info(0)[0])


def _free_memory() -> int:
    """Bytes that programs can still get; half of all memory where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def calibration_file() -> Path:
    """Where measurements are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mutransfer" / "calibration.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What the file holds."""

    schema_version: int
    step_costs: dict[str, dict[str, StepCost]] = field(default_factory=dict)  # by machine, then by what was measured


_JSON: TypeAdapter[_Record] = TypeAdapter(_Record)


def step_cost(
    run: RunConfig, mode: Mode, members: int, *, machine: Machine, file: Path, measure: Measure | None = None
) -> StepCost:
    """A step's cost in a pack of so many members, from the file or measured now and added to it.

    Of a switched optimizer, the mean over the run's steps.
    """
    measure = measure or measure_step
    phases = run.phases
    ends = [*(start for start, _ in phases[1:]), run.steps]
    costs = [_remembered(phase, mode, members, machine, file, measure) for _, phase in phases]
    shares = [(end - start) / run.steps for (start, _), end in zip(phases, ends, strict=True)]
    return replace(costs[0], seconds=sum(share * cost.seconds for share, cost in zip(shares, costs, strict=True)))


def _remembered(run: RunConfig, mode: Mode, members: int, machine: Machine, file: Path, measure: Measure) -> StepCost:
    what = _key(run, mode, members)
    known = _read(file).get(machine.key, {}).get(what)
    if known is not None:
        return known
    cost = measure(run, mode, members)
    recorded = _read(file)  # another process may have written meanwhile
    recorded.setdefault(machine.key, {})[what] = cost
    record = _Record(schema_version=_SCHEMA_VERSION, step_costs=recorded)
    with suppress(OSError):  # it is then measured again next time
        replace_file(file, _JSON.dump_json(record, indent=1) + b"\n")
    return cost


def _key(run: RunConfig, mode: Mode, members: int) -> str:
    """Names the sizes of a step for people, and by a hash all that its time depends on."""
    model, batch_tokens = run.model, run.hparams.batch_tokens
    content = [asdict(model), asdict(run.optimizer), batch_tokens, mode.name, members]
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]
    return f"{run.optimizer.name} width {model.width} depth {model.depth} {mode.name} x{members} {digest}"


def _read(file: Path) -> dict[str, dict[str, StepCost]]:
    """What is known; nothing where the file is missing, damaged or of another version."""
    try:
        record = _JSON.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return {}
    return record.step_costs if record.schema_version == _SCHEMA_VERSION else {}


def measure_step(run: RunConfig, mode: Mode, members: int) -> StepCost:
    """A step's median time over a few, in this process, under a worker's settings.

    Raises:
        DoesNotFitError: as it says.
    """
    import torch

    try:
        return _measured(run, mode, members)
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(f"{members} members at width {run.model.width}: {error}") from error


def _measured(run: RunConfig, mode: Mode, members: int) -> StepCost:
    import torch

    from proxy_models.training import Training

    data = _random_tokens(run)
    hparams = HParams(lr=1e-4, batch_tokens=run.hparams.batch_tokens)  # too small to diverge
    tokens = run.hparams.batch_tokens * (_WARM_UP_STEPS + _STEPS)
    alone = replace(run, hparams=hparams, train_tokens=tokens, batch_change=None)
    runs = [replace(alone, seed=seed) for seed in range(members)]
    with _worker_settings():
        if mode.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        training = Training(runs, data, mode)

        def timed_step() -> tuple[float, float]:
            start, cpu_start = time.perf_counter(), time.process_time()
            training.step().tolist()  # waits for a GPU
            return time.perf_counter() - start, time.process_time() - cpu_start

        (first, _), *_ = (timed_step() for _ in range(_WARM_UP_STEPS))
        times = [timed_step()]
        while len(times) < _STEPS and sum(wall for wall, _ in times) < _SECONDS:
            times.append(timed_step())
        peak = torch.cuda.max_memory_allocated() // members if mode.device == "cuda" else None
    # On a CPU a step is one thread's work, and what others do on this machine now will not be there for ever.
    seconds = statistics.median(wall if mode.device == "cuda" else cpu for wall, cpu in times)
    return StepCost(
        seconds=seconds / members,
        compile_seconds=max(0.0, first - seconds) if mode.compiled else 0.0,
        peak_bytes=peak,
    )


@contextmanager
def _worker_settings() -> Iterator[None]:
    """One thread and deterministic kernels, as in a worker; what was set before is set again."""
    import torch

    from sweeps.worker import prepare_process

    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    prepare_process()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(deterministic)


def _random_tokens(run: RunConfig) -> "TokenData":
    """Enough of them to draw batches from: a step's time does not depend on what they say."""
    from proxy_models.data import TokenData

    tokens = np.random.default_rng(0).integers(
        run.model.vocab_size, size=4 * run.hparams.batch_tokens + 4 * run.model.seq_len, dtype=np.uint32
    )
    return TokenData(train=tokens, validation=tokens, fingerprint="", description="random tokens")
