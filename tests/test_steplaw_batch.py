"""Batch laws of Step Law's published runs (arXiv:2503.04715): lr over batch by cell, the best batch over tokens."""

import numpy as np
import pytest

from analysis.hp_powers import BATCH, CellPower, CellPowers, lr_batch_power_by_cell, power_trend
from analysis.published_laws import LR_OVER_BATCH, LR_OVER_BATCH_RANGE, band
from analysis.scale_law import fit_scale_law
from tests.scale_helpers import needs_step_law, step_law

ALL = 6e8  # parameters: every model of the file

pytestmark = needs_step_law


@pytest.fixture(scope="module")
def found() -> CellPowers:
    return lr_batch_power_by_cell(step_law(up_to=ALL), "dense")


def tokens_per_param(cell: CellPower) -> float:
    scales = dict(cell.scales)
    return scales["D"] / scales["N"]


def test_lr_over_batch_rises_with_tokens_per_parameter(found: CellPowers) -> None:
    """About 0.2 near 20 tokens a parameter and 0.6 where models are trained far longer, resolved from each other."""
    smallest = sorted((cell for cell in found.cells if dict(cell.scales)["N"] < 2.2e8), key=tokens_per_param)
    assert [round(tokens_per_param(cell)) for cell in smallest] == [19, 53, 93, 466]
    assert 0.05 < smallest[0].value < 0.3
    assert 0.5 < smallest[-1].value < 0.7
    assert smallest[0].interval.high < smallest[-1].interval.low
    trend = power_trend(found.cells, [np.log2(tokens_per_param(cell)) for cell in found.cells])
    assert 0.05 < trend.value < 0.2
    assert trend.interval.low > 0


def test_every_cell_has_an_interval_or_a_reason(found: CellPowers) -> None:
    assert len(found.cells) + len(found.left_out) == 15
    assert len(found.cells) >= 13
    assert all("flat or a saddle" in reason for reason in found.left_out)
    assert all(cell.interval.low < cell.value < cell.interval.high for cell in found.cells)
    assert all(cell.interval.width < 0.45 for cell in found.cells)


def test_the_prior_of_lr_over_batch_holds_the_cells(found: CellPowers) -> None:
    values = np.array([cell.value for cell in found.cells])
    assert abs(np.median(values) - LR_OVER_BATCH.mean) < LR_OVER_BATCH.sd
    assert np.mean((values >= LR_OVER_BATCH_RANGE[0]) & (values <= LR_OVER_BATCH_RANGE[1] + 0.05)) == 1.0
    assert 0.5 * LR_OVER_BATCH.sd < values.std() < 1.5 * LR_OVER_BATCH.sd


def test_the_best_batch_over_tokens_at_equal_size() -> None:
    law = fit_scale_law(step_law(up_to=ALL), "dense")
    power = next(p for p in law.powers if (p.hp, p.scale) == (BATCH, "D"))
    assert 0.45 <= power.value <= 0.65
    assert power.interval.low > 0.45
    assert power.interval.high < 0.7
    batch = law.predict({"N": 4.3e8, "D": 2e10}, rng=np.random.default_rng(0)).values[1]
    published = band("batch", 4.3e8, 2e10)
    assert published.low / 1.5 < batch < published.high
