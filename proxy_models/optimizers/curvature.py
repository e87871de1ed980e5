"""The update of the isotropic curvature model (Su, arXiv:2511.00674): singular values reshaped, vectors kept.

It minimizes -tr(Q G^T) + E h(||Q z||) for z uniform on the sphere of radius sqrt(n), n = fan_in. With
Q = U diag(s) V^T and G = U diag(sigma) V^T, ||Q z||^2 is sum_j a_j z_j^2, a = s^2. For h(r) = r^p / p, p = 2q, its
q-th moment is n^q / (n (n+2) ... (n+2q-2)) times that for a Gaussian z, which follows from the cumulants
2^(k-1) (k-1)! sum_j a_j^k. Setting the derivative to zero gives, with m_k the Gaussian moments,

    sigma_i = n^q / (n ... (n+2q-2)) * s_i * sum_{k<q} (q-1)!/(q-1-k)! (2 a_i)^k m_{q-1-k}.

For q = 2: sigma_i = n/(n+2) * s_i (sum_j s_j^2 + 2 s_i^2).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.optimizer_config import IsotropicCurvature
from proxy_models.optimizers.orthogonalize import decompose
from proxy_models.optimizers.rules import Coefficients

# Half-steps in log s with the scale solved for exactly: residual below 1e-6 for spectra over eight decades.
_ITERATIONS = 24


@dataclass(frozen=True, slots=True)
class Reshaped:
    """U diag(s) V^T with s as above; all ones for a barrier at 1."""

    config: IsotropicCurvature

    def __call__(self, x: Tensor, c: Coefficients) -> Tensor:
        u, sigma, vh = decompose(x)
        power = self.config.power
        if power is None:
            return u @ vh
        return (u * reshape_spectrum(sigma, power=power, fan_in=x.shape[-1]).unsqueeze(-2)) @ vh


def reshape_spectrum(sigma: Tensor, *, power: int, fan_in: int) -> Tensor:
    """s for singular values (..., r); zeros stay zero, and a spectrum of zeros stays as it is."""
    largest = sigma.amax(-1, keepdim=True)
    target = sigma / torch.where(largest > 0, largest, 1.0)  # s goes as sigma^(1/(p-1)): no overflow on the way
    s = target
    for _ in range(_ITERATIONS):
        s = (s * target / _slope(s, power, fan_in)).sqrt()
        reached = (s.square() * _slope(s, power, fan_in)).sum(-1, keepdim=True)
        wanted = (s * target).sum(-1, keepdim=True)
        s = s * torch.where(reached > 0, wanted / reached, 0.0) ** (1 / (power - 1))
    return s * largest ** (1 / (power - 1))


def _slope(s: Tensor, power: int, fan_in: int) -> Tensor:
    """sigma_i / s_i at s."""
    q, a = power // 2, s.square()
    moments = _gaussian_moments(a, q - 1)
    terms = (math.perm(q - 1, k) * (2 * a) ** k * moments[q - 1 - k] for k in range(q))
    on_sphere = math.prod(fan_in / (fan_in + 2 * j) for j in range(q))
    # A floor for s = 0 in float32, where every term may vanish.
    return (on_sphere * sum(terms, torch.zeros_like(s))).clamp(min=torch.finfo(s.dtype).tiny)


def _gaussian_moments(a: Tensor, highest: int) -> list[Tensor]:
    """E (sum_j a_j z_j^2)^k for k = 0 ... highest, each (..., 1)."""
    sums = [(a**k).sum(-1, keepdim=True) for k in range(1, highest + 1)]
    moments = [torch.ones_like(a[..., :1])]
    for k in range(1, highest + 1):
        terms = (math.perm(k - 1, j - 1) * 2 ** (j - 1) * sums[j - 1] * moments[k - j] for j in range(1, k + 1))
        moments.append(sum(terms, torch.zeros_like(moments[0])))
    return moments
