"""The optimizers a run can have, with the choices that are not numbers. Their numbers stand in `config.HParams`.

Every config says in `scaling(role)` how its updates go with width. Knows no torch: `optimizers` has the updates.
"""

from collections.abc import Mapping
from typing import Any

from proxy_models.optimizer_config.base import (
    MomentumForm,
    PolarConfig,
    PolarDtype,
    PolarSchedule,
    RankConfig,
    Scaling,
    ShapeFactor,
)
from proxy_models.optimizer_config.elementwise import SGD, AdamW, SignSGD
from proxy_models.optimizer_config.low_rank import Apollo, ApolloMini, Fira, GaLore
from proxy_models.optimizer_config.plain import PlainOptimizerConfig
from proxy_models.optimizer_config.scale import Normalization, Scale, UnitNorm
from proxy_models.optimizer_config.spectral import (
    NSGD,
    Dion,
    Fanion,
    FFanion,
    IsotropicCurvature,
    Muon,
    MuonAll,
    NorMuon,
    SFanion,
)
from proxy_models.optimizer_config.switch import Switch

__all__ = [
    "NSGD",
    "OPTIMIZERS",
    "SGD",
    "AdamW",
    "Apollo",
    "ApolloMini",
    "Dion",
    "FFanion",
    "Fanion",
    "Fira",
    "GaLore",
    "IsotropicCurvature",
    "MomentumForm",
    "Muon",
    "MuonAll",
    "NorMuon",
    "Normalization",
    "OptimizerConfig",
    "PlainOptimizerConfig",
    "PolarConfig",
    "PolarDtype",
    "PolarSchedule",
    "RankConfig",
    "SFanion",
    "Scale",
    "Scaling",
    "ShapeFactor",
    "SignSGD",
    "Switch",
    "UnitNorm",
    "optimizer_from_dict",
]

OptimizerConfig = PlainOptimizerConfig | Switch

_RECORDS: tuple[type[OptimizerConfig], ...] = (
    AdamW, SGD, SignSGD, Muon, NorMuon, MuonAll, NSGD, Fanion, FFanion, SFanion, Dion, IsotropicCurvature, Scale,
    GaLore, Fira, Apollo, ApolloMini, Switch,
)  # fmt: skip
OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    record.__dataclass_fields__["name"].default: record for record in _RECORDS
}


def optimizer_from_dict(values: Mapping[str, Any]) -> OptimizerConfig:
    """Inverse of `dataclasses.asdict`: `name` says which record.

    Raises:
        ConfigError: a value out of range.
        KeyError, TypeError: not the shape that `asdict` writes.
    """
    phases = {key: optimizer_from_dict(value) for key, value in values.items() if isinstance(value, Mapping)}
    return OPTIMIZERS[values["name"]](**{**values, **phases})
