"""How a run's arithmetic is done: what may change its numbers, though only by rounding. Knows no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from proxy_models.checks import require

Executor = Literal["loop", "stacked"]
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """A numerics mode. Within one, a run gives the same numbers in every pack: bitwise in a `loop`, else nearly.

    `loop` trains the members of a pack one after the other, `stacked` all at once. Weights and optimizer states are
    float32 always; `dtype` is that of the forward and backward passes' matrix products.
    """

    executor: Executor = "loop"
    compiled: bool = False  # the gradients, by torch.compile; on a GPU as CUDA graphs
    device: Device = "cpu"
    dtype: Dtype = "float32"

    @property
    def name(self) -> str:
        """As it is recorded: `loop-eager-cpu-float32`."""
        return f"{self.executor}-{'compiled' if self.compiled else 'eager'}-{self.device}-{self.dtype}"


EAGER_LOOP = Mode()
# Of 128 steps at width 32, stacked, with 13 optimizers: mostly below 1e-6 below the best learning rate, up to 5e-4 at
# it (Dion), up to 5e-2 at 8 times it, which is chaos. Compiled, with three: up to 2e-6 at it, 4e-3 at 8 times it.
_FLOAT32_TOLERANCE = 1e-3
_BFLOAT16_TOLERANCE = 2e-2


def mode_from_name(name: str) -> Mode:
    """Inverse of `Mode.name`.

    Raises:
        ConfigError: no such mode.
    """
    executor, _, rest = name.partition("-")
    compiled, _, rest = rest.partition("-")
    device, _, dtype = rest.partition("-")
    parts = ((executor, Executor), (device, Device), (dtype, Dtype))
    known = compiled in ("eager", "compiled") and all(part in get_args(kind) for part, kind in parts)
    require(known, f"mode must be <executor>-<eager or compiled>-<device>-<dtype>, got {name!r}")
    return Mode(executor=executor, compiled=compiled == "compiled", device=device, dtype=dtype)  # type: ignore[arg-type]


def loss_tolerance(mode: Mode) -> float:
    """How far a final loss may be, relatively, from that of the same run by the eager loop in float32; 0: bitwise.

    Holds where rounding is not blown up. At learning rates far above the best, training is chaotic, and a change of
    the initial weights in their last bits moves the loss as far as another mode does.
    """
    if mode == EAGER_LOOP:
        return 0.0
    return _FLOAT32_TOLERANCE if mode.dtype == "float32" else _BFLOAT16_TOLERANCE
