"""What a worker process does with a pack, whichever backend started it."""

import os
import traceback
from functools import lru_cache
from pathlib import Path

import torch

from proxy_models.data import DataError, DataSource, TokenData, load_data
from proxy_models.train import TrainOutcome, train
from sweeps.pack import Pack
from sweeps.provenance import provenance
from sweeps.run import OnEvent, TrialFinished
from sweeps.store import ResultStore
from sweeps.trial import Trial, TrialResult, TrialStatus


def prepare_process() -> None:
    """One thread and deterministic kernels, so that a trial gives the same numbers wherever it runs."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def run_pack(pack: Pack, *, data_source: DataSource, store: ResultStore, on_event: OnEvent) -> None:
    """Train the pack's trials that have no result and commit each as soon as it is known.

    An exception in one trial is recorded as its failure, and the others go on.

    Raises:
        DataError: the data cannot be read, or is not what the trials were planned for.
        StoreError, OSError: a result cannot be recorded.
    """
    data = _data_of(pack, data_source)
    recorded = store.committed_ids()
    waiting = [trial for trial in pack.trials if trial.trial_id not in recorded]
    outcomes = train([trial.run for trial in waiting], data, diagnose_every=pack.diagnose_every)
    while waiting:
        trial = waiting.pop(0)
        try:
            outcome = next(outcomes)
        except Exception as error:
            store.record_failure(trial, describe(error), provenance())
            # A generator that raised is finished.
            outcomes = train([trial.run for trial in waiting], data, diagnose_every=pack.diagnose_every)
        else:
            result = _result_of(trial, outcome)
            if outcome.diagnostics:  # first, so that a result never lacks what was asked for
                store.record_diagnostics(trial.trial_id, outcome.diagnostics)
            store.commit(result)
            on_event(TrialFinished(result=result))


def describe(error: BaseException) -> str:
    """Kind, message and innermost place of an exception, without the paths of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _data_of(pack: Pack, source: DataSource) -> TokenData:
    trial = pack.trials[0]
    data = _load(source, trial.run.model.vocab_size, trial.run.model.seq_len)
    if data.fingerprint != trial.data_fingerprint:
        raise DataError(
            f"{data.description}: its fingerprint is {data.fingerprint}, and the trials were planned for "
            f"{trial.data_fingerprint}. Give every worker the same data; the standard library differs between "
            "versions of Python."
        )
    return data


@lru_cache(maxsize=1)
def _load(source: DataSource, vocab_size: int, seq_len: int) -> TokenData:
    return load_data(source, vocab_size=vocab_size, seq_len=seq_len)


def _result_of(trial: Trial, outcome: TrainOutcome) -> TrialResult:
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
        provenance=provenance(),
    )
