"""The model: causality, positions, options, roles; its parameter, FLOP and memory formulas against the real module."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from proxy_models.accounting import (
    activation_bytes,
    forward_flops_per_token,
    n_params,
    parameter_counts,
    training_bytes,
    training_flops,
)
from proxy_models.config import RunConfig
from proxy_models.gradients import program
from proxy_models.mode import EAGER_LOOP
from proxy_models.modules import Matrix, roles
from proxy_models.optimizer_config import SGD, AdamW, IsotropicCurvature, Muon, OptimizerConfig, Scale
from proxy_models.roles import Role
from proxy_models.stacks import build_model, initialize, layout, parameters_of
from proxy_models.training import Training
from proxy_models.transformer import rotary_table, rotate
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run

MODELS: list[dict[str, Any]] = [
    {},
    {"mlp": "relu2", "mlp_ratio": 4.0, "depth": 3},
    {"tied_embeddings": True, "qk_norm": False},
    {"tied_embeddings": True, "mlp": "relu2", "mlp_ratio": 2.5},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_parameter_counts_are_the_modules(model: dict[str, Any]) -> None:
    run = tiny_run(width=32, model=model)
    module = build_model(run)
    counted = dict.fromkeys(Role, 0)
    for name, role in roles(module).items():
        counted[role] += module.get_parameter(name).numel()
    assert counted == parameter_counts(run.model)
    assert n_params(run.model) == counted[Role.HIDDEN] + counted[Role.VECTOR]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_flops_are_what_torch_counts(model: dict[str, Any]) -> None:
    run = tiny_run(width=32, model=model)
    training = Training([run], cyclic_data())
    # The counter does not know the fused CPU kernel; the plain one is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward, torch.no_grad():
        training.forward(training.windows(0)[0, :, :-1])
    assert forward.get_total_flops() == pytest.approx(forward_flops_per_token(run.model) * 64, rel=1e-6)
    assert training_flops(run) == pytest.approx(3 * forward_flops_per_token(run.model) * 640)


def _saved_bytes(run: RunConfig) -> int:
    """Distinct storages saved for the backward pass, without the weights themselves."""
    training = Training([run], cyclic_data())
    weights = {w.untyped_storage().data_ptr() for w in training.weights}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training.program.losses(training.windows(0)[0], training.weights)
    assert loss.isfinite().all()
    return sum(saved.values())


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("width", [32, 128])
def test_activation_bytes_are_what_autograd_saves(model: dict[str, Any], width: int) -> None:
    """Within 15 %."""
    run = tiny_run(width=width, model={**model, "seq_len": 64}, hparams={"batch_tokens": 256}, train_tokens=512)
    assert activation_bytes(run) == pytest.approx(_saved_bytes(run), rel=0.15)


def test_training_bytes_adds_weights_gradients_and_state() -> None:
    run = tiny_run(optimizer=Muon(), width=32)
    training = Training([run], cyclic_data())
    state = sum(t.numel() for s in training.optimizer.states for t in s.values())
    weights = sum(w.numel() for w in training.weights)
    assert training_bytes(run) - activation_bytes(run) == 4 * (2 * weights + state)


def test_a_token_never_sees_the_future() -> None:
    run = tiny_run(hparams={"readout_init_gain": 1.0})
    training = Training([run], cyclic_data())
    tokens = training.windows(0)[0, :, :-1]
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 7) % 64
    before, after = training.forward(tokens), training.forward(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_rotary_products_depend_on_distance_alone() -> None:
    """q_i . k_j after rotation is a function of i - j (Su et al., arXiv:2104.09864)."""
    cos, sin = rotary_table(12, 8)
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    rotated_q, rotated_k = (rotate(x.expand(1, 1, 12, 8), cos, sin)[0, 0] for x in (q, k))
    products = rotated_q @ rotated_k.T
    for distance in (-5, 0, 3):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(products[0, 0], products[0, 3])


def test_attention_logits_scale_as_one_over_head_dim() -> None:
    run = tiny_run(model={"attention_multiplier": 3.0, "qk_norm": True})
    training = Training([run], cyclic_data())
    seen: dict[str, torch.Tensor] = {}
    training.forward(training.windows(0)[0, :, :-1], seen.__setitem__)
    logits = seen["block0.attention_logits"]
    # Normalized queries and keys have length sqrt(head_dim), so a token's own logit cannot pass the multiplier.
    assert logits.abs().max() <= 3.0 * (1 + 1e-4)
    assert {"embedding", "block1.mlp_hidden", "block1.residual", "block0.attention", "logits"} <= set(seen)


def test_tied_readout_is_the_embedding_times_the_multiplier() -> None:
    run = tiny_run(width=32, model={"tied_embeddings": True})
    module = build_model(run)
    layouts = layout(module)
    weights = [initialize(stack, [run]) for stack in layouts]
    parameters = parameters_of(layouts, weights, 0)
    tokens = torch.arange(16)[None]
    logits = functional_call(module, parameters, (tokens,))
    doubled = dict(parameters) | {"final_norm.weight": 2 * parameters["final_norm.weight"]}
    torch.testing.assert_close(functional_call(module, doubled, (tokens,)), 2 * logits)
    assert not any(role is Role.READOUT for role in roles(module).values())


def test_a_parameter_without_a_role_is_refused() -> None:
    with pytest.raises(TypeError, match=r"parameter 1.weight of Linear has no Role"):
        roles(nn.Sequential(Matrix(4, 4, role=Role.HIDDEN), nn.Linear(4, 4, bias=False)))


def test_initialization_has_the_rules_spread_and_its_own_generator_each() -> None:
    run = tiny_run(width=64, model={"depth": 2})
    layouts = layout(build_model(run))
    weights = {stack: initialize(stack, [run]) for stack in layouts}
    for stack, weight in weights.items():
        if stack.role is Role.HIDDEN:
            assert weight.std().item() == pytest.approx(stack.shape[-1] ** -0.5, rel=0.05)
        if stack.role is Role.EMBEDDING:
            assert weight.std().item() == pytest.approx(1.0, rel=0.05)
        if stack.role is Role.READOUT:
            assert weight.abs().max() == 0
    deeper = tiny_run(width=64, model={"depth": 3})
    theirs = layout(build_model(deeper))
    ours = parameters_of(layouts, list(weights.values()), 0)
    more = parameters_of(theirs, [initialize(stack, [deeper]) for stack in theirs], 0)
    assert all(torch.equal(parameter, more[name]) for name, parameter in ours.items())


def _complete_p(depth: int, **hparams: Any) -> RunConfig:
    return tiny_run(
        width=32, model={"depth": depth}, parametrization="complete_p", base_depth=2, hparams=hparams, train_tokens=640
    )


def test_a_branch_adds_its_output_over_the_depth_multiplier() -> None:
    training = Training([_complete_p(6)], cyclic_data())
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        training.forward(training.windows(0)[0, :, :-1], lambda at, x: seen.update({at: x.clone()}))
    for block, before in ((0, "embedding"), (5, "block4.residual")):
        branches = seen[f"block{block}.attention"] + seen[f"block{block}.mlp"]
        torch.testing.assert_close(seen[f"block{block}.residual"], seen[before] + branches / 3)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon(), Scale(), SGD(), IsotropicCurvature()], ids=lambda o: o.name)
def test_at_base_depth_complete_p_trains_as_mup_to_the_bit(optimizer: OptimizerConfig) -> None:
    run = replace(_complete_p(2, weight_decay=0.1), optimizer=optimizer)
    mup = replace(run, parametrization="mup", base_depth=None)
    ours, theirs = outcomes([run, mup], cyclic_data())
    assert (ours.curve_losses, ours.validation_loss) == (theirs.curve_losses, theirs.validation_loss)
    deep = replace(run, model=replace(run.model, depth=4))
    ours, theirs = outcomes([deep, replace(deep, parametrization="mup", base_depth=None)], cyclic_data())
    assert ours.validation_loss != theirs.validation_loss


def test_models_alike_but_for_the_residual_multiplier_share_no_program() -> None:
    run = _complete_p(4)
    deeper_base = replace(run, base_depth=4)
    assert run.model == deeper_base.model
    programs = [program(r, EAGER_LOOP) for r in (run, deeper_base, replace(run, seed=9))]
    assert programs[0] is programs[2]
    assert programs[0] is not programs[1]
    multipliers = [next(iter(p.model.blocks)).residual_multiplier for p in programs]
    assert multipliers == [0.5, 1.0, 0.5]


def test_the_residual_multiplier_keeps_no_activations() -> None:
    run = _complete_p(4)
    plain = replace(run, parametrization="mup", base_depth=None)
    assert _saved_bytes(run) == _saved_bytes(plain)
