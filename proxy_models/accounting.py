"""Parameters, FLOPs and memory of a run from its config alone."""

from collections.abc import Mapping

from proxy_models.config import ModelConfig, RunConfig
from proxy_models.optimizer_config import SGD, AdamW, Muon, OptimizerConfig, Scale, SignSGD
from proxy_models.parametrization import Role

_FLOAT_BYTES = 4


def parameter_counts(model: ModelConfig) -> Mapping[Role, int]:
    """Number of parameters in each role."""
    width, mlp_width, table = model.width, model.mlp_width, model.vocab_size * model.width
    mlp_matrices = 3 if model.mlp == "swiglu" else 2
    block_vectors = 2 * width + (2 * model.head_dim if model.qk_norm else 0)
    return {
        Role.EMBEDDING: table,
        Role.HIDDEN: model.depth * (4 * width**2 + mlp_matrices * width * mlp_width),
        Role.READOUT: 0 if model.tied_embeddings else table,
        Role.VECTOR: model.depth * block_vectors + width,
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


def state_floats(optimizer: OptimizerConfig, role: Role) -> int:
    """Optimizer-state floats kept for each parameter of a role."""
    match optimizer:
        case AdamW():
            return 2
        case Muon():
            return 1 if role is Role.HIDDEN else 2
        case Scale():
            return {Role.EMBEDDING: 0, Role.HIDDEN: 0, Role.READOUT: 1, Role.VECTOR: 2}[role]
        case SGD() | SignSGD():
            return 1


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
    tokens = run.hparams.batch_tokens
    return _FLOAT_BYTES * tokens * (model.depth * (attention + mlp) + readout)


def training_bytes(run: RunConfig) -> int:
    """Peak bytes of one float32 run: weights, gradients, optimizer state, activations."""
    counts = parameter_counts(run.model)
    floats = sum(count * (2 + state_floats(run.optimizer, role)) for role, count in counts.items())
    return _FLOAT_BYTES * floats + activation_bytes(run)
