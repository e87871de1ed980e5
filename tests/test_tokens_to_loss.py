"""Tokens to a loss: planted curves, censoring without extrapolation, targets, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.interval import FitError
from analysis.tokens_to_loss import BatchCurve, choose_target_losses, tokens_to_losses
from tests.critical_batch_helpers import HORIZONS, Planted


def curve(losses: tuple[float, ...] = (3.0, 2.5, 2.2), **fields: object) -> BatchCurve:
    made = {
        "optimizer": "muon",
        "width": 64,
        "n_params": 9,
        "batch_tokens": 512,
        "train_tokens": (1000, 4000, 16000)[: len(losses)],
        "losses": losses,
    }
    return BatchCurve(**{**made, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [512, 8192, 32768])
def test_planted_tokens_between_horizons_a_factor_of_four_apart(batch: int) -> None:
    planted = Planted()
    losses = np.linspace(*planted.losses(batch)[[0, -1]], 30)[1:-1].tolist()
    found = tokens_to_losses(planted.curves((batch,))[0], losses).values
    np.testing.assert_allclose(found, np.log([planted.tokens(loss, batch) for loss in losses]), atol=0.035)


def test_outside_the_horizons_is_a_bound_and_at_them_exact() -> None:
    points = tokens_to_losses(curve(), [3.01, 3.0, 2.5, 2.2, 2.19]).points(0.9)
    assert [point.censored for point in points] == ["fewer", None, None, None, "more"]
    assert [point.tokens for point in points] == pytest.approx([1000, 1000, 4000, 16000, 16000])
    assert points[2].steps == pytest.approx(4000 / 512)
    assert "loss 3.01 reached before the shortest horizon" in points[0].says
    assert "loss 2.19 not reached by the longest horizon" in points[-1].says
    assert points[1].says == ""


@given(
    steps=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6),
    target=st.floats(1.0, 9.0),
    scale=st.floats(0.5, 2.0),
)
def test_a_lower_loss_never_takes_fewer_tokens(steps: list[float], target: float, scale: float) -> None:
    losses = tuple((9.0 - np.cumsum([0.0, *steps])).tolist())
    made = curve(losses, train_tokens=tuple(1000 * 3**i for i in range(len(losses))))
    found = tokens_to_losses(made, [target, target * 0.98, target * 0.9]).values
    assert found[0] <= found[1] <= found[2]
    scaled = curve(tuple(scale * loss for loss in losses), train_tokens=made.train_tokens)
    again = tokens_to_losses(scaled, [scale * target]).values[0]  # nats or bits
    assert again == pytest.approx(found[0], abs=1e-6) or min(abs(target - np.array(losses))) < 1e-9


def test_a_rise_is_noise_and_is_pooled() -> None:
    values = tokens_to_losses(curve((3.0, 2.5, 2.6)), [2.7, 2.56, 2.5]).values
    assert values[0] < np.log(4000)  # pooled to 2.55 from 4000 tokens on
    assert values[1] < np.log(4000)
    assert values[2] == np.inf


def test_losses_at_an_edge_are_left_out_and_said_so() -> None:
    edge = curve(at_edge=(False, False, True))
    assert edge.usable == (0, 1)
    assert "at horizons [16000] tokens" in (edge.left_out or "")
    assert curve().left_out is None
    assert tokens_to_losses(edge, [2.4]).points(0.9)[0].tokens == pytest.approx(4000)
    alone = curve(at_edge=(True, False, True))
    assert tokens_to_losses(alone, [2.6, 2.5, 2.4]).values.tolist() == [-np.inf, pytest.approx(np.log(4000)), np.inf]
    with pytest.raises(FitError, match="no horizon is left"):
        tokens_to_losses(curve(at_edge=(True,) * 3), [2.4])


def test_draws_end_at_the_horizons() -> None:
    rng = np.random.default_rng(1)
    draws = tuple(map(tuple, (np.array([3.0, 2.5, 2.2]) + 0.05 * rng.standard_normal((200, 3))).tolist()))
    found = tokens_to_losses(curve(draws=draws), [2.6, 2.21], n_draws=150)
    assert found.draws.shape == (150, 2)
    inside, late = found.points(0.9)
    assert inside.interval is not None
    assert inside.interval.low < inside.tokens < inside.interval.high
    assert late.interval is not None
    assert late.interval.high == pytest.approx(16000)
    assert (found.draws[:, 1] == np.inf).any()


def test_targets_are_reached_by_as_many_batches_as_possible() -> None:
    curves = Planted().curves()
    targets = choose_target_losses(curves)
    assert len(targets) == 4
    assert list(targets) == sorted(targets, reverse=True)
    np.testing.assert_allclose(np.diff(np.log(targets)), np.diff(np.log(targets))[0])
    reached = [np.isfinite(tokens_to_losses(c, targets).values) for c in curves]
    assert (np.sum(reached, axis=0) >= 6).all()
    assert len(choose_target_losses(curves, 7)) == 7
    few = [c for c in curves if c.batch_tokens in (512, 1024, 2048, 4096)]
    assert choose_target_losses(few)[-1] < targets[-1]  # which larger batches do not reach


def test_targets_that_too_few_batches_reach_are_refused_with_what_to_run() -> None:
    planted = Planted()
    apart = planted.curves((512, 65536, 2**18, 2**20, 2**22), (8_000_000, 32_000_000))
    with pytest.raises(FitError, match=r"no loss is reached within the horizons of 4 batches.*Train the batches"):
        choose_target_losses(apart)
    edges = [replace(c, at_edge=(True,) * 3) for c in planted.curves()]
    with pytest.raises(FitError, match="all at an edge"):
        choose_target_losses(edges)


def test_bad_input_is_refused() -> None:
    with pytest.raises(FitError, match=r"3 horizons need as many losses.*got \[2\]"):
        curve((3.0, 2.5), train_tokens=HORIZONS)
    with pytest.raises(FitError, match=r"got \[2, 3\]"):
        curve(draws=((3.0, 2.0),))
    with pytest.raises(FitError, match="at least one step of a batch"):
        curve(batch_tokens=2000)
    with pytest.raises(FitError, match="train_tokens must ascend"):
        curve(train_tokens=(1000, 1000, 4000))
    with pytest.raises(FitError, match="losses must be finite and above 0"):
        curve((3.0, float("nan"), 2.0))
