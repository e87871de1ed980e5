"""Stacked optimizers against torch's own, and each member against itself alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from proxy_models.accounting import state_floats
from proxy_models.config import RunConfig
from proxy_models.optimizer_config import SGD, AdamW, Muon, OptimizerConfig, Scale, SignSGD
from proxy_models.optimizers import Optimizer, clip_factors
from proxy_models.optimizers.orthogonalize import newton_schulz
from proxy_models.optimizers.rules import Coefficients, OrthogonalMomentum, UnitNormalized
from proxy_models.parametrization import Role, scale_role
from proxy_models.polar_schedules import polar_steps
from proxy_models.stacks import Stack, build_model, initialize, layout
from tests.proxy_helpers import tiny_run

ONE = torch.ones(1)
OPTIMIZERS: list[OptimizerConfig] = [
    AdamW(),
    Muon(),
    Muon(shape_factor="max1", nesterov=False, ns_steps=3),
    Muon(shape_factor="rms_match"),
    Muon(ns_schedule="polar_express", ns_steps=6, ns_dtype="bfloat16"),
    Muon(ns_schedule="svd", nesterov=False),
    Scale(),
    Scale(unit_norm="l2"),
    SGD(nesterov=True),
    SignSGD(),
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


def test_sign_sgd_steps_by_lr_along_the_averaged_sign() -> None:
    run = tiny_run(optimizer=SignSGD(), hparams={"lr": 0.5, "momentum": 0.75, "clip_norm": None})
    layouts, weights = _stacks(run)
    before = [weight.clone() for weight in weights]
    optimizer = Optimizer(layouts, weights, [run])
    strong, weak = [torch.full_like(w, -8.0) for w in weights], [torch.ones_like(w) for w in weights]
    for gradients in (strong, weak):  # the average stays negative: -2, then -1.25
        optimizer.step(gradients, ONE.double())
    for stack, old, new in zip(layouts, before, weights, strict=True):
        torch.testing.assert_close(new - old, torch.full_like(new, 2 * scale_role(run, stack.role).effective_lr))


@pytest.mark.parametrize(("shape_factor", "adjust"), [("max1", "original"), ("rms_match", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(24, 24), (72, 24), (24, 72)])
def test_muon_equals_torch_within_bfloat16(
    shape_factor: Any, adjust: str, nesterov: bool, shape: tuple[int, int]
) -> None:
    """torch.optim.Muon always iterates in bfloat16, ours in float32."""
    rule = OrthogonalMomentum(Muon(shape_factor=shape_factor, nesterov=nesterov))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theirs = weight.clone().requires_grad_()
    reference = torch.optim.Muon(
        [theirs], lr=0.05, weight_decay=0.0, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust
    )
    ours = weight[None, None].clone()
    coefficients = Coefficients(beta1=ONE, beta2=ONE, eps=ONE, momentum=torch.tensor(0.9))
    state = rule.init(ours)
    for step in range(1, 4):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        ours -= 0.05 * rule.direction(gradient[None, None], state, coefficients, step)
        theirs.grad = gradient.clone()
        reference.step()
    moved = (theirs.detach() - weight).norm()
    assert (ours[0, 0] - theirs.detach()).norm() < 0.02 * moved


def test_newton_schulz_nears_the_polar_factor() -> None:
    """Singular values in [0.68, 1.15] for every condition that five steps can lift; vectors those of the input."""
    generator = torch.Generator().manual_seed(5)
    matrices = torch.randn(3, 2, 40, 24, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = newton_schulz(matrices, polar_steps("jordan", 5))
    inner = u.mT @ result @ vh.mT  # diagonal when the singular vectors are kept
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-9
    assert values.min() > 0.68
    assert values.max() < 1.15
    torch.testing.assert_close(newton_schulz(matrices.mT, polar_steps("jordan", 5)), result.mT)
    assert newton_schulz(torch.zeros(2, 4, 3), polar_steps("jordan", 5)).abs().max() == 0


@pytest.mark.parametrize(("axis", "shape"), [(-1, (6, 10)), (-2, (64, 12))])
def test_scale_normalizes_each_output_unit(axis: int, shape: tuple[int, int]) -> None:
    """An embedding's output units are its columns; a matrix's are its rows. RMS 1, direction kept."""
    gradient = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    direction, l2 = (UnitNormalized(n, axis).direction(gradient, {}, None, 1) for n in ("rms", "l2"))  # type: ignore[arg-type]
    torch.testing.assert_close(direction.square().mean(axis), torch.ones_like(direction.square().mean(axis)))
    torch.testing.assert_close(l2 * shape[axis] ** 0.5, direction)
    torch.testing.assert_close(
        torch.nn.functional.normalize(direction, dim=axis), torch.nn.functional.normalize(gradient, dim=axis)
    )


def test_scale_keeps_momentum_on_the_readout_alone() -> None:
    run = tiny_run(optimizer=Scale())
    layouts, weights = _stacks(run)
    optimizer = Optimizer(layouts, weights, [run])
    kept = {stack.role: set(state) for stack, state in zip(layouts, optimizer.states, strict=True)}
    assert kept == {
        Role.EMBEDDING: set(),
        Role.HIDDEN: set(),
        Role.READOUT: {"momentum"},
        Role.VECTOR: {"mean", "square"},
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
    packed = Optimizer(layouts, together, runs)
    single = [Optimizer(layouts, alone[m], [runs[m]]) for m in range(3)]
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_state_floats_counts_the_real_state(optimizer: OptimizerConfig) -> None:
    run = tiny_run(optimizer=optimizer)
    layouts, weights = _stacks(run)
    states = Optimizer(layouts, weights, [run]).states
    for stack, weight, state in zip(layouts, weights, states, strict=True):
        assert sum(t.numel() for t in state.values()) == state_floats(optimizer, stack.role) * weight.numel()


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
