"""The workload's trials as a user of torch, Ray Tune and Optuna writes them, without this project's engine.

The model's code, the initial weights and the batches are the project's, so that the losses must agree; the training
loop, the optimizer and the orchestration are torch's, Ray's and Optuna's own.
"""

import time
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.support.workload import Workload
from proxy_models.config import RunConfig
from proxy_models.data import TokenData, batch, load_data, validation_windows
from proxy_models.parametrization import scale_role
from proxy_models.schedule import schedule_factor
from proxy_models.stacks import Stack, build_model, by_name, initialize, layout

VALIDATION_BATCH = 32  # sequences


def train(run: RunConfig, data: TokenData) -> float:
    """Final held-out loss, nats per token: a module, parameter groups by role, clipping, AdamW, a schedule."""
    model, layouts = _initialized(run)
    optimizer = _optimizer(run, model, layouts)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(run, step))
    curve = []
    for step in range(run.steps):
        hp, seq_len = run.hparams, run.model.seq_len
        windows = torch.from_numpy(batch(data, seed=run.seed, step=step, batch_tokens=hp.batch_tokens, seq_len=seq_len))
        loss = _loss(model, windows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), hp.clip_norm)
        optimizer.step()
        scheduler.step()
        curve.append(loss.item())
    return _validate(model, run, data)


def _initialized(run: RunConfig) -> tuple[nn.Module, tuple[Stack, ...]]:
    model = build_model(run)
    layouts = layout(model)
    weights = by_name(layouts, [initialize(stack, [run])[0] for stack in layouts])
    model.load_state_dict(weights)
    return model, layouts


def _optimizer(run: RunConfig, model: nn.Module, layouts: tuple[Stack, ...]) -> torch.optim.Optimizer:
    groups = []
    for stack in layouts:
        scale = scale_role(run, stack.role)
        groups.append(
            {
                "params": [model.get_parameter(name) for name in stack.names],
                "lr": scale.effective_lr,
                "eps": scale.effective_eps,
                "weight_decay": scale.effective_weight_decay,
            }
        )
    return torch.optim.AdamW(groups, betas=(run.hparams.beta1, run.hparams.beta2), fused=True)


def _loss(model: nn.Module, windows: Tensor) -> Tensor:
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def _validate(model: nn.Module, run: RunConfig, data: TokenData) -> float:
    windows = torch.from_numpy(
        validation_windows(data, validation_tokens=run.validation_tokens, seq_len=run.model.seq_len)
    )
    parts = windows.split(VALIDATION_BATCH)
    return sum(_loss(model, part).item() * len(part) for part in parts) / len(windows)


@lru_cache(maxsize=1)
def _data(workload: Workload) -> TokenData:
    """Read once a process."""
    model = workload.run(*workload.grid[0]).model
    return load_data(workload.source, vocab_size=model.vocab_size, seq_len=model.seq_len)


def trial(workload: Workload, place: tuple[int, float, int]) -> dict[str, float]:
    """One trial in this process, with one thread: its loss, and the seconds of its training alone."""
    torch.set_num_threads(1)
    data = _data(workload)
    start = time.perf_counter()
    loss = train(workload.run(*place), data)
    return {"loss": loss, "train_seconds": time.perf_counter() - start}


def with_ray(workload: Workload, *, reuse_actors: bool, workers: int, scratch: str) -> list[dict[str, Any]]:
    """A grid search by Ray Tune over a function, in new processes or in reused ones."""
    import ray
    from ray import tune

    def trainable(config: dict[str, Any]) -> None:
        tune.report(trial(workload, workload.grid[config["trial"]]))

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    grid = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"trial": tune.grid_search(list(range(len(workload.grid))))},
        tune_config=tune.TuneConfig(reuse_actors=reuse_actors, max_concurrent_trials=workers),
        run_config=tune.RunConfig(storage_path=scratch, verbose=0),
    ).fit()
    ray.shutdown()
    metrics = {result.metrics["config"]["trial"]: result.metrics for result in grid}
    return [{name: metrics[i][name] for name in ("loss", "train_seconds")} for i in range(len(workload.grid))]


def with_optuna(workload: Workload) -> list[dict[str, Any]]:
    """A grid search by Optuna, trial after trial in this process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    outcomes: dict[int, dict[str, float]] = {}

    def objective(asked: optuna.Trial) -> float:
        index = asked.suggest_categorical("trial", range(len(workload.grid)))
        outcomes[index] = trial(workload, workload.grid[index])
        return outcomes[index]["loss"]

    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"trial": range(len(workload.grid))}))
    study.optimize(objective)
    return [outcomes[i] for i in range(len(workload.grid))]
