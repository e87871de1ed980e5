"""What early stopping would have saved and lost on recorded sweeps, by replaying their training curves.

`python benchmarks/early_stopping.py [RESULTS_FOLDER ...]` prints one JSON document; without folders, of the committed
sweeps of 128 steps. For each: `least_share`, the least share of a gap that was left at the end, over `kept_frac`, below
and above the best learning rate (the rule relies on `KEPT_SHARE` of it); what the rule drops, with all seeds and one;
how far the fitted optima move; and, as a cross-validation, what it would drop with the least share of each other sweep
as its constant. Wrongly dropped is what ends within the fits' band of the lowest loss.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.optimum import fit_optimum
from analysis.surface import surfaces
from proxy_models.outcome import CURVE_EMA_STEPS
from sweeps.stopping import (
    KEPT_SHARE,
    NEIGHBORS,
    SMOOTHING_STEPS,
    Floats,
    Stop,
    Stopping,
    kept_frac,
    line_of,
    lines,
    stopped_result,
    to_stop,
)
from sweeps.store import ResultStore
from sweeps.trial import TrialResult
from transfer.pipeline import BAND_NATS

RESULTS = Path(__file__).parents[1] / "results"
SWEEPS = ("quickstart", "quickstart_standard", "optimizers", "scale_ablation")
SETTINGS = (Stopping(keep_nats=0.1), Stopping(), Stopping(keep_nats=0.2))
FRACTIONS = np.arange(0.2, 0.96, 0.05)  # of a run, at which shares are taken


@dataclass(frozen=True, slots=True)
class Line:
    """Results that differ in lr and seed alone, every lr with every seed."""

    by_lr: Mapping[float, tuple[TrialResult, ...]]

    @property
    def run(self):
        return next(iter(self.by_lr.values()))[0].trial.run

    @property
    def excess(self) -> dict[float, float]:
        """Final loss over the lowest, seed means; infinite where a seed diverged."""
        losses = {
            lr: math.fsum(math.inf if r.validation_loss is None else r.validation_loss for r in results) / len(results)
            for lr, results in self.by_lr.items()
        }
        return {lr: loss - min(losses.values()) for lr, loss in losses.items()}

    def curves(self, step: int, stopped: Iterable[float] = ()) -> dict[float, Floats]:
        """Training losses of the first steps, (seeds, step), where every seed still trains."""
        return {
            lr: np.array([raw_losses(result)[:step] for result in results])
            for lr, results in self.by_lr.items()
            if lr not in set(stopped) and all(ended(result) >= step for result in results)
        }

    def of_seed(self, index: int) -> "Line":
        return Line({lr: results[index : index + 1] for lr, results in self.by_lr.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[RESULTS / name for name in SWEEPS])
    sweeps = {folder.name: read(folder) for folder in parser.parse_args().folders}
    shares = {name: least_shares(found) for name, found in sweeps.items()}
    rows = {
        name: {
            "least_share": shares[name],
            "dropped": [dropped(found, stopping) for stopping in SETTINGS],
            "dropped_by_one_seed": dropped(
                [line.of_seed(i) for line in found for i in range(len(next(iter(line.by_lr.values()))))], Stopping()
            ),
            "cross_validation": {
                other: dropped(found, Stopping(keep_nats=0.15 * KEPT_SHARE / min(own["below"], own["above"], 1.0)))
                for other, own in shares.items()
                if other != name
            },
        }
        for name, found in sweeps.items()
    }
    print(json.dumps({"benchmark": "early_stopping", "kept_share": KEPT_SHARE, "sweeps": rows}, indent=1))


def read(folder: Path) -> list[Line]:
    """The lines of a sweep's plan that are whole."""
    planned = set(json.loads((folder / "sweep.json").read_text())["trial_ids"])
    results = {i: result for i, result in ResultStore(folder).read().items() if i in planned}
    found = []
    for trials in lines([result.trial for result in results.values()]).values():
        by_lr: dict[float, list[TrialResult]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.run.hparams.lr, trial.run.seed)):
            by_lr.setdefault(trial.run.hparams.lr, []).append(results[trial.trial_id])
        found.append(Line({lr: tuple(results) for lr, results in by_lr.items()}))
    return found


def raw_losses(result: TrialResult) -> Floats:
    """Training losses by step, as far as the recorded averages tell: steps between two of them get one value."""
    keep = 1 - 1 / CURVE_EMA_STEPS
    losses, total, before = [], 0.0, 0
    for step, value in zip(result.curve_steps, result.curve_losses, strict=True):
        grown = value * (1 - keep**step)
        left = keep ** (step - before)
        losses += [(grown - left * total) / (1 - left)] * (step - before)
        total, before = grown, step
    return np.array(losses)


def ended(result: TrialResult) -> int:
    """The last step of which there is a training loss."""
    return result.curve_steps[-1] if result.curve_steps else 0


def least_shares(found: Sequence[Line]) -> dict[str, float]:
    """Of all gaps above the least that is dropped, outside of the best's neighbors."""
    least = {"below": math.inf, "above": math.inf}
    for line in found:
        for step in {round(fraction * line.run.steps) for fraction in FRACTIONS}:
            curves = line.curves(step)
            lrs = sorted(curves)
            smooth = [smoothed(curves[lr]) for lr in lrs]
            best = int(np.argmin(smooth))
            for index, lr in enumerate(lrs):
                gap, below = smooth[index] - smooth[best], index < best
                frac = kept_frac(line.run, step, below=below)
                if abs(index - best) > NEIGHBORS and gap > Stopping().keep_nats and frac > 0:
                    side = "below" if below else "above"
                    least[side] = min(least[side], line.excess[lr] / gap / frac)
    return least


def smoothed(losses: Floats) -> float:
    weights = (1 - 1 / SMOOTHING_STEPS) ** np.arange(losses.shape[1])[::-1]
    return float((losses @ weights).mean() / weights.sum())


def replay(line: Line, stopping: Stopping) -> dict[float, Stop]:
    """What the rule would have dropped."""
    stops: dict[float, Stop] = {}
    for step in stopping.steps(line.run):
        curves = line.curves(step, stops)
        if curves:
            stops |= to_stop(curves, line_of(next(iter(line.by_lr.values()))[0].trial), keep_nats=stopping.keep_nats)
    return stops


def dropped(found: Sequence[Line], stopping: Stopping) -> dict[str, float | int | None]:
    """Counts of a whole sweep."""
    stops = [(line, replay(line, stopping)) for line in found]
    steps = sum(ended(result) for line in found for results in line.by_lr.values() for result in results)
    saved = sum(
        max(0, ended(result) - stop.step)
        for line, own in stops
        for lr, stop in own.items()
        for result in line.by_lr[lr]
    )
    excess = [line.excess[lr] for line, own in stops for lr in own]
    shifts = [optimum_shift(line, own) for line, own in stops if own]
    return {
        "keep_nats": round(stopping.keep_nats, 3),
        "learning_rates": sum(len(line.by_lr) for line in found),
        "dropped": len(excess),
        "wrongly_dropped": sum(value <= BAND_NATS for value in excess),
        "least_excess_nats": round(min(excess), 3) if excess else None,
        "compute_saved": round(saved / steps, 4),
        "largest_shift_octaves": round(max(shifts), 4) if shifts else None,
    }


def optimum_shift(line: Line, stops: Mapping[float, Stop]) -> float:
    """Octaves by which dropping moves the fitted optimum."""
    results = [result for own in line.by_lr.values() for result in own]
    kept = [
        stopped_result(result.trial, stops[lr]) if (lr := result.trial.run.hparams.lr) in stops else result
        for result in results
    ]
    places = []
    for given in (results, kept):
        (surface,) = surfaces(given)
        optimum = fit_optimum(surface, band_nats=BAND_NATS, n_bootstrap=1, rng=np.random.default_rng(0))
        places.append(optimum.log2_value)
    return abs(places[0] - places[1])


if __name__ == "__main__":
    main()
