"""What an optimizer does to each matrix while it trains: sizes of updates, spectra of momenta, polar errors."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.optimizers import Update
from proxy_models.optimizers.orthogonal import Polar, RowNormalizedPolar
from proxy_models.optimizers.orthogonalize import decompose
from proxy_models.optimizers.rules import Averaged
from proxy_models.roles import Role

QUANTILES = (0.1, 0.5, 0.9)
WHOLE_MODEL = "all"  # kind of what is no single layer's


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnostic:
    """One number about one HIDDEN matrix at one step, or about all parameters (`Training.gradient_noise`).

    `quantity` is one of: update_rms and update_spectral_norm, of what is subtracted from the weights;
    momentum_effective_rank, (sum sigma^2)^2 / sum sigma^4, from 1 to the smaller side; momentum_sigma_q10, _q50
    and _q90, quantiles of its singular values at Frobenius norm 1; polar_error, the Frobenius distance of an
    orthogonalized momentum from the exact polar factor, over the factor's norm. A momentum is what the update is
    made from: with Nesterov's step, where the update has one.
    """

    step: int  # from 1
    depth: int  # of the block, from 0
    kind: str  # of the layer: attention.query, mlp.up
    quantity: str
    value: float


Place = tuple[int, str]  # depth and kind of a layer


def diagnose(update: Update, *, step: int, places: Mapping[str, Place], member: int = 0) -> Iterator[Diagnostic]:
    """Every quantity that this update has, for each of its layers. Nothing for other roles than HIDDEN.

    What is not a number is left out: a zero momentum has no rank and no polar factor.
    """
    if update.stack.role is not Role.HIDDEN:
        return
    step_taken = (update.lr * update.direction)[member]  # (layers, fan_out, fan_in)
    momentum = _momentum(update)
    numbers = {
        "update_rms": step_taken.square().mean((-2, -1)).sqrt(),
        "update_spectral_norm": _singular_values(step_taken)[:, 0],
        **({} if momentum is None else _spectrum(momentum[member])),
        **_polar_error(update, member),
    }
    for layer, name in enumerate(update.stack.names):
        depth, kind = places[name]
        for quantity, values in numbers.items():
            value = float(values[layer])
            if not math.isnan(value):
                yield Diagnostic(step=step, depth=depth, kind=kind, quantity=quantity, value=value)


def _momentum(update: Update) -> Tensor | None:
    """What the update is made from; for rules that average in other coordinates, those averages."""
    match update.rule:
        case Averaged() as rule:
            return rule.averaged(update.gradient, update.state, update.coefficients)
        case RowNormalizedPolar() as rule:
            return rule.average.averaged(update.gradient, update.state, update.coefficients)
    return update.state.get("momentum")


def _spectrum(momentum: Tensor) -> dict[str, Tensor]:
    sigma = _singular_values(momentum)
    squares = sigma.square()
    total = squares.sum(-1)
    shares = sigma / total.sqrt().unsqueeze(-1)
    quantiles = torch.quantile(shares, torch.tensor(QUANTILES, dtype=shares.dtype, device=shares.device), dim=-1)
    return {
        "momentum_effective_rank": total.square() / squares.square().sum(-1),
        **{f"momentum_sigma_q{100 * q:.0f}": quantiles[i] for i, q in enumerate(QUANTILES)},
    }


def _polar_error(update: Update, member: int) -> dict[str, Tensor]:
    match update.rule:
        case Averaged(transform=Polar() as polar):
            orthogonalized = polar.polar
        case RowNormalizedPolar() as rule:
            orthogonalized = rule.polar
        case _:
            return {}
    momentum = _momentum(update)
    assert momentum is not None
    u, _, vh = decompose(momentum[member])
    exact = u @ vh
    error = torch.linalg.matrix_norm(orthogonalized(momentum)[member] - exact)
    return {"polar_error": error / torch.linalg.matrix_norm(exact)}


def _singular_values(matrices: Tensor) -> Tensor:
    """Descending; NaN for a matrix that is not finite."""
    u, sigma, _ = decompose(matrices)
    return sigma.where(u.isfinite().all(-2), torch.nan)
