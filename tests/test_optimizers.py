"""Stacked optimizers against torch's own, and each member against itself alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from proxy_models.accounting import state_floats
from proxy_models.config import RunConfig
from proxy_models.optimizer_config import (
    NSGD,
    SGD,
    AdamW,
    Apollo,
    ApolloMini,
    Dion,
    Fanion,
    FFanion,
    Fira,
    GaLore,
    IsotropicCurvature,
    Muon,
    MuonAll,
    NorMuon,
    OptimizerConfig,
    Scale,
    SFanion,
    SignSGD,
    Switch,
)
from proxy_models.optimizers import Optimizer, clip_factors, make_optimizer
from proxy_models.parametrization import scale_role
from proxy_models.roles import Role
from proxy_models.stacks import Stack, build_model, initialize, layout
from tests.proxy_helpers import tiny_run

ONE = torch.ones(1)
OPTIMIZERS: list[OptimizerConfig] = [
    AdamW(),
    SGD(nesterov=True),
    SignSGD(),
    Muon(),
    Muon(shape_factor="max1", nesterov=False, ns_steps=3),
    Muon(shape_factor="rms_match", momentum_form="additive"),
    Muon(ns_schedule="polar_express", ns_steps=6, ns_dtype="bfloat16"),
    Muon(ns_schedule="svd", nesterov=False),
    NorMuon(),
    MuonAll(),
    NSGD(),
    Fanion(rank=1),
    Fanion(),
    FFanion(),
    SFanion(rank_frac=0.5),
    Dion(),
    IsotropicCurvature(power=6),
    Scale(),
    Scale(unit_norm="l2", normalization="row"),
    Scale(normalization="sign", readout_normalization="ns"),
    GaLore(refresh_steps=3),
    Fira(refresh_steps=3),
    Apollo(refresh_steps=3),
    ApolloMini(refresh_steps=3),
    Switch(first=AdamW(), second=Muon(), at_tokens=128, states="keep"),
    Switch(first=GaLore(), second=AdamW(), at_tokens=128),
]


def _stacks(run: RunConfig, dtype: torch.dtype = torch.float64) -> tuple[tuple[Stack, ...], list[Tensor]]:
    layouts = layout(build_model(run))
    return layouts, [initialize(stack, [run]).to(dtype) for stack in layouts]


def _gradients(weights: Sequence[Tensor], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]


def _assert_same_steps(
    run: RunConfig,
    layouts: Sequence[Stack],
    weights: list[Tensor],
    theirs: list[Tensor],
    reference: torch.optim.Optimizer,
    *,
    atol: float,
) -> None:
    """20 steps of ours on `weights` and of torch's on `theirs`, with equal gradients."""
    ours = Optimizer(layouts, weights, [run])
    for step in range(20):
        gradients = _gradients(weights, step)
        ours.step(gradients, ONE.double())
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient.clone()
        reference.step()
    for mine, torch_weight in zip(weights, theirs, strict=True):
        torch.testing.assert_close(mine, torch_weight.detach(), rtol=1e-6, atol=atol)


def test_adamw_equals_torch() -> None:
    """Every group with its own effective lr, weight decay and eps, 20 steps, float64, no clipping."""
    run = tiny_run(
        width=32,
        hparams={"lr": 0.013, "weight_decay": 0.07, "beta1": 0.8, "beta2": 0.97, "eps": 1e-5, "clip_norm": None},
    )
    layouts, weights = _stacks(run)
    theirs = [weight.clone().requires_grad_() for weight in weights]
    scales = [scale_role(run, stack.role) for stack in layouts]
    reference = torch.optim.AdamW(
        [
            {"params": [w], "lr": s.effective_lr, "weight_decay": s.effective_weight_decay, "eps": s.effective_eps}
            for w, s in zip(theirs, scales, strict=True)
        ],
        betas=(0.8, 0.97),
    )
    _assert_same_steps(run, layouts, weights, theirs, reference, atol=1e-9)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torch(nesterov: bool) -> None:
    """Each role's own lr, coupled to nothing: torch's weight decay is coupled, so ours is off. 20 steps, float64."""
    run = tiny_run(optimizer=SGD(nesterov=nesterov), width=32, hparams={"lr": 0.03, "momentum": 0.8, "clip_norm": None})
    layouts, weights = _stacks(run)
    theirs = [weight.clone().requires_grad_() for weight in weights]
    groups = [
        {"params": [w], "lr": scale_role(run, stack.role).effective_lr}
        for w, stack in zip(theirs, layouts, strict=True)
    ]
    reference = torch.optim.SGD(groups, momentum=0.8, nesterov=nesterov)
    _assert_same_steps(run, layouts, weights, theirs, reference, atol=1e-8)


def test_scale_keeps_momentum_on_the_readout_alone() -> None:
    run = tiny_run(optimizer=Scale())
    layouts, weights = _stacks(run)
    optimizer = Optimizer(layouts, weights, [run])
    kept = {stack.role: set(state) for stack, state in zip(layouts, optimizer.states, strict=True)}
    assert kept == {
        Role.EMBEDDING: set(),
        Role.HIDDEN: set(),
        Role.READOUT: {"momentum"},
        Role.VECTOR: {"momentum", "square"},
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_each_member_equals_itself_alone(optimizer: OptimizerConfig) -> None:
    """Members with their own lr, betas, momentum, clipping and seed; one of them full of NaN. Bitwise."""
    runs = [
        tiny_run(optimizer=optimizer, seed=seed, hparams={"lr": lr, "beta1": b, "momentum": b, "clip_norm": clip})
        for seed, lr, b, clip in [(0, 0.01, 0.9, 1.0), (1, 0.3, 0.5, None), (2, 0.002, 0.95, 0.1)]
    ]
    layouts = layout(build_model(runs[0]))
    together = [initialize(stack, runs) for stack in layouts]
    alone = [[w[m : m + 1].clone() for w in together] for m in range(3)]
    packed = make_optimizer(layouts, together, runs)
    single = [make_optimizer(layouts, alone[m], [runs[m]]) for m in range(3)]
    factors = torch.tensor([1.0, 0.5, 0.25])
    for step in range(4):
        gradients = _gradients(together, step)
        gradients[0][1] = torch.nan
        packed.step(gradients, factors)
        for m in (0, 2):
            single[m].step([g[m : m + 1] for g in gradients], factors[m : m + 1])
    for m in (0, 2):
        for whole, part in zip(together, alone[m], strict=True):
            assert torch.equal(whole[m : m + 1], part)
    assert all(weight[1].isnan().all() for weight in together)


@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if not isinstance(o, Switch)], ids=str)
def test_state_floats_counts_the_real_state(optimizer: OptimizerConfig) -> None:
    run = tiny_run(optimizer=optimizer)
    layouts, weights = _stacks(run)
    for stack, state in zip(layouts, Optimizer(layouts, weights, [run]).states, strict=True):
        counted = state_floats(optimizer, stack.role, stack.shape) * len(stack.names)
        assert sum(tensor.numel() for tensor in state.values()) == counted


def test_clipping_is_torchs_per_member() -> None:
    generator = torch.Generator().manual_seed(9)
    gradients = [torch.randn(2, 3, 5, 4, generator=generator), torch.randn(2, 1, 7, generator=generator)]
    clip_norms = torch.tensor([0.7, 1e6])
    factors = clip_factors(gradients, clip_norms)
    for member in range(2):
        parameters = [torch.nn.Parameter(torch.zeros_like(g[member])) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[member].clone()
        torch.nn.utils.clip_grad_norm_(parameters, float(clip_norms[member]))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient[member] * factors[member])


def test_weight_decay_is_decoupled_and_scheduled() -> None:
    """With a zero gradient W <- W (1 - factor * lr * wd), on matrices only."""
    run = tiny_run(optimizer=Muon(), hparams={"lr": 0.2, "weight_decay": 0.3})
    layouts, weights = _stacks(run)
    before = [weight.clone() for weight in weights]
    Optimizer(layouts, weights, [run]).step([torch.zeros_like(w) for w in weights], torch.tensor([0.5]).double())
    for stack, old, new in zip(layouts, before, weights, strict=True):
        keep = 1.0 if stack.role is Role.VECTOR else 1 - 0.5 * 0.2 * 0.3
        torch.testing.assert_close(new, old * keep, rtol=1e-6, atol=0)


def _steps(run: RunConfig, weights: list[Tensor], *, first: int, last: int, optimizer: Any = None) -> Any:
    """Steps `first` to `last` - 1 in place, with gradients that depend on the step alone; returns the optimizer."""
    layouts = layout(build_model(run))
    optimizer = optimizer or make_optimizer(layouts, weights, [run])
    for step in range(first, last):
        optimizer.step(_gradients(weights, step), ONE.double())
    return optimizer


def test_a_reset_switch_is_one_run_and_then_another() -> None:
    """The second phase starts anew at its own lr from the weights that the first one left. Exactly."""
    settings = {"width": 32, "hparams": {"lr": 0.02, "second_lr_ratio": 3.0, "clip_norm": None}}
    switch = Switch(first=AdamW(), second=Muon(shape_factor="rms_match"), at_tokens=256)
    run = tiny_run(optimizer=switch, **settings)
    _, weights = _stacks(run)
    apart = [weight.clone() for weight in weights]
    _steps(run, weights, first=0, last=9)
    _steps(tiny_run(optimizer=switch.first, **settings), apart, first=0, last=4)
    second = {**settings, "hparams": {**settings["hparams"], "lr": 0.06}}
    _steps(tiny_run(optimizer=switch.second, **second), apart, first=4, last=9)
    assert all(torch.equal(one, other) for one, other in zip(weights, apart, strict=True))


def test_a_kept_switch_to_the_same_optimizer_is_none() -> None:
    run = tiny_run(optimizer=Switch(first=AdamW(), second=AdamW(), at_tokens=256, states="keep"))
    _, weights = _stacks(run)
    straight = [weight.clone() for weight in weights]
    _steps(run, weights, first=0, last=9)
    _steps(tiny_run(optimizer=AdamW()), straight, first=0, last=9)
    assert all(torch.equal(one, other) for one, other in zip(weights, straight, strict=True))


def test_a_kept_switch_hands_adams_first_moment_to_muon() -> None:
    """And its whole state to the roles that stay with Adam. From Muon to AdamW there is nothing to keep on HIDDEN."""
    there = tiny_run(optimizer=Switch(first=AdamW(), second=Muon(), at_tokens=256, states="keep"))
    layouts, weights = _stacks(there)
    optimizer = _steps(there, weights, first=0, last=4)
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in optimizer.current.states]
    _steps(there, weights, first=4, last=5, optimizer=optimizer)
    gradients = _gradients(weights, 4)
    clip = clip_factors(gradients, torch.ones(1).double())
    for stack, old, new, gradient in zip(layouts, before, optimizer.current.states, gradients, strict=True):
        beta = 0.95 if stack.role is Role.HIDDEN else 0.9
        torch.testing.assert_close(new["momentum"], beta * old["momentum"] + (1 - beta) * clip * gradient)
        assert set(new) == ({"momentum"} if stack.role is Role.HIDDEN else {"momentum", "square"})

    back = tiny_run(optimizer=Switch(first=Muon(), second=AdamW(), at_tokens=256, states="keep"))
    layouts, weights = _stacks(back)
    births = _steps(back, weights, first=0, last=5).current.births
    assert births == [4 if stack.role is Role.HIDDEN else 0 for stack in layouts]


def test_members_of_a_pack_switch_together() -> None:
    runs = [tiny_run(optimizer=Switch(first=AdamW(), second=Muon(), at_tokens=t)) for t in (128, 256)]
    layouts = layout(build_model(runs[0]))
    with pytest.raises(AssertionError, match=r"must switch at one step, got \[2, 4\]"):
        make_optimizer(layouts, [initialize(stack, runs) for stack in layouts], runs)
