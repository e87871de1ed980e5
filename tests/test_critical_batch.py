"""Critical batches from planted curves: recovered, covered, bounded or refused, in any unit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.stats import binomtest

from analysis import critical_batch, joint_hyperbola
from analysis.critical_batch import CriticalFlag, Verdict, fit_critical_batch, judge
from analysis.interval import FitError, Interval
from analysis.joint_hyperbola import Points, fit_jointly
from analysis.tokens_to_loss import CurveTokens, tokens_to_losses
from tests.critical_batch_helpers import BATCHES, SEQ_LEN, Planted


def fit(curves, seed=3, **options):  # type: ignore[no-untyped-def]
    return fit_critical_batch(curves, rng=np.random.default_rng(seed), **{"seq_len": SEQ_LEN, **options})


@pytest.mark.parametrize(
    "planted", [Planted(), Planted(critical=3000.0, power=0.3), Planted(critical=20000.0, power=0.8)]
)
def test_planted_critical_batches_and_their_power(planted: Planted) -> None:
    found = fit(planted.curves(horizons=(2_000_000, 4_000_000, 8_000_000, 16_000_000, 32_000_000)))
    assert len(found.measured) >= 3
    for record in found.measured:
        assert record.value == pytest.approx(planted.critical_batch(record.target_loss), rel=0.03)
        assert record.min_tokens == pytest.approx(planted.min_tokens(record.target_loss), rel=0.03)
        assert record.min_steps == pytest.approx(record.min_tokens / record.value)
    assert found.power.value == pytest.approx(planted.power, abs=0.05)
    assert found.power.from_data


def test_three_percent_noise_on_the_steps_gives_ten_percent() -> None:
    """Nine batches, tokens to four losses measured directly, noise of a batch common to its losses."""
    rng, planted, errors = np.random.default_rng(8), Planted(), []
    losses = (2.6, 2.4, 2.25, 2.15)
    for _ in range(60):
        tokens = []
        for batch, noise in zip(BATCHES, 0.03 * rng.standard_normal(9), strict=True):
            values = np.log([planted.tokens(loss, batch) for loss in losses]) + noise
            made = planted.curves((batch,), (1_000_000, 900_000_000), true_losses={batch: np.array([3.0, 2.0])})[0]
            tokens.append(CurveTokens(curve=made, target_losses=losses, log_shortest=0.0, log_longest=30.0,
                                      values=values, draws=np.empty((0, 4))))  # fmt: skip
        found = fit_jointly(tokens, n_draws=0, rng=rng)
        errors.append(found.log_critical[0] - np.log([planted.critical_batch(loss) for loss in losses]))
    assert np.mean(np.abs(errors) < np.log(1.1)) > 0.95


@pytest.mark.parametrize("n_draws", [60, 0])
def test_intervals_cover_the_planted_critical_batch(n_draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end from noisy losses at three horizons; with draws and without."""
    monkeypatch.setattr(critical_batch, "MOST_DRAWS", 40)
    rng, planted, held, power = np.random.default_rng(21), Planted(), [], []
    truth = {batch: planted.losses(batch) for batch in BATCHES}
    for _ in range(30):
        found = fit(
            planted.curves(noise=0.02, n_draws=n_draws, rng=rng, true_losses=truth), seed=int(rng.integers(1e9))
        )
        for record in found.records:
            low, high = np.quantile(record.draws, [0.05, 0.95])
            held.append(low <= planted.critical_batch(record.target_loss) <= high)
        power.append(found.power.interval.contains(planted.power))
    n = len(power)  # losses of one study share their runs
    assert binomtest(round(np.mean(held) * n), n, 0.9).pvalue > 0.01
    assert binomtest(sum(power), n, 0.9).pvalue > 0.01


def test_each_number_has_its_definition_and_unit() -> None:
    found = fit(Planted().curves(noise=0.01, n_draws=40))
    hyperbola, overhead = found.records[1], found.overheads[1]
    assert (hyperbola.definition, hyperbola.overhead) == ("hyperbola", None)
    assert (overhead.definition, overhead.overhead) == ("overhead", 0.2)
    assert overhead.value == pytest.approx(0.2 * hyperbola.value)
    assert overhead.interval.high == pytest.approx(0.2 * hyperbola.interval.high)
    assert hyperbola.sequences == pytest.approx(hyperbola.value / SEQ_LEN)
    assert hyperbola.lr_policy == "re-tuned at every batch"
    assert "hyperbola's B_c of adamw at width 64" in hyperbola.says
    assert "sequences of 64" in hyperbola.says
    assert "20% token overhead" in overhead.says
    curve = found.hyperbolas[1]
    assert curve.tokens_at(overhead.value) == pytest.approx(1.2 * hyperbola.min_tokens)
    with pytest.raises(FitError, match="an overhead is of the hyperbola's B_c"):
        overhead.at_overhead(0.1)
    with pytest.raises(FitError, match="above 0"):
        hyperbola.at_overhead(-0.1)


def test_batches_on_one_side_give_a_bound_and_no_value() -> None:
    below = fit(Planted().curves(tuple(2**k for k in range(6, 12)), noise=0.005, n_draws=40))
    assert {record.verdict for record in below.records} == {Verdict.ABOVE}
    record = below.records[0]
    assert (record.value, record.interval, record.at_most, record.min_steps) == (None, None, None, None)
    assert record.at_least is not None
    assert record.at_least <= min(2048, Planted().critical_batch(record.target_loss))
    assert record.min_tokens == pytest.approx(Planted().min_tokens(record.target_loss), rel=0.1)
    assert "not measured, at least" in record.says
    assert below.overheads[0].at_least == pytest.approx(0.2 * record.at_least)
    assert CriticalFlag.NARROW_SPAN in record.flags
    above = fit(Planted(critical=500.0).curves(tuple(2**k for k in range(13, 18)), noise=0.005, n_draws=40))
    assert Verdict.MEASURED not in {record.verdict for record in above.records}
    assert above.records[0].value is None
    assert above.records[0].min_tokens is None
    assert above.records[0].at_least is None


def test_a_wide_interval_is_not_a_measurement() -> None:
    def interval(low: float, high: float) -> Interval:
        return Interval(low=low, high=high, level=0.9)

    assert judge(40, interval(25, 70), 10, 160) == (Verdict.MEASURED, None, None)
    assert judge(40, interval(15, 100), 10, 160) == (Verdict.UNRESOLVED, 15, 100)
    assert judge(40, interval(15, 900), 10, 160) == (Verdict.ABOVE, 15, None)
    assert judge(40, interval(2, 70), 10, 160) == (Verdict.BELOW, None, 70)
    assert judge(40, interval(2, 900), 10, 160) == (Verdict.UNRESOLVED, None, None)
    assert judge(300, interval(250, 350), 10, 160) == (Verdict.ABOVE, 160, None)
    assert judge(5, interval(4, 6), 10, 160) == (Verdict.BELOW, None, 10)
    noisy = fit(Planted().curves(BATCHES[2:7], noise=0.3, n_draws=40))
    assert Verdict.MEASURED not in {record.verdict for record in noisy.records}


def test_bounds_enter_the_fit() -> None:
    """Small batches alone cannot tell how large B_c is; one large batch that does not reach the loss bounds it."""
    curves = Planted().curves((64, 128, 256, 512, 131072), noise=0.02, n_draws=60)
    few = curves[:4]
    more = curves
    without, bounded = (fit(chosen, target_losses=(2.4, 2.3, 2.2, 2.1)) for chosen in (few, more))
    assert without.censored == ()
    assert len(bounded.censored) == 4
    assert all("batch 131072 tokens" in said for said in bounded.censored)
    assert all(CriticalFlag.CENSORED in record.flags for record in bounded.records)
    for loose, tight in zip(without.records, bounded.records, strict=True):
        assert np.quantile(tight.draws, 0.95) < 0.5 * np.quantile(loose.draws, 0.95)


@settings(max_examples=8, deadline=None)  # a tenth of a second each, more on a busy machine
@given(unit=st.integers(2, 1000), seed=st.integers(0, 100))
def test_another_token_unit_rescales_every_number(unit: int, seed: int) -> None:
    planted = Planted()
    truth = {batch: planted.losses(batch) for batch in BATCHES[:7]}
    one, other = (
        fit(
            planted.curves(
                BATCHES[:7], noise=0.02, n_draws=4, rng=np.random.default_rng(seed), unit=u, true_losses=truth
            ),
            seq_len=SEQ_LEN * u,
        )
        for u in (1, unit)
    )
    assert one.target_losses == other.target_losses
    assert one.power.value == pytest.approx(other.power.value, rel=1e-6)
    for small, large in zip(one.records, other.records, strict=True):
        assert small.verdict is large.verdict
        np.testing.assert_allclose(np.array(large.draws), unit * np.array(small.draws), rtol=1e-6)
        np.testing.assert_allclose(large.min_tokens_draws, unit * np.array(small.min_tokens_draws), rtol=1e-6)
        if small.value is not None:
            assert large.value == pytest.approx(unit * small.value, rel=1e-6)
            assert large.sequences == pytest.approx(small.sequences, rel=1e-6)


def test_the_solver_s_gradient() -> None:
    rng = np.random.default_rng(2)
    points = Points(log_batches=rng.normal(size=12), targets=np.tile(np.arange(3), 4), values=rng.normal(size=12),
                    bounds=np.resize([0, 1, 0, -1, 0], 12), errors=np.full(12, 0.2), n_targets=3)  # fmt: skip
    at = np.array([0.3, -0.2, 0.1, 0.4, 0.7])
    for i in range(12):
        off = check_grad(
            lambda p, i=i: joint_hyperbola.predict(p, points)[i],
            lambda p, i=i: joint_hyperbola._gradient(p, points)[i],
            at,
        )
        assert off < 1e-6
    u = np.array([-30.0, -2.0, 0.0, 3.0, 40.0])
    r, slope = joint_hyperbola._one_sided(u)
    assert np.isfinite([r, slope]).all()
    np.testing.assert_allclose(r[2], np.sqrt(2 * np.log(2)))
    step = 1e-6
    numeric = (joint_hyperbola._one_sided(u + step)[0] - joint_hyperbola._one_sided(u - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-4, atol=1e-12)


def test_targets_given_and_those_left_out() -> None:
    curves = Planted().curves(noise=0.01, n_draws=20)
    found = fit(curves, target_losses=[2.3, 1.96, 2.5])
    assert found.target_losses == (2.5, 2.3)
    ((loss, reason),) = found.targets_left_out
    assert loss == 1.96
    assert "train batches [4096, 8192, 16384, 32768, 65536, 131072] tokens for longer" in reason
    with pytest.raises(FitError, match=r"no target loss can be used: fewer than 4 batches reach loss 1\.9"):
        fit(curves, target_losses=[1.9])
    with pytest.raises(FitError, match="target losses must be above 0"):
        fit(curves, target_losses=[-1.0])
    with pytest.raises(FitError, match="target losses must be above 0"):
        fit(curves, target_losses=[])


def test_flags_say_what_the_interval_rests_on() -> None:
    curves = Planted().curves(noise=0.01, n_draws=20)
    assert CriticalFlag.NO_DRAWS not in fit(curves).records[0].flags
    bare = [replace(curve, draws=()) for curve in curves]
    assert CriticalFlag.NO_DRAWS in fit(bare).records[0].flags
    edge = [replace(curves[0], at_edge=(True, False, False)), *curves[1:]]
    found = fit(edge)
    assert CriticalFlag.LEFT_OUT in found.records[0].flags
    assert "at horizons [2000000] tokens" in found.curves_left_out[0]
    rng = np.random.default_rng(4)
    ragged = [replace(c, losses=tuple(loss + rng.normal(0, 0.12) for loss in c.losses), draws=()) for c in curves]
    assert CriticalFlag.MISFIT in fit(ragged).records[0].flags
    assert all(flag.advice.endswith(".") for flag in CriticalFlag)


def test_a_document_without_draws() -> None:
    found = fit(Planted().curves(noise=0.01, n_draws=20))
    document = json.loads(json.dumps(found.to_json()))
    assert document["unit"] == "tokens"
    assert {record["definition"] for record in document["critical_batches"]} == {"hyperbola", "overhead"}
    assert len(document["points"]) == len(BATCHES) * len(found.target_losses)
    assert document["power"]["prior_mean"] == 0.465
    assert "draws" not in str(document["critical_batches"][0].keys())


def test_refusals() -> None:
    curves = Planted().curves()
    with pytest.raises(FitError, match=r"4 batches or more, got \[512, 1024, 2048\] tokens; run more"):
        fit(curves[:3])
    with pytest.raises(FitError, match=r"4 batches or more.*at an edge of its grid"):
        fit([replace(curves[0], at_edge=(True,) * 3), *curves[1:4]])
    with pytest.raises(FitError, match="one optimizer and one width"):
        fit([*curves[:5], replace(curves[6], width=128)])
    with pytest.raises(FitError, match=r"batches \[512\] tokens have several curves"):
        fit([*curves, curves[0]])
    with pytest.raises(FitError, match=r"batches \[512\] tokens are not whole sequences of 1024 tokens"):
        fit(curves, seq_len=1024)
    with pytest.raises(FitError, match="seq_len must be 1 token or more"):
        fit(curves, seq_len=0)
    tokens = [tokens_to_losses(curve, [2.3]) for curve in curves[:2]]
    with pytest.raises(FitError, match="three measured batches"):
        fit_jointly(tokens, n_draws=0, rng=np.random.default_rng(0))
