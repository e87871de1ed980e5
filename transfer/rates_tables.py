"""How fast optima converge, as the report's and the terminal's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from analysis.fast_transfer import limit_gaps
from analysis.fit import SweepFit
from analysis.width_laws import Quantity
from transfer.tables import interval, new_table, print_table
from transfer.text_table import TextTable


def rates_table(fit: SweepFit) -> TextTable | None:
    """One row a series with rates; None without any."""
    if not fit.transfers:
        return None
    return TextTable(
        columns=("optimizer", "verdict", "P(fast)", "alpha", "beta", "gamma", "kappa", "without smallest", "E, nats"),
        rows=tuple(
            (
                str(t.series),
                t.verdict.value,
                f"{t.probability_fast:.2f}",
                _cell(t.alpha),
                _cell(t.beta),
                _cell(t.gamma),
                _cell(t.kappa),
                "-" if t.kappa_without_smallest is None else _cell(t.kappa_without_smallest),
                "-" if t.joint_error is None else f"{t.joint_error:.4f}",
            )
            for t in fit.transfers
        ),
        words=frozenset({0, 1}),
    )


def gaps_table(fit: SweepFit) -> TextTable | None:
    """Every width's gaps to the fitted limits, and the slope of each to the next width; None without rates."""
    if not fit.transfers:
        return None
    rows = []
    for t in fit.transfers:
        slopes = [*(", ".join(f"{slope:+.2f}" for slope in step) for step in t.local_slopes), "-"]
        for gaps, slope in zip(t.gaps, slopes, strict=True):
            cells = (f"{gaps.width:.0f}", _cell(gaps.loss, 4), _cell(gaps.hp), _cell(gaps.transfer, 5), slope)
            rows.append((str(t.series), *cells))
    return TextTable(
        columns=("optimizer", "width", "a, nats", "b, octaves", "c, nats", "slopes of a, b, c to the next"),
        rows=tuple(rows),
    )


def penalties_table(fit: SweepFit) -> TextTable | None:
    """What each narrower width's optimum costs the widest; None where nothing could be read."""
    rows = tuple(
        (
            str(of.series),
            f"{one.width} at {of.widest}",
            f"{one.octaves:+.2f}",
            f"{one.direct:.4f}{interval(one.direct_interval, 4)}" if one.resolved else "unresolved",
            f"{one.via_curvature:.4f}",
            f"{one.noise_floor:.4f}",
        )
        for of in fit.penalties
        for one in of.penalties
    )
    columns = (
        "optimizer",
        "optimum of width",
        "octaves off",
        "cost, read off the curve",
        "by curvature",
        "noise floor",
    )
    return TextTable(columns=columns, rows=rows) if rows else None


def joint_table(fit: SweepFit) -> TextTable | None:
    """The optimum over all numeric axes together; None where lr is the only one."""
    if fit.joint is None:
        return None
    rows = tuple(
        (
            series.series,
            cell.label,
            *(
                f"2^{value:.2f}{interval(low_high, 2)}"
                for value, low_high in zip(cell.log2_values, cell.intervals, strict=True)
            ),
            f"{cell.loss:.3f}",
            ", ".join(flag.value.replace("_", " ") for flag in cell.flags),
        )
        for series in fit.joint.series
        for cell in series.cells
    )
    columns = ("optimizer", "at", *fit.joint.hps, "loss", "flags")
    return TextTable(columns=columns, rows=rows, words=frozenset({0, 1, len(columns) - 1}))


def compared(fits: Mapping[str, SweepFit]) -> list[dict[str, Any]]:
    """One row for each series of each sweep that has rates: verdict, rates, E, and the gap of its limit in nats."""
    named = [
        (sweep, replace(transfer, optimizer=f"{sweep}: {transfer.optimizer}"))
        for sweep, fit in fits.items()
        for transfer in fit.transfers
    ]
    gaps = {gap.series: gap for gap in limit_gaps([transfer for _, transfer in named])}
    return [
        {
            "series": str(transfer.series),
            "sweep": sweep,
            "verdict": transfer.verdict.value,
            "probability_fast": transfer.probability_fast,
            "kappa": asdict(transfer.kappa),
            "joint_error": transfer.joint_error,
            "loss_limit": asdict(gaps[transfer.series].limit),
            "limit_gap": asdict(gaps[transfer.series].gap),
        }
        for sweep, transfer in named
    ]


def show_compared(rows: Sequence[Mapping[str, Any]]) -> None:
    """On the terminal."""
    shown = new_table("sweeps side by side", "series", "verdict", "kappa", "E, nats", "loss limit", "gap of the limit")
    for row in rows:
        kappa, limit, gap = (
            f"{row[name]['value']:.{digits}f} [{row[name]['interval']['low']:.{digits}f}, "
            f"{row[name]['interval']['high']:.{digits}f}]"
            for name, digits in (("kappa", 2), ("loss_limit", 3), ("limit_gap", 3))
        )
        error = "-" if row["joint_error"] is None else f"{row['joint_error']:.4f}"
        shown.add_row(row["series"], row["verdict"], kappa, error, limit, gap)
    print_table(shown)


def _cell(quantity: Quantity, digits: int = 2) -> str:
    return f"{quantity.value:.{digits}f}{interval(quantity.interval, digits)}"
