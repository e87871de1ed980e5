"""Every optimizer but the switch from one to another."""

from proxy_models.optimizer_config.elementwise import SGD, AdamW, SignSGD
from proxy_models.optimizer_config.low_rank import Apollo, ApolloMini, Fira, GaLore
from proxy_models.optimizer_config.scale import Scale
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

PlainOptimizerConfig = (
    AdamW
    | SGD
    | SignSGD
    | Muon
    | NorMuon
    | MuonAll
    | NSGD
    | Fanion
    | FFanion
    | SFanion
    | Dion
    | IsotropicCurvature
    | Scale
    | GaLore
    | Fira
    | Apollo
    | ApolloMini
)
