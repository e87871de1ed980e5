"""The learning rate, or any hyperparameter, over batch, tokens, width and depth: fitted where swept, else a prior.

log2 hp* = level + sum_s p_s log2 scale_s, one law a series. Cells give optima by the basin they share (`scale_law`);
the line through them has normal priors on its powers (`posterior_line`), so a plan always gets an answer and says
what it rests on. A power over one scale is at all others fixed: over tokens it is at fixed batch; `co_scaled` is the
one where the batch moves too, B ~ D^q, and may have the other sign.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.stats import norm

from analysis.interval import FitError, Floats, Interval, percentile_interval
from analysis.observations import LOSS, SEED, SERIES, Observations
from analysis.posterior_line import LinePosterior, NormalPrior, Power, RestsOn, fit_line
from analysis.published_laws import (
    LR_OVER_BATCH,
    LR_OVER_BATCH_RANGE,
    LR_OVER_DEPTH,
    LR_OVER_TOKENS,
    LR_OVER_WIDTH,
)
from analysis.response import BAND_FRACTION
from analysis.scale_law import PRIOR_POWER_SD, SharedOptima, fit_scale_law, fit_shared_optima

BATCH, TOKENS, WIDTH, DEPTH = "batch_tokens", "train_tokens", "width", "depth"
LR_PRIORS: Mapping[str, NormalPrior] = MappingProxyType(
    {BATCH: LR_OVER_BATCH, TOKENS: LR_OVER_TOKENS, WIDTH: LR_OVER_WIDTH, DEPTH: LR_OVER_DEPTH}
)
NO_PRIOR = NormalPrior(mean=0.0, sd=PRIOR_POWER_SD, source="none published; powers lie between -1 and 2/3")
# Scale of the prior of the optima's scatter around the law, octaves: 0.1 to 0.5 over the batches of one cell of
# Step Law's runs (arXiv:2503.04715), 0.1 over its cells.
SCATTER_OCTAVES = 0.25
_UNKNOWN_LEVEL = NormalPrior(mean=0.0, sd=1e3, source="nothing")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HpShift:
    """How far an optimum moves from one set of scales to another, in octaves, by the law."""

    hp: str
    log2_ratios: tuple[tuple[str, float], ...]  # of the scales, target over proxies
    log2_value: float
    interval: Interval
    draws: Floats  # (draws,)
    rests_on: tuple[tuple[str, RestsOn], ...]  # for every scale that moves

    @property
    def factor(self) -> float:
        """What the hyperparameter is multiplied with."""
        return float(2.0**self.log2_value)


@dataclass(frozen=True, kw_only=True, slots=True)
class CoScaledPower:
    """p_D + q p_B: octaves of a hyperparameter an octave of tokens, where the batch moves as tokens^q."""

    value: float
    interval: Interval
    rests_on: RestsOn  # the weakest of what it is made of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HpPowers:
    """One hyperparameter of one series over every scale that has a prior or was swept."""

    series: str
    hp: str
    scales: tuple[str, ...]
    observed: tuple[str, ...]  # scales of the observations
    swept: tuple[str, ...]  # of them those with several values among the cells
    line: LinePosterior  # over log2 scales, in this order; of log2 hp
    limits: Mapping[str, tuple[float, float]]  # of a power that rests on its prior
    optima: SharedOptima | None  # what it was fitted to
    left_out: tuple[str, ...]
    reason: str  # why no cell counts, or nothing
    level: float

    def power(self, scale: str) -> Power:
        """Octaves of the hyperparameter an octave of this scale, all others fixed.

        Raises:
            FitError: a scale that was neither swept nor has a prior.
        """
        if scale not in self.scales:
            raise FitError(f"{self.hp} has no power over {scale!r}; there are {', '.join(self.scales)}")
        power = self.line.slope(self.scales.index(scale), level=self.level)
        if scale not in self.limits or power.rests_on == "fitted here":
            return power
        value, low, high = np.clip([power.value, power.interval.low, power.interval.high], *self.limits[scale])
        return Power(
            value=float(value),
            sd=power.sd,
            interval=Interval(low=float(low), high=float(high), level=self.level),
            data_share=power.data_share,
            prior=power.prior,
        )

    @property
    def powers(self) -> Mapping[str, Power]:
        """Over every scale."""
        return {scale: self.power(scale) for scale in self.scales}

    def shift(self, log2_ratios: Mapping[str, float], *, rng: np.random.Generator, n_draws: int = 2000) -> HpShift:
        """The move of the optimum for these octaves of each scale; a scale that is not named stays.

        Draws are of the law, without the scatter of single cells around it.

        Raises:
            FitError: a scale that was neither swept nor has a prior.
        """
        moving = {scale: float(octaves) for scale, octaves in log2_ratios.items() if octaves}
        powers = {scale: self.power(scale) for scale in moving}
        drawn = self._draws(rng, n_draws)
        moves = np.zeros(n_draws)
        for scale, octaves in moving.items():
            moves = moves + octaves * drawn[:, self.scales.index(scale)]
        return HpShift(
            hp=self.hp,
            log2_ratios=tuple((scale, float(octaves)) for scale, octaves in log2_ratios.items()),
            log2_value=sum(octaves * powers[scale].value for scale, octaves in moving.items()),
            interval=percentile_interval(moves, self.level),
            draws=moves,
            rests_on=tuple((scale, power.rests_on) for scale, power in powers.items()),
        )

    def co_scaled(self, batch_over_tokens: Power, *, rng: np.random.Generator, n_draws: int = 20_000) -> CoScaledPower:
        """The power over tokens where the batch follows them, by the critical batch's law (`over_tokens`)."""
        tokens, batch = self.power(TOKENS), self.power(BATCH)
        drawn = self._draws(rng, n_draws)
        q = batch_over_tokens.value + batch_over_tokens.sd * rng.standard_normal(n_draws)
        made = drawn[:, self.scales.index(TOKENS)] + q * drawn[:, self.scales.index(BATCH)]
        sources = {tokens.rests_on, batch.rests_on, batch_over_tokens.rests_on}
        return CoScaledPower(
            value=tokens.value + batch_over_tokens.value * batch.value,
            interval=percentile_interval(made, self.level),
            rests_on="published prior" if "published prior" in sources else "fitted here",
        )

    def at(self, scales: Mapping[str, float], *, new_cell: bool = True) -> tuple[float, Interval]:
        """log2 optimum at these scales and its interval, with the scatter of a cell of its own where `new_cell`.

        Raises:
            FitError: no cell was fitted, or a scale that is missing or not above 0.
        """
        if not self.line.n_points:
            raise FitError(f"{self.series} has no cell with an optimum of {self.hp}: {self.reason}")
        lacking = [name for name in self.observed if not scales.get(name, 0.0) > 0]
        if lacking:
            raise FitError(
                f"a prediction needs a value above 0 for each of {', '.join(self.observed)}; {lacking} have none"
            )
        x = self.line.center.copy()  # scales that were not observed stay where the proxies were
        x[: len(self.observed)] = np.log2([scales[name] for name in self.observed])
        mean, _, interval = self.line.at(x, level=self.level, new_point=new_cell)
        return mean, interval

    def _draws(self, rng: np.random.Generator, n: int) -> Floats:
        """Of the powers, (n, scales)."""
        drawn = self.line.draws(rng, n)[0][:, 1:]
        for scale, (low, high) in self.limits.items():
            if self.power(scale).rests_on == "published prior":
                i = self.scales.index(scale)
                drawn[:, i] = np.clip(drawn[:, i], low, high)
        return drawn


def fit_hp_powers(
    observations: Observations,
    series: str,
    *,
    hp: str = "lr",
    priors: Mapping[str, NormalPrior] | None = None,
    level: float = 0.9,
    band_fraction: float = BAND_FRACTION,
) -> HpPowers:
    """The powers of one hyperparameter over the observations' scales and all others that have a prior.

    A scale that takes one value, or two that move together, are told by their priors: for `lr` the published ones
    (`LR_PRIORS`, fitted to AdamW), for others and for scales without one a wide one around 0. Where no cell has an
    optimum inside its grid everything rests on priors, and `reason` says why.

    Raises:
        FitError: no such hyperparameter or series.
    """
    if hp not in observations.hps:
        raise FitError(f"there is no hyperparameter {hp!r}; there are {', '.join(observations.hps)}")
    if series not in observations.series:
        raise FitError(f"there is no series {series!r}; there are {', '.join(observations.series)}")
    known = priors if priors is not None else LR_PRIORS if hp == "lr" else {}
    try:
        optima, reason = fit_shared_optima(observations, series, band_fraction=band_fraction), ""
    except FitError as error:
        optima, reason = None, str(error)
    return _powers(observations, series, hp, known, optima, reason, level)


def prior_hp_powers(
    series: str, *, hp: str = "lr", priors: Mapping[str, NormalPrior] = LR_PRIORS, level: float = 0.9
) -> HpPowers:
    """The powers where nothing was swept: all published."""
    return _powers(None, series, hp, priors, None, "nothing was swept", level)


def _powers(
    observations: Observations | None,
    series: str,
    hp: str,
    priors: Mapping[str, NormalPrior],
    optima: SharedOptima | None,
    reason: str,
    level: float,
) -> HpPowers:
    own = () if observations is None else observations.scales
    scales = tuple(dict.fromkeys((*own, *priors)))
    slopes = [priors.get(scale, NO_PRIOR) for scale in scales]
    if optima is None or observations is None:
        x, y, covariance = np.empty((0, len(scales))), np.empty(0), np.empty((0, 0))
    else:
        j = observations.hps.index(hp)
        shape = optima.shape
        x = np.zeros((len(shape.log2_optima), len(scales)))
        x[:, : len(own)] = shape.log2_scales  # the others stay where the proxies were
        y = shape.log2_optima[:, j]
        common = shape.common[:, j]
        covariance = np.diag(optima.covariances[:, j, j]) + common @ common.T
    line = fit_line(x, y, covariance, slopes, scatter_sd=SCATTER_OCTAVES, intercept=None if len(y) else _UNKNOWN_LEVEL)
    return HpPowers(
        series=series,
        hp=hp,
        scales=scales,
        observed=own,
        swept=tuple(scale for scale, column in zip(scales, x.T, strict=True) if len(y) and np.ptp(column) > 0),
        line=line,
        limits={BATCH: LR_OVER_BATCH_RANGE} if priors.get(BATCH) is LR_OVER_BATCH else {},
        optima=optima,
        left_out=() if optima is None else optima.left_out,
        reason=reason,
        level=level,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CellPower:
    """A hyperparameter over the batch within one cell: all other scales fixed, its optimum found at every batch."""

    scales: tuple[tuple[str, float], ...]
    batches: tuple[float, ...]  # tokens
    log2_values: tuple[float, ...]  # the optimum at each batch
    intervals: tuple[Interval, ...]  # of each, log2, without the scatter between batches
    value: float  # octaves an octave of batch
    interval: Interval
    level_log2: float  # the line at `batch_center`
    batch_center: float  # tokens
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CellPowers:
    """Every cell's power, and the cells that have none with the reason."""

    hp: str
    cells: tuple[CellPower, ...]
    left_out: tuple[str, ...]


def lr_batch_power_by_cell(
    observations: Observations,
    series: str,
    *,
    hp: str = "lr",
    batch: str = BATCH,
    level: float = 0.9,
    band_fraction: float = BAND_FRACTION,
) -> CellPowers:
    """d log hp* / d log batch within each cell of the remaining scales, by the basin that the batches of a cell share.

    `batch` may be a scale or a hyperparameter of the observations; other hyperparameters than `hp` must be fixed in
    a cell, or be optimized beside it.

    Raises:
        FitError: no such series, hyperparameter or batch.
    """
    if batch not in (*observations.scales, *observations.hps) or hp not in observations.hps:
        raise FitError(
            f"the power of {hp} over {batch} needs both; the scales are {', '.join(observations.scales)} and the "
            f"hyperparameters {', '.join(observations.hps)}"
        )
    if series not in observations.series:
        raise FitError(f"there is no series {series!r}; there are {', '.join(observations.series)}")
    others = [scale for scale in observations.scales if scale != batch]
    hps = tuple(name for name in observations.hps if name != batch)
    frame = observations.frame[observations.frame[SERIES] == series]
    groups = frame.groupby(others, sort=True) if others else [((), frame)]
    cells: list[CellPower] = []
    left_out: list[str] = []
    for values, runs in groups:
        scales = tuple(zip(others, np.asarray(values, dtype=np.float64).ravel().tolist(), strict=True))
        columns = [SERIES, batch, *hps, SEED, LOSS]
        own = Observations(scales=(batch,), hps=hps, frame=runs[columns].reset_index(drop=True))
        try:
            cells.append(_cell_power(own, series, hp, scales, level, band_fraction))
        except FitError as error:
            name = ", ".join(f"{scale} {value:.4g}" for scale, value in scales)
            left_out.append(f"{name}: {error}")
    return CellPowers(hp=hp, cells=tuple(cells), left_out=tuple(left_out))


def _cell_power(
    own: Observations, series: str, hp: str, scales: tuple[tuple[str, float], ...], level: float, band_fraction: float
) -> CellPower:
    law = fit_scale_law(own, series, level=level, band_fraction=band_fraction)
    j = own.hps.index(hp)
    power = next(power for power in law.powers if power.hp == hp)
    shape = law.shape
    errors = np.sqrt(shape.covariances[:, j, j] + (shape.common[:, j] ** 2).sum(axis=1))
    reach = float(norm.ppf((1 + level) / 2))
    return CellPower(
        scales=scales,
        batches=tuple((2.0 ** shape.log2_scales[:, 0]).tolist()),
        log2_values=tuple(shape.log2_optima[:, j].tolist()),
        intervals=tuple(
            Interval(low=value - reach * error, high=value + reach * error, level=level)
            for value, error in zip(shape.log2_optima[:, j].tolist(), errors.tolist(), strict=True)
        ),
        value=power.value,
        interval=power.interval,
        level_log2=float(law.law.coefficients[0, j]),
        batch_center=float(2.0 ** law.law.center[0]),
        left_out=law.left_out,
    )


def power_trend(cells: Sequence[CellPower], log2_x: Sequence[float], *, level: float = 0.9) -> Power:
    """How a power moves over cells, an octave of x (such as tokens per parameter): its slope, with a wide prior.

    Raises:
        FitError: fewer than two cells, or as many x as cells are not given.
    """
    if len(cells) < 2 or len(cells) != len(log2_x):
        raise FitError(f"a trend needs two cells or more and an x for each, got {len(cells)} and {len(log2_x)}")
    reach = 2 * float(norm.ppf((1 + level) / 2))
    errors = np.array([cell.interval.width / reach for cell in cells])
    values = np.array([cell.value for cell in cells])
    line = fit_line(np.array(log2_x)[:, None], values, np.diag(errors**2), [NO_PRIOR], scatter_sd=float(errors.mean()))
    return line.slope(0, level=level)
