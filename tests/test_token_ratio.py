"""Token ratios of two planted optimizers: values, bounds, whether they grow, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.critical_batch import CriticalBatchFit, fit_critical_batch
from analysis.interval import FitError
from analysis.token_ratio import Growth, TokenRatio, fit_token_ratio
from analysis.tokens_to_loss import BatchCurve
from tests.critical_batch_helpers import BATCHES, HORIZONS, SEQ_LEN, Planted

ADAMW = Planted()
CURVES = (HORIZONS[0] // 4, *HORIZONS, HORIZONS[-1] * 4)


def muon(**law: float) -> Planted:
    return replace(Planted(scale=77.0, optimizer="muon"), **law)  # 12 % fewer tokens where batches are small


def curves(planted: Planted, *, seed: int = 1, noise: float = 0.004, n_draws: int = 60) -> list[BatchCurve]:
    return planted.curves(horizons=CURVES, noise=noise, n_draws=n_draws, rng=np.random.default_rng(seed))


def critical_of(found: list[BatchCurve]) -> CriticalBatchFit:
    return fit_critical_batch(found, seq_len=SEQ_LEN, rng=np.random.default_rng(2))


def ratio_of(top: list[BatchCurve], bottom: list[BatchCurve], **options: object) -> TokenRatio:
    return fit_token_ratio(top, bottom, rng=np.random.default_rng(3), **options)  # type: ignore[arg-type]


def test_planted_ratios_grow_where_muon_s_critical_batch_is_larger() -> None:
    law, adamw = muon(critical=16000.0), curves(ADAMW)
    ratio = ratio_of(adamw, curves(law, seed=7), critical=critical_of(adamw))
    exact = [point for point in ratio.points if point.bound is None and point.value is not None]
    assert len(exact) > 20
    held = 0
    for point in exact:
        truth = ADAMW.tokens(point.target_loss, point.batch_tokens) / law.tokens(point.target_loss, point.batch_tokens)
        assert point.value == pytest.approx(truth, rel=0.1)
        assert point.interval is not None
        held += point.interval.low * 0.99 <= truth <= point.interval.high * 1.01
    assert held / len(exact) > 0.8
    assert ratio.everywhere.growth is Growth.YES
    assert ratio.past_critical is not None
    assert ratio.past_critical.growth is Growth.YES
    assert 0 < ratio.past_critical.n_points < ratio.everywhere.n_points
    past = critical_of(adamw).overheads
    assert min(r.value or 0 for r in past) * 0.99 <= min(ratio.past_critical.from_tokens)
    assert "past adamw's batch of 20% token overhead: yes" in ratio.says


def test_no_growth_where_the_critical_batches_are_equal_or_muon_s_is_smaller() -> None:
    adamw = curves(ADAMW, noise=0.002)
    falls = ratio_of(adamw, curves(muon(critical=4000.0), seed=7), critical=critical_of(adamw))
    assert falls.everywhere.growth is Growth.NO
    assert falls.past_critical is not None
    assert falls.past_critical.growth is Growth.NO
    assert falls.past_critical.value is not None
    assert falls.past_critical.value < 0
    same = replace(ADAMW, optimizer="muon")
    flat = ratio_of(adamw, curves(same, seed=7, noise=0.002))
    assert flat.past_critical is None
    assert flat.everywhere.growth is not Growth.YES
    assert flat.everywhere.value == pytest.approx(0.0, abs=0.02)


def test_noise_and_few_batches_are_not_resolved() -> None:
    adamw, other = curves(ADAMW, noise=0.1), curves(muon(critical=10000.0), noise=0.1, seed=7)
    assert ratio_of(adamw[1:5], other[1:5]).everywhere.growth is Growth.NOT_RESOLVED
    without = ratio_of([replace(c, draws=()) for c in adamw], other)
    assert not without.with_draws
    assert without.everywhere.value is not None
    assert without.everywhere.interval is None
    assert without.everywhere.growth is Growth.NOT_RESOLVED
    assert {point.interval for point in without.points} == {None}
    two = ratio_of(adamw[2:4], other[2:4], target_losses=[2.3])
    assert two.everywhere.value is None
    assert "not resolved (too few batches)" in two.says


def test_a_slope_s_interval_covers_a_planted_power() -> None:
    """Tokens that differ by a power of the batch: losses of equal shape, shifted in log tokens."""
    rng, slope, held = np.random.default_rng(5), 0.08, 0
    batches = BATCHES[1:8]
    for _ in range(60):
        made = []
        for name, power in (("adamw", slope), ("muon", 0.0)):
            truth = {b: 1.5 + 80 * (np.array(CURVES) / (1.2 * (b / 4096) ** power)) ** -0.3 for b in batches}
            planted = Planted(optimizer=name)
            made.append(planted.curves(batches, CURVES, noise=0.01, n_draws=40, rng=rng, true_losses=truth))
        interval = ratio_of(*made).everywhere.interval
        assert interval is not None
        held += interval.contains(slope)
    assert held / 60 > 0.8


def test_bounds_are_said_to_be_bounds() -> None:
    def one(losses: tuple[float, ...], optimizer: str) -> list[BatchCurve]:
        tokens = (1000, 4000, 16000)
        return [
            BatchCurve(optimizer=optimizer, width=64, n_params=9, batch_tokens=512, train_tokens=tokens, losses=losses)
        ]

    slow, fast = one((3.0, 2.5, 2.2), "adamw"), one((2.6, 2.1, 1.8), "muon")
    points = ratio_of(slow, fast, target_losses=[3.1, 2.8, 2.5, 2.1, 1.7]).points
    assert [point.bound for point in points] == [None, "at_least", None, "at_least", None]
    assert [point.value for point in points][::4] == [None, None]  # both reach it too soon, or not at all
    assert points[1].value is not None
    assert points[1].value > 1
    assert points[3].value == pytest.approx(16000 / 4000)
    back = ratio_of(fast, slow, target_losses=[2.8, 2.1]).points
    assert [point.bound for point in back] == ["at_most", "at_most"]
    assert back[1].value == pytest.approx(1 / 4)


def test_a_critical_batch_that_is_not_measured_leaves_growth_open() -> None:
    adamw = curves(ADAMW)
    bounded = fit_critical_batch(
        ADAMW.curves(tuple(2**k for k in range(6, 12)), noise=0.005, n_draws=40), seq_len=SEQ_LEN,
        rng=np.random.default_rng(2),
    )  # fmt: skip
    ratio = ratio_of(adamw, curves(muon(), seed=7), critical=bounded)
    assert ratio.past_critical is not None
    assert ratio.past_critical.growth is Growth.NOT_RESOLVED
    assert "(not measured)" in ratio.past_critical.where
    document = json.loads(json.dumps(ratio.to_json()))
    assert document["past_critical"]["growth"] == "not resolved"
    assert document["everywhere"]["growth"] in ("yes", "no", "not resolved")


def test_refusals() -> None:
    adamw, other = curves(ADAMW, n_draws=0), curves(muon(), n_draws=0)
    with pytest.raises(FitError, match=r"at one width, got widths \[64, 128\]"):
        ratio_of(adamw, [replace(c, width=128) for c in other])
    with pytest.raises(FitError, match="one curve a batch of one optimizer"):
        ratio_of([*adamw, other[0]], other)
    with pytest.raises(FitError, match="one curve a batch of one optimizer"):
        ratio_of(adamw, [*other, other[0]])
    with pytest.raises(FitError, match="no batch has usable curves of both adamw and muon"):
        ratio_of(adamw[:4], other[4:])
    with pytest.raises(FitError, match="critical batch must be of adamw at width 64, got muon"):
        ratio_of(adamw, other, critical=critical_of(curves(muon(), n_draws=20)))
