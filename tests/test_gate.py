"""The gate checks what the spec says, whatever batch its check takes."""

from pathlib import Path

from sweeps.spec import load_spec
from tests.transfer_helpers import write_tiny
from transfer.gate import check_runs


def test_check_runs_cover_the_spec_and_a_contrast_at_the_lowest_lr(tmp_path: Path) -> None:
    """A batch that does not divide train_tokens (640), with a decay longer than the check."""
    spec_file, _ = write_tiny(tmp_path)
    spec_file.write_text(spec_file.read_text().replace("[check]", "[check]\nbatch_tokens = 48\nsteps = 3"))
    runs = check_runs(load_spec(spec_file))
    assert {(r.parametrization, name, r.model.width) for name, r in runs} == {
        (p, o, w) for p in ("mup", "standard") for o in ("adamw", "scale") for w in (16, 32, 64, 128)
    }
    assert {(r.hparams.lr, r.hparams.batch_tokens, r.train_tokens) for _, r in runs} == {(2.0**-10, 48, 144)}
