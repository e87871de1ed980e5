"""How much of this machine's matmul rate a proxy's training uses, by width: eager and compiled, AdamW and Muon.

`python benchmarks/mfu.py [--quick] [--save]` prints one JSON document. One thread, the quick start's model and batch;
the ways take turns, and medians are compared. `utilization` is model FLOPs (forward, and twice that backward, without
the optimizer's own) of one step over its time and over the float32 matmul rate measured in between: the fastest of
512 x 512 products, as a trial's own `flops_utilization` is. `optimizer` is the share of a step that goes to the
optimizer, whose work is no model FLOPs. On a GPU also packs in bfloat16, against its bfloat16 rate.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.support import document
from benchmarks.support.turns import timed
from proxy_models.accounting import training_flops
from proxy_models.config import HParams, ModelConfig, RunConfig
from proxy_models.data import DataSource, TokenData, load_data
from proxy_models.mode import EAGER_LOOP, Mode
from proxy_models.optimizer_config import AdamW, Muon, OptimizerConfig
from proxy_models.outcome import matmul_peak
from proxy_models.training import Training

WIDTHS, QUICK_WIDTHS = (32, 64, 128, 256), (16,)
REPETITIONS, QUICK_REPETITIONS = 20, 2
PRODUCT = 512  # side of the square matrices whose product sets the rate, as in `proxy_models.outcome.matmul_peak`
OPTIMIZERS: Mapping[str, OptimizerConfig] = {"adamw": AdamW(), "muon": Muon()}
COMPILED_LOOP = replace(EAGER_LOOP, compiled=True)
GPU_MODE = Mode(executor="stacked", compiled=True, device="cuda", dtype="bfloat16")
GPU_WIDTH, GPU_PACK = 256, 64
GOAL_WIDTHS, GOAL, GPU_GOAL = (128, 256), 0.60, 0.40


def main() -> None:
    options = document.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    before = document.machine()
    data = load_data(DataSource(), vocab_size=256, seq_len=128)
    repetitions = QUICK_REPETITIONS if options.quick else REPETITIONS
    rows = [row for width in (QUICK_WIDTHS if options.quick else WIDTHS) for row in measure(width, data, repetitions)]
    gpu = on_gpu(data, repetitions)
    found = {
        "benchmark": "mfu",
        "machine": before,
        "rows": rows,
        "gpu": gpu,
        "goals": goals(rows, gpu),
    }
    document.publish(found, save=options.save)


def measure(width: int, data: TokenData, repetitions: int) -> list[dict[str, Any]]:
    """A row an optimizer and a mode, timed in turns."""
    trainings = {
        (name, mode.name): Training([run_of(config, width)], data, mode)
        for name, config in OPTIMIZERS.items()
        for mode in (EAGER_LOOP, COMPILED_LOOP)
    }
    works: dict[tuple[str, ...], Callable[[], object]] = {}
    for key, training in trainings.items():
        gradients = [torch.randn_like(weight) for weight in training.weights]
        ones = torch.ones(1)
        works[*key, "step"] = training.step
        works[*key, "optimizer"] = lambda t=training, g=gradients, o=ones: t.optimizer.step(g, o)
    factor = torch.ones(PRODUCT, PRODUCT)
    works["product",] = lambda: factor @ factor
    seconds = timed(works, repetitions)
    rate = 2 * PRODUCT**3 / min(seconds["product",])
    median = {key: statistics.median(times) for key, times in seconds.items()}
    return [
        {
            "width": width,
            "optimizer": name,
            "mode": mode,
            "step_ms": 1e3 * median[name, mode, "step"],
            "utilization": step_flops(training) / median[name, mode, "step"] / rate,
            "optimizer_share": median[name, mode, "optimizer"] / median[name, mode, "step"],
            "matmul_gflops": rate / 1e9,
        }
        for (name, mode), training in trainings.items()
    ]


def run_of(optimizer: OptimizerConfig, width: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(width=width),
        optimizer=optimizer,
        hparams=HParams(lr=2.0**-10, clip_norm=1.0),
        base_width=32,
        train_tokens=1024 * 1000,
        validation_tokens=1024,
        seed=0,
    )


def step_flops(training: Training) -> float:
    """Model FLOPs of a step of all members."""
    return sum(training_flops(run) / run.steps for run in training.runs)


def on_gpu(data: TokenData, repetitions: int) -> dict[str, Any]:
    """A pack of many members in bfloat16, or why it was not measured."""
    if not torch.cuda.is_available():
        return {"measured": False, "why": "torch sees no GPU"}
    runs = [replace(run_of(AdamW(), GPU_WIDTH), seed=seed) for seed in range(GPU_PACK)]
    training = Training(runs, data, GPU_MODE)
    (seconds,) = timed({"step": lambda: training.step().tolist()}, repetitions).values()
    step = statistics.median(seconds)
    return {
        "measured": True,
        "gpu": torch.cuda.get_device_name(0),
        "width": GPU_WIDTH,
        "members": GPU_PACK,
        "mode": GPU_MODE.name,
        "step_ms": 1e3 * step,
        "utilization": step_flops(training) / step / matmul_peak(GPU_MODE.device, GPU_MODE.dtype),
    }


def goals(rows: Sequence[Mapping[str, Any]], gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Of AdamW, compiled, at the widths that they are about."""
    reached = {
        row["width"]: row["utilization"]
        for row in rows
        if row["optimizer"] == "adamw" and row["mode"] == COMPILED_LOOP.name
    }
    return {
        **{f"cpu_width_{width}": document.goal(reached.get(width), at_least=GOAL) for width in GOAL_WIDTHS},
        f"gpu_width_{GPU_WIDTH}": document.goal(gpu.get("utilization"), at_least=GPU_GOAL),
    }


if __name__ == "__main__":
    main()
