"""Which pack Ray Tune is given next, without a Ray."""

from pathlib import Path

import pytest
from ray.tune.search import Searcher

from sweeps.checkpoints import fork_file
from sweeps.pack import Fork, Pack
from sweeps.ray_search import PackSearch
from tests.sweep_helpers import trial

TRIALS = [trial(lr=lr) for lr in (0.01, 0.02, 0.03, 0.04)]


def pack(i: int, *, after: int | None = None, step: int = 5) -> Pack:
    """Trial i, which goes on from a state of another."""
    start = {} if after is None else {TRIALS[i].trial_id: Fork(trunk_id=TRIALS[after].trial_id, step=step)}
    return Pack(trials=(TRIALS[i],), starts=start)


class Driver:
    """Asks as Tune does, and names packs by their first trial."""

    def __init__(self, folder: Path, *packs: Pack) -> None:
        self.folder, self.packs, self.n_asked = folder, packs, 0
        self.ended: set[str] = set()
        self.search = PackSearch(packs, folder=folder, has_ended=self.ended.__contains__)

    def ask(self) -> object:
        """A trial's number, None for `not now`, or FINISHED."""
        self.n_asked += 1
        config = self.search.suggest(f"tune-{self.n_asked}")
        return TRIALS.index(self.packs[config["pack"]].trials[0]) if isinstance(config, dict) else config

    def end(self, asked: int, *, error: bool = False) -> None:
        """Of what was asked for so many-th."""
        self.search.on_trial_complete(f"tune-{asked}", None if error else {"done": True}, error)

    def leave_state(self, of: int, step: int) -> None:
        file = fork_file(self.folder, Fork(trunk_id=TRIALS[of].trial_id, step=step))
        file.parent.mkdir(exist_ok=True)
        file.touch()


def test_packs_that_wait_for_nothing_keep_their_order(tmp_path: Path) -> None:
    driver = Driver(tmp_path, pack(2), pack(0), pack(1))
    assert [driver.ask() for _ in range(4)] == [2, 0, 1, Searcher.FINISHED]


def test_a_branch_starts_once_its_state_is_there_and_before_what_comes_after_it(tmp_path: Path) -> None:
    driver = Driver(tmp_path, pack(0), pack(1, after=0), pack(2, after=0, step=9), pack(3))
    assert driver.ask() == 0
    driver.leave_state(0, step=5)
    assert [driver.ask() for _ in range(3)] == [1, 3, None]
    driver.leave_state(0, step=9)
    assert [driver.ask(), driver.ask()] == [2, Searcher.FINISHED]


def test_a_branch_waits_for_all_states_of_its_pack(tmp_path: Path) -> None:
    starts = {TRIALS[i].trial_id: Fork(trunk_id=TRIALS[i - 2].trial_id, step=5) for i in (2, 3)}
    driver = Driver(tmp_path, pack(0), pack(1), Pack(trials=(TRIALS[2], TRIALS[3]), starts=starts))
    assert [driver.ask(), driver.ask(), driver.ask()] == [0, 1, None]
    driver.leave_state(1, step=5)
    assert driver.ask() is None
    driver.leave_state(0, step=5)
    assert driver.ask() == 2


@pytest.mark.parametrize("error", [False, True])
def test_a_state_that_cannot_come_any_more_is_not_waited_for(tmp_path: Path, error: bool) -> None:
    """The trunk diverged or failed, or its worker was lost."""
    driver = Driver(tmp_path, pack(0), pack(3), pack(1, after=0))
    assert [driver.ask(), driver.ask(), driver.ask()] == [0, 3, None]
    driver.end(1, error=error)
    assert driver.ask() == 1


def test_a_trunk_with_a_result_is_not_waited_for_while_its_pack_runs(tmp_path: Path) -> None:
    trunks = Pack(trials=(TRIALS[0], TRIALS[3]))
    driver = Driver(tmp_path, trunks, pack(1, after=0))
    assert [driver.ask(), driver.ask()] == [0, None]
    driver.ended.add(TRIALS[0].trial_id)  # diverged before the fork
    assert driver.ask() == 1


def test_a_trunk_that_is_not_to_be_trained_is_not_waited_for(tmp_path: Path) -> None:
    driver = Driver(tmp_path, pack(1, after=0))
    assert [driver.ask(), driver.ask()] == [1, Searcher.FINISHED]


@pytest.mark.parametrize(
    "packs",
    [
        (pack(0, after=1), pack(1, after=0)),
        (Pack(trials=(TRIALS[0], TRIALS[1]), starts=pack(1, after=0).starts), pack(2, after=1)),
    ],
    ids=["a circle", "within a pack"],
)
def test_nothing_waits_for_ever(tmp_path: Path, packs: tuple[Pack, ...]) -> None:
    driver = Driver(tmp_path, *packs)
    given = 0
    while (answer := driver.ask()) != Searcher.FINISHED:
        if answer is None:
            driver.end(driver.n_asked - 1)
        else:
            given += 1
        assert driver.n_asked < 10
    assert given == len(packs)
