"""Learning rate over a run, as a factor of the peak. Lengths in tokens."""

import math

from proxy_models.config import RunConfig


def schedule_factor(run: RunConfig, step: int) -> float:
    """Factor for the step-th update (from 0), between 0 and 1.

    Linear warmup over warmup_tokens; then `wsd`: 1 until decay_tokens before the end, then linear down to
    final_lr_frac; or `cosine`: half a cosine from 1 to final_lr_frac over all that is left. Evaluated at the
    middle of the step, so that neither the first update nor the last is lost to a factor of zero.
    """
    hp = run.hparams
    tokens = run.tokens_before(step) + 0.5 * run.batch_tokens_of(step)
    if tokens < hp.warmup_tokens:
        return tokens / hp.warmup_tokens
    if run.schedule == "cosine":
        progress = (tokens - hp.warmup_tokens) / (run.train_tokens - hp.warmup_tokens)
        return hp.final_lr_frac + (1 - hp.final_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress))
    left = run.train_tokens - tokens
    if left < hp.decay_tokens:
        return hp.final_lr_frac + (1 - hp.final_lr_frac) * left / hp.decay_tokens
    return 1.0
