"""A pack's members, stacked, against the same runs alone: every optimizer, family and pack size, some diverging."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import pytest
import torch

from proxy_models.config import RunConfig
from proxy_models.mode import EAGER_LOOP, Mode, loss_tolerance, mode_from_name
from proxy_models.optimizer_config import OPTIMIZERS, AdamW, Muon, OptimizerConfig, Switch
from proxy_models.outcome import TrainOutcome
from proxy_models.train import Job, train
from proxy_models.training import Training
from tests.proxy_helpers import cyclic_data, outcomes, tiny_run

DATA = cyclic_data()
STACKED = Mode(executor="stacked")
LRS = (1e-4, 3e-4, 1e-3, 2e-3, 5e-4, 7e-4, 1.5e-3)
KINDS: dict[str, OptimizerConfig] = {
    **{name: record() for name, record in OPTIMIZERS.items() if name != "switch"},
    "switch": Switch(first=AdamW(), second=Muon(shape_factor="rms_match"), at_tokens=256),
}
FAMILIES = ({}, {"mlp": "relu2", "tied_embeddings": True}, {"qk_norm": False, "depth": 1, "attention_multiplier": 2.0})


def pack(n: int, optimizer: OptimizerConfig | None = None, **run: Any) -> list[RunConfig]:
    """Members of all learning rates and of two seeds; every fifth has one that no optimizer survives."""
    template = tiny_run(**{"optimizer": optimizer, "model": {}, **run})
    return [
        replace(template, seed=i % 2, hparams=replace(template.hparams, lr=1e30 if i % 5 == 4 else lr))
        for i, lr in enumerate(islice(cycle(LRS), n))
    ]


def assert_agree(ours: Sequence[TrainOutcome], alone: Sequence[TrainOutcome], tolerance: float = 1e-5) -> None:
    """Far inside of what is promised (1e-3), for these runs are short and tame."""
    assert tolerance < loss_tolerance(STACKED)
    for a, b in zip(ours, alone, strict=True):
        assert a.diverged_step == b.diverged_step
        assert a.curve_steps == b.curve_steps
        assert a.curve_losses == pytest.approx(b.curve_losses, rel=tolerance)
        assert (a.validation_loss is None) == (b.validation_loss is None)
        if b.validation_loss is not None:
            assert a.validation_loss == pytest.approx(b.validation_loss, rel=tolerance)
            assert a.validation_loss_se == pytest.approx(b.validation_loss_se, rel=100 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_agrees_with_the_loop(kind: str) -> None:
    runs = pack(7, KINDS[kind])
    ours, alone = outcomes(runs, DATA, mode=STACKED), outcomes(runs, DATA)
    assert_agree(ours, alone)
    assert sum(outcome.diverged_step is not None for outcome in ours) == 1
    assert len({outcome.validation_loss for outcome in alone}) == 7


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_agrees_with_the_loop(family: dict[str, Any]) -> None:
    runs = pack(7, model=family)
    assert_agree(outcomes(runs, DATA, mode=STACKED), outcomes(runs, DATA))


@pytest.mark.parametrize("members", [1, 2, 64])
def test_every_pack_size_agrees_with_the_loop(members: int) -> None:
    runs = pack(members, Muon(), train_tokens=256)
    assert_agree(outcomes(runs, DATA, mode=STACKED), outcomes(runs, DATA))


def test_members_with_warmup_decay_clipping_and_weight_decay_of_their_own() -> None:
    own = (
        {"warmup_tokens": 128, "decay_tokens": 320, "weight_decay": 0.1},
        {"clip_norm": None, "beta2": 0.99, "readout_init_gain": 1.0},
        {"clip_norm": 0.05, "embedding_lr_ratio": 3.0, "eps": 1e-4},
    )
    runs = [tiny_run(hparams={"lr": 1e-3, **hparams}) for hparams in own]
    assert_agree(outcomes(runs, DATA, mode=STACKED), outcomes(runs, DATA))


def test_a_diverged_member_changes_no_bit_of_the_others() -> None:
    """Not while it is masked, with NaN in its slot."""
    runs = pack(4)
    sick = [*runs[:3], replace(runs[3], hparams=replace(runs[3].hparams, lr=1e30))]
    well, beside = (outcomes(members, DATA, mode=STACKED) for members in (runs, sick))
    assert beside[3].diverged_step is not None
    for a, b in zip(well[:3], beside[:3], strict=True):
        assert (a.validation_loss, a.curve_losses) == (b.validation_loss, b.curve_losses)


def test_diverged_members_are_left_out_once_half_the_slots_suffice() -> None:
    runs = [replace(run, hparams=replace(run.hparams, lr=1e30 if i > 2 else 1e-3)) for i, run in enumerate(pack(8))]
    sizes: list[int] = []
    original = Training.step

    def counted(self: Training, observe: Any = None) -> torch.Tensor:
        sizes.append(len(self.runs))
        return original(self, observe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", counted)
        ours = outcomes(runs, DATA, mode=STACKED)
    assert sizes[0] == 8
    assert sizes[-1] == 4  # three that live, in a power of two
    assert sum(outcome.diverged_step is not None for outcome in ours) == 5
    assert_agree(ours, outcomes(runs, DATA))


def test_a_diverged_member_is_told_of_at_once_and_the_others_go_on() -> None:
    runs = pack(5)
    found = train([Job(run=run) for run in runs], DATA, mode=STACKED)
    index, first = next(found)
    assert (index, first.validation_loss) == (4, None)
    assert sorted(index for index, _ in found) == [0, 1, 2, 3]


def test_bfloat16_products_stay_near_float32() -> None:
    runs = pack(3, train_tokens=3200)
    half = outcomes(runs, DATA, mode=Mode(executor="stacked", dtype="bfloat16"))
    for a, b in zip(half, outcomes(runs, DATA), strict=True):
        assert a.validation_loss != b.validation_loss
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=loss_tolerance(a.mode))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_compiled_gradients_agree_with_eager_ones_and_do_not_depend_on_the_pack(executor: Any) -> None:
    mode = Mode(executor=executor, compiled=True)
    runs = pack(3)
    together, again = (outcomes(runs, DATA, mode=mode) for _ in range(2))
    assert_agree(together, outcomes(runs, DATA))
    assert [o.validation_loss for o in together] == [o.validation_loss for o in again]
    if executor == "loop":
        (alone,) = outcomes(runs[1:2], DATA, mode=mode)
        assert (alone.validation_loss, alone.curve_losses) == (together[1].validation_loss, together[1].curve_losses)


@pytest.mark.parametrize("mode", [EAGER_LOOP, STACKED, Mode(compiled=True, device="cuda", dtype="bfloat16")])
def test_a_mode_is_named_and_read_back(mode: Mode) -> None:
    assert mode_from_name(mode.name) == mode


@pytest.mark.parametrize("name", ["", "loop", "loop-eager-cpu", "loop-eager-tpu-float32", "loop-fast-cpu-float32"])
def test_what_is_no_mode_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="mode must be"):
        mode_from_name(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_agrees_with_the_loop_on_a_gpu(kind: str, compiled: bool) -> None:
    runs = pack(7, KINDS[kind])
    ours = outcomes(runs, DATA, mode=Mode(executor="stacked", device="cuda", compiled=compiled))
    assert_agree(ours, outcomes(runs, DATA, mode=Mode(device="cuda")), tolerance=1e-4)
