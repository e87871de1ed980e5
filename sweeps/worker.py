"""What a worker process does with a pack, whichever backend started it."""

import errno
import gc
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from proxy_models.data import DataError, DataSource, TokenData, load_data_once
from proxy_models.member_state import MemberState
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, Watch, train
from sweeps.checkpoints import read_checkpoint, read_fork, remove_checkpoint, write_checkpoint, write_fork
from sweeps.halving import Rungs
from sweeps.pack import Fork, Pack
from sweeps.progress import Reporter
from sweeps.provenance import provenance
from sweeps.run import OnEvent, TrialFinished
from sweeps.stopping import stopped_result
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult, TrialStatus

CHECKPOINT_SECONDS = 60.0  # of training, between states on disk: what a lost worker costs at most

Group = tuple[Trial, ...]  # trained by one call, in this order


def prepare_process() -> None:
    """One thread and deterministic kernels, so that a trial gives the same numbers wherever it runs."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.set_num_threads(1)
    # As torch.use_deterministic_algorithms(True), which also loads torch's compiler: a second of every process.
    torch.set_deterministic_debug_mode("error")


def run_pack(
    pack: Pack,
    *,
    data_source: DataSource | TokenData,
    store: ResultStore,
    on_event: OnEvent,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train the pack's trials that have no result and commit each as soon as it is known.

    A trial goes on from its own last state, else from its fork. An exception in one trial is recorded as its failure,
    and the others go on; among stacked ones, and where they want more memory than there is, halves are tried again.

    Raises:
        DataError: the data cannot be read, or is not what the trials were planned for.
        StoreError, OSError: a result or a state cannot be recorded.
    """
    data = data_of(pack.trials[0], data_source)
    waiting = tuple(trial for trial in pack.trials if not store.is_committed(trial.trial_id))
    groups = [waiting] if waiting else []
    with Reporter(store.folder, pack.trials) as reporter:
        rungs = None if pack.stopping is None else Rungs(pack, pack.stopping, store)
        work = _Work(pack, data, store, on_event, reporter, checkpoint_seconds, rungs)
        while groups:
            groups = work.train(groups[0], groups[1:])


@dataclass(frozen=True, slots=True)
class _Work:
    """One pack in this process."""

    pack: Pack
    data: TokenData
    store: ResultStore
    on_event: OnEvent
    reporter: Reporter
    checkpoint_seconds: float
    rungs: Rungs | None

    def train(self, group: Group, waiting: Sequence[Group]) -> list[Group]:
        """Train some trials, committing each; returns the groups that are then left to train."""
        outcomes, left = self._outcomes(group), dict(enumerate(group))
        self.reporter.begin(group)
        while left:
            try:
                member, outcome = next(outcomes)
            except Exception as error:
                if isinstance(error, OSError) and not is_out_of_memory(error):
                    raise
                waiting = self._after(error, tuple(left.values()), waiting)
                break
            self.reporter.finish(member)
            self._commit(left.pop(member), outcome)
        if left:
            free_memory()
        return list(waiting)

    def _outcomes(self, group: Group) -> Iterator[tuple[int, TrainOutcome]]:
        watch = Watch(
            on_step=self.reporter.on_step,
            on_state=lambda member, state: self._save(group[member], state),
            state_seconds=self.checkpoint_seconds,
            diagnose_every=self.pack.diagnose_every,
            noise_every=self.pack.noise_every,
        )
        yield from train(
            [self._job(trial) for trial in group],
            self.data,
            mode=self.pack.mode,
            watch=watch,
            rungs=() if self.rungs is None else self.rungs.steps,
            halt=None if self.rungs is None else self.rungs.halt(group),
        )

    def _job(self, trial: Trial) -> Job:
        start = read_checkpoint(self.store.folder, trial.trial_id, self.pack.mode)
        fork = self.pack.starts.get(trial.trial_id)
        if start is None and fork is not None:
            trunk = read_fork(self.store.folder, fork, self.pack.mode)
            start = None if trunk is None else replace(trunk, inherited_steps=fork.step, train_seconds=0.0)
        return Job(run=trial.run, start=start, save_at=self.pack.forks.get(trial.trial_id, ()))

    def _save(self, trial: Trial, state: MemberState) -> None:
        if state.step in self.pack.forks.get(trial.trial_id, ()):
            fork = Fork(trunk_id=trial.trial_id, step=state.step)
            write_fork(self.store.folder, fork, self.pack.mode, state)
        else:
            write_checkpoint(self.store.folder, trial.trial_id, self.pack.mode, state)

    def _commit(self, trial: Trial, outcome: TrainOutcome) -> None:
        if self.rungs is not None and outcome.stopped_step is not None:
            result = stopped_result(trial, self.rungs.stops[trial.trial_id])
        else:
            result = result_of(trial, outcome)
            if outcome.diagnostics:  # first, so that a result never lacks what was asked for
                self.store.record_diagnostics(trial.trial_id, outcome.diagnostics)
            self.store.commit(result)
        remove_checkpoint(self.store.folder, trial.trial_id)
        self.on_event(TrialFinished(result=result))

    def _after(self, error: Exception, left: Group, waiting: Sequence[Group]) -> list[Group]:
        """The groups to go on with. A loop without rungs trains in order, so there the first one left raised; else
        the group is halved, and stops no more trials."""
        in_order = self.pack.mode.executor == "loop" and self.rungs is None
        if in_order or len(left) == 1:
            self.store.record_failure(left[0], describe(error), provenance())
            return [left[1:], *waiting] if left[1:] else list(waiting)
        size = (len(left) + 1) // 2
        if is_out_of_memory(error):
            waiting = [part for group in waiting for part in _split(group, size)]
        return [*_split(left, size), *waiting]


def _split(group: Group, size: int) -> list[Group]:
    return [group[start : start + size] for start in range(0, len(group), size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory could not be had: a GPU's, or this process's, from PyTorch, Python or the system."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "cublas_status_alloc_failed",
)


def free_memory() -> None:
    """Give back what the last group held, so that the next may have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(error: BaseException) -> str:
    """Kind, message and innermost place of an exception, without the paths of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def data_of(trial: Trial, source: DataSource | TokenData) -> TokenData:
    """The trial's tokens, as they are given or read once a process.

    Raises:
        DataError: they cannot be read, or are not what the trial was planned for.
    """
    model = trial.run.model
    if isinstance(source, TokenData):
        data = source
    else:
        data = load_data_once(source, vocab_size=model.vocab_size, seq_len=model.seq_len)
    if data.fingerprint != trial.data_fingerprint:
        raise DataError(
            f"{data.description}: its fingerprint is {data.fingerprint}, and the trials were planned for "
            f"{trial.data_fingerprint}. Give every worker the same data; the standard library differs between "
            "versions of Python."
        )
    return data


def result_of(trial: Trial, outcome: TrainOutcome) -> TrialResult:
    """What training the trial gave, as it is recorded."""
    return TrialResult(
        trial=trial,
        status=TrialStatus.COMPLETED if outcome.diverged_step is None else TrialStatus.DIVERGED,
        validation_loss=outcome.validation_loss,
        validation_loss_se=outcome.validation_loss_se,
        diverged_step=outcome.diverged_step,
        curve_steps=outcome.curve_steps,
        curve_losses=outcome.curve_losses,
        train_seconds=outcome.train_seconds,
        tokens_per_second=outcome.tokens_per_second,
        flops=outcome.flops,
        flops_utilization=outcome.flops_utilization,
        mode=outcome.mode.name,
        provenance=provenance(),
    )
