"""The optimizers a run can have, with the choices that are not numbers. Their numbers stand in `config.HParams`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from proxy_models.checks import require

ShapeFactor = Literal["spectral", "max1", "rms_match"]
PolarSchedule = Literal["jordan", "you", "polar_express", "taylor1", "taylor2", "taylor3", "taylor4", "svd"]
PolarDtype = Literal["float32", "bfloat16"]
UnitNorm = Literal["rms", "l2"]
MuonWidthRule = Literal["spectral_norm", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay on every role (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"

    @property
    def rule(self) -> str:
        """The row set of `parametrization.RULES` that scales this optimizer."""
        return "adamw"


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon:
    """Orthogonalized momentum on HIDDEN matrices, AdamW on the rest.

    `shape_factor` multiplies the orthogonalized momentum of a (fan_out, fan_in) matrix:
    `spectral` sqrt(fan_out/fan_in), `max1` sqrt(max(1, fan_out/fan_in)) (Jordan 2024),
    `rms_match` 0.2*sqrt(max(fan_out, fan_in)) (Moonlight, arXiv:2502.16982).
    `width_rule` says how HIDDEN's lr goes with width: `spectral_norm` keeps the update's spectral norm, which
    takes no correction for `spectral` and `max1` and m^-1/2 for `rms_match`; `adamw` takes 1/m whatever the shape
    factor, as Essential AI (arXiv:2505.02222) does: published rules that disagree, for a sweep to settle.
    Simplified Muon (arXiv:2601.13474) is momentum = 0, nesterov = false and ns_schedule = "svd".

    The momentum is an exponential average. Its additive form, M <- momentum*M + G, is the same M over
    1 - momentum, with Nesterov's step too, and an orthogonalized update does not see the factor.
    """

    name: Literal["muon"] = "muon"
    shape_factor: ShapeFactor = "spectral"
    width_rule: MuonWidthRule = "spectral_norm"
    nesterov: bool = True
    ns_schedule: PolarSchedule = "jordan"
    ns_steps: int = 5  # unused by the schedule svd
    ns_dtype: PolarDtype = "float32"

    def __post_init__(self) -> None:
        require(1 <= self.ns_steps <= 30, f"ns_steps must be between 1 and 30, got {self.ns_steps}")

    @property
    def rule(self) -> str:
        """The row set of `parametrization.RULES` that scales this optimizer."""
        if self.width_rule == "adamw":
            return "muon_as_adamw"
        return "muon_rms_match" if self.shape_factor == "rms_match" else "muon"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """SCALE (Glentis et al., arXiv:2506.16659): each output unit's gradient divided by its size.

    `unit_norm` says which: `rms` as the published code, or `l2` as the paper. They differ by sqrt(fan_in) and so
    in their width rule and in the size of lr. Momentum on READOUT alone; VECTOR uses Adam.
    """

    name: Literal["scale"] = "scale"
    unit_norm: UnitNorm = "rms"

    @property
    def rule(self) -> str:
        """The row set of `parametrization.RULES` that scales this optimizer."""
        return "scale" if self.unit_norm == "rms" else "scale_l2"


@dataclass(frozen=True, kw_only=True, slots=True)
class SGD:
    """M <- momentum*M + G on every role, stepping along M or, with Nesterov, G + momentum*M."""

    name: Literal["sgd"] = "sgd"
    nesterov: bool = False

    @property
    def rule(self) -> str:
        """The row set of `parametrization.RULES` that scales this optimizer."""
        return "sgd"


@dataclass(frozen=True, kw_only=True, slots=True)
class SignSGD:
    """The sign of an exponential average of gradients, on every role (Bernstein et al., arXiv:1802.04434)."""

    name: Literal["sign_sgd"] = "sign_sgd"

    @property
    def rule(self) -> str:
        """The row set of `parametrization.RULES` that scales this optimizer."""
        return "sign_sgd"


OptimizerConfig = AdamW | Muon | Scale | SGD | SignSGD
OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    "adamw": AdamW,
    "muon": Muon,
    "scale": Scale,
    "sgd": SGD,
    "sign_sgd": SignSGD,
}
