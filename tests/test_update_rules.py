"""Each update rule against an independent truth: torch.optim, numpy, scipy, closed forms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from proxy_models.optimizer_config import (
    NSGD,
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
    PlainOptimizerConfig,
    PolarConfig,
    Scale,
    SFanion,
    SignSGD,
)
from proxy_models.optimizers import update_rule
from proxy_models.optimizers.curvature import reshape_spectrum
from proxy_models.optimizers.orthogonalize import orthogonalize_diagonal, polar_factor
from proxy_models.optimizers.rules import Coefficients
from proxy_models.roles import Role

BETA1, BETA2, EPS, MOMENTUM, ALPHA, ETA = 0.8, 0.97, 1e-5, 0.9, 0.3, 0.02
COEFFICIENTS = Coefficients(
    **{
        name: torch.tensor(value, dtype=torch.float64).reshape(1, 1, 1, 1)
        for name, value in {
            "beta1": BETA1,
            "beta2": BETA2,
            "eps": EPS,
            "momentum": MOMENTUM,
            "orthogonal_frac": ALPHA,
            "sign_lr_ratio": ETA,
        }.items()
    }
)
SHAPES = [(9, 9), (14, 6), (6, 14)]


def gradients(shape: tuple[int, ...], n: int = 4) -> list[Tensor]:
    """(1, 1, *shape) each, float64."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1, 1, *shape, generator=generator, dtype=torch.float64) for _ in range(n)]


def directions(optimizer: PlainOptimizerConfig, given: Sequence[Tensor], role: Role = Role.HIDDEN) -> list[Tensor]:
    """What the rule makes of one gradient after another, without the leading axes."""
    rule = update_rule(optimizer, role)
    state = rule.init(given[0])
    return [rule.direction(g, state, COEFFICIENTS, step)[0, 0].clone() for step, g in enumerate(given, start=1)]


def averaged(given: Sequence[Tensor], *, nesterov: bool) -> list[np.ndarray[Any, Any]]:
    """Exponential averages as torch.optim.Muon forms them."""
    mean, out = np.zeros(given[0].shape[2:]), []
    for gradient in given:
        g = gradient[0, 0].numpy()
        mean = MOMENTUM * mean + (1 - MOMENTUM) * g
        out.append(MOMENTUM * mean + (1 - MOMENTUM) * g if nesterov else mean)
    return out


def top(matrix: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k] @ vh[:k]


def spectral(shape: tuple[int, int]) -> float:
    return (shape[0] / shape[1]) ** 0.5


def test_sign_sgd_is_the_sign_of_the_average() -> None:
    """The average stays negative: -0.8, then -0.62; Nesterov's step looks past it."""
    strong, weak = torch.full((1, 1, 3, 2), -8.0).double(), torch.ones(1, 1, 3, 2).double()
    assert all((d == -1).all() for d in directions(SignSGD(), [strong, weak]))
    assert (directions(SignSGD(nesterov=True), [strong / 8, 2 * weak])[1] == 1).all()  # -0.1, then 0.11 against 0.3
    lost = weak.clone()
    lost[0, 0, 1, 1] = torch.nan
    assert directions(SignSGD(), [lost])[0].isnan().sum() == 1


@pytest.mark.parametrize(("shape_factor", "adjust"), [("max1", "original"), ("rms_match", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(24, 24), (72, 24), (24, 72)])
def test_muon_equals_torch_within_bfloat16(
    shape_factor: Any, adjust: str, nesterov: bool, shape: tuple[int, int]
) -> None:
    """torch.optim.Muon always iterates in bfloat16, ours here in float64."""
    given = gradients(shape, 3)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theirs = weight.clone().requires_grad_()
    reference = torch.optim.Muon(
        [theirs], lr=0.05, weight_decay=0.0, momentum=MOMENTUM, nesterov=nesterov, adjust_lr_fn=adjust
    )
    for gradient in given:
        theirs.grad = gradient[0, 0].float()
        reference.step()
    ours = weight - 0.05 * sum(directions(Muon(shape_factor=shape_factor, nesterov=nesterov), given))
    moved = (theirs.detach() - weight).norm()
    assert (ours - theirs.detach()).norm() < 0.02 * moved


@pytest.mark.parametrize("nesterov", [True, False])
def test_additive_momentum_is_the_same_muon(nesterov: bool) -> None:
    given = gradients((9, 14))
    ema, additive = (
        directions(Muon(nesterov=nesterov, momentum_form=form), given)  # type: ignore[arg-type]
        for form in ("ema", "additive")
    )
    for one, other in zip(ema, additive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_simplified_muon_is_the_polar_factor_of_the_gradient(shape: tuple[int, int]) -> None:
    rule = update_rule(Muon(ns_schedule="svd", nesterov=False), Role.HIDDEN)
    gradient = gradients(shape)[0]
    without = replace(COEFFICIENTS, momentum=torch.zeros(1).double())
    direction = rule.direction(gradient, rule.init(gradient), without, 1)[0, 0].numpy()
    np.testing.assert_allclose(direction, spectral(shape) * top(gradient[0, 0].numpy(), min(shape)), atol=1e-12)


@pytest.mark.parametrize("schedule", ["jordan", "polar_express", "taylor3"])
@pytest.mark.parametrize("size", [1, 7, 33])
def test_muon_all_sees_a_vector_as_a_diagonal_matrix(schedule: Any, size: int) -> None:
    """The O(n) form against Newton-Schulz on the n x n matrix."""
    config = PolarConfig(ns_schedule=schedule, ns_steps=6)
    vector = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    square = polar_factor(torch.diag_embed(vector), config)
    ours = orthogonalize_diagonal(vector, schedule=schedule, n_steps=6, dtype="float32")
    torch.testing.assert_close(torch.diag_embed(ours), square, rtol=1e-10, atol=1e-12)


def test_muon_all_treats_every_role() -> None:
    given = gradients((40, 6), 1)
    polar = polar_factor((1 - MOMENTUM) * given[0], PolarConfig(ns_steps=6))[0, 0]
    for role in (Role.EMBEDDING, Role.HIDDEN, Role.READOUT):
        torch.testing.assert_close(directions(MuonAll(), given, role)[0], polar * (40 / 6) ** 0.5)
    wide = gradients((6, 40), 1)
    flat = polar_factor((1 - MOMENTUM) * wide[0], PolarConfig(ns_steps=6))[0, 0]
    torch.testing.assert_close(directions(MuonAll(), wide, Role.HIDDEN)[0], flat)
    torch.testing.assert_close(directions(MuonAll(), wide, Role.READOUT)[0], flat * (6 / 40) ** 0.5)
    vector = torch.tensor([3.0, -4.0, 0.0]).reshape(1, 1, 3).double()
    rule = update_rule(MuonAll(ns_schedule="svd"), Role.VECTOR)
    flat_coefficients = Coefficients(**{n: getattr(COEFFICIENTS, n).reshape(1, 1, 1) for n in Coefficients.__slots__})
    direction = rule.direction(vector, rule.init(vector), flat_coefficients, 1)
    assert direction.flatten().tolist() == [1.0, -1.0, 0.0]


def test_normuon_divides_rows_by_their_running_rms_and_keeps_the_size() -> None:
    """Against numpy, from the polar factor on; a gradient that does not change ends with rows of one size."""
    given = gradients((14, 6), 6)
    muon, normuon = (directions(config(nesterov=False), given) for config in (Muon, NorMuon))
    square = np.zeros((14, 1))
    for plain, ours in zip(muon, normuon, strict=True):
        polar = plain.numpy() / spectral((14, 6))
        square = BETA2 * square + (1 - BETA2) * np.mean(polar**2, axis=1, keepdims=True)
        even = polar / np.sqrt(square)
        expected = spectral((14, 6)) * even * np.linalg.norm(polar) / np.linalg.norm(even)
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)
    still = directions(NorMuon(), given[:1] * 3)[-1].norm(dim=1)
    torch.testing.assert_close(still, still.mean().expand(14))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_fanions_take_the_largest_singular_directions(shape: tuple[int, int], k: int) -> None:
    """And attain the Ky Fan norm: <A_k, D> is the sum of D's k largest singular values."""
    given = gradients(shape)
    config = Fanion(rank=k, ns_schedule="svd", nesterov=False)
    for direction, mean in zip(directions(config, given), averaged(given, nesterov=False), strict=True):
        part = direction.numpy() / spectral(shape)
        np.testing.assert_allclose(part, top(mean, k), atol=1e-10)
        assert np.sum(part * mean) == pytest.approx(np.linalg.svd(mean, compute_uv=False)[:k].sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [2, None])
def test_f_and_s_fanions_blend(shape: tuple[int, int], rank: int | None) -> None:
    given = gradients(shape)
    k = rank or min(shape)
    f, s = (directions(config(rank=rank, ns_schedule="svd"), given) for config in (FFanion, SFanion))
    for ours_f, ours_s, ahead in zip(f, s, averaged(given, nesterov=True), strict=True):
        whole = ahead / np.linalg.norm(ahead)
        np.testing.assert_allclose(ours_f, spectral(shape) * (ALPHA * top(ahead, k) + (1 - ALPHA) * whole), atol=1e-10)
        np.testing.assert_allclose(
            ours_s, spectral(shape) * ALPHA * top(ahead, k) + (1 - ALPHA) * ETA * np.sign(ahead), atol=1e-10
        )


def test_nsgd_has_frobenius_norm_one() -> None:
    given = gradients((14, 6))
    for direction, ahead in zip(directions(NSGD(), given), averaged(given, nesterov=True), strict=True):
        np.testing.assert_allclose(direction, spectral((14, 6)) * ahead / np.linalg.norm(ahead), atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_dion_is_its_algorithm_and_feeds_its_error_back(shape: tuple[int, int]) -> None:
    """Against numpy, from the rule's own first basis; what the update leaves out stays in the momentum."""
    config, given = Dion(rank=3), gradients(shape, 5)
    rule = update_rule(config, Role.HIDDEN)
    state = rule.init(given[0])
    momentum, basis = np.zeros(shape), state["basis"][0, 0].numpy().copy()
    np.testing.assert_allclose(np.linalg.norm(basis, axis=0), 1.0)
    for step, gradient in enumerate(given, start=1):
        direction = rule.direction(gradient, state, COEFFICIENTS, step)[0, 0].numpy()
        momentum = momentum + gradient[0, 0].numpy()
        p, _ = np.linalg.qr(momentum @ basis)
        r = momentum.T @ p
        momentum = momentum - (1 - MOMENTUM) * p @ r.T
        basis = r / np.linalg.norm(r, axis=0)
        np.testing.assert_allclose(direction, spectral(shape) * p @ basis.T, atol=1e-10)
        np.testing.assert_allclose(state["momentum"][0, 0], momentum, atol=1e-10)


def test_dion_waits_for_a_gradient() -> None:
    """Behind a readout that starts at zero the first gradient is zero; the basis must survive it."""
    rule = update_rule(Dion(rank=2), Role.HIDDEN)
    zero, given = torch.zeros(1, 1, 6, 5).double(), gradients((6, 5), 1)[0]
    state = rule.init(zero)
    before = state["basis"].clone()
    assert rule.direction(zero, state, COEFFICIENTS, 1).abs().max() <= spectral((6, 5))
    assert torch.equal(state["basis"], before)
    assert rule.direction(given, state, COEFFICIENTS, 2).isfinite().all()


@pytest.mark.parametrize("shape", [(8, 8), (6, 8), (8, 6)])
def test_full_rank_galore_is_torchs_adam_in_rotated_coordinates(shape: tuple[int, int]) -> None:
    given = gradients(shape, 6)
    left = shape[0] < shape[1]
    first = given[0][0, 0].numpy() if left else given[0][0, 0].numpy().T
    rotation = torch.from_numpy(np.linalg.svd(first, full_matrices=False)[0])
    parameter = torch.zeros(rotation.shape[1], max(shape), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=1.0, betas=(BETA1, BETA2), eps=EPS)
    ours = torch.zeros(shape, dtype=torch.float64)
    for gradient, direction in zip(given, directions(GaLore(rank_frac=1.0), given), strict=True):
        seen = gradient[0, 0] if left else gradient[0, 0].T
        parameter.grad = rotation.T @ seen
        adam.step()
        ours -= direction
        back = rotation @ parameter.detach()
        torch.testing.assert_close(ours, back if left else back.T, rtol=1e-7, atol=1e-9)


def test_galore_projects_on_the_top_directions_and_renews_them() -> None:
    given = gradients((6, 14), 5)
    rule = update_rule(GaLore(rank=2, refresh_steps=3), Role.HIDDEN)
    state, seen = rule.init(given[0]), []
    for step, gradient in enumerate(given, start=1):
        rule.direction(gradient, state, COEFFICIENTS, step)
        seen.append(state["projection"][0, 0].numpy() @ state["projection"][0, 0].numpy().T)
    for step, at in ((0, 0), (1, 0), (2, 0), (3, 3), (4, 3)):
        u = np.linalg.svd(given[at][0, 0].numpy())[0][:, :2]
        np.testing.assert_allclose(seen[step], u @ u.T, atol=1e-10)


@pytest.mark.parametrize("config", [GaLore(rank=2), Fira(rank=2)])
def test_a_projection_waits_for_a_gradient(config: Any) -> None:
    """A zero gradient has no directions: taken as they come, 200 steps would be projected on the first coordinates."""
    rule = update_rule(config, Role.HIDDEN)
    zero, gradient = torch.zeros(1, 1, 6, 14).double(), gradients((6, 14), 1)[0]
    state = rule.init(zero)
    assert rule.direction(zero, state, COEFFICIENTS, 1).abs().max() == 0
    rule.direction(gradient, state, COEFFICIENTS, 2)
    u = np.linalg.svd(gradient[0, 0].numpy())[0][:, :2]
    np.testing.assert_allclose(state["projection"][0, 0].abs(), np.abs(u), atol=1e-10)


def test_fira_adds_what_galore_leaves_out_and_limits_its_growth() -> None:
    given = gradients((6, 14), 5)
    given[3] = given[3] * 40  # a spike
    galore, fira = directions(GaLore(rank=2), given), directions(Fira(rank=2), given)
    u = torch.from_numpy(np.linalg.svd(given[0][0, 0].numpy())[0][:, :2])
    norms = []
    for step, gradient in enumerate(given):
        rest = fira[step] - galore[step]
        torch.testing.assert_close(u.T @ rest, torch.zeros(2, 14).double(), atol=1e-9, rtol=0)
        left_out = gradient[0, 0] - u @ (u.T @ gradient[0, 0])
        ratio = rest / left_out  # one factor a column, of the larger side
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)
        norms.append(float(rest.norm()))
    growth = np.array(norms[1:]) / norms[:-1]
    assert (growth <= 1.01 + 1e-9).all()
    full = directions(Fira(rank_frac=1.0), given)
    for one, other in zip(full, directions(GaLore(rank_frac=1.0), given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 14), (14, 6)])
def test_apollo_scales_the_gradient_as_adam_would_its_projection(shape: tuple[int, int]) -> None:
    """First step: adam(R) is sign(R) but for eps, so each column's factor is sqrt(k) / ||R||; RMS about 1."""
    (gradient,) = gradients(shape, 1)
    g = gradient[0, 0].numpy() if shape[0] < shape[1] else gradient[0, 0].numpy().T
    (direction,) = directions(Apollo(rank=3), [gradient])
    ours = direction.numpy() if shape[0] < shape[1] else direction.numpy().T
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(6, 3, generator=generator, dtype=torch.float64).numpy() / 3**0.5
    r = projection.T @ g
    np.testing.assert_allclose(ours, g * 3**0.5 / np.linalg.norm(r, axis=0) * 2**0.5, rtol=1e-3)
    (mini,) = directions(ApolloMini(), [gradient])
    cosine = torch.sum(mini * gradient[0, 0]) / (mini.norm() * gradient.norm())
    assert float(cosine) == pytest.approx(1.0)


def test_apollo_grows_by_a_hundredth_a_step_at_most() -> None:
    given = gradients((6, 14), 6)
    given[2], given[4] = given[2] * 50, given[4] * 0.1
    for config in (Apollo(), ApolloMini()):
        norms = np.array([float(d.norm()) for d in directions(config, given)])
        assert (norms[1:] <= norms[:-1] * 1.01 + 1e-12).all()


def mean_power(q: np.ndarray[Any, Any], z: np.ndarray[Any, Any], power: int) -> float:
    return float(np.mean(np.linalg.norm(z @ q.T, axis=1) ** power))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_the_quartic_update_minimizes_the_isotropic_model(shape: tuple[int, int]) -> None:
    """scipy over all entries of Q, with E||Qz||^4 = n/(n+2) (tr(Q^T Q)^2 + 2 tr((Q^T Q)^2)) on radius sqrt(n)."""
    (gradient,) = gradients(shape, 1)
    g, n = gradient[0, 0].numpy(), shape[1]

    def objective(flat: np.ndarray[Any, Any]) -> float:
        q = flat.reshape(shape)
        gram = q.T @ q
        return float(-np.sum(q * g) + n / (n + 2) * (np.trace(gram) ** 2 + 2 * np.trace(gram @ gram)) / 4)

    found = minimize(objective, np.full(g.size, 0.1), method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    (ours,) = directions(IsotropicCurvature(power=4), [gradient / (1 - MOMENTUM)])
    np.testing.assert_allclose(ours.numpy(), found.x.reshape(shape), atol=1e-5)


@pytest.mark.parametrize("power", [2, 4, 6, 8])
def test_the_update_is_stationary_under_sampled_inputs(power: int) -> None:
    """The gradient of E||Qz||^p / p over a million z is G; and the moments behind it are those of the samples."""
    rng = np.random.default_rng(3)
    n, sigma = 5, np.array([2.3, 0.9, 0.2])
    s = reshape_spectrum(torch.from_numpy(sigma), power=power, fan_in=n).numpy()
    z = rng.standard_normal((1_000_000, n))
    z *= n**0.5 / np.linalg.norm(z, axis=1, keepdims=True)
    radius = np.sqrt(z[:, :3] ** 2 @ s**2)
    slope = s * np.mean(radius[:, None] ** (power - 2) * z[:, :3] ** 2, axis=0)
    np.testing.assert_allclose(slope, sigma, rtol=0.02)


def test_larger_powers_make_the_spectrum_more_even_up_to_muon() -> None:
    sigma = torch.tensor([3.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    ratios = []
    for power in (2, 4, 6, 8):
        s = reshape_spectrum(sigma, power=power, fan_in=16)
        assert s[3] == 0
        ratios.append(float(s[0] / s[2]))
    torch.testing.assert_close(reshape_spectrum(sigma, power=2, fan_in=16), sigma)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.75 * ratios[0]
    assert reshape_spectrum(torch.zeros(3), power=4, fan_in=8).tolist() == [0.0] * 3
    given = gradients((9, 6))
    barrier = directions(IsotropicCurvature(power=None), given)
    for ours, mean in zip(barrier, averaged(given, nesterov=False), strict=True):
        np.testing.assert_allclose(ours, top(mean, 6), atol=1e-10)


def test_reshaping_survives_float32() -> None:
    sigma = torch.logspace(0, -12, 40)
    for power in (4, 6, 8):
        s = reshape_spectrum(sigma * 1e-4, power=power, fan_in=128)
        assert s.isfinite().all()
        assert (s.diff() <= 0).all()


@pytest.mark.parametrize(("role", "inputs"), [(Role.HIDDEN, 1), (Role.EMBEDDING, 0), (Role.READOUT, 1)])
@pytest.mark.parametrize("normalization", ["column", "row"])
def test_scale_divides_units_by_their_size(role: Role, inputs: int, normalization: Any) -> None:
    """`column`: what enters an output unit, over its inputs; `row`: what leaves an input unit, over its outputs."""
    (gradient,) = gradients((10, 6), 1)
    axis = inputs if normalization == "column" else 1 - inputs
    for unit_norm, size in (("rms", 1.0), ("l2", (10, 6)[axis] ** -0.5)):
        config = Scale(unit_norm=unit_norm, normalization=normalization, readout_normalization=normalization)  # type: ignore[arg-type]
        (direction,) = directions(config, [gradient], role)
        rms = direction.square().mean(axis).sqrt()
        torch.testing.assert_close(rms, torch.full_like(rms, size))
        for one, other in zip(direction.unbind(1 - axis), gradient[0, 0].unbind(1 - axis), strict=True):
            assert float(torch.cosine_similarity(one, other, dim=0)) == pytest.approx(1.0)


def test_scale_by_sign_and_by_newton_schulz() -> None:
    (gradient,) = gradients((10, 6), 1)
    (signs,) = directions(Scale(normalization="sign"), [gradient])
    assert torch.equal(signs, gradient[0, 0].sign())
    (polar,) = directions(Scale(normalization="ns"), [gradient])
    values = torch.linalg.svdvals(polar) / 10**0.5
    assert ((values > 0.68) & (values < 1.15)).all()
    kept = directions(Scale(readout_normalization="sign"), [gradient, -0.01 * gradient], Role.READOUT)
    assert torch.equal(kept[0], kept[1])  # the readout's momentum outlasts a small turn
    moved = directions(Scale(normalization="sign"), [gradient, -0.01 * gradient])
    assert torch.equal(moved[0], -moved[1])


@pytest.mark.parametrize("config", [Muon(), Dion(), GaLore(), Apollo(), IsotropicCurvature()])
def test_other_roles_are_adams(config: PlainOptimizerConfig) -> None:
    for role in (Role.EMBEDDING, Role.READOUT, Role.VECTOR):
        assert update_rule(config, role) == update_rule(AdamW(), role)
