"""A study of scales as a JSON document: losses in nats, batches and tokens in tokens, intervals {low, high, level}."""

from dataclasses import asdict
from typing import Any

from analysis.hp_powers import CellPower, HpPowers
from analysis.posterior_line import Power
from analysis.scale_study import NoiseRecord, OptimizerScales, ScaleStudy
from analysis.timescale import TimescaleLaw


def study_json(study: ScaleStudy) -> dict[str, Any]:
    """Keys: `optimizers`, `token_ratios` and `unmeasured` {what, optimizer, width, reason}.

    An optimizer has `lr_powers` (by scale: value, interval, rests_on, data_share, prior), `lr_power_by_cell`,
    `lr_power_co_scaled`, `curves`, `critical_batch` (a `CriticalBatchFit` a model), `critical_batch_law`, `branches`,
    `batch_warmup` by width, `noise_scale` and `timescale`. What was not measured is null or empty.
    """
    return {
        "optimizers": [_optimizer_json(found) for found in study.optimizers],
        "token_ratios": [ratio.to_json() for ratio in study.ratios],
        "unmeasured": [asdict(one) for one in study.unmeasured],
    }


def _optimizer_json(found: OptimizerScales) -> dict[str, Any]:
    law = found.law
    return {
        "optimizer": found.optimizer,
        "lr_powers": None if found.powers is None else _powers_json(found.powers),
        "lr_power_by_cell": [] if found.by_cell is None else [_cell_json(cell) for cell in found.by_cell.cells],
        "lr_power_co_scaled": None if found.co_scaled is None else asdict(found.co_scaled),
        "curves": [
            {
                "width": curve.width,
                "n_params": curve.n_params,
                "batch_tokens": curve.batch_tokens,
                "train_tokens": list(curve.train_tokens),
                "losses": list(curve.losses),
                "at_edge": list(curve.at_edge),
            }
            for curve in found.curves
        ],
        "critical_batch": [fit.to_json() for fit in found.critical],
        "critical_batch_law": None
        if law is None
        else {
            "definition": "hyperbola",
            "unit": "tokens",
            "over_tokens": _power_json(law.over_tokens),
            "over_params": _power_json(law.over_params),
            "points": [
                {
                    "label": point.label,
                    "min_tokens": point.min_tokens,
                    "n_params": point.n_params,
                    "critical_batch_tokens": point.critical_batch,
                    "log_sd": point.log_sd,
                }
                for point in law.points
            ],
        },
        "branches": [
            asdict(local) | {"batch_tokens": local.batch_tokens, "bound": local.bound, "definition": local.definition}
            for local in found.branches
        ],
        "batch_warmup": {str(width): [stage._asdict() for stage in stages] for width, stages in found.warmups},
        "noise_scale": [_noise_json(record) for record in found.noise],
        "timescale": None if found.timescale is None else _timescale_json(found.timescale),
    }


def _power_json(power: Power) -> dict[str, Any]:
    return {
        "value": power.value,
        "interval": asdict(power.interval),
        "rests_on": power.rests_on,
        "data_share": power.data_share,
        "prior": asdict(power.prior),
    }


def _powers_json(powers: HpPowers) -> dict[str, Any]:
    return {
        "series": powers.series,
        "powers": {scale: _power_json(power) for scale, power in powers.powers.items()},
        "swept": list(powers.swept),
        "left_out": list(powers.left_out),
        "reason": powers.reason,
    }


def _cell_json(cell: CellPower) -> dict[str, Any]:
    return {
        "scales": dict(cell.scales),
        "batches": list(cell.batches),
        "log2_values": list(cell.log2_values),
        "value": cell.value,
        "interval": asdict(cell.interval),
    }


def _noise_json(record: NoiseRecord) -> dict[str, Any]:
    return asdict(record) | {"direction": record.trend.direction, "sentence": record.trend.sentence}


def _timescale_json(law: TimescaleLaw) -> dict[str, Any]:
    return {
        "coefficient": law.coefficient,
        "over_tokens_per_param": _power_json(law.over_tokens_per_param),
        "rests_on": law.rests_on,
        "reason": law.reason,
        "optima": [asdict(optimum) for optimum in law.optima],
    }
