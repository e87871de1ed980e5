"""Which update rule each optimizer uses for each role."""

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
    Normalization,
    NorMuon,
    PlainOptimizerConfig,
    PolarConfig,
    Scale,
    SFanion,
    SignSGD,
)
from proxy_models.optimizers.curvature import Reshaped
from proxy_models.optimizers.dion import LowRankPolar
from proxy_models.optimizers.low_rank import ProjectedAdam, ProjectedAdamWithRest, ScaledGradient
from proxy_models.optimizers.normalize import UnitNormalize
from proxy_models.optimizers.orthogonal import (
    DiagonalPolar,
    FrobeniusBlend,
    FrobeniusUnit,
    Polar,
    RowNormalizedPolar,
    SignBlend,
    TopSingular,
    UnitRmsPolar,
)
from proxy_models.optimizers.rules import Adam, Averaged, Memoryless, Transform, UpdateRule, plain, sign
from proxy_models.roles import Role


def update_rule(optimizer: PlainOptimizerConfig, role: Role) -> UpdateRule:
    """The rule of one optimizer for one role."""
    match optimizer:
        case AdamW():
            return Adam()
        case SGD(nesterov=nesterov):
            return Averaged(transform=plain, nesterov=nesterov, form="additive")
        case SignSGD(nesterov=nesterov):
            return Averaged(transform=sign, nesterov=nesterov)
        case MuonAll():
            return _muon_all(optimizer, role)
        case Scale():
            return _scale(optimizer, role)
    return _hidden_rule(optimizer) if role is Role.HIDDEN else Adam()


def _hidden_rule(optimizer: PlainOptimizerConfig) -> UpdateRule:
    """Of the optimizers that treat HIDDEN matrices alone in their own way."""
    match optimizer:
        case Muon(shape_factor=factor, nesterov=nesterov, momentum_form=form):
            return Averaged(transform=Polar(optimizer, factor), nesterov=nesterov, form=form)
        case NorMuon():
            return RowNormalizedPolar(optimizer)
        case NSGD(nesterov=nesterov):
            return Averaged(transform=FrobeniusUnit(), nesterov=nesterov)
        case Fanion(nesterov=nesterov):
            return Averaged(transform=TopSingular(optimizer), nesterov=nesterov)
        case FFanion(nesterov=nesterov):
            return Averaged(transform=FrobeniusBlend(optimizer), nesterov=nesterov)
        case SFanion(nesterov=nesterov):
            return Averaged(transform=SignBlend(optimizer), nesterov=nesterov)
        case Dion():
            return LowRankPolar(optimizer)
        case IsotropicCurvature(nesterov=nesterov):
            return Averaged(transform=Reshaped(optimizer), nesterov=nesterov)
        case GaLore():
            return ProjectedAdam(optimizer)
        case Fira():
            return ProjectedAdamWithRest(optimizer)
        case Apollo() | ApolloMini():
            return ScaledGradient(config=optimizer)
    raise TypeError(f"no update rule for {optimizer}")


def _muon_all(config: MuonAll, role: Role) -> UpdateRule:
    transform: Transform = {
        Role.EMBEDDING: Polar(config, "max1"),
        Role.HIDDEN: Polar(config, "max1"),
        Role.READOUT: Polar(config, "spectral"),
        Role.VECTOR: DiagonalPolar(config),
    }[role]
    return Averaged(transform=transform, nesterov=config.nesterov)


def _scale(config: Scale, role: Role) -> UpdateRule:
    if role is Role.VECTOR:
        return Adam()
    if role is Role.READOUT:
        return Averaged(transform=_normalization(config, config.readout_normalization, role))
    return Memoryless(_normalization(config, config.normalization, role))


def _normalization(config: Scale, normalization: Normalization, role: Role) -> Transform:
    if normalization == "sign":
        return sign
    if normalization == "ns":
        return UnitRmsPolar(PolarConfig())
    # An embedding's inputs are its rows, a matrix's its columns.
    inputs, outputs = (-2, -1) if role is Role.EMBEDDING else (-1, -2)
    return UnitNormalize(unit_norm=config.unit_norm, axis=inputs if normalization == "column" else outputs)
