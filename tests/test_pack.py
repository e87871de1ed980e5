"""Packs partition the trials, hold one shape each, and come most expensive first."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.accounting import training_flops
from proxy_models.optimizer_config import AdamW, Muon, Switch
from sweeps.pack import Pack, make_packs, shape_of
from sweeps.trial import Trial
from tests.sweep_helpers import trial

trials = st.lists(
    st.builds(
        trial,
        lr=st.sampled_from([0.01, 0.02, 0.04]),
        seed=st.integers(0, 3),
        width=st.sampled_from([16, 32, 64]),
        depth=st.integers(1, 2),
        batch_tokens=st.sampled_from([16, 32]),
    ),
    unique=True,
    max_size=30,
)


@given(trials=trials, size=st.integers(1, 8))
def test_packs_partition_the_trials(trials: list[Trial], size: int) -> None:
    packs = make_packs(trials, size)
    packed = [one for pack in packs for one in pack.trials]
    assert len(packed) == len(trials)
    assert set(packed) == set(trials)
    assert all(len(pack.trials) <= size for pack in packs)


@given(trials=trials, size=st.integers(1, 8))
def test_a_pack_has_one_shape_and_only_the_last_of_a_shape_is_not_full(trials: list[Trial], size: int) -> None:
    packs = make_packs(trials, size)
    for pack in packs:
        assert len({(t.run.model, t.run.optimizer, t.run.hparams.batch_tokens) for t in pack.trials}) == 1
    for shape in set(map(shape_of, trials)):
        sizes = [len(pack.trials) for pack in packs if shape_of(pack.trials[0]) == shape]
        assert all(full == size for full in sizes[:-1])


@given(trials=trials, size=st.integers(1, 8))
def test_the_most_expensive_pack_comes_first(trials: list[Trial], size: int) -> None:
    flops = [pack.flops for pack in make_packs(trials, size)]
    assert flops == sorted(flops, reverse=True)
    assert sum(flops) == pytest.approx(sum(training_flops(one.run) for one in trials))


def test_what_sets_tensor_sizes_or_the_data_separates_packs() -> None:
    first = trial()
    same = [trial(lr=0.5), trial(seed=9), trial(weight_decay=0.1), trial(clip_norm=None)]
    other = [
        trial(width=64),
        trial(depth=2),
        trial(batch_tokens=64),
        replace(first, data_fingerprint="abd"),
        replace(first, run=replace(first.run, optimizer=AdamW())),
        replace(first, run=replace(first.run, train_tokens=640)),
        replace(first, run=replace(first.run, schedule="cosine")),
    ]
    assert set(map(shape_of, same)) == {shape_of(first)}
    assert len(set(map(shape_of, [first, *other]))) == len(other) + 1


def test_members_of_a_pack_switch_optimizers_together() -> None:
    """The switch comes with the decay: trials with decays of two lengths are two packs."""
    switch = Switch(first=AdamW(), second=Muon())
    decays = [trial(seed=seed, decay_tokens=tokens) for tokens in (64, 128) for seed in (0, 1)]
    switched = [replace(one, run=replace(one.run, optimizer=switch)) for one in decays]
    assert [len(pack.trials) for pack in make_packs(decays, 8)] == [4]
    assert [len(pack.trials) for pack in make_packs(switched, 8)] == [2, 2]


def test_bad_packs_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold at least one trial"):
        Pack(trials=())
    with pytest.raises(ValueError, match="must have one shape, got 2"):
        Pack(trials=(trial(), trial(width=64)))
    with pytest.raises(ValueError, match="size must be at least 1 trial, got 0"):
        make_packs([trial()], 0)
