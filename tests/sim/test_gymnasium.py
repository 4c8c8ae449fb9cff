import numpy as np
import pytest

from vla_rl.sim import SimError
from vla_rl.sim.control import episode_seed, evaluation_seeds, training_seeds
from vla_rl.sim.control_registry import make_control


def play(sim, seeds: list[int], steps: int, rng_seed: int = 0) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    """All that each step returns, stacked row by row, under actions that depend on the step alone."""
    rng, seen = np.random.default_rng(rng_seed), [sim.reset(seeds)]
    for _ in range(steps):
        action = np.repeat(rng.uniform(-1, 1, (1, sim.action_dim)).astype(np.float32), sim.num_envs, 0)
        out = sim.step(action)
        seen.append(np.column_stack([out.observation, out.reward, out.terminated, out.truncated, out.final_observation]))
    return seen


def test_rows_depend_on_their_seed_alone() -> None:
    two, one = make_control("gymnasium", "Pendulum-v1", 2), make_control("gymnasium", "Pendulum-v1", 1)
    both = play(two, [4, 6], 210)
    for row, seed in enumerate([4, 6]):
        for together, alone in zip(both, play(one, [seed], 210), strict=True):
            np.testing.assert_array_equal(together[row], alone[0])


def test_an_episode_ends_at_its_limit_with_its_own_last_observation() -> None:
    sim = make_control("gymnasium", "Pendulum-v1", 1)
    assert (sim.observation_dim, sim.action_dim, sim.max_episode_steps) == (3, 1, 200)
    sim.reset([8])
    zero = np.zeros((1, 1), np.float32)
    for _ in range(199):
        outcome = sim.step(zero)
        assert not outcome.truncated[0]
        np.testing.assert_array_equal(outcome.observation, outcome.final_observation)
    outcome = sim.step(zero)
    assert outcome.truncated[0] and not outcome.terminated[0]
    assert not np.array_equal(outcome.observation, outcome.final_observation)
    # The next episode is the one whose seed the interface names.
    import gymnasium

    expected, _ = gymnasium.make("Pendulum-v1").reset(seed=episode_seed(8, 1))
    np.testing.assert_array_equal(outcome.observation[0], expected)


def test_actions_are_scaled_to_the_bounds() -> None:
    """Pendulum's torque is in [-2, 2] N m, and its reward has -0.001 torque^2: from the same state, 1 costs .004 more than 0."""
    sim = make_control("gymnasium", "Pendulum-v1", 2)
    sim.reset([4, 4])
    reward = sim.step(np.array([[0.0], [1.0]], np.float32)).reward
    assert float(reward[0] - reward[1]) == pytest.approx(0.004, rel=1e-3)


def test_reaching_the_goal_terminates_and_is_no_truncation() -> None:
    """Pushing along with the velocity rocks the car out of its valley in about a hundred steps of at most 999."""
    sim = make_control("gymnasium", "MountainCarContinuous-v0", 1)
    observation = sim.reset([2])
    for _ in range(300):
        outcome = sim.step(np.sign(observation[:, 1:] + 1e-9).astype(np.float32))
        observation = outcome.observation
        if outcome.terminated[0]:
            assert not outcome.truncated[0] and outcome.final_observation[0, 0] >= 0.45 > outcome.observation[0, 0]
            return
    raise AssertionError("the car never left its valley")


def test_training_and_evaluation_share_no_episode() -> None:
    training = {episode_seed(seed, k) for step in (0, 500) for seed in training_seeds(3, step, 8) for k in range(20)}
    assert len(training) == 2 * 8 * 20 and all(seed % 2 == 0 and 0 <= seed < 2**63 for seed in training)
    assert all(episode_seed(seed, k) % 2 == 1 for seed in evaluation_seeds(50) for k in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mujoco", "Hopper-v5", 1), "there is no simulator 'mujoco'"),
        (("gymnasium", "NoSuchThing-v0", 1), "sim.id"),
        (("gymnasium", "CartPole-v1", 1), "continuous"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(SimError, match="^[^\n]*$") as caught:
        make_control(*arguments)
    assert message in str(caught.value)


def test_options_reach_gymnasium_and_wrong_ones_are_refused() -> None:
    assert make_control("gymnasium", "Pendulum-v1", 1, max_episode_steps=7).max_episode_steps == 7
    with pytest.raises(SimError, match=r"^[^\n]*sim\.options[^\n]*$"):
        make_control("gymnasium", "Pendulum-v1", 1, gravitation=3)


def test_steps_that_cannot_be() -> None:
    sim = make_control("gymnasium", "Pendulum-v1", 2)
    with pytest.raises(SimError, match="reset"):
        sim.step(np.zeros((2, 1), np.float32))
    with pytest.raises(SimError, match="seeds"):
        sim.reset([1])
    sim.reset([1, 2])
    with pytest.raises(SimError, match="not finite"):
        sim.step(np.array([[0.0], [np.nan]], np.float32))
    with pytest.raises(SimError, match="shape"):
        sim.step(np.zeros((1, 1), np.float32))
