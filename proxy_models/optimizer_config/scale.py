"""SCALE, and the ablations of its paper."""

from dataclasses import dataclass
from typing import Literal

from proxy_models.optimizer_config.base import Scaling
from proxy_models.roles import Role

UnitNorm = Literal["rms", "l2"]
Normalization = Literal["column", "row", "sign", "ns"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """SCALE (Glentis et al., arXiv:2506.16659): each output unit's gradient divided by its size.

    `unit_norm` says which: `rms` as the published code, or `l2` as the paper. They differ by sqrt(fan_in) and so
    in their width rule and in the size of lr. Momentum on READOUT alone; VECTOR uses Adam.

    The paper's ablations: `normalization` of every matrix but the readout, and `readout_normalization`, in its
    words for weights seen as (fan_in, fan_out): `column` divides what enters an output unit, `row` what leaves an
    input unit, `sign` each entry by itself, and `ns` orthogonalizes (five Jordan steps, to entries of RMS 1). The
    last two have one norm each, whatever `unit_norm`; `ns` assumes a vocabulary at least as large as the width.
    Without momentum: momentum = 0.
    """

    name: Literal["scale"] = "scale"
    unit_norm: UnitNorm = "rms"
    normalization: Normalization = "column"
    readout_normalization: Normalization = "column"

    def scaling(self, role: Role) -> Scaling:
        """The row of `parametrization.RULES` that scales this role."""
        if role is Role.VECTOR:
            return "adam"
        normalization = self.readout_normalization if role is Role.READOUT else self.normalization
        if normalization == "ns":
            return "orthogonal_rms"
        if normalization == "sign" or self.unit_norm == "rms":
            return "adam"
        return "unit_l2" if normalization == "column" else "unit_row_l2"
