"""The classical baseline: its steering worked out by hand, and whole episodes on held-out seeds."""

import numpy as np
import pytest

from vla_rl.sim.wheeled.baseline import PursuitBaseline, _pursuit
from vla_rl.sim.wheeled.simulator import WheeledControl
from vla_rl.trainers.control_evaluation import ControlEpisode
from vla_rl.trainers.driving_evaluation import driving_record, evaluate_driving


def test_pure_pursuit_steers_on_the_arc_through_the_point() -> None:
    # Through (0.4, 0.3), 0.5 m away: curvature 2 * 0.3 / 0.25 = 2.4 / m; at 0.25 m/s that is 0.6 rad/s.
    assert _pursuit(np.array([0.4, 0.3]), 0.25, 1.0) == pytest.approx(0.6)
    assert _pursuit(np.array([0.4, -0.3]), 0.25, 0.5) == -0.5
    assert _pursuit(np.array([-0.4, 0.1]), 0.25, 1.0) == 1.0, "what lies behind is turned to"
    assert _pursuit(np.array([0.0, 0.0]), 0.25, 1.0) == 0.0


@pytest.mark.parametrize(("task", "least"), [("tracking_slow", 0.8), ("goal_fast", 0.9)])
def test_it_arrives_on_held_out_episodes_without_a_collision(task: str, least: float) -> None:
    sim = WheeledControl(task, 16)
    record = evaluate_driving(sim, PursuitBaseline(sim.builder, sim.settings.target_speed).act, 16)
    assert record["collision"]["count"] == 0
    assert record["success"]["rate"] >= least


def test_an_empty_path_is_followed_closely_and_at_the_target_speed() -> None:
    sim = WheeledControl("tracking_slow", 8, scene={"standing": (0, 0), "moving": (0, 0)}, randomisation=0.5)
    record = evaluate_driving(sim, PursuitBaseline(sim.builder, sim.settings.target_speed).act, 8)
    assert record["success"]["count"] == 8 and record["slowed"] == 0
    assert record["cross_track"] < 0.05
    # 4 to 6 m at 0.28 m/s, and a second or two for speeding up.
    assert 4 / 0.28 < record["seconds"] < 6 / 0.28 + 3


def test_the_record_of_an_evaluation() -> None:
    def episode(success: float, collision: float, error: float) -> ControlEpisode:
        measures = {"success": success, "collision": collision, "cross_track": error, "completion": success, "seconds": 20.0}
        return ControlEpisode(1, 10.0 * success, 200, measures | {"slowed": 0.1})

    record = driving_record([episode(1, 0, 0.02), episode(1, 0, 0.04), episode(0, 1, 0.5), episode(0, 0, 0.6)])
    assert record["success"]["count"] == 2 and record["collision"]["count"] == 1
    # Wilson for 2 of 4 at z^2 = 3.841459: centre 0.5, half = 1.959964 / 1.960365 * sqrt(1/16 + 3.841459/64) = 0.349961.
    assert record["success"]["low"] == pytest.approx(0.5 - 0.349961, abs=2e-6)
    assert record["cross_track"] == pytest.approx(0.03), "of the successful ones alone"
    assert record["completion"] == 0.5 and record["return"] == 5.0
    assert driving_record([episode(0, 1, 0.5)])["cross_track"] is None


def test_walled_in_it_hardly_moves() -> None:
    """Returns 0.01 m from the rim all around: no prediction may use that up."""
    sim = WheeledControl("tracking_slow", 1)
    sim.reset([1])
    sim.builder.scan(np.full((1, 60), 0.18, np.float32), np.zeros(1, np.int64))
    driver = PursuitBaseline(sim.builder, sim.settings.target_speed)
    action = driver.act(np.zeros((1, sim.observation_dim), np.float32))
    assert abs(action[0, 0]) * sim.settings.robot.limits.speed * driver._times[0] <= 0.01
