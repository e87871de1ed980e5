"""`mutransfer plan --budget` from a user's side: rates and their sources, budgets that work, and what to paste."""

import json
import re
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.fit import SweepFit, fit_sweep
from analysis.surface import Series
from proxy_models.accounting import training_flops
from sweeps.spec import load_spec, run_config, run_configs
from tests.analysis_helpers import parabola, planted_results, trial_result
from tests.transfer_helpers import PLANTED_SPEC, invoke, planted_spec, target, write_tiny
from transfer.budget import BudgetPlan, plan_budget, rounded_up, transfer_rates
from transfer.make_plan import PlanError


def planted_fit(**planted: Any) -> SweepFit:
    return fit_sweep(planted_results(**planted), rng=np.random.default_rng(3))


def plan_json(*arguments: Any) -> dict[str, Any]:
    result = invoke("plan", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def pasted(spec: Path, snippet: str) -> Path:
    """The spec with the snippet's tables in place of its own values."""
    new = tomllib.loads(snippet)
    text = spec.read_text()
    for name, value in new["run"].items():
        text, n = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, count=1, flags=re.MULTILINE)
        assert n == 1
    ((optimizer, tables),) = new["optimizers"].items()
    axis = tables["axes"]["lr"]
    line = "axes.lr = { " + ", ".join(f"{name} = {value}" for name, value in axis.items()) + " }"
    head, tail = text.split(f"[optimizers.{optimizer}]\n", 1)
    tail = re.sub(r"^axes\.lr = .*$", line, tail, count=1, flags=re.MULTILINE)
    edited = spec.with_name("pasted.toml")
    edited.write_text(f"{head}[optimizers.{optimizer}]\n{tail}")
    return edited


@pytest.mark.parametrize("options", [("--budget", "1e11"), ("--excess", "0.003"), ("--excess", "0.00004")])
def test_the_snippet_is_a_spec_that_costs_what_the_design_says(tmp_path: Path, options: tuple[str, str]) -> None:
    """Pasted into the spec, it loads, and its runs and the target's add up to the design's FLOPs."""
    spec, target_file = write_tiny(tmp_path)
    document = plan_json(spec, *options, "--target", target_file)
    design = document["at_budget"] or document["cheapest"]
    (snippet,) = document["snippets"]
    loaded = load_spec(pasted(spec, snippet))
    tuning = [run for run in run_configs(loaded) if run.optimizer.name == "adamw"]
    assert len(tuning) == design["runs"]
    assert sum(map(training_flops, tuning)) == pytest.approx(design["tuning_flops"], rel=1e-9)
    assert {run.model.width for run in tuning} == {design["proxy_width"]}
    final = run_config(loaded, "adamw", width=96, seed=0)
    assert design["final_flops"] == pytest.approx(training_flops(final), rel=1e-9)
    logs = sorted({round(float(np.log2(run.hparams.lr)), 6) for run in tuning})
    assert len(logs) == design["points"]
    for low, high in pairwise(logs):
        assert high - low == pytest.approx(design["spacing_octaves"], abs=1e-4)
    # the spec's values -10 to -2 by 2 stand for -11 to -1: each of k values for a k-th of that
    assert logs[0] - design["spacing_octaves"] / 2 == pytest.approx(-11, abs=5e-3)
    assert logs[-1] + design["spacing_octaves"] / 2 == pytest.approx(-1, abs=5e-3)


def test_a_design_keeps_to_its_budget_and_reaches_its_excess(tmp_path: Path) -> None:
    spec, target_file = write_tiny(tmp_path)
    document = plan_json(spec, "--budget", 3e10, "--excess", 0.002, "--target", target_file)
    best, cheapest = document["at_budget"], document["cheapest"]
    assert best["flops"] <= 3e10
    assert cheapest["excess_nats"] <= 0.002
    for name in ("width", "drift", "grid", "noise"):
        assert best[f"{name}_nats"] >= 0
    parts = sum(best[f"{name}_nats"] for name in ("width", "drift", "grid", "noise"))
    assert best["excess_nats"] == pytest.approx(parts)
    # neither could be improved upon by the other's request
    again = plan_json(spec, "--excess", best["excess_nats"], "--budget", cheapest["flops"], "--target", target_file)
    assert again["cheapest"]["flops"] == pytest.approx(best["flops"])
    assert again["at_budget"]["excess_nats"] == pytest.approx(cheapest["excess_nats"])
    rows = document["frontier"]
    for kind in ("direct", "transfer"):
        found = [row[kind]["excess_nats"] for row in rows if row[kind] is not None]
        assert found == sorted(found, reverse=True)
        assert all(row[kind] is None or row[kind]["flops"] <= row["budget"] for row in rows)


def test_a_free_final_width_grows_with_the_budget(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    small, large = (plan_json(spec, "--budget", budget)["at_budget"] for budget in (1e10, 1e13))
    assert small["final_width"] < large["final_width"]
    assert small["width_nats"] > large["width_nats"] > 0
    for design, budget in ((small, 1e10), (large, 1e13)):
        assert 0.6 * budget < design["flops"] <= budget
        assert design["proxy_width"] % 8 == 0
        assert design["final_width"] % 8 == 0
        assert design["proxy_width"] >= 16


def test_an_excess_that_takes_a_wide_final_model(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    design = plan_json(spec, "--excess", 0.2)["cheapest"]
    assert 0.19 < design["excess_nats"] <= 0.2
    assert design["final_width"] > 128


@pytest.mark.parametrize("target_tokens", ["", "train_tokens = 6400\n"])
def test_the_least_budget_named_works_and_a_little_less_does_not(tmp_path: Path, target_tokens: str) -> None:
    spec, target_file = write_tiny(tmp_path)
    target_file.write_text(f"width = 96\n{target_tokens}")
    final = training_flops(run_config(load_spec(spec), "adamw", width=96, seed=0, train_tokens=None))
    refused = invoke("plan", spec, "--budget", final / 2, "--target", target_file)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert len(refused.stderr.strip().splitlines()) == 1
    found = re.search(
        r"the least that works is (\S+) FLOPs, of which the target's own run takes (\S+)\.", refused.stderr
    )
    assert found is not None, refused.stderr
    least, own = (float(number) for number in found.groups())
    assert own == pytest.approx(final * (10 if target_tokens else 1), rel=0.01)
    assert plan_json(spec, "--budget", found[1], "--target", target_file)["at_budget"]["flops"] <= least
    assert invoke("plan", spec, "--budget", 0.98 * least, "--target", target_file).exit_code == 2


def test_the_least_excess_named_works_and_a_little_less_does_not(tmp_path: Path) -> None:
    spec, target_file = write_tiny(tmp_path)
    refused = invoke("plan", spec, "--excess", 1e-12, "--target", target_file)
    assert refused.exit_code == 2
    found = re.search(r"the least that works is (\S+) nats", refused.stderr)
    assert found is not None, refused.stderr
    assert plan_json(spec, "--excess", found[1], "--target", target_file)["cheapest"] is not None
    assert invoke("plan", spec, "--excess", 0.98 * float(found[1]), "--target", target_file).exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "0"), r"--budget must be a finite number of FLOPs above 0, got 0"),
        (("--budget=-1e15",), r"--budget must be a finite number of FLOPs above 0, got -1e\+15"),
        (("--budget", "nan"), r"--budget must be a finite number"),
        (("--budget", "inf"), r"--budget must be a finite number"),
        (("--excess", "0"), r"--excess must be a finite number of nats above 0"),
        (("--budget", "1000"), r"the least that works is \S+ FLOPs\. Raise it"),
        (("--budget", "1e12", "--optimizer", "adam"), r"--optimizer must be one of adamw, scale, got 'adam'"),
        (("--budget", "1e12", "--from", "nowhere"), r"nowhere: there is no such folder"),
        (("--budget", "1e12", "--target", "nowhere.toml"), r"nowhere.toml"),
        (("--optimizer", "scale"), r"--optimizer: needs --budget or --excess"),
        (("--out", "x", "--target", "target.toml"), r"--target, --out: needs --budget or --excess"),
    ],
)
def test_garbage_is_refused_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    spec, _ = write_tiny(tmp_path)
    result = invoke("plan", spec, *options)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_target_narrower_than_the_proxies_is_refused(tmp_path: Path) -> None:
    spec, target_file = write_tiny(tmp_path)
    target_file.write_text("width = 32\n")
    result = invoke("plan", spec, "--budget", 1e12, "--target", target_file)
    assert result.exit_code == 2
    assert "width: must be at least the widest proxy's, 64" in result.stderr


def test_a_basin_that_no_grid_fits_is_refused(tmp_path: Path) -> None:
    """An axis of a hundred octaves: 64 values are too coarse for a basin of 2.6 octaves."""
    spec, _ = write_tiny(tmp_path)
    spec.write_text(
        spec.read_text().replace(
            "log2_from = -10, log2_to = -2, log2_step = 2", "log2_from = -90, log2_to = -2, log2_step = 8"
        )
    )
    result = invoke("plan", spec, "--budget", 1e12)
    assert result.exit_code == 2
    assert "narrow the lr axis, now 96 octaves wide" in result.stderr


def test_an_axis_that_octaves_cannot_space_is_refused(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    spec.write_text(
        spec.read_text().replace("[optimizers.adamw]\n", "[optimizers.adamw]\naxes.weight_decay = [0.0, 0.1]\n")
    )
    result = invoke("plan", spec, "--budget", 1e12)
    assert result.exit_code == 2
    assert "axis weight_decay has [0.0, 0.1]" in result.stderr


def test_two_axes_are_planned_as_a_grid(tmp_path: Path) -> None:
    """Each axis over a range of its own, half a step beyond its ends."""
    spec, target_file = write_tiny(tmp_path)
    axis = "axes.weight_decay = { log2_from = -6, log2_to = -3, log2_step = 1 }\n"
    spec.write_text(spec.read_text().replace("[optimizers.adamw]\n", f"[optimizers.adamw]\n{axis}"))
    document = plan_json(spec, "--budget", 1e12, "--target", target_file)
    design = document["at_budget"]
    assert document["rates"]["n_hps"]["value"] == 2
    assert design["runs"] == design["points"] ** 2 * design["seeds"]
    axes = tomllib.loads(document["snippets"][0])["optimizers"]["adamw"]["axes"]
    for name, low, high in (("lr", -11, -1), ("weight_decay", -6.5, -2.5)):
        half = axes[name]["log2_step"] / 2
        assert axes[name]["log2_from"] - half == pytest.approx(low, abs=5e-3)
        assert axes[name]["log2_to"] + half == pytest.approx(high, abs=5e-3)


def test_assumed_rates_say_so_and_measured_ones_hold_what_was_planted(tmp_path: Path) -> None:
    """AdamW: loss 1.3 + 1.2 (w/32)^-.6, optimum -6 - 32/w, curvature .1, noise .004 (tests/analysis_helpers)."""
    spec = planted_spec(tmp_path)
    assumed = transfer_rates(spec, "adamw")
    assert assumed.reference_width == 32
    # 13.16 n^-.52 of arXiv:2512.22768 at width 32
    assert assumed.alpha.value == 0.52
    assert assumed.loss_amplitude.value == pytest.approx(13.16 * 32**-0.52, rel=0.01)
    assert transfer_rates(spec, "muon").loss_amplitude.value == pytest.approx(12.93 * 32**-0.50, rel=0.01)
    sources = {name: rate.source for name, rate in assumed.named}
    assert {name for name, source in sources.items() if source == "given"} == {"range_octaves", "n_hps"}
    assert "measured" not in sources.values()
    assert all(rate.why for _, rate in assumed.named)

    measured = transfer_rates(spec, "adamw", planted_fit())
    assert measured.alpha.source == measured.curvature.source == measured.noise.source == "measured"
    assert measured.alpha.value == pytest.approx(0.6, abs=0.1)
    assert measured.loss_amplitude.value == pytest.approx(1.2, abs=0.1)
    assert measured.curvature.value == pytest.approx(0.1, abs=0.01)
    assert measured.noise.value == pytest.approx(0.004, abs=0.002)
    assert measured.range_octaves.value == 7
    # three widths tell no beta; at the assumed one, the drift from 32 to 128 is a half of the distance at 32
    assert measured.beta.source == "assumed"
    assert measured.optimum_amplitude.source == "measured"
    assert measured.optimum_amplitude.value == pytest.approx(0.75 / 0.5, abs=0.3)
    assert "noise alone" not in measured.optimum_amplitude.why


def test_four_widths_measure_beta(tmp_path: Path) -> None:
    fit = planted_fit(
        optimizers=("adamw",), widths=(32, 64, 128, 256, 512), noise=0.0005, log2_lrs=tuple(np.arange(-9, -4, 0.5))
    )
    measured = transfer_rates(planted_spec(tmp_path), "adamw", fit)
    assert measured.beta.source == "measured"
    assert measured.beta.value == pytest.approx(1.0, abs=0.15)
    assert measured.beta.span is not None
    assert measured.beta.span[0] < measured.beta.value < measured.beta.span[1]
    assert measured.optimum_amplitude.value == pytest.approx(1.0, abs=0.1)
    assert measured.alpha.value == pytest.approx(0.6, abs=0.05)
    assert measured.loss_amplitude.value == pytest.approx(1.2, abs=0.05)


def test_a_curvature_that_moves_with_width_is_measured(tmp_path: Path) -> None:
    """Planted as 0.08 (w/32)^0.4; and a constant one has a gamma of 0."""
    rng = np.random.default_rng(12)
    results = [
        trial_result(
            parabola(optimum=-6 - 32 / width, curvature=0.08 * (width / 32) ** 0.4, floor=1.3 + 38.4 / width)(log2_lr)
            + 0.001 * rng.standard_normal(),
            lr=2.0**log2_lr,
            width=width,
            seed=seed,
        )
        for width in (32, 64, 128, 256)
        for seed in (3, 4)
        for log2_lr in np.arange(-9, -3.5, 0.5)
    ]
    spec = planted_spec(tmp_path)
    moved = transfer_rates(spec, "adamw", fit_sweep(results, rng=rng))
    assert moved.gamma.source == "measured"
    assert moved.gamma.value == pytest.approx(0.4, abs=0.1)
    assert moved.curvature.value == pytest.approx(0.08, rel=0.15)
    still = transfer_rates(spec, "adamw", planted_fit(optimizers=("adamw",), widths=(32, 64, 128, 256)))
    assert still.gamma.value == 0
    assert still.gamma.source == "assumed"


def test_an_optimum_that_stays_is_said_to_be_noise(tmp_path: Path) -> None:
    measured = transfer_rates(planted_spec(tmp_path), "muon", planted_fit())
    assert "which noise alone could have made" in measured.optimum_amplitude.why
    assert measured.optimum_amplitude.value < 0.3


def test_one_seed_measures_no_noise(tmp_path: Path) -> None:
    measured = transfer_rates(planted_spec(tmp_path), "adamw", planted_fit(seeds=(3,)))
    assert measured.noise.source == "assumed"
    assert measured.curvature.source == "measured"


def test_two_widths_measure_a_drift_but_no_alpha(tmp_path: Path) -> None:
    measured = transfer_rates(planted_spec(tmp_path), "adamw", planted_fit(widths=(32, 64)))
    assert measured.alpha.source == measured.loss_amplitude.source == "assumed"
    assert measured.optimum_amplitude.source == "measured"


def test_one_width_measures_no_drift(tmp_path: Path) -> None:
    measured = transfer_rates(planted_spec(tmp_path), "adamw", planted_fit(widths=(64,)))
    assert measured.optimum_amplitude.source == "assumed"
    assert measured.reference_width == 64
    assert measured.optimum_amplitude.value == pytest.approx(0.25 * 2**0.5)


def test_a_spec_s_other_axis_takes_the_setting_with_the_lowest_loss(tmp_path: Path) -> None:
    heavy = planted_results(optimizers=("adamw",), hparams={"weight_decay": 0.3})
    light = planted_results(optimizers=("muon", "adamw"), hparams={"weight_decay": 0.1})  # adamw .07 nats above
    fit = fit_sweep([*heavy, *light], rng=np.random.default_rng(3))
    assert [law.series for law in fit.loss_laws if law.optimizer == "adamw"] == [
        Series("adamw", (("weight_decay", 0.1),)),
        Series("adamw", (("weight_decay", 0.3),)),
    ]
    rates = transfer_rates(planted_spec(tmp_path), "adamw", fit)
    (law,) = (law for law in fit.loss_laws if law.series == Series("adamw", (("weight_decay", 0.3),)))
    assert rates.alpha.value == law.limited.exponent


def test_a_sweep_without_the_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no optimum of 'muon' inside its grid; it has optima of adamw"):
        transfer_rates(planted_spec(tmp_path), "muon", planted_fit(optimizers=("adamw",)))


def planned(folder: Path, *, run: str = "", text: str = "width = 512\n", **options: Any) -> BudgetPlan:
    return plan_budget(planted_spec(folder, run=run), "adamw", target=target(folder, text), **options)


def test_caveats_say_what_is_assumed_and_what_no_design_knows(tmp_path: Path) -> None:
    base = planned(tmp_path, budget=1e13)
    assert any("Assumed and not measured on this model: alpha, beta, curvature, noise." in c for c in base.caveats)
    assert not any("token horizon" in caveat or "standard" in caveat for caveat in base.caveats)
    longer = planned(tmp_path, text="width = 512\ntrain_tokens = 12800\n", budget=1e13)
    assert any("12,800 tokens and the proxies on 6,400" in caveat for caveat in longer.caveats)
    standard = planned(tmp_path, run='parametrization = "standard"', budget=1e13)
    assert any("under the standard parametrization optima move further" in caveat for caveat in standard.caveats)
    rich = planned(tmp_path, budget=1e18)
    assert any("% of the budget is left" in caveat for caveat in rich.caveats)
    poor = planned(tmp_path, budget=1.5 * min(d.flops for d in base.transfer.designs))
    assert poor.at_budget is not None
    assert poor.at_budget.seeds == 1
    assert any("With one seed" in caveat for caveat in poor.caveats)


def test_a_beta_below_half_of_alpha_is_said_to_favor_direct_tuning(tmp_path: Path) -> None:
    fit = planted_fit()
    steep = tuple(replace(law, limited=replace(law.limited, exponent=1.1)) for law in fit.loss_laws)
    plan = planned(tmp_path, budget=1e13, fit=replace(fit, loss_laws=steep))
    assert any("beta 0.50 is not above half of alpha, 0.55" in caveat for caveat in plan.caveats)
    assert plan.exponents[0] > plan.exponents[1]


def test_rates_of_another_run_are_doubted(tmp_path: Path) -> None:
    spec, fit = planted_spec(tmp_path), planted_fit()
    same = plan_budget(spec, "adamw", budget=1e13, fit=fit, fitted_spec=spec)
    assert not any("--from has another" in caveat for caveat in same.caveats)
    (tmp_path / "longer.toml").write_text(
        PLANTED_SPEC.format(run="").replace("train_tokens = 6400", "train_tokens = 12800")
    )
    other = plan_budget(spec, "adamw", budget=1e13, fit=fit, fitted_spec=load_spec(tmp_path / "longer.toml"))
    assert any("--from has another train_tokens: " in caveat for caveat in other.caveats)


def test_an_optimizer_without_published_rates_takes_adam_s_and_says_so(tmp_path: Path) -> None:
    spec, _ = write_tiny(tmp_path)
    document = plan_json(spec, "--budget", 1e10, "--optimizer", "scale")
    assert document["rates"]["alpha"]["value"] == 0.52
    assert "none is published for scale; Adam" in document["rates"]["alpha"]["why"]
    assert "[optimizers.scale.axes]" in document["snippets"][0]


def test_a_second_width_for_extrapolation_is_priced(tmp_path: Path) -> None:
    plan = planned(tmp_path, wanted_excess=0.0005)
    design = plan.cheapest
    assert design is not None
    assert design.kind == "transfer"
    (caveat,) = (caveat for caveat in plan.caveats if "extrapolates" in caveat)
    found = re.search(r"adding (\d+) costs (\S+) FLOPs more", caveat)
    assert found is not None
    one = training_flops(run_config(planted_spec(tmp_path), "adamw", width=int(found[1]), seed=3))
    assert int(found[1]) == pytest.approx(design.proxy_width / 2, abs=8)
    assert float(found[2]) == pytest.approx(one * design.runs, rel=0.01)


def test_direct_tuning_of_a_longer_target_is_priced_at_its_tokens(tmp_path: Path) -> None:
    """A target of the narrowest width leaves direct tuning alone, which trains on the target's tokens."""
    text = PLANTED_SPEC.replace("widths = [32, 64, 128]", "widths = [32]").format(run="")
    (tmp_path / "narrow.toml").write_text(text)
    spec = load_spec(tmp_path / "narrow.toml")
    plan = plan_budget(spec, "adamw", budget=1e13, target=target(tmp_path, "width = 32\ntrain_tokens = 19200\n"))
    assert plan.transfer.designs == ()
    assert plan.at_budget is not None
    one = training_flops(run_config(spec, "adamw", width=32, seed=3, train_tokens=19200))
    assert plan.at_budget.flops == pytest.approx(one * (plan.at_budget.runs + 1))
    assert tomllib.loads(plan.snippets[0])["run"]["train_tokens"] == 19200
    assert tomllib.loads(plan.snippets[0])["run"]["seeds"][:2] == [3, 4]


def test_it_prints_every_rate_with_its_source_and_the_frontier(tmp_path: Path) -> None:
    spec, target_file = write_tiny(tmp_path)
    out = tmp_path / "out"
    result = invoke("plan", spec, "--budget", 1e12, "--excess", 0.002, "--target", target_file, "--out", out)
    assert result.exit_code == 0, result.stderr
    for words in ("what the designs rest on", "assumed", "arXiv:2512.22768", "best at 1e+12 FLOPs", "caveat: Assumed",
                  "cheapest to 0.002 nats", "frontier", "transfer", "direct", "[optimizers.adamw.axes]"):  # fmt: skip
        assert words in result.stdout
    document = json.loads((out / "budget.json").read_text())
    assert document == plan_json(spec, "--budget", 1e12, "--excess", 0.002, "--target", target_file)
    assert (out / "budget.svg").read_text().startswith("<?xml")
    assert (out / "budget.png").stat().st_size > 10_000


def test_rates_come_from_a_finished_sweep(tmp_path: Path) -> None:
    """Of one width, so that it takes a second."""
    spec, target_file = write_tiny(tmp_path)
    text, _ = spec.read_text().split("[optimizers.scale]")
    spec.write_text(text.replace("widths = [16, 32, 64]", "widths = [16]"))
    folder = tmp_path / "out"
    done = invoke("sweep", spec, "--out", folder, "--backend", "local", "--no-check")
    assert done.exit_code == 0, done.stderr
    document = plan_json(spec, "--budget", 1e12, "--target", target_file, "--from", folder)
    assert document["rates"]["noise"]["source"] == "measured"
    assert document["rates"]["curvature"]["source"] == "measured"
    assert document["rates"]["beta"]["source"] == "assumed"
    assert (folder / "fits.json").exists()


@pytest.mark.parametrize("value", [1.0, 1.234e12, 9.9951e-7, 2.35e9, 7.0e15])
def test_rounded_up_is_never_below(value: float) -> None:
    rounded = float(rounded_up(value))
    assert value <= rounded * (1 + 1e-9)
    assert rounded <= value * 1.01
