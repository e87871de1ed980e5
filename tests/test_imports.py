"""What importing a room loads, seen from a fresh process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ANALYSIS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "analysis").rglob("*.py")
)


def loaded_by(modules: list[str], suspects: tuple[str, ...]) -> list[str]:
    code = f"import sys, {', '.join(modules)}; print(*[m for m in {suspects!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_analysis_loads_neither_torch_nor_ray() -> None:
    assert len(ANALYSIS) > 8
    assert loaded_by(ANALYSIS, ("torch", "ray", "matplotlib.pyplot")) == []


@pytest.mark.parametrize("module", ["analysis.fit", "analysis.drift", "analysis.loss_law"])
def test_fits_load_no_figures(module: str) -> None:
    assert loaded_by([module], ("torch", "ray", "matplotlib")) == []


def test_planning_an_engine_loads_no_torch() -> None:
    assert loaded_by(["sweeps.calibration", "sweeps.engine", "analysis.timing"], ("torch", "ray")) == []


def test_a_worker_starts_without_torchs_compiler() -> None:
    """Which takes as long to load as torch itself, and is needed only where something is compiled."""
    code = "import sys, sweeps.worker as w; w.prepare_process(); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
