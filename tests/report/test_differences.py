"""Differences of success rates: published examples, and what must hold for any outcome."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.report.differences import Difference, difference, independent_difference, paired_difference

COUNTS = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


def evaluation(outcomes: dict[int, bool], **more: Any) -> dict[str, Any]:
    episodes = [{"spec": {"task_id": 0, "seed": seed}, "success": success} for seed, success in outcomes.items()]
    return {"total": {"successes": sum(outcomes.values()), "episodes": len(outcomes)}, "episodes": episodes} | more


def ends(found: Difference | None) -> tuple[float, float, float]:
    assert found is not None
    return found.change, found.low, found.high


def test_a_published_example_of_independent_rates() -> None:
    # Newcombe 1998, p. 873, table II, example (a): 56/70 - 48/80 gives 0.0524 to 0.3339 with method 10.
    found = independent_difference((48, 80), (56, 70))
    assert ends(found)[1:] == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert found.moved == ""


def test_published_examples_of_the_same_episodes() -> None:
    # Both of Fagerland, Lydersen and Laake 2014, with the intervals that their R package `contingencytables` tests for.
    # Bentur et al.: 1 x 12 - 7 x 1 = 5 is less than half of 21, so phi is 0.
    found = paired_difference(both=1, gained=7, lost=1, neither=12)
    assert ends(found) == (pytest.approx(6 / 21), pytest.approx(0.0256, abs=5e-5), pytest.approx(0.5069, abs=5e-5))
    # Cavo et al.: 59 x 80 - 6 x 16 = 4624, less 80.5, over sqrt(65 x 96 x 75 x 86) = 6344: phi = 0.716.
    found = paired_difference(both=59, gained=16, lost=6, neither=80)
    assert ends(found) == (pytest.approx(10 / 161), pytest.approx(0.0046, abs=5e-5), pytest.approx(0.1186, abs=5e-5))
    assert (found.points, found.moved) == ("+6.2", "16 gained, 6 lost")


@given(COUNTS)
def test_a_paired_interval_holds_its_change_and_turns_with_the_order(cells: tuple[int, int, int, int]) -> None:
    both, gained, lost, neither = cells
    change, low, high = ends(paired_difference(both, gained, lost, neither))
    assert -1 - 1e-9 <= low <= change + 1e-12 and change - 1e-12 <= high <= 1 + 1e-9
    back = ends(paired_difference(both, lost, gained, neither))
    assert back == (pytest.approx(-change), pytest.approx(-high, abs=1e-9), pytest.approx(-low, abs=1e-9))
    if both * neither >= gained * lost:  # the episodes agree, so that the pairs can only help
        total = sum(cells)
        alone = ends(independent_difference((both + lost, total), (both + gained, total)))
        assert alone[1] <= low + 1e-9 and high <= alone[2] + 1e-9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_order_of_episodes_and_how_they_are_split_into_seeds_do_not_matter(
    outcomes: list[tuple[bool, bool]], rng: Any
) -> None:
    before, after = ({i: outcome[side] for i, outcome in enumerate(outcomes)} for side in (0, 1))
    shuffled = list(after.items())
    rng.shuffle(shuffled)
    whole = difference([(evaluation(before), evaluation(dict(shuffled)))])
    assert whole is not None and whole.gained == sum(b > a for a, b in outcomes)
    cut = rng.randrange(len(outcomes) + 1)
    parts = [{i: i < cut for i in before}, {i: i >= cut for i in before}]
    pairs = [[evaluation({i: s for i, s in side.items() if part[i]}) for side in (before, after)] for part in parts]
    assert difference([(a, b) for a, b in pairs]) == whole


def test_episodes_that_are_not_the_same_are_taken_for_independent() -> None:
    before, after = {1: True, 2: False, 3: False}, {1: True, 2: True, 3: False}
    known = difference([(evaluation(before), evaluation(after))])
    alone = independent_difference((1, 3), (2, 3))
    assert known is not None and known.gained == 1 and known != alone
    twice = evaluation(after)
    twice["episodes"][2] = twice["episodes"][1]
    others = [
        evaluation({1: True, 2: True, 4: False}),
        evaluation(after, episodes=[]),
        twice,
        evaluation(after, episodes=[{"success": True}, {"spec": 1}, {"spec": 2, "success": "yes"}]),
    ]
    for other in others:
        assert difference([(evaluation(before), other)]) == alone
    assert difference([]) is None and difference([(evaluation({}), evaluation({}))]) is None
