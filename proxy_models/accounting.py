"""Parameters, FLOPs and memory of a run from its config alone."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from proxy_models.config import ModelConfig, RunConfig
from proxy_models.optimizer_config import (
    SGD,
    AdamW,
    Apollo,
    ApolloMini,
    Dion,
    Fira,
    GaLore,
    MuonAll,
    NorMuon,
    OptimizerConfig,
    Scale,
    SignSGD,
    Switch,
)
from proxy_models.roles import Role

_FLOAT_BYTES = 4


def parameter_shapes(model: ModelConfig) -> Mapping[Role, Mapping[tuple[int, ...], int]]:
    """How many parameters of each shape a role has; matrices as (fan_out, fan_in), tables as (vocab, width)."""
    width, mlp_width, depth = model.width, model.mlp_width, model.depth
    table = {(model.vocab_size, width): 1}
    hidden: Counter[tuple[int, ...]] = Counter()
    hidden[width, width] += 4 * depth
    hidden[mlp_width, width] += (2 if model.mlp == "swiglu" else 1) * depth
    hidden[width, mlp_width] += depth
    return {
        Role.EMBEDDING: table,
        Role.HIDDEN: hidden,
        Role.READOUT: {} if model.tied_embeddings else table,
        Role.VECTOR: Counter({(width,): 2 * depth + 1}) + Counter({(model.head_dim,): 2 * depth * model.qk_norm}),
    }


def parameter_counts(model: ModelConfig) -> Mapping[Role, int]:
    """Number of parameters in each role."""
    return {
        role: sum(math.prod(shape) * count for shape, count in shapes.items())
        for role, shapes in parameter_shapes(model).items()
    }


def n_params(model: ModelConfig) -> int:
    """Non-embedding parameters: HIDDEN and VECTOR, without the embedding and readout tables."""
    counts = parameter_counts(model)
    return counts[Role.HIDDEN] + counts[Role.VECTOR]


def forward_flops_per_token(model: ModelConfig) -> float:
    """Matrix-multiply FLOPs of one token's forward pass, a multiply-add as two.

    Attention is counted over the full seq_len, as it is by convention (PaLM, arXiv:2204.02311, appendix B),
    though the causal half suffices. Norms, rotary positions and the softmax are left out.
    """
    hidden = parameter_counts(model)[Role.HIDDEN]
    readout = model.vocab_size * model.width
    attention = 2 * model.depth * model.seq_len * model.width  # q.k and weights.v, multiply-adds
    return 2.0 * (hidden + readout + attention)


def training_flops(run: RunConfig) -> float:
    """Model FLOPs of the whole run: forward, and twice that backward. The optimizer's own are not model FLOPs."""
    return 3.0 * forward_flops_per_token(run.model) * run.train_tokens


def state_floats(optimizer: OptimizerConfig, role: Role, shape: tuple[int, ...]) -> int:
    """Optimizer-state floats kept for one parameter; of a switched optimizer, what its larger phase keeps."""
    if isinstance(optimizer, Switch):
        return max(state_floats(phase, role, shape) for phase in (optimizer.first, optimizer.second))
    n = math.prod(shape)
    match optimizer:
        case SGD() | SignSGD() | MuonAll():
            return n
        case Scale():
            return {Role.EMBEDDING: 0, Role.HIDDEN: 0, Role.READOUT: n, Role.VECTOR: 2 * n}[role]
    if role is not Role.HIDDEN or isinstance(optimizer, AdamW):
        return 2 * n
    smaller, larger = sorted(shape)
    match optimizer:
        case NorMuon():
            return n + shape[0]  # a mean square a row
        case Dion():
            return n + optimizer.rank_of(smaller) * shape[1]  # the basis
        case GaLore():
            return optimizer.rank_of(smaller) * (smaller + 2 * larger)  # the projection, two moments
        case Fira():
            return optimizer.rank_of(smaller) * (smaller + 2 * larger) + 1  # a norm
        case Apollo():
            return optimizer.rank_of(smaller) * 2 * larger + 1  # its projection is drawn again from a seed
        case ApolloMini():
            return 2 * larger + 1
    return n  # Muon, NSGD, Fanions, IsotropicCurvature: the averaged gradient


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one run but for its activations."""

    weights: int
    gradients: int
    states: int

    @property
    def stored(self) -> int:
        """Weights and states: what the published totals of memory-efficient optimizers count."""
        return self.weights + self.states

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.states


def memory(model: ModelConfig, optimizer: OptimizerConfig, *, bytes_per_float: int = _FLOAT_BYTES) -> Memory:
    """Weights, gradients and optimizer states, all in floats of one size: 4 bytes for float32, 2 for bfloat16."""
    weights = sum(parameter_counts(model).values())
    states = sum(
        state_floats(optimizer, role, shape) * count
        for role, shapes in parameter_shapes(model).items()
        for shape, count in shapes.items()
    )
    return Memory(
        weights=weights * bytes_per_float, gradients=weights * bytes_per_float, states=states * bytes_per_float
    )


def activation_bytes(run: RunConfig) -> int:
    """Float32 activations that the forward pass keeps for the backward pass.

    Counted per token from the operations of the model: inputs of every matrix, norm, product and the attention
    kernel, the loss's log-probabilities, and the logits.
    """
    model = run.model
    width, mlp_width = model.width, model.mlp_width
    norm_stats = 1
    attention = (
        2 * width + norm_stats  # the norm's input and output
        + (4 * width + 2 * model.heads if model.qk_norm else 0)  # q, k before the norm, and scaled
        + 3 * width + model.heads  # q, k, v of the kernel, its log-sum-exp
        + 2 * width  # its output, and that laid out for the out matrix
    )  # fmt: skip
    gate = {"swiglu": 4, "relu2": 3}[model.mlp] * mlp_width
    mlp = 2 * width + norm_stats + gate
    readout = 2 * width + norm_stats + 2 * model.vocab_size
    tokens = run.largest_batch_tokens
    return _FLOAT_BYTES * tokens * (model.depth * (attention + mlp) + readout)


def training_bytes(run: RunConfig) -> int:
    """Peak bytes of one float32 run: weights, gradients, optimizer state, activations."""
    return memory(run.model, run.optimizer).total + activation_bytes(run)
