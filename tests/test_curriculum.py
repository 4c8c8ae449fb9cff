import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.curriculum import (
    EVALUATION_SEED_START,
    HELD_OUT_STATES,
    TRAINING_STATES,
    held_out_specs,
    training_specs,
    validation_specs,
)


def test_two_hundred_held_out_episodes_are_different_and_never_trained_on() -> None:
    specs = held_out_specs("libero_object", [0, 3], 200)
    assert len(set(specs)) == 400
    for spec in specs:
        assert spec.init_state_id in HELD_OUT_STATES or (spec.init_state_id is None and spec.seed >= EVALUATION_SEED_START)
    # The ten shipped held-out states come first, once each.
    assert [s.init_state_id for s in specs[:10]] == list(range(40, 50))
    assert {s.init_state_id for s in specs[10:200]} == {None}


def test_a_short_evaluation_is_a_prefix_of_a_long_one() -> None:
    assert held_out_specs("libero_goal", [2], 50) == held_out_specs("libero_goal", [2], 200)[:50]


@given(seed=st.integers(0, 2**32), share=st.floats(0, 1), count=st.integers(1, 60))
def test_training_never_draws_a_held_out_state(seed: int, share: float, count: int) -> None:
    specs = training_specs("libero_object", [1, 4, 6], count, share, np.random.default_rng(seed))
    assert len(specs) == count
    for spec in specs:
        assert spec.init_state_id is None or spec.init_state_id in TRAINING_STATES
        assert spec.seed < EVALUATION_SEED_START
    # Tasks come in equal shares, up to one.
    counts = [sum(s.task_id == t for s in specs) for t in (1, 4, 6)]
    assert max(counts) - min(counts) <= 1


def test_the_share_of_shipped_states_is_kept_at_its_ends() -> None:
    rng = np.random.default_rng(0)
    assert all(s.init_state_id is not None for s in training_specs("libero_object", [0], 50, 1.0, rng))
    assert all(s.init_state_id is None for s in training_specs("libero_object", [0], 50, 0.0, rng))


def test_evaluations_during_training_share_no_episode_with_training_or_the_final_evaluation() -> None:
    specs = validation_specs("libero_object", [0, 3], 500)
    assert len(set(specs)) == 1000
    assert not set(specs) & set(held_out_specs("libero_object", [0, 3], 100_000))
    assert all(s.init_state_id is None and s.seed >= EVALUATION_SEED_START for s in specs)
