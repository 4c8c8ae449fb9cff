from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.evaluate import EpisodeOutcome, Evaluation, pass_at_k, pass_at_k_record
from vla_rl.types import EpisodeSpec


def test_pass_at_k_worked_out_by_hand() -> None:
    # 2 successes in 5: of the C(5, 2) = 10 pairs C(3, 2) = 3 hold no success, so 1 - 3/10.
    assert pass_at_k(2, 5, 2) == pytest.approx(0.7)
    assert pass_at_k(2, 5, 1) == pytest.approx(2 / 5)
    # Any 4 of the 5 hold at least one of the two successes.
    assert pass_at_k(2, 5, 4) == 1.0
    assert [pass_at_k(0, 8, k) for k in (1, 8)] == [0.0, 0.0]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_it_is_the_share_of_all_choices_that_hold_a_success(numbers: tuple[int, int, int]) -> None:
    successes, episodes, k = numbers
    choices = list(combinations([i < successes for i in range(episodes)], k))
    assert pass_at_k(successes, episodes, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_it_is_unbiased() -> None:
    # The mean of the estimates over binomial outcomes is 1 - (1 - p)^k; of the plug-in 1 - (1 - c/n)^k it is not.
    rng = np.random.default_rng(0)
    estimates = [pass_at_k(int(c), 8, 4) for c in rng.binomial(8, 0.2, 20_000)]
    assert np.mean(estimates) == pytest.approx(1 - 0.8**4, abs=0.01)


@pytest.mark.parametrize("numbers", [(1, 5, 6), (1, 5, 0), (6, 5, 1), (-1, 5, 1)])
def test_impossible_counts_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot estimate pass@"):
        pass_at_k(*numbers)


def test_the_record_averages_over_states() -> None:
    def outcome(state: int, success: bool) -> EpisodeOutcome:
        return EpisodeOutcome(EpisodeSpec("libero_object", 0, state), "", success, 1, float(success), np.zeros((1, 1)))

    outcomes = [
        outcome(40, False),
        outcome(41, True),
        outcome(40, True),
        outcome(41, True),
        outcome(40, False),
        outcome(41, True),
    ]
    record = pass_at_k_record(Evaluation("final", 0.8, 9, outcomes, 1.0, 3))
    assert [(s["spec"]["init_state_id"], s["successes"], s["episodes"]) for s in record["states"]] == [(40, 1, 3), (41, 3, 3)]
    # State 40: 1/3, 1 - C(2, 2)/C(3, 2) = 2/3, 1; state 41: 1.
    assert record["pass_at_k"] == {"1": pytest.approx(2 / 3), "2": pytest.approx(5 / 6), "3": 1.0}
    assert (record["temperature"], record["step"], record["policy_version"]) == (0.8, 9, 3)
