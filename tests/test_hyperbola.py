"""The hyperbola of tokens against batch: planted values, both definitions, refusals, units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.hyperbola import SEARCH_FACTOR, fit_hyperbola
from analysis.interval import FitError

BATCHES = tuple(2.0**k for k in range(9, 18))


def tokens_of(batches: tuple[float, ...], min_tokens: float, critical: float) -> np.ndarray:
    return min_tokens * (1 + np.array(batches) / critical)


@given(
    log2_critical=st.floats(9.5, 16.5),
    min_tokens=st.floats(1e5, 1e9),
    errors=st.lists(st.floats(0.01, 0.3), min_size=9, max_size=9),
)
def test_recovers_an_exact_hyperbola_whatever_the_weights(
    log2_critical: float, min_tokens: float, errors: list[float]
) -> None:
    fitted = fit_hyperbola(BATCHES, tokens_of(BATCHES, min_tokens, 2**log2_critical).tolist(), errors)
    assert fitted.critical_batch_tokens == pytest.approx(2**log2_critical, rel=1e-5)
    assert fitted.min_tokens == pytest.approx(min_tokens, rel=1e-5)
    assert fitted.side == "inside"
    assert fitted.log_residuals == pytest.approx([0.0] * 9, abs=1e-5)


def test_the_two_definitions_and_the_two_curves() -> None:
    fitted = fit_hyperbola(BATCHES, tokens_of(BATCHES, 3e6, 7000.0).tolist())
    critical = fitted.critical_batch_tokens
    assert fitted.tokens_at(critical) == pytest.approx(2 * fitted.min_tokens)
    assert fitted.steps_at(critical) == pytest.approx(2 * fitted.min_steps)
    assert fitted.tokens_at(fitted.overhead_batch(0.2)) == pytest.approx(1.2 * fitted.min_tokens)
    assert fitted.overhead_batch() == pytest.approx(0.2 * critical)
    steps, tokens = fitted.steps_at(BATCHES), fitted.tokens_at(BATCHES)
    product = (steps / fitted.min_steps - 1) * (tokens / fitted.min_tokens - 1)  # McCandlish et al., section 2.3
    np.testing.assert_allclose(product, 1.0)


def test_three_percent_noise_and_its_standard_error() -> None:
    """Nine batches straddling B_c: within 10 % nearly always, and the standard error is the scatter's."""
    rng, found, errors = np.random.default_rng(5), [], []
    for _ in range(300):
        noisy = tokens_of(BATCHES, 4e6, 9000.0) * np.exp(0.03 * rng.standard_normal(9))
        fitted = fit_hyperbola(BATCHES, noisy.tolist())
        found.append(np.log(fitted.critical_batch_tokens / 9000))
        errors.append(fitted.log_critical_error)
    assert np.mean(np.abs(found) < np.log(1.1)) > 0.95
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.15)


def test_points_count_by_their_errors() -> None:
    tokens = tokens_of(BATCHES, 4e6, 9000.0)
    tokens[2] *= 1.5
    errors = np.full(9, 0.02)
    errors[2] = 10.0
    fitted = fit_hyperbola(BATCHES, tokens.tolist(), errors.tolist())
    assert fitted.critical_batch_tokens == pytest.approx(9000, rel=1e-3)
    assert abs(fit_hyperbola(BATCHES, tokens.tolist()).critical_batch_tokens / 9000 - 1) > 0.1
    exact = fit_hyperbola(BATCHES, tokens_of(BATCHES, 4e6, 9000.0).tolist(), [0.02] * 9)
    assert 0.02 < exact.log_critical_error < 0.05  # from the errors, though the residuals are 0


def test_batches_on_one_side_are_said_to_be() -> None:
    assert fit_hyperbola(BATCHES, tokens_of(BATCHES, 4e6, 2**19).tolist()).side == "above"
    assert fit_hyperbola(BATCHES, tokens_of(BATCHES, 4e6, 2**7).tolist()).side == "below"
    flat = fit_hyperbola(BATCHES, [4e6] * 9)
    assert flat.side == "above"
    assert flat.critical_batch_tokens == pytest.approx(SEARCH_FACTOR * BATCHES[-1], rel=1e-3)


@given(scale=st.floats(1e-3, 1e9), seed=st.integers(0, 10_000))
def test_another_token_unit_rescales_the_result(scale: float, seed: int) -> None:
    tokens = tokens_of(BATCHES, 4e6, 9000.0) * np.exp(0.1 * np.random.default_rng(seed).standard_normal(9))
    fitted = fit_hyperbola(BATCHES, tokens.tolist())
    rescaled = fit_hyperbola([scale * b for b in BATCHES], (scale * tokens).tolist())
    assert rescaled.critical_batch_tokens == pytest.approx(scale * fitted.critical_batch_tokens, rel=1e-6)
    assert rescaled.min_tokens == pytest.approx(scale * fitted.min_tokens, rel=1e-6)
    assert rescaled.min_steps == pytest.approx(fitted.min_steps, rel=1e-6)
    assert rescaled.log_critical_error == pytest.approx(fitted.log_critical_error, rel=1e-5)


def test_refusals() -> None:
    with pytest.raises(FitError, match=r"4 distinct batches or more, got \[64.0, 128.0, 256.0\]"):
        fit_hyperbola([64, 128, 256, 256], [1, 2, 3, 3])
    with pytest.raises(FitError, match="4 batches, 3 tokens and 4 errors"):
        fit_hyperbola([64, 128, 256, 512], [1, 2, 3])
    with pytest.raises(FitError, match="tokens must be finite and above 0"):
        fit_hyperbola([64, 128, 256, 512], [1, 2, 3, float("inf")])
    with pytest.raises(FitError, match="log_errors must be finite and above 0"):
        fit_hyperbola([64, 128, 256, 512], [1, 2, 3, 4], [0.1, 0.1, 0.0, 0.1])
    with pytest.raises(FitError, match="a token overhead must be above 0"):
        fit_hyperbola(BATCHES, tokens_of(BATCHES, 4e6, 9000.0).tolist()).overhead_batch(0.0)
