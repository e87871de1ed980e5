"""Sweeps of several horizons: the fits are over width, and so of the trials of one horizon, the longest."""

from sweeps.spec import SweepSpec


def horizons_note(spec: SweepSpec) -> str:
    """Of which horizon the fits are; empty where there is only one."""
    horizons = sorted(spec.run.train_tokens)
    if len(horizons) == 1:
        return ""
    return (
        f"Of the {len(horizons)} horizons, {', '.join(f'{tokens:,}' for tokens in horizons)} tokens, the fits are of "
        "the longest alone; losses.csv holds them all."
    )
