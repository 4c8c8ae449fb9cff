"""Each curriculum's formula by hand, the running statistics, the draw, and what training never sees."""

import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.config import CurriculumConfig
from vla_rl.curriculum import (
    CURRICULA,
    EVALUATION_SEED_START,
    HELD_OUT_STATES,
    TRAINING_STATES,
    Curriculum,
    FinishedEpisode,
    Statistics,
    finished_episodes,
    held_out_specs,
    probabilities,
    validation_specs,
)
from vla_rl.types import EpisodeSpec, Trajectory

NAMES = sorted(CURRICULA)


def statistics(**known: list[float]) -> Statistics:
    count = len(next(iter(known.values())))
    given = {name: np.array(values) for name, values in known.items()}
    rest = {"episodes": 1.0, "success": 0.5, "advantage": 0.0, "log_prob": 0.0, "base": 1 / count}
    return Statistics(**{name: given.get(name, np.full(count, value)) for name, value in rest.items()})


def settings(name: str, **values: Any) -> CurriculumConfig:
    return CurriculumConfig(name=name, **{"floor": 0.0, **values})  # type: ignore[arg-type]


def curriculum(name: str = "uniform", tasks: tuple[int, ...] = (0,), shipped: float = 1.0, **values: Any) -> Curriculum:
    return Curriculum("libero_object", tasks, shipped, settings(name, **values))


def episode(task: int, state: int | None, success: bool, advantage: float = 0.0, log_prob: float = -1.0) -> FinishedEpisode:
    return FinishedEpisode(EpisodeSpec("libero_object", task, state, 7), success, log_prob, advantage)


def test_success_rate() -> None:
    # (0.5 - s) / 0.5 = -0.8, 0, 0.8; exp: 0.449329, 1, 2.225541; their sum is 3.674870.
    found = probabilities(statistics(success=[0.9, 0.5, 0.1]), settings("success_rate", tau=0.5))
    np.testing.assert_allclose(found, [0.122270, 0.272118, 0.605611], atol=1e-6)


def test_learnability() -> None:
    # s (1 - s) = 0.25, 0.09, 0.09; their sum is 0.43.
    found = probabilities(statistics(success=[0.5, 0.9, 0.1]), settings("learnability"))
    np.testing.assert_allclose(found, [25 / 43, 9 / 43, 9 / 43], rtol=1e-12)


def test_dump() -> None:
    # N = 3: 2 ln 4 = 2.772589; bonuses sqrt(2.772589 / 4) = 0.832555 and sqrt(2.772589 / 1) = 1.665109.
    # UCB = 0.6 + 0.832555 and 0.2 + 1.665109, 0.432555 apart; at tau 0.1: 1 / (1 + exp(4.32555)) = 0.013053.
    known = statistics(advantage=[0.6, 0.2], episodes=[3, 0])
    np.testing.assert_allclose(probabilities(known, settings("dump")), [0.013053, 0.986947], atol=1e-6)
    # Without the bonus: exp(0.6 / 0.2) and exp(0.2 / 0.2) are e^2 = 7.389056 apart.
    found = probabilities(known, settings("dump", exploration=0, tau=0.2))
    np.testing.assert_allclose(found, [7.389056 / 8.389056, 1 / 8.389056], atol=1e-6)


def test_self_keeps_what_is_likelier_to_fail() -> None:
    np.testing.assert_allclose(probabilities(statistics(success=[0.2, 0.6, 0.4]), settings("self")), [0.5, 0, 0.5])
    np.testing.assert_allclose(probabilities(statistics(success=[0.2, 0.6, 0.4]), settings("self", threshold=0.3)), [1, 0, 0])
    everything_solved = statistics(success=[0.7, 0.6], base=[0.25, 0.75])
    np.testing.assert_allclose(probabilities(everything_solved, settings("self")), [0.25, 0.75])


def test_low_likelihood() -> None:
    # exp(1 / 0.5) and exp(2 / 0.5) are e^2 = 7.389056 apart.
    found = probabilities(statistics(log_prob=[-1, -2]), settings("low_likelihood"))
    np.testing.assert_allclose(found, [1 / 8.389056, 7.389056 / 8.389056], atol=1e-6)


def test_weights_multiply_the_base_and_the_floor_is_a_share_of_it() -> None:
    known = statistics(success=[0.5, 0.5, 0.9], base=[0.5, 0.3, 0.2])
    # base x s (1 - s) = 0.125, 0.075, 0.018; their sum is 0.218. A fifth is drawn from the base.
    expected = 0.2 * np.array([0.5, 0.3, 0.2]) + 0.8 * np.array([0.125, 0.075, 0.018]) / 0.218
    np.testing.assert_allclose(probabilities(known, settings("learnability", floor=0.2)), expected, rtol=1e-12)


@given(
    name=st.sampled_from(NAMES),
    rates=st.lists(st.floats(1e-9, 1 - 1e-9), min_size=1, max_size=20),
    tau=st.floats(1e-6, 1e3),
    floor=st.floats(0, 1),
    order=st.randoms(use_true_random=False),
)
def test_probabilities_sum_to_one_keep_the_floor_and_do_not_depend_on_the_order(
    name: str, rates: list[float], tau: float, floor: float, order: Any
) -> None:
    draw = np.random.default_rng(len(rates))
    known = statistics(
        success=rates,
        advantage=list(draw.random(len(rates))),
        log_prob=list(-9 * draw.random(len(rates))),
        episodes=list(99 * draw.random(len(rates))),
        base=list(draw.dirichlet(np.ones(len(rates)))),
    )
    found = probabilities(known, settings(name, tau=tau, floor=floor))
    assert found.sum() == pytest.approx(1) and (found >= floor * known.base - 1e-12).all()
    permutation = order.sample(range(len(rates)), len(rates))
    shuffled = Statistics(**{field: getattr(known, field)[permutation] for field in Statistics.__dataclass_fields__})
    np.testing.assert_allclose(probabilities(shuffled, settings(name, tau=tau, floor=floor)), found[permutation], atol=1e-12)


def test_every_name_that_a_configuration_accepts_is_a_curriculum() -> None:
    assert set(get_args(CurriculumConfig.model_fields["name"].annotation)) == set(CURRICULA)


def test_statistics_forget_and_lean_on_the_task() -> None:
    chosen = curriculum(forgetting=0.5, prior=1.0)
    chosen.update([episode(0, 3, True, 0.2, -1.5), episode(0, 3, False, 0.4, -9.0)])
    chosen.update([episode(0, 5, True, 0.1, -0.5)])
    found = chosen.statistics()
    # State 3 has 2 x 0.5 = 1 episode and 0.5 successes, state 5 one of each: the task 1.5 of 2, and with one pseudo-episode
    # at 0.5 its rate is 2 / 3. State 3: (0.5 + 2/3) / 2; state 5: (1 + 2/3) / 2; the others 2/3.
    np.testing.assert_allclose(found.episodes[[3, 5, 0]], [1, 1, 0])
    np.testing.assert_allclose(found.success[[3, 5, 0]], [7 / 12, 10 / 12, 2 / 3])
    # (0.2 + 0.4) x 0.5 / 1 = 0.3. Log-probs count successes only; who has none takes the lowest.
    np.testing.assert_allclose(found.advantage[[3, 5, 0]], [0.3, 0.1, 0])
    np.testing.assert_allclose(found.log_prob[[3, 5, 0]], [-1.5, -0.5, -1.5])


def test_sampled_placements_are_one_source_of_their_task() -> None:
    chosen = curriculum(shipped=0.6, tasks=(4, 7))
    assert len(chosen.sources) == 2 * 41
    np.testing.assert_allclose(chosen.probabilities()[[0, 1, 40, 41]], [0.2, 0.3 / 40, 0.3 / 40, 0.2])
    chosen.update([episode(7, None, True), episode(7, None, False)])
    assert chosen.statistics().episodes[41] == 2 and chosen.statistics().episodes.sum() == 2
    assert [len(curriculum(shipped=share).sources) for share in (0.0, 1.0)] == [1, 40]


def test_at_the_level_of_tasks_all_states_of_a_task_share_their_weight() -> None:
    chosen = curriculum("learnability", tasks=(0, 1), shipped=0.5, level="task", forgetting=1.0)
    chosen.update([episode(0, 1, True), episode(0, None, True), episode(0, 2, True), episode(1, 2, True), episode(1, 3, False)])
    # Rates (3 + 0.5) / 4 = 0.875 and (1 + 0.5) / 3 = 0.5: s (1 - s) = 0.109375 and 0.25.
    found = chosen.probabilities()
    assert found[:41].sum() == pytest.approx(0.109375 / 0.359375)
    np.testing.assert_allclose(found[:41] / found[:41].sum(), [0.5] + [0.5 / 40] * 40)
    # UCB counts an episode once, and not once a state: with one task and no advantage every weight is the same.
    assert curriculum("dump", level="task").probabilities().sum() == pytest.approx(1)


def test_a_curriculum_moves_towards_what_its_rule_wants() -> None:
    outcomes = [episode(0, state, state >= 20) for state in TRAINING_STATES for _ in range(4)]
    shares = {}
    for name in NAMES:
        chosen = curriculum(name, prior=0.1, tau=0.2)
        chosen.update(outcomes)
        shares[name] = chosen.probabilities()[:20].sum()  # of the states that always fail
    assert shares["uniform"] == pytest.approx(0.5)
    assert shares["success_rate"] > 0.98 and shares["self"] == pytest.approx(1)


@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    count=st.integers(1, 60),
    name=st.sampled_from(NAMES),
)
def test_a_draw_has_different_episodes_in_the_expected_numbers_and_nothing_held_out(
    seed: int, share: float, count: int, name: str
) -> None:
    rng = np.random.default_rng(seed)
    chosen = curriculum(name, (1, 4, 6), share, floor=0.1)
    for _ in range(2):
        specs = chosen.draw(count, rng)
        assert len(set(specs)) == len({spec.seed for spec in specs}) == count
        for spec in specs:
            assert spec.init_state_id is None or spec.init_state_id in TRAINING_STATES
            assert spec.seed < EVALUATION_SEED_START
        expected = count * chosen.probabilities()
        drawn = np.zeros(len(expected))
        for spec in specs:
            drawn[chosen.sources.index((spec.task_id, spec.init_state_id))] += 1
        # Each source, and each task, comes as often as it should, rounded up or down.
        assert (np.abs(drawn - expected) < 1 + 1e-9).all()
        for task in (1, 4, 6):
            of_task = [i for i, source in enumerate(chosen.sources) if source[0] == task]
            assert abs(drawn[of_task].sum() - expected[of_task].sum()) < 1 + 1e-9
        chosen.update([FinishedEpisode(spec, bool(rng.random() < 0.3), -1.0, rng.random()) for spec in specs])


def test_draws_are_as_frequent_as_the_probabilities_say() -> None:
    rng = np.random.default_rng(0)
    chosen = curriculum("learnability", shipped=0.5)
    chosen.update([episode(0, state, state % 2 == 0) for state in TRAINING_STATES for _ in range(3)])
    expected = chosen.probabilities()
    counts = np.zeros(len(expected))
    for _ in range(2000):
        for spec in chosen.draw(7, rng):
            counts[chosen.sources.index((0, spec.init_state_id))] += 1
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=5 * math.sqrt(0.5 / 14000))


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_curriculum_goes_on_bit_for_bit(name: str) -> None:
    rng = np.random.default_rng(1)
    chosen = curriculum(name, (0, 2), 0.5, floor=0.1)
    for _ in range(5):
        specs = chosen.draw(30, rng)
        chosen.update([FinishedEpisode(s, bool(rng.random() < 0.4), -3 * rng.random(), rng.random()) for s in specs])
    again = curriculum(name, (0, 2), 0.5, floor=0.1)
    again.update([episode(2, 9, True)])  # what was there before goes
    again.load_state_dict(json.loads(json.dumps(chosen.state_dict())))
    np.testing.assert_array_equal(again.probabilities(), chosen.probabilities())
    assert again.draw(30, np.random.default_rng(3)) == chosen.draw(30, np.random.default_rng(3))


def test_metrics_say_what_was_drawn_and_how_it_went() -> None:
    found = curriculum(shipped=0.5).update([episode(0, 3, True), episode(0, 3, False), episode(0, None, True)])
    # Half of the weight on one source, half on forty: exp(0.5 ln 2 + 0.5 ln 80) = sqrt(160).
    assert found.pop("curriculum/effective_sources") == pytest.approx(math.sqrt(160))
    assert found == {
        "curriculum/episodes/0/3": 2,
        "curriculum/successes/0/3": 1,
        "curriculum/episodes/0/sampled": 1,
        "curriculum/successes/0/sampled": 1,
    }


def trajectory(executed: list[list[int]], log_probs: list[list[float]]) -> Trajectory:
    """Chunks of two actions of two tokens."""
    turns = len(executed)
    return Trajectory(
        spec=EpisodeSpec("libero_object", 0, 3), instruction="", images={}, proprio=np.zeros((turns, 1), np.float32),
        prompt_tokens=np.zeros(1, np.int64), action_tokens=np.zeros((turns, 4), np.int64),
        log_probs=np.array(log_probs, np.float32), values=np.zeros(turns, np.float32),
        policy_version=np.zeros(turns, np.int32), actions=np.zeros((turns, 2, 2), np.float32),
        rewards=np.zeros((turns, 2), np.float32), executed=np.array(executed, bool), success=True, terminated=True,
        truncated=False, final_images={}, final_proprio=np.zeros(1, np.float32),
    )  # fmt: skip


def test_what_is_learned_of_a_trajectory() -> None:
    long = trajectory([[1, 1], [1, 0]], [[-1, -2, -3, -4], [-5, -6, -100, -100]])
    short = trajectory([[1, 0]], [[-1, -3, -100, -100]])
    first, second = finished_episodes([long, short], np.array([0.5, -1.5, -0.25]))
    # (1 + 2 + 3 + 4 + 5 + 6) / 6 = 3.5 and (1 + 3) / 2 = 2: tokens of actions that never ran do not count.
    assert (first.log_prob, second.log_prob) == (-3.5, -2.0)
    assert (first.advantage, second.advantage) == (1.0, 0.25)
    with pytest.raises(ValueError, match="4 advantages do not belong to the 3 turns"):
        finished_episodes([long, short], np.zeros(4))


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


def test_evaluations_during_training_share_no_episode_with_training_or_the_final_evaluation() -> None:
    specs = validation_specs("libero_object", [0, 3], 500)
    assert len(set(specs)) == 1000
    assert not set(specs) & set(held_out_specs("libero_object", [0, 3], 100_000))
    assert all(s.init_state_id is None and s.seed >= EVALUATION_SEED_START for s in specs)
