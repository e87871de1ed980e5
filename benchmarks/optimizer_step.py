"""One optimizer step over many same-shaped matrices: ours, stacked, against torch.optim, interleaved medians.

`python benchmarks/optimizer_step.py` prints one JSON document. torch.optim.Muon loops over parameters and always
iterates in bfloat16; `torch_float32` is the same loop with its iteration in float32, so the same work as ours. How
much of it there is to gain, `muon_over_matmul_peak` tells: the share of this core's float32 matmul rate at which
our step multiplies matrices. Then every optimizer's step as a share of a training step of the quick start's proxies.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from benchmarks.support.turns import median_seconds
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, load_data
from proxy_models.optimizer_config import OPTIMIZERS as KINDS
from proxy_models.optimizer_config import AdamW, Muon, OptimizerConfig
from proxy_models.optimizers import Optimizer
from proxy_models.outcome import matmul_peak
from proxy_models.roles import Role
from proxy_models.stacks import Stack
from proxy_models.training import Training
from sweeps.provenance import cpu_model

CASES = ((96, 32, 32), (96, 64, 64), (48, 64, 256), (48, 128, 128), (12, 256, 256))
REPETITIONS = 15
ONE = torch.ones(1)
OPTIMIZERS = {
    **{name: record() for name, record in KINDS.items() if name != "switch"},
    "simplified_muon": Muon(ns_schedule="svd", nesterov=False),
}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for count, fan_out, fan_in in CASES:
        gradients = torch.randn(count, fan_out, fan_in, generator=torch.Generator().manual_seed(0))
        muon, theirs = ours_step(Muon(), gradients), torch_muon_step(gradients)
        works = {
            "muon": muon,
            "torch_muon": theirs,
            "torch_muon_float32": lambda step=theirs: in_float32(step),
            "adamw": ours_step(AdamW(), gradients),
            "torch_adamw": torch_adamw_step(gradients),
        }
        ms = {name: 1e3 * seconds for name, seconds in median_seconds(works, REPETITIONS).items()}
        rows.append(
            {
                "matrices": f"{count} x {fan_out} x {fan_in}",
                "ms": ms,
                "torch_muon_over_ours": ms["torch_muon"] / ms["muon"],
                "torch_muon_float32_over_ours": ms["torch_muon_float32"] / ms["muon"],
                "our_adamw_over_torch": ms["adamw"] / ms["torch_adamw"],
                "muon_over_matmul_peak": newton_schulz_flops(count, fan_out, fan_in) / ms["muon"] * 1e3 / matmul_peak(),
            }
        )
    document = {
        "benchmark": "optimizer_step",
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "rows": rows,
        "share_of_training_step": {f"width {width}": shares(width) for width in (64, 128)},
    }
    print(json.dumps(document, indent=1))


def newton_schulz_flops(count: int, fan_out: int, fan_in: int, steps: int = 5) -> float:
    """Multiply-adds, as two each, of `steps` quintic steps: A = X X^T, A^2 and the product with X."""
    n, m = sorted((fan_out, fan_in))
    return count * steps * (2 * 2 * n * n * m + 2 * n**3)


def shares(width: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a training step (1,024 tokens, depth 2) and of its optimizer's part, and the share."""
    data = load_data(DataSource(), vocab_size=256, seq_len=128)
    table = {}
    for name, config in OPTIMIZERS.items():
        training = Training([training_run(config, width)], data)
        gradients = [torch.randn_like(weight) for weight in training.weights]
        works = {"step": training.step, "optimizer": lambda t=training, g=gradients: t.optimizer.step(g, ONE)}
        ms = {part: 1e3 * seconds for part, seconds in median_seconds(works, 7).items()}
        table[name] = {"step_ms": ms["step"], "optimizer_ms": ms["optimizer"], "share": ms["optimizer"] / ms["step"]}
    return table


def training_run(optimizer: OptimizerConfig, width: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(width=width),
        optimizer=optimizer,
        hparams=HParams(lr=1e-4),
        base_width=32,
        train_tokens=131_072,
        validation_tokens=32_768,
        seed=0,
    )


def ours_step(optimizer: OptimizerConfig, gradients: Tensor) -> Callable[[], object]:
    """A step over one HIDDEN stack of all the matrices."""
    count, fan_out, fan_in = gradients.shape
    run = RunConfig(
        model=ModelConfig(width=64),
        optimizer=optimizer,
        hparams=HParams(lr=0.01, weight_decay=0.1, clip_norm=None),
        base_width=64,
        train_tokens=1024,
        validation_tokens=1024,
        seed=0,
    )
    stack = Stack(role=Role.HIDDEN, shape=(fan_out, fan_in), names=tuple(map(str, range(count))))
    stepper = Optimizer([stack], [torch.zeros(1, *gradients.shape)], [run])
    return lambda: stepper.step([gradients[None]], ONE)


def torch_muon_step(gradients: Tensor) -> Callable[[], object]:
    parameters = _parameters(gradients)
    return torch.optim.Muon(parameters, lr=0.01, weight_decay=0.1).step


def torch_adamw_step(gradients: Tensor) -> Callable[[], object]:
    return torch.optim.AdamW(_parameters(gradients), lr=0.01, weight_decay=0.1, foreach=True).step


def _parameters(gradients: Tensor) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


@contextmanager
def _bfloat16_is_float32() -> Iterator[None]:
    """torch.optim.Muon casts with Tensor.bfloat16 and offers no choice."""
    with mock.patch.object(torch.Tensor, "bfloat16", lambda self: self):
        yield


def in_float32(step: Callable[[], object]) -> None:
    with _bfloat16_is_float32():
        step()


if __name__ == "__main__":
    main()
