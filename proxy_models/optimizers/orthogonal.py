"""Muon and its relatives that take a polar factor, or the largest part of one: transforms, and NorMuon's rule."""

from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.optimizer_config import (
    Fanion,
    FFanion,
    MuonAll,
    NorMuon,
    PolarConfig,
    SFanion,
    ShapeFactor,
)
from proxy_models.optimizers.normalize import frobenius_unit
from proxy_models.optimizers.orthogonalize import decompose, orthogonalize_diagonal, polar_factor, shape_factor
from proxy_models.optimizers.rules import Averaged, Coefficients, State, sign

_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Polar:
    """The polar factor times a shape factor (Muon: Jordan et al. 2024)."""

    config: PolarConfig
    shape_factor: ShapeFactor

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        return self.polar(x).mul_(shape_factor(self.shape_factor, *x.shape[-2:]))

    def polar(self, x: Tensor) -> Tensor:
        """Without the shape factor."""
        return polar_factor(x, self.config)


@dataclass(frozen=True, slots=True)
class UnitRmsPolar:
    """The polar factor at entries of RMS 1: SCALE's `ns` ablation."""

    config: PolarConfig

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        return polar_factor(x, self.config).mul_(max(x.shape[-2:]) ** 0.5)


@dataclass(frozen=True, slots=True)
class DiagonalPolar:
    """MuonAll's update of a vector, as the diagonal of a matrix."""

    config: MuonAll

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        config = self.config
        return orthogonalize_diagonal(x, schedule=config.ns_schedule, n_steps=config.ns_steps, dtype=config.ns_dtype)


@dataclass(frozen=True, slots=True)
class FrobeniusUnit:
    """The matrix over its Frobenius norm, times sqrt(fan_out/fan_in)."""

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        return frobenius_unit(x).mul_(shape_factor("spectral", *x.shape[-2:]))


@dataclass(frozen=True, slots=True)
class TopSingular:
    """Fanion-k: sum of u_i v_i^T over the k largest singular values, times the shape factor."""

    config: Fanion | FFanion | SFanion

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        smaller = min(x.shape[-2:])
        k = self.config.rank_of(smaller)
        if k == smaller:
            top = polar_factor(x, self.config)
        else:
            u, _, vh = decompose(x)
            top = u[..., :k] @ vh[..., :k, :]
        return top.mul_(shape_factor(self.config.shape_factor, *x.shape[-2:]))


@dataclass(frozen=True, slots=True)
class FrobeniusBlend:
    """F-Fanion-k: the orthogonal part's share, and for the rest the whole matrix at Frobenius norm 1."""

    config: FFanion

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        whole = frobenius_unit(x).mul_(shape_factor(self.config.shape_factor, *x.shape[-2:]))
        return whole.lerp_(TopSingular(self.config)(x, c), c.orthogonal_frac)


@dataclass(frozen=True, slots=True)
class SignBlend:
    """S-Fanion-k: the orthogonal part's share, and for the rest sign_lr_ratio times the sign of every entry."""

    config: SFanion

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        return sign(x, c).mul_(c.sign_lr_ratio).lerp_(TopSingular(self.config)(x, c), c.orthogonal_frac)


@dataclass(frozen=True, slots=True)
class RowNormalizedPolar:
    """NorMuon: each row of the polar factor over its running RMS, then the whole back to its Frobenius norm.

    No bias correction: a factor common to all rows is lost in the last step.
    """

    config: NorMuon

    def init(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight), "row_square": torch.zeros_like(weight[..., :1])}

    def direction(self, gradient: Tensor, state: State, c: Coefficients, step: int) -> Tensor:
        polar = self.average.direction(gradient, state, c, step)
        before = torch.linalg.matrix_norm(polar, keepdim=True)
        row_square = state["row_square"].lerp_(polar.square().mean(-1, keepdim=True), 1 - c.beta2)
        polar.div_(row_square.sqrt().clamp_(min=_TINY))
        after = torch.linalg.matrix_norm(polar, keepdim=True).clamp_(min=_TINY)
        return polar.mul_(before / after * shape_factor(self.config.shape_factor, *gradient.shape[-2:]))

    @property
    def average(self) -> Averaged:
        """The momentum, and its polar factor as direction."""
        config = self.config
        return Averaged(transform=lambda x, c: self.polar(x), nesterov=config.nesterov, form=config.momentum_form)

    def polar(self, x: Tensor) -> Tensor:
        """Before the rows are divided."""
        return polar_factor(x, self.config)
