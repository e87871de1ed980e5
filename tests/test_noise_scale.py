"""The gradient noise scale: planted ratios recovered, intervals that cover, the biased form shown biased."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.noise_scale import MeasuredCritical, noise_scale_along_training
from analysis.interval import FitError, Floats, Interval
from analysis.noise_scale import CAVEAT, NoisePoints, noise_points, noise_scale, noise_scale_trend
from proxy_models.train import Watch
from sweeps.rows import diagnostics_from_parquet, diagnostics_to_parquet
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run

MICRO, BATCH = 4, 64
PLANTED = 50.0


def points(micro_sq: Floats, batch_sq: Floats, *, micro: float = MICRO, batch: float = BATCH) -> NoisePoints:
    n = len(micro_sq)
    return NoisePoints(
        tokens=batch * np.arange(1.0, n + 1),
        micro_sq=np.asarray(micro_sq, dtype=np.float64),
        batch_sq=np.asarray(batch_sq, dtype=np.float64),
        micro_tokens=np.full(n, float(micro)),
        batch_tokens=np.full(n, float(batch)),
    )


def gaussian_gradients(variances: Floats, n: int, rng: np.random.Generator, *, ratio: float = PLANTED) -> NoisePoints:
    """n steps of a mean gradient of norm 1 with noise of covariance ratio * diag(variances) / trace."""
    mean = rng.standard_normal(len(variances))
    mean /= np.linalg.norm(mean)
    noise = np.sqrt(variances / variances.sum() * ratio / MICRO)
    micro, batch = np.empty(n), np.empty(n)
    for i in range(n):
        gradients = mean + noise * rng.standard_normal((BATCH // MICRO, len(variances)))
        micro[i], batch[i] = (gradients**2).sum(axis=1).mean(), (gradients.mean(axis=0) ** 2).sum()
    return points(micro, batch)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.3], ids=["isotropic", "1/i", "i^-1.3"])
def test_planted_ratio_of_gaussian_gradients(decay: float) -> None:
    """2000 dimensions, tr(Sigma)/|G|^2 = 50, batches of 4 and 64: within 3 standard errors."""
    variances = np.arange(1.0, 2001.0) ** -decay
    measured = gaussian_gradients(variances, 300, np.random.default_rng(1))
    found = noise_scale(measured)
    assert found.value is not None
    residual = measured.noise_trace - found.value * measured.gradient_sq
    error = residual.std(ddof=1) / np.sqrt(len(measured)) / found.gradient_sq
    assert abs(found.value - PLANTED) < 3 * error
    assert error < 0.03 * PLANTED


def test_mean_of_ratios_is_biased() -> None:
    """On the same 1200 steps the ratio of means hits what the mean of the steps' own ratios misses by 5 errors."""
    measured = gaussian_gradients(np.arange(1.0, 2001.0) ** -1.3, 1200, np.random.default_rng(2))
    found = noise_scale(measured)
    ratios = measured.noise_trace / measured.gradient_sq
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert ratios.mean() - PLANTED > 5 * error
    assert ratios.mean() > 1.08 * PLANTED
    assert found.interval is not None
    assert found.interval.contains(PLANTED)
    assert found.interval.width < 0.1 * PLANTED


def _correlated(n: int, correlation: float, rng: np.random.Generator, draws: int) -> Floats:
    """Standard normal AR(1), (draws, n)."""
    noise = rng.standard_normal((draws, n))
    for i in range(1, n):
        noise[:, i] = correlation * noise[:, i - 1] + np.sqrt(1 - correlation**2) * noise[:, i]
    return noise


@pytest.mark.parametrize(("n", "correlation"), [(6, 0.0), (25, 0.0), (200, 0.0), (200, 0.8)])
def test_interval_covers(n: int, correlation: float) -> None:
    """90 % intervals over 1000 runs whose |G|^2 and trace fluctuate by 30 and 20 %, also from step to step alike."""
    rng, draws, truth = np.random.default_rng(3), 1000, 37.0
    square = 1 + 0.3 * _correlated(n, correlation, rng, draws)
    trace = truth * (1 + 0.2 * _correlated(n, correlation, rng, draws))
    covered = 0
    for g, s in zip(square, trace, strict=True):
        found = noise_scale(points(np.maximum(g + s / MICRO, 0), np.maximum(g + s / BATCH, 0)))
        covered += found.interval is not None and found.interval.contains(truth)
    assert (0.86 if correlation == 0 else 0.82) < covered / draws < 0.94


@given(
    ratio=st.floats(1e-2, 1e4),
    micro=st.floats(1, 1e4),
    times=st.floats(1.5, 256),
    scale=st.floats(1e-8, 1e8),
)
def test_exact_without_noise(ratio: float, micro: float, times: float, scale: float) -> None:
    """E|G_B|^2 = |G|^2 + tr(Sigma)/B at two batches gives both back, in the unit of the batch, whatever the norm."""
    batch = micro * times
    square = np.array([1.0, 2.0, 0.5, 1.5]) * scale
    found = noise_scale(points(square * (1 + ratio / micro), square * (1 + ratio / batch), micro=micro, batch=batch))
    cancellation = 1e-11 * (1 + ratio / micro) * (1 + micro / ratio) * times / (times - 1)
    assert found.value == pytest.approx(ratio, rel=max(1e-9, cancellation))
    assert found.gradient_sq == pytest.approx(square.mean(), rel=max(1e-9, cancellation))


def test_no_value_where_the_gradient_is_lost_in_noise() -> None:
    """tr(Sigma)/|G|^2 a thousand times the batch: a lower bound below the truth, and no value."""
    rng = np.random.default_rng(4)
    bounded = 0
    for _ in range(40):
        found = noise_scale(gaussian_gradients(np.ones(200), 12, rng, ratio=1000 * BATCH))
        if found.resolved:
            continue
        assert found.value is None
        assert found.interval is None
        assert "no value" in found.sentence
        if found.at_least is not None:
            bounded += 1
            assert f"at least {found.at_least:.3g} tokens" in found.sentence
            assert 0 < found.at_least < 1000 * BATCH
    assert bounded > 30


def test_says_it_is_a_trend_only() -> None:
    found = noise_scale(gaussian_gradients(np.ones(50), 20, np.random.default_rng(5)))
    assert CAVEAT in found.sentence
    assert "tokens" in found.sentence
    assert "20 steps from 64 to 1.28e+03 tokens" in found.sentence


def _run(exponent: float, rng: np.random.Generator, n: int = 400) -> NoisePoints:
    """A noise scale that goes as tokens^exponent, with 10 % noise on each norm's part."""
    tokens = BATCH * np.arange(1.0, n + 1)
    square = 1 + 0.1 * rng.standard_normal(n)
    trace = 20 * (tokens / tokens[-1]) ** exponent * (1 + 0.1 * rng.standard_normal(n))
    return points(square + trace / MICRO, square + trace / BATCH)


def test_windows_double() -> None:
    trend = noise_scale_trend(_run(0.0, np.random.default_rng(6)))
    assert [window.n_steps for window in trend.windows] == [12, 13, 25, 50, 100, 200]
    assert trend.windows[-1].from_tokens == 201 * BATCH
    assert trend.windows[0].from_tokens == BATCH
    assert (
        sum(window.n_steps for window in noise_scale_trend(_run(0.0, np.random.default_rng(6)), ratio=4).windows) == 400
    )


def test_trend_covers_and_decides() -> None:
    """The planted exponent is inside 85 % or more of 90 % intervals; one of 0.6 is seen, one of 0 is not claimed."""
    rng, planted = np.random.default_rng(7), 0.6
    inside = claimed = 0
    for _ in range(200):
        rising, flat = noise_scale_trend(_run(planted, rng)), noise_scale_trend(_run(0.0, rng))
        assert rising.direction == "rises"
        assert rising.interval is not None
        inside += rising.interval.contains(planted)
        claimed += flat.direction != "not resolved"
    assert inside >= 170
    assert claimed <= 30
    assert noise_scale_trend(_run(-0.6, rng)).direction == "falls"
    assert "as tokens^-" in noise_scale_trend(_run(-0.6, rng)).sentence


def test_trend_of_few_windows_is_inconclusive() -> None:
    trend = noise_scale_trend(_run(0.6, np.random.default_rng(8), n=20))
    assert (len(trend.windows), trend.exponent, trend.direction) == (2, None, "not resolved")
    assert "inconclusive" in trend.sentence
    with pytest.raises(ValueError, match="above 1"):
        noise_scale_trend(_run(0.6, np.random.default_rng(8)), ratio=1.0)


def _diagnostics(steps: list[int], batch_tokens: list[float]) -> pd.DataFrame:
    rows = []
    for step, batch in zip(steps, batch_tokens, strict=True):
        values = {
            "gradient_sq_micro": 3.0 + step,
            "gradient_sq_batch": 1.0,
            "micro_tokens": 16.0,
            "batch_tokens": batch,
        }
        rows += [(step, 0, "all", name, value) for name, value in values.items()]
        rows.append((step, 0, "attention.query", "update_rms", 0.1))
    return pd.DataFrame(rows, columns=["step", "depth", "kind", "quantity", "value"])


def test_points_of_a_trials_diagnostics() -> None:
    """Rows in any order, other quantities beside; a batch that doubles counts from the measurement before on."""
    frame = _diagnostics([10, 20, 40, 60], [64, 64, 128, 128]).sample(frac=1, random_state=0)
    found = noise_points(frame)
    assert found.tokens.tolist() == [640, 1280, 1280 + 2560, 1280 + 5120]
    assert found.micro_sq.tolist() == [13, 23, 43, 63]
    assert found.micro_tokens.tolist() == [16] * 4
    lacking = frame[~((frame["step"] == 20) & (frame["quantity"] == "gradient_sq_micro"))]
    assert noise_points(lacking).tokens.tolist() == [640, 640 + 30 * 128, 640 + 50 * 128]


def test_reads_what_training_records() -> None:
    """A tiny run measured every second step: 12 points, at the tokens of those steps."""
    run = tiny_run(
        hparams={"lr": 1e-2, "batch_tokens": 256, "decay_tokens": 0, "warmup_tokens": 0}, train_tokens=24 * 256
    )
    (outcome,) = outcomes([run], cyclic_data(), watch=Watch(noise_every=2))
    found = noise_points(diagnostics_from_parquet(diagnostics_to_parquet(outcome.diagnostics)))
    assert found.tokens.tolist() == [256 * step for step in range(1, 25, 2)]
    assert set(found.batch_tokens) == {256}
    assert (found.micro_sq > found.batch_sq).all()
    assert noise_scale(found).noise_trace > 0


def test_refuses_diagnostics_it_cannot_read() -> None:
    frame = _diagnostics([10, 20], [64, 64])
    with pytest.raises(FitError, match=r"hold no gradient_sq_micro, micro_tokens"):
        noise_points(frame[~frame["quantity"].isin(["gradient_sq_micro", "micro_tokens"])])
    with pytest.raises(FitError, match="one trial at a time"):
        noise_points(pd.concat([frame, frame]))
    with pytest.raises(FitError, match="columns \\['kind'\\]"):
        noise_points(frame.drop(columns="kind"))
    with pytest.raises(FitError, match="no step of these diagnostics has all"):
        noise_points(
            pd.concat(
                [
                    frame[(frame["step"] == 10) & (frame["quantity"] == "gradient_sq_micro")],
                    frame[(frame["step"] == 20) & (frame["quantity"] != "gradient_sq_micro")],
                ]
            )
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_tokens": np.full(5, 64.0)}, "smaller than their batch, got 64 of 64 tokens"),
        ({"micro_sq": np.array([1.0, 2, 3, 4, -1])}, "0 or more"),
        ({"batch_sq": np.array([1.0, 2, 3, 4, np.nan])}, "finite"),
        ({"tokens": np.array([1.0, 3, 2, 4, 5])}, "ascend"),
        ({"tokens": np.ones(4)}, "lengths"),
    ],
)
def test_refuses_points(change: dict[str, Floats], message: str) -> None:
    parts = {
        "tokens": np.arange(1.0, 6.0),
        "micro_sq": np.ones(5),
        "batch_sq": np.ones(5),
        "micro_tokens": np.full(5, 8.0),
        "batch_tokens": np.full(5, 64.0),
    }
    with pytest.raises(FitError, match=message):
        NoisePoints(**{**parts, **change})


def test_refuses_few_steps() -> None:
    with pytest.raises(FitError, match="4 measured steps or more, got 3"):
        noise_scale(points(np.ones(3) * 2, np.ones(3)))


def test_figure_names_the_definitions_and_marks_bounds() -> None:
    """A trial with values, one lost in noise, and a critical batch whose label says its definition."""
    rng = np.random.default_rng(9)
    lost = gaussian_gradients(np.ones(200), 120, rng, ratio=1000 * BATCH)
    trends = {"adamw": noise_scale_trend(_run(0.6, rng)), "muon": noise_scale_trend(lost)}
    assert any(window.at_least for window in trends["muon"].windows)
    critical = MeasuredCritical(
        label="hyperbola's B_c at loss 3.2", batch_tokens=90.0, interval=Interval(low=70, high=110, level=0.9)
    )
    figure = noise_scale_along_training(trends, [critical])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0].startswith("adamw: rises, exponent +0.")
    assert labels[1] == "muon: too few windows with a value for a trend"
    assert labels[2:] == ["hyperbola's B_c at loss 3.2", "lower bound: |G|² not told from 0"]
    assert CAVEAT in figure.axes[0].get_title()
    with pytest.raises(ValueError, match="nothing to draw"):
        noise_scale_along_training({})
