"""GaLore, Fira and APOLLO: Adam's moments of a gradient that is projected on its smaller side.

With s and l for a matrix's smaller and larger side and k for the rank: G is seen as (s, l), R = P^T G is (k, l).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.optimizer_config import Apollo, ApolloMini, Fira, GaLore
from proxy_models.optimizers.orthogonalize import decompose
from proxy_models.optimizers.rules import Adam, Coefficients, State

_TINY = 1e-8
_NORM_GROWTH = 1.01  # of a scaled gradient from step to step, at most: against spikes (Fira, section 4.2)
_adam = Adam()


def _smaller_first(x: Tensor) -> Tensor:
    """(..., s, l), as the published codes do: a square matrix is transposed."""
    return x if x.shape[-2] < x.shape[-1] else x.mT


@dataclass(frozen=True, slots=True)
class ProjectedAdam:
    """GaLore: P adam(P^T G), P the top k left singular vectors of a gradient now and then."""

    config: GaLore | Fira

    def init(self, weight: Tensor) -> State:
        *batch, s, larger = _smaller_first(weight).shape
        k = self.config.rank_of(s)
        return {**_adam.init(weight.new_empty(*batch, k, larger)), "projection": weight.new_zeros(*batch, s, k)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        g, projection = _smaller_first(gradient), state["projection"]
        _refresh(projection, g, due=(step - 1) % self.config.refresh_steps == 0)
        r = projection.mT @ g
        adam = _adam.direction(r, state, c, step)
        return _as_gradient(self._whole(g, r, adam, state), gradient)

    def _whole(self, g: Tensor, r: Tensor, adam: Tensor, state: State) -> Tensor:
        return state["projection"] @ adam


@dataclass(frozen=True, slots=True)
class ProjectedAdamWithRest(ProjectedAdam):
    """Fira: and the rest of the gradient, each column times ||adam(R)|| / ||R|| of that column."""

    def init(self, weight: Tensor) -> State:
        return {**ProjectedAdam.init(self, weight), "last_norm": _no_norm(weight)}

    def _whole(self, g: Tensor, r: Tensor, adam: Tensor, state: State) -> Tensor:
        projection = state["projection"]
        rest = (g - projection @ r) * _growth(adam, r, dim=(-2,))
        return projection @ adam + _limit_growth(rest, state["last_norm"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledGradient:
    """APOLLO: the gradient itself, scaled as Adam scales a random projection of it."""

    config: Apollo | ApolloMini

    def init(self, weight: Tensor) -> State:
        *batch, s, larger = _smaller_first(weight).shape
        return {**_adam.init(weight.new_empty(*batch, self._rank(s), larger)), "last_norm": _no_norm(weight)}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        g = _smaller_first(gradient)
        s, k = g.shape[-2], self._rank(g.shape[-2])
        r = self._projection(g, k, step).mT @ g
        adam = _adam.direction(r, state, c, step)
        # One factor a column, or one a matrix for APOLLO-Mini.
        factor = _growth(adam, r, dim=(-2,) if isinstance(self.config, Apollo) else (-2, -1))
        return _as_gradient(_limit_growth(g * factor * (s / k) ** 0.5, state["last_norm"]), gradient)

    def _rank(self, smaller_side: int) -> int:
        return self.config.rank_of(smaller_side) if isinstance(self.config, Apollo) else 1

    def _projection(self, g: Tensor, k: int, step: int) -> Tensor:
        """(s, k), normal with variance 1/k, the same for every layer; drawn again each step from its period's seed."""
        generator = torch.Generator().manual_seed((step - 1) // self.config.refresh_steps)
        return torch.randn(g.shape[-2], k, generator=generator, dtype=torch.float64).to(g) / k**0.5


def _refresh(projection: Tensor, g: Tensor, *, due: bool) -> None:
    """Top left singular vectors of `g`, where it is due or there were none: behind a readout that starts at zero
    the first gradient is zero and has no directions."""
    blank = (projection == 0).all(-1, keepdim=True).all(-2, keepdim=True)
    if due or bool(blank.any()):
        directions = decompose(g)[0][..., : projection.shape[-1]]
        nothing = (g == 0).all(-1, keepdim=True).all(-2, keepdim=True)
        projection.copy_(torch.where(blank | due, directions.masked_fill(nothing, 0.0), projection))


def _growth(adam: Tensor, r: Tensor, dim: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(adam, dim=dim, keepdim=True) / torch.linalg.vector_norm(
        r, dim=dim, keepdim=True
    ).clamp_(min=_TINY)


def _no_norm(weight: Tensor) -> Tensor:
    return weight.new_zeros(*weight.shape[:-2], 1, 1)


def _limit_growth(x: Tensor, last_norm: Tensor) -> Tensor:
    """Hold each matrix's norm to _NORM_GROWTH times its last, which this updates; the first is free."""
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    allowed = torch.where(last_norm > 0, torch.minimum(norm, _NORM_GROWTH * last_norm), norm)
    last_norm.copy_(allowed)
    return x * (allowed / norm.clamp(min=_TINY))


def _as_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    return x if gradient.shape[-2] < gradient.shape[-1] else x.mT
