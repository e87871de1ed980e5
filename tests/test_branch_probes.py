"""Branched probes: k* by its definition, intervals that cover a planted one, bounds called so, and the warm-up."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.branch_probes import LocalCriticalBatch, Probe, batch_warmup, local_critical_batches
from analysis.figures.branch_probes import branch_probes
from analysis.interval import FitError

B = 2048.0
FACTORS = (1, 2, 4, 8, 16)
PLANTED = (3.0, 3.001, 3.005, 3.02, 3.1)
NOISELESS = (3.0, 3.002, 3.009, 3.03, 3.1)  # within 0.01 nats of the best before it up to k = 4


def probes(
    losses: tuple[tuple[float | None, ...], ...],
    *,
    factors: tuple[float, ...] = FACTORS,
    at: float = 1e6,
    optimizer: str = "adamw",
    width: int = 64,
) -> list[Probe]:
    """`losses` a row a seed."""
    return [
        Probe(
            optimizer=optimizer,
            width=width,
            at_tokens=at,
            batch_tokens=B,
            factor=k,
            lr_ratio=math.sqrt(k),
            window_tokens=5e5,
            seed=seed,
            loss=loss,
        )
        for seed, row in enumerate(losses)
        for k, loss in zip(factors, row, strict=True)
    ]


def local(losses: tuple[tuple[float | None, ...], ...], **change: object) -> LocalCriticalBatch:
    (found,) = local_critical_batches(probes(losses, **change), rng=np.random.default_rng(0))  # type: ignore[arg-type]
    return found


def test_the_largest_branch_within_tolerance() -> None:
    found = local((NOISELESS, tuple(loss + 0.2 for loss in NOISELESS)))  # what a seed shares cancels
    assert (found.factor, found.batch_tokens, found.next_factor, found.bound) == (4, 4 * B, 8, "value")
    assert found.probabilities == (0, 0, 1, 0, 0)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (4 * B, 4 * B)
    assert found.definition == "largest branch within 0.01 nats"
    assert "4 x 2.05e+03 = 8.19e+03 tokens (largest branch within 0.01 nats); 8 x is worse" in found.sentence


def test_walks_up_and_stops() -> None:
    """A lower loss at a small k raises the bar for those after it, and none is considered past one that is worse."""
    assert local(((3.0, 2.98, 2.985, 2.995, 2.979),)).factor == 4
    assert local(((3.0, 3.02, 2.9, 2.9, 2.9),)).factor == 1


@given(st.lists(st.integers(0, 40), min_size=2, max_size=7))
def test_walk_is_the_definition(thousandths: list[int]) -> None:
    """Against the definition spelled out, off the tolerance's edge where rounding decides."""
    losses = tuple(3 + 0.0013 * value for value in thousandths)
    factors = tuple(2**i for i in range(len(losses)))
    wanted = 0
    while wanted + 1 < len(losses) and losses[wanted + 1] <= min(losses[: wanted + 1]) + 0.01:
        wanted += 1
    assert local((losses,), factors=factors).factor == factors[wanted]


def test_bounds_are_said_to_be_bounds() -> None:
    above = local(((3.0, 3.001, 3.002, 3.003, 3.004),))
    assert (above.factor, above.next_factor, above.bound) == (16, None, "at least")
    assert "at least 16 x" in above.sentence
    below = local(((3.0, 3.03, 3.05, 3.1, 3.2),))
    assert (below.factor, below.next_factor, below.bound) == (1, 2, "at most")
    assert "at most 1 x" in below.sentence
    assert "2 x is worse already" in below.sentence
    assert "one seed, so no interval" in below.sentence


def test_divergence_ends_the_walk() -> None:
    found = local(((3.0, 3.001, None, 3.0, 3.0), (3.1, 3.101, 3.1, 3.1, 3.1)))
    assert (found.factor, found.losses[2]) == (2, None)
    assert found.probabilities == (0, 1, 0, 0, 0)


def test_intervals_cover_and_probabilities_are_honest() -> None:
    """400 sweeps of 3 seeds, 0.004 nats of noise between branches: the planted k* = 4 is 0.005 to 0.01 nats off.

    The interval is of branches tried, so it covers more often than it says.
    """
    rng, covered, certain_and_wrong, hits = np.random.default_rng(1), 0, 0, 0
    for _ in range(400):
        losses = np.array(PLANTED) + 0.004 * rng.standard_normal((3, 5)) + 0.05 * rng.standard_normal((3, 1))
        (found,) = local_critical_batches(probes(tuple(map(tuple, losses.tolist()))), rng=rng, n_draws=300)
        assert found.interval is not None
        assert found.probabilities is not None
        assert sum(found.probabilities) == pytest.approx(1)
        covered += found.interval.contains(4 * B)
        hits += found.factor == 4
        certain_and_wrong += found.factor != 4 and found.probabilities[2] < 0.05
    assert covered >= 360
    assert hits < 390  # there is something to cover
    assert certain_and_wrong <= 40


def test_one_for_each_branch_point_optimizer_and_width() -> None:
    rows = [
        *probes((NOISELESS,), at=2e6),
        *probes(((3.0, 3.02, 3.1, 3.2, 3.3),), at=1e6),
        *probes((NOISELESS,), optimizer="muon"),
        *probes((NOISELESS,), width=32),
    ]
    for order in itertools.islice(itertools.permutations(range(4)), 3):
        shuffled = [rows[5 * i + j] for i in order for j in (3, 1, 0, 4, 2)]
        found = local_critical_batches(shuffled, rng=np.random.default_rng(0))
        assert [(f.optimizer, f.width, f.at_tokens, f.factor) for f in found] == [
            ("adamw", 32, 1e6, 4),
            ("adamw", 64, 1e6, 1),
            ("adamw", 64, 2e6, 4),
            ("muon", 64, 1e6, 4),
        ]


def _warmup_input(batches: dict[float, float]) -> list[LocalCriticalBatch]:
    """Noiseless branch points at which k* is batch / B."""
    found = []
    for at, batch in batches.items():
        losses = tuple(3.0 if k * B <= batch else 3.5 for k in FACTORS)
        found.append(local((losses,), at=at))
    return found


def test_warmup_doubles_where_the_local_critical_batch_exceeds_twice_the_batch() -> None:
    """At 2 B it is not exceeded yet; at 16 B two doublings of 2 B come at once; and never back."""
    points = _warmup_input({1e6: B, 2e6: 2 * B, 3e6: 4 * B, 5e6: 2 * B, 9e6: 16 * B})
    stages = batch_warmup(points[::-1], B)
    assert stages == (
        (0.0, B, 1.0),
        (3e6, 2 * B, pytest.approx(2**0.5)),
        (9e6, 8 * B, pytest.approx(8**0.5)),
    )
    assert batch_warmup(points, B, lr_exponent=1.0)[-1].lr_ratio == 8
    assert batch_warmup(points[:2], B) == ((0.0, B, 1.0),)


def test_lr_left_where_it_was_is_said() -> None:
    """A branch with too low a lr gains from that alone, as in a decay."""
    rows = [replace(probe, lr_ratio=1.0) for probe in probes(((3.0, 3.0),), factors=(1, 2))]
    (found,) = local_critical_batches(rows, rng=np.random.default_rng(0))
    assert "lr was not raised" in found.sentence
    assert "lr was not raised" not in local((NOISELESS,)).sentence


def test_refusals() -> None:
    rng, good = np.random.default_rng(0), probes((NOISELESS, NOISELESS))
    for rows, message in (
        ([], "no probes"),
        ([p for p in good if p.factor != 1], "k = 1 and at a larger k"),
        ([p for p in good if p.factor == 1], "k = 1 and at a larger k"),
        ([p for p in good if not (p.factor == 8 and p.seed == 1)], r"missing: \[\(8, 1\)\]"),
        ([*good, good[3]], "one branch twice"),
        (probes(((None, 3.0, 3.0, 3.0, 3.0),)), r"k = 1\) diverged"),
        (probes(((3.0, math.nan, 3.0, 3.0, 3.0),)), "finite"),
    ):
        with pytest.raises(FitError, match=message):
            local_critical_batches(rows, rng=rng)
    with pytest.raises(FitError, match="nats and must be above 0"):
        local_critical_batches(good, rng=rng, tolerance=0.0)
    with pytest.raises(FitError, match="one optimizer at one width"):
        batch_warmup([], B)
    with pytest.raises(FitError, match="above 0 tokens"):
        batch_warmup(_warmup_input({1e6: B}), 0.0)
    with pytest.raises(FitError, match="one local critical batch at each"):
        batch_warmup(_warmup_input({1e6: B}) * 2, B)


@pytest.mark.parametrize(
    ("field", "value", "message"), [("window_tokens", 1.0, "after one window"), ("lr_ratio", 7.0, "one lr_ratio")]
)
def test_refuses_branches_that_do_not_compare(field: str, value: float, message: str) -> None:
    good = probes((NOISELESS, NOISELESS))
    with pytest.raises(FitError, match=message):
        local_critical_batches([replace(good[2], **{field: value}), *good[:2], *good[3:]], rng=np.random.default_rng(0))


def test_figure() -> None:
    found = [*_warmup_input({1e6: B, 2e6: 4 * B, 4e6: 16 * B}), local((NOISELESS,), optimizer="muon")]
    figure = branch_probes(found, {"adamw, width 64": batch_warmup(found[:3], B)})
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["adamw, width 64", "muon, width 64"]
    assert "largest branch within 0.01 nats" in titles[2]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "bound: every branch tried was within tolerance, or none" in labels
    with pytest.raises(ValueError, match="nothing to draw"):
        branch_probes([])
