"""Diagnostics against numpy on planted updates, through a real run, its store and its figure."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import figures
from proxy_models.diagnostics import Diagnostic, diagnose
from proxy_models.optimizer_config import AdamW, Dion, GaLore, Muon, NorMuon, PlainOptimizerConfig, Scale
from proxy_models.optimizers import Optimizer, Update
from proxy_models.stacks import build_model, initialize, layout
from proxy_models.train import Watch
from sweeps.local_backend import LocalBackend
from sweeps.pack import make_packs
from sweeps.run import run_sweep
from sweeps.store import ResultStore
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run
from tests.sweep_helpers import write_sweep

UPDATES = {"update_rms", "update_spectral_norm"}
MOMENTA = {"momentum_effective_rank", *(f"momentum_sigma_q{q}" for q in (10, 50, 90))}


def recorded(
    optimizer: PlainOptimizerConfig, scale: float = 1.0
) -> tuple[list[Diagnostic], list[Update], dict[str, Any]]:
    """Diagnostics of one step with random gradients, the updates, and the gradients by parameter."""
    run = tiny_run(optimizer=optimizer, width=24, base_width=24, hparams={"lr": 0.25, "clip_norm": None})
    model = build_model(run)
    layouts = layout(model)
    weights = [initialize(stack, [run]).double() for stack in layouts]
    generator = torch.Generator().manual_seed(1)
    gradients = [scale * torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    points: list[Diagnostic] = []

    def observe(update: Update) -> None:
        points.extend(diagnose(update, step=1, places=model.places()))

    Optimizer(layouts, weights, [run]).step(gradients, torch.ones(1).double(), observe)
    by_name = {
        name: gradient[0, i].numpy()
        for stack, gradient in zip(layouts, gradients, strict=True)
        for i, name in enumerate(stack.names)
    }
    return points, by_name


def test_numbers_are_numpys() -> None:
    points, gradients = recorded(Muon(nesterov=False, ns_schedule="taylor2", ns_steps=4))
    values = {p.quantity: p.value for p in points if (p.depth, p.kind) == (1, "mlp.down")}
    gradient = gradients["blocks.1.mlp.down.weight"]  # the momentum is 0.05 of it
    u, sigma, vh = np.linalg.svd(gradient, full_matrices=False)
    sigma /= np.linalg.norm(sigma)
    assert values["momentum_effective_rank"] == pytest.approx(1 / np.sum(sigma**4))
    for q in (10, 50, 90):
        assert values[f"momentum_sigma_q{q}"] == pytest.approx(np.quantile(sigma, q / 100))
    lifted = sigma.copy()
    for _ in range(4):  # the Taylor polynomial of degree two
        lifted *= 15 / 8 - 5 / 4 * lifted**2 + 3 / 8 * lifted**4
    assert values["polar_error"] == pytest.approx(np.linalg.norm(lifted - 1) / len(sigma) ** 0.5)
    step = 0.25 * (24 / 72) ** 0.5 * (u * lifted) @ vh  # lr and the spectral shape factor
    assert values["update_rms"] == pytest.approx(np.sqrt(np.mean(step**2)))
    assert values["update_spectral_norm"] == pytest.approx(np.linalg.norm(step, 2))


def test_every_hidden_matrix_is_named_by_depth_and_kind() -> None:
    points, _ = recorded(AdamW())
    kinds = {"attention.query", "attention.key", "attention.value", "attention.out", "mlp.up", "mlp.gate", "mlp.down"}
    assert {(p.depth, p.kind) for p in points} == {(depth, kind) for depth in (0, 1) for kind in kinds}
    assert len(points) == 14 * len(UPDATES | MOMENTA)


@pytest.mark.parametrize(
    ("optimizer", "quantities"),
    [
        (AdamW(), UPDATES | MOMENTA),
        (Muon(), UPDATES | MOMENTA | {"polar_error"}),
        (NorMuon(), UPDATES | MOMENTA | {"polar_error"}),
        (Dion(), UPDATES | MOMENTA),
        (GaLore(), UPDATES | MOMENTA),
        (Scale(), UPDATES),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_an_optimizer_has_the_quantities_that_it_has(optimizer: PlainOptimizerConfig, quantities: set[str]) -> None:
    points, _ = recorded(optimizer)
    assert {p.quantity for p in points} == quantities
    assert all(np.isfinite(p.value) for p in points)


def test_what_a_zero_momentum_has_not_is_left_out() -> None:
    points, _ = recorded(Muon(), scale=0.0)
    assert {p.quantity for p in points} <= UPDATES | {"polar_error"}
    assert all(p.value == 0 for p in points if p.quantity in UPDATES)


def test_recording_changes_no_number_and_follows_the_interval() -> None:
    run, data = tiny_run(optimizer=Muon(), width=32), cyclic_data()
    (plain,), (observed,) = outcomes([run], data), outcomes([run], data, watch=Watch(diagnose_every=4))
    assert observed.validation_loss == plain.validation_loss
    assert observed.curve_losses == plain.curve_losses
    assert plain.diagnostics == ()
    assert sorted({p.step for p in observed.diagnostics}) == [1, 5, 9]  # of 10


def test_a_spec_asks_and_the_folder_holds_them(tmp_path: Path) -> None:
    """Only what is trained while they are asked for; a second run adds nothing."""
    spec, trials = write_sweep(tmp_path)
    store = ResultStore(tmp_path / "results")
    first, rest = trials[:2], trials

    def run(some: Any, every: int | None) -> None:
        run_sweep(
            some,
            store=store,
            data_source=spec.data_source(),
            backend=LocalBackend(),
            workers=1,
            pack=partial(make_packs, size=2, diagnose_every=every),
            on_event=lambda event: None,
        )

    run(first, None)
    run(rest, 5)
    frames = {trial.trial_id: store.read_diagnostics(trial.trial_id) for trial in trials}
    assert [frames[trial.trial_id] is None for trial in first] == [True, True]
    others = [frames[trial.trial_id] for trial in trials[2:]]
    assert all(frame is not None and set(frame["step"]) <= {1, 6} for frame in others)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "results" / "diagnostics").iterdir()}
    run(rest, 5)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "results" / "diagnostics").iterdir()} == before


def test_the_figure_has_a_panel_a_quantity() -> None:
    points, _ = recorded(Muon())
    later = [Diagnostic(step=3, depth=p.depth, kind=p.kind, quantity=p.quantity, value=2 * p.value) for p in points]
    frame = pd.DataFrame([{name: getattr(p, name) for name in p.__slots__} for p in (*points, *later)])
    figure = figures.optimizer_diagnostics(frame, "muon")
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "update, RMS",
        "update, spectral norm",
        "momentum, effective rank",
        "momentum, singular values",
        "polar factor, relative error",
    ]
    first = figure.axes[0].lines[0]
    query = [p.value for p in points if (p.kind, p.quantity) == ("attention.query", "update_rms")]
    assert first.get_ydata().tolist() == pytest.approx([np.prod(query) ** 0.5, 2 * np.prod(query) ** 0.5])
    assert len(figure.axes[3].lines) == 3 * 7
    without = figures.optimizer_diagnostics(frame[frame["quantity"] != "polar_error"], "adamw")
    assert len(without.axes) == 4
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.optimizer_diagnostics(frame[:0], "none")
