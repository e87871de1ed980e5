"""Sweeps of several horizons or batches: the fits over width are of one of each, the longest at the reference batch."""

from proxy_models.config import RunConfig
from sweeps.spec import SweepSpec, axes_of


def over_width(run: RunConfig, spec: SweepSpec) -> bool:
    """Whether the fits over width are of this run: of the longest horizon, at the reference batch, and no probe.

    Without a reference batch they are of every batch.
    """
    reference = None if spec.batch is None else spec.batch.reference_tokens
    return (
        run.batch_change is None
        and run.train_tokens == spec.run.longest
        and (reference is None or run.hparams.batch_tokens == reference)
    )


def horizons_note(spec: SweepSpec) -> str:
    """What the fits over width are of; empty where that is the whole sweep."""
    horizons = sorted(spec.run.train_tokens)
    batches = sorted({batch for name in spec.optimizers for batch in axes_of(spec, name).get("batch_tokens", ())})
    of: list[str] = []
    if len(horizons) > 1:
        listed = ", ".join(f"{tokens:,}" for tokens in horizons)
        of.append(f"of the {len(horizons)} horizons, {listed} tokens, they are of the longest")
    if spec.batch is not None and len(batches) > 1:
        listed = ", ".join(f"{tokens:,}" for tokens in batches)
        of.append(f"of the {len(batches)} batches, {listed} tokens, of the reference, {spec.batch.reference_tokens:,}")
    if not of:
        return ""
    return f"The fits over width: {'; '.join(of)}. The laws over batch, tokens and depth are of all."
