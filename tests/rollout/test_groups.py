"""Groups of siblings, and dynamic sampling: which groups are learned from, which wait, and why none is left."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vla_rl.rollout.groups import Gathered, Group, gather, groups_from_tree, groups_to_tree
from vla_rl.tensor_tree import load_tree, save_tree
from vla_rl.types import EpisodeSpec, Trajectory

SIZE = 4


def trajectory(spec: EpisodeSpec, success: bool) -> Trajectory:
    turns = 2 + success
    return Trajectory(
        spec=spec,
        instruction="go",
        images={"front": np.full((turns, 2, 2, 3), spec.seed, np.uint8)},
        proprio=np.zeros((turns, 3), np.float32),
        prompt_tokens=np.arange(3),
        action_tokens=np.ones((turns, 4), np.int64),
        log_probs=np.full((turns, 4), -1.5, np.float32),
        values=np.zeros(turns, np.float32),
        policy_version=np.full(turns, 7, np.int32),
        actions=np.zeros((turns, 2, 2), np.float32),
        rewards=np.eye(turns, 2, dtype=np.float32),
        executed=np.ones((turns, 2), bool),
        success=success,
        terminated=success,
        truncated=not success,
        final_images={"front": np.zeros((2, 2, 3), np.uint8)},
        final_proprio=np.ones(3, np.float32),
    )


class World:
    """Initial state number k has the k-th number of successes in its group."""

    def __init__(self, successes: Sequence[int]) -> None:
        self.successes = list(successes)
        self.draws: list[int] = []

    def draw(self, count: int) -> list[EpisodeSpec]:
        start = sum(self.draws)
        self.draws.append(count)
        return [EpisodeSpec("suite", 0, seed=start + i) for i in range(count)]

    def run(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        return [trajectory(spec, i % SIZE < self.successes[spec.seed]) for i, spec in enumerate(specs)]

    def gather(self, waiting: Sequence[Group], count: int, attempts: int, at_least: int = 1) -> Gathered:
        return gather(self.draw, self.run, waiting, count, size=SIZE, attempts=attempts, at_least=at_least, low=0.1, high=0.9)


def seeds(groups: Sequence[Group]) -> list[int]:
    assert all(len({t.spec for t in group}) == 1 and len(group) == SIZE for group in groups), "siblings share their spec"
    return [group[0].spec.seed for group in groups]


def test_without_attempts_every_group_counts() -> None:
    world = World([0, 4, 2])
    gathered = world.gather([], 3, attempts=0, at_least=5)
    assert seeds(gathered.groups) == [0, 1, 2] and not gathered.surplus and world.draws == [3]
    assert gathered.mixed == pytest.approx(1 / 3) and len(gathered.sampled) == 12


def test_groups_without_spread_are_replaced() -> None:
    world = World([0, 2, 4, 1, 4, 3, 2])
    gathered = world.gather([], 3, attempts=5)
    # First 3: group 1 is mixed. Then the missing 2: 3. Then the missing 1: 5.
    assert world.draws == [3, 2, 1] and seeds(gathered.groups) == [1, 3, 5]
    assert gathered.attempts == 3 and not gathered.surplus and len(gathered.sampled) == 6 * SIZE


def test_surplus_groups_wait_for_the_next_update_and_come_first() -> None:
    world = World([1, 2, 3, 1, 2, 3, 0, 0])
    first = world.gather([], 2, attempts=2, at_least=4)
    assert world.draws == [4] and seeds(first.groups) == [0, 1] and seeds(first.surplus) == [2, 3]
    second = world.gather(first.surplus, 3, attempts=2, at_least=1)
    assert world.draws == [4, 1] and seeds(second.groups) == [2, 3, 4] and not second.surplus
    third = world.gather(second.groups, 2, attempts=2)
    assert world.draws == [4, 1] and seeds(third.groups) == [2, 3] and seeds(third.surplus) == [4] and third.attempts == 0


@pytest.mark.parametrize("at_least", [1, 2, 4, 16])
def test_no_group_waits_for_longer_than_one_update(at_least: int) -> None:
    """However many environments there are."""
    world, waiting, born = World([0, 1, 2, 3, 1] * 20), list[Group](), dict[int, int]()
    for update in range(10):
        gathered = world.gather(waiting, 3, attempts=9, at_least=at_least)
        born |= {group[0].spec.seed: update for group in gathered.drawn}
        assert len(gathered.groups) == 3 and all(born[seed] >= update - 1 for seed in seeds(gathered.groups))
        waiting = gathered.surplus


def test_attempts_are_bounded_and_fewer_groups_are_taken() -> None:
    world = World([0, 2, 0, 0, 0])
    gathered = world.gather([], 2, attempts=3)
    assert world.draws == [2, 1, 1] and seeds(gathered.groups) == [1]


@pytest.mark.parametrize(
    ("successes", "reason"),
    [
        (0, r"in 2 attempts \(16 episodes, 0% successes\) no group .*too weak"),
        (4, r"in 2 attempts \(16 episodes, 100% successes\) no group .*little left to learn"),
    ],
)
def test_no_informative_group_says_why(successes: int, reason: str) -> None:
    gathered = World([successes] * 9).gather([], 2, attempts=2)
    assert not gathered.groups
    with pytest.raises(ValueError, match=reason):
        raise ValueError(gathered.why_none())


def test_groups_survive_a_checkpoint(tmp_path: Path) -> None:
    groups = World([1, 3]).gather([], 2, attempts=0).groups
    save_tree(tmp_path, "state", {"waiting": groups_to_tree(groups)})
    again = groups_from_tree(load_tree(tmp_path, "state")["waiting"])
    assert [len(group) for group in again] == [4, 4]
    for one, other in zip(sum(groups, ()), sum(again, ()), strict=True):
        assert other.spec == one.spec and other.success == one.success and other.instruction == one.instruction
        for name in ("images", "final_images"):
            np.testing.assert_array_equal(getattr(other, name)["front"], getattr(one, name)["front"])
        for name in ("proprio", "prompt_tokens", "action_tokens", "log_probs", "policy_version", "rewards", "executed"):
            value = getattr(other, name)
            assert value.dtype == getattr(one, name).dtype
            np.testing.assert_array_equal(value, getattr(one, name))
