"""Rates and verdicts on sweeps whose truth is planted."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from analysis.bootstrap import pool
from analysis.drift import fit_drift, predict_optimum
from analysis.fast_transfer import (
    USEFUL_KAPPA,
    FastTransfer,
    Verdict,
    fast_transfer,
    fast_transfer_from_gaps,
    limit_gaps,
    rates,
)
from analysis.interval import FitError, Interval
from analysis.located import Located, locate
from analysis.loss_law import fit_loss_law, predict_loss
from analysis.optimum import Optimum, fit_optimum
from analysis.penalty import fit_penalties
from analysis.points import points_near_lowest
from analysis.surface import Series, Surface
from analysis.width_laws import joint_error
from tests.analysis_helpers import parabola, planted_surface

WIDTHS = (32, 64, 128, 256, 512, 1024)
GRID = np.arange(-11.2, -3.9, 0.5)
BAND = 0.1
LIMIT, AMPLITUDE, PLACE, CURVATURE = 1.3, 1.4, -7.2, 0.12


def sweep(
    rng: np.random.Generator,
    *,
    alpha: float,
    beta: float,
    gamma: float = 0.0,
    shift: float = 2.0,
    noise: float = 0.004,
    seed_spread: float = 0.008,
    widths: Sequence[int] = WIDTHS,
) -> list[Surface]:
    """loss = 1.3 + 1.4 r^-alpha + 0.06 r^gamma (log2 lr + 7.2 - shift r^-beta)^2, r = width / narrowest."""
    surfaces = []
    for width in widths:
        r = width / widths[0]
        loss = parabola(
            optimum=PLACE + shift * r**-beta, curvature=CURVATURE * r**gamma, floor=LIMIT + AMPLITUDE * r**-alpha
        )
        surfaces.append(
            planted_surface(loss, GRID, seeds=3, noise=noise, seed_spread=seed_spread, width=width, rng=rng)
        )
    return surfaces


def optima_of(surfaces: Sequence[Surface], rng: np.random.Generator, n_bootstrap: int = 200) -> list[Optimum]:
    spread = pool(points_near_lowest(surface, BAND).seed_spread for surface in surfaces)
    return [
        fit_optimum(surface, band_nats=BAND, n_bootstrap=n_bootstrap, rng=rng, seed_spread=spread)
        for surface in surfaces
    ]


def fitted(seed: int = 3, **planted: float | Sequence[int]) -> FastTransfer:
    rng = np.random.default_rng(seed)
    return fast_transfer(optima_of(sweep(rng, **planted), rng), rng=rng)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        ({"alpha": 0.5, "beta": 0.9}, Verdict.FAST),
        ({"alpha": 0.7, "beta": 0.7, "gamma": 0.2, "noise": 0.001}, Verdict.FAST),
        ({"alpha": 1.2, "beta": 0.25, "noise": 0.001}, Verdict.SLOW),
        ({"alpha": 0.6, "beta": 0.3, "noise": 0.012}, Verdict.INCONCLUSIVE),  # kappa 0 within wide intervals
        ({"alpha": 0.5, "beta": 0.5, "shift": 0.0}, Verdict.INCONCLUSIVE),
    ],
)
def test_the_verdict_is_the_planted_one(planted: dict[str, float], verdict: Verdict) -> None:
    transfer = fitted(**planted)
    assert transfer.verdict is verdict
    assert transfer.sentence.lower().startswith(
        {Verdict.FAST: "transfer is fast", Verdict.SLOW: "transfer is slow", Verdict.INCONCLUSIVE: "inconclusive"}[
            verdict
        ]
    )
    assert (transfer.probability_fast > 0.9) == (verdict is Verdict.FAST) or planted.get("shift") == 0.0
    assert bool(transfer.reasons) == (verdict is Verdict.INCONCLUSIVE)


def test_an_optimum_that_stays_put_is_unresolved_whatever_its_exponents() -> None:
    transfer = fitted(alpha=0.5, beta=0.5, shift=0.0)
    assert "does not move with width beyond its errors" in transfer.sentence


def test_an_optimum_off_every_power_law_is_inconclusive() -> None:
    """It first goes away from its limit and then comes back, as in the random-features example of arXiv:2512.22768."""
    rng = np.random.default_rng(5)
    surfaces = sweep(rng, alpha=0.5, beta=0.7, noise=0.001)
    bent = [
        replace(surface, log2_values=tuple(value + move for value in surface.log2_values))
        for surface, move in zip(surfaces, [-2.6, -0.2, 0.1, 0.1, 0.0, 0.0], strict=True)
    ]
    transfer = fast_transfer(optima_of(bent, rng), rng=rng)
    assert transfer.verdict is Verdict.INCONCLUSIVE
    assert "does not follow one power law" in transfer.sentence


def test_a_loss_that_rises_with_width_has_no_gap_to_compare_with() -> None:
    rng = np.random.default_rng(6)
    optima = optima_of(sweep(rng, alpha=0.5, beta=0.7), rng)
    turned = [replace(one, width=WIDTHS[-1 - i]) for i, one in enumerate(optima)]
    transfer = fast_transfer(turned, rng=rng)
    assert transfer.verdict is Verdict.INCONCLUSIVE
    assert "loss does not fall with width" in transfer.sentence


def test_gaps_and_their_slopes_follow_the_planted_laws() -> None:
    transfer = fitted(alpha=0.6, beta=0.8, noise=0.0005, seed_spread=0.0005)
    for gaps in transfer.gaps[:4]:
        r = gaps.width / 32
        assert gaps.loss.value == pytest.approx(AMPLITUDE * r**-0.6, rel=0.03)
        assert gaps.hp.value == pytest.approx(2.0 * r**-0.8, rel=0.05)
        assert gaps.transfer.value == pytest.approx(CURVATURE / 2 * (2.0 * r**-0.8) ** 2, rel=0.12)
    for a, b, c in transfer.local_slopes[:2]:
        assert (a, b, c) == pytest.approx((-0.6, -0.8, -1.6), abs=0.15)
    laws = transfer.laws
    assert laws is not None
    assert laws.loss_at(4096) == pytest.approx(LIMIT + AMPLITUDE * 128**-0.6, abs=0.02)
    assert laws.optimum_at(4096)[0] == pytest.approx(PLACE + 2 * 128**-0.8, abs=0.05)
    assert laws.curvature_at(64) == pytest.approx(CURVATURE, rel=0.1)


def test_the_joint_error_is_the_noise_where_the_laws_hold_and_more_where_they_do_not() -> None:
    rng = np.random.default_rng(4)
    surfaces = sweep(rng, alpha=0.6, beta=0.8, noise=0.006, seed_spread=0.0)
    transfer = fast_transfer(optima_of(surfaces, rng), rng=rng)
    assert transfer.laws is not None
    assert joint_error(transfer.laws, surfaces, BAND) == pytest.approx(0.006 / np.sqrt(3), rel=0.3)
    lifted = [*surfaces[:-1], replace(surfaces[-1], losses=tuple(
        tuple(loss + 0.05 for loss in row if loss is not None) for row in surfaces[-1].losses))]  # fmt: skip
    assert joint_error(transfer.laws, lifted, BAND) > 0.015


COVERED = ("alpha", "beta", "gamma", "kappa", "loss limit", "optimum limit", "loss at 4096", "optimum at 4096")


@cache
def coverage(simulations: int = 500) -> dict[str, float]:
    """Shares of 90 % intervals that hold the planted truth; noise large enough to hide a tenth of a grid step."""
    alpha, beta, gamma = 0.6, 0.7, 0.15
    truth = (
        alpha, beta, gamma, alpha - 2 * beta + gamma, LIMIT, PLACE,
        LIMIT + AMPLITUDE * 128**-alpha, PLACE + 2 * 128**-beta,
    )  # fmt: skip
    held = np.zeros(len(truth))
    for i in range(simulations):
        rng = np.random.default_rng([11, i])
        optima = optima_of(sweep(rng, alpha=alpha, beta=beta, gamma=gamma, noise=0.02, seed_spread=0.01), rng, 150)
        inner = [optimum for optimum in optima if optimum.edge is None]
        transfer = fast_transfer(inner, rng=rng)
        laws = transfer.laws
        assert laws is not None
        loss = predict_loss(fit_loss_law(inner, rng=rng), 4096)
        optimum = predict_optimum(fit_drift(inner, rng=rng), 4096)
        intervals = (
            transfer.alpha.interval, transfer.beta.interval, transfer.gamma.interval, transfer.kappa.interval,
            laws.loss_limit.interval, laws.optimum_limit[0].interval, loss.interval, optimum.interval,
        )  # fmt: skip
        held += [
            interval is not None and interval.contains(value) for interval, value in zip(intervals, truth, strict=True)
        ]
    return dict(zip(COVERED, held / simulations, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover_what_they_say(name: str) -> None:
    assert 0.85 <= coverage()[name] <= 0.97


def test_beyond_the_widths_intervals_widen() -> None:
    rng = np.random.default_rng(12)
    optima = optima_of(sweep(rng, alpha=0.6, beta=0.5, noise=0.01), rng)
    drift, law = fit_drift(optima, rng=rng), fit_loss_law(optima, rng=rng)
    for predict in (lambda width: predict_optimum(drift, width), lambda width: predict_loss(law, width)):
        spans = [predict(width).interval for width in (512, 4096, 65536)]
        assert spans[0].width < spans[1].width < spans[2].width  # type: ignore[union-attr]
    assert predict_optimum(drift, 4096).law == "power_law"


def test_penalties_read_the_widest_curve_and_agree_with_its_curvature() -> None:
    rng = np.random.default_rng(8)
    surfaces = sweep(rng, alpha=0.6, beta=0.8, noise=0.002)
    optima = optima_of(surfaces, rng)
    found = fit_penalties(surfaces, optima, band_nats=BAND, rng=rng)
    assert found.widest == 1024
    assert [one.width for one in found.penalties] == list(WIDTHS[:-1])
    for one in found.penalties:
        r = one.width / 32
        octaves = 2.0 * (r**-0.8 - 32**-0.8)
        assert one.octaves == pytest.approx(octaves, abs=0.08)
        cost = CURVATURE / 2 * one.octaves**2
        assert one.direct == pytest.approx(cost, abs=0.004, rel=0.12)  # smoothing flattens
        assert one.via_curvature == pytest.approx(cost, rel=0.1)
    assert found.penalties[0].resolved
    assert not found.penalties[-1].resolved  # 0.04 octaves: a tenth of a millinat
    assert found.penalties[0].direct_interval.contains(found.penalties[0].direct)


def test_penalties_need_an_optimum_at_the_widest() -> None:
    rng = np.random.default_rng(8)
    surfaces = sweep(rng, alpha=0.6, beta=0.8)
    with pytest.raises(FitError, match="width 1024 has no optimum"):
        fit_penalties(surfaces, optima_of(surfaces[:-1], rng), band_nats=BAND, rng=rng)


def test_too_few_widths_edges_and_silence_are_refused() -> None:
    rng = np.random.default_rng(2)
    optima = optima_of(sweep(rng, alpha=0.5, beta=0.7), rng)
    with pytest.raises(FitError, match="4 widths or more"):
        fast_transfer(optima[:3], rng=rng)
    with pytest.raises(FitError, match="one optimum a width"):
        fast_transfer([*optima, optima[0]], rng=rng)
    with pytest.raises(FitError, match=r"widths \[64\] nothing tells the noise"):
        fast_transfer([optima[0], replace(optima[1], draws=()), *optima[2:]], rng=rng)
    cut = planted_surface(parabola(optimum=-3.0), GRID, width=2048, noise=0.004)
    edge = fit_optimum(cut, band_nats=BAND, n_bootstrap=50, rng=rng)
    with pytest.raises(FitError, match=r"widths \[2048\] the optimum is at an edge"):
        fast_transfer([*optima, edge], rng=rng)


def test_known_gaps_give_their_slopes() -> None:
    """Draws scatter by a quarter around power laws: a ~ n^-0.5, b ~ n^-0.5, c ~ n^-1."""
    rng = np.random.default_rng(9)
    widths = [64, 128, 256, 512, 1024]
    n = np.array(widths, dtype=float)[:, None]

    def scattered(exponent: float) -> np.ndarray:
        return 0.7 * n**-exponent * np.exp(0.25 * rng.standard_normal((5, 400)))

    transfer = fast_transfer_from_gaps(widths, scattered(0.5), scattered(0.5), scattered(1.0), rng=rng)
    assert transfer.alpha.value == pytest.approx(0.5, abs=0.03)
    assert transfer.beta.value == pytest.approx(0.5, abs=0.03)
    assert transfer.kappa.value == pytest.approx(-0.5, abs=0.05)
    assert transfer.kappa.interval.contains(-0.5)
    assert transfer.verdict is Verdict.FAST
    flat = fast_transfer_from_gaps(widths, scattered(1.0), scattered(0.5), scattered(1.0), rng=rng)
    assert flat.kappa.value > USEFUL_KAPPA
    assert flat.verdict is Verdict.SLOW
    with pytest.raises(FitError, match="4 widths or more"):
        fast_transfer_from_gaps(widths[:3], *(np.ones((3, 4)),) * 3, rng=rng)
    with pytest.raises(FitError, match="above 0"):
        fast_transfer_from_gaps(widths, *(np.zeros((5, 4)),) * 3, rng=rng)


def test_two_hyperparameters_share_their_rate() -> None:
    rng = np.random.default_rng(10)
    one = locate(optima_of(sweep(rng, alpha=0.6, beta=0.8, noise=0.002), rng), rng=rng)
    second = 3.1 - 0.4 * (one.places - PLACE) + 0  # moves with the first, the other way
    draws = 3.1 - 0.4 * (one.place_draws - PLACE)
    hessian = np.zeros((6, 2, 2))
    hessian[:, 0, 0], hessian[:, 1, 1], hessian[:, 0, 1], hessian[:, 1, 0] = 0.12, 0.2, 0.03, 0.03
    both = Located(
        widths=one.widths,
        places=np.hstack([one.places, second]),
        losses=one.losses,
        hessians=hessian,
        place_draws=np.concatenate([one.place_draws, draws], axis=2),
        loss_draws=one.loss_draws,
        hessian_draws=np.broadcast_to(hessian, (200, 6, 2, 2)),
    )
    transfer = rates(both, Series("adamw"))
    assert transfer.beta.value == pytest.approx(0.8, abs=0.1)
    assert transfer.laws is not None
    assert transfer.laws.optimum_limit[1].value == pytest.approx(3.1, abs=0.05)
    away = np.array([2.0, -0.8])
    assert transfer.gaps[0].hp.value == pytest.approx(np.linalg.norm(away), rel=0.05)
    assert transfer.gaps[0].transfer.value == pytest.approx(away @ hessian[0] @ away / 2, rel=0.1)
    assert transfer.gamma.value == pytest.approx(0.0, abs=0.01)


def test_the_gap_between_limits_adds_their_intervals() -> None:
    low, high = fitted(alpha=0.6, beta=0.8), fitted(seed=4, alpha=0.6, beta=0.8)
    assert high.laws is not None
    shifted = replace(
        high.laws.loss_limit,
        value=high.laws.loss_limit.value + 0.2,
        interval=Interval(
            low=high.laws.loss_limit.interval.low + 0.2, high=high.laws.loss_limit.interval.high + 0.2, level=0.9
        ),
    )
    high = replace(high, optimizer="worse", laws=replace(high.laws, loss_limit=shifted))
    first, second = limit_gaps([low, high])
    assert first.gap.value == 0.0
    assert second.gap.value == pytest.approx(0.2, abs=0.06)
    assert second.gap.interval.width > shifted.interval.width
    assert limit_gaps([]) == ()
