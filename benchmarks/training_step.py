"""A training step of a proxy, by width: ours against the same model under torch's autograd and torch.optim.AdamW.

The two are interleaved, and the medians compared: `python benchmarks/training_step.py` prints one JSON document.
Ours keeps weights and gradients in stacks, one tensor for all parameters of a role and shape.
"""

import json
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.support.turns import median_seconds
from proxy_models.accounting import training_flops
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, load_data
from proxy_models.optimizer_config import AdamW
from proxy_models.outcome import matmul_peak
from proxy_models.parametrization import scale_role
from proxy_models.stacks import build_model, parameters_of
from proxy_models.training import Training

REPETITIONS = 20


def main() -> None:
    torch.set_num_threads(1)
    data = load_data(DataSource(), vocab_size=256, seq_len=128)
    rows = []
    for width in (32, 64, 128, 256):
        run = RunConfig(
            model=ModelConfig(width=width),
            optimizer=AdamW(),
            hparams=HParams(lr=2.0**-6, clip_norm=1.0),
            base_width=32,
            train_tokens=1024 * 1000,
            validation_tokens=1024,
            seed=0,
        )
        training = Training([run], data)
        seconds = median_seconds({"ours": training.step, "torch": torch_step(training)}, REPETITIONS)
        ours, theirs = seconds["ours"], seconds["torch"]
        rows.append(
            {
                "width": width,
                "ours_ms": 1e3 * ours,
                "torch_ms": 1e3 * theirs,
                "torch_over_ours": theirs / ours,
                "matmul_utilization": training_flops(run) / run.steps / ours / matmul_peak(),
            }
        )
    print(json.dumps({"benchmark": "training_step", "torch": torch.__version__, "rows": rows}, indent=1))


def torch_step(training: Training) -> Callable[[], object]:
    """The same step as a user of torch writes it: a module, parameter groups by role, clipping, AdamW."""
    run, model = training.runs[0], build_model(training.runs[0])
    with torch.no_grad():
        for name, value in parameters_of(training.layouts, training.weights, 0).items():
            model.get_parameter(name).copy_(value)
    groups = [
        {
            "params": [model.get_parameter(name) for name in stack.names],
            "lr": scale_role(run, stack.role).effective_lr,
            "eps": scale_role(run, stack.role).effective_eps,
        }
        for stack in training.layouts
    ]
    optimizer = torch.optim.AdamW(groups, betas=(run.hparams.beta1, run.hparams.beta2), weight_decay=0.0)

    def step() -> None:
        windows = training.windows(0)[0]
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


if __name__ == "__main__":
    main()
