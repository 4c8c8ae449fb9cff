"""ir-sim behind our interface; the parts that need it are skipped where it is not installed."""

import importlib.util
import math

import numpy as np
import pytest

from vla_rl.sim.base import SimError
from vla_rl.sim.control_registry import make_control
from vla_rl.sim.wheeled.foreign import IrSimControl, world_of
from vla_rl.sim.wheeled.scenario import draw
from vla_rl.sim.wheeled.settings import task_settings

INSTALLED = importlib.util.find_spec("irsim") is not None
needs_irsim = pytest.mark.skipif(not INSTALLED, reason="ir-sim is not installed")


def test_a_world_has_everything_of_the_scenario() -> None:
    settings = task_settings("tracking_slow", {"scene": {"moving": (1, 1), "boxes": (1, 1)}})
    scenario = draw(settings, 1)
    world = world_of(settings, scenario)
    assert len(world["obstacle"]) == len(scenario.obstacles) + 4
    assert sum("behavior" in thing for thing in world["obstacle"]) == 1
    lidar = world["robot"][0]["sensors"][0]
    # 60 beams from -180 degrees on, 6 degrees apart: 354 degrees around a scanner that is turned by -3 degrees.
    assert lidar["angle_range"] == pytest.approx(math.radians(354)) and lidar["offset"][2] == pytest.approx(math.radians(-3))


def test_more_than_one_environment_is_refused() -> None:
    with pytest.raises(SimError, match=r"one world a process, and 4 were asked for; set sim.num_envs=1"):
        make_control("irsim", "tracking_slow", 4)


@pytest.mark.skipif(INSTALLED, reason="ir-sim is installed")
def test_a_missing_irsim_ends_in_the_command_that_mends_it() -> None:
    with pytest.raises(SimError, match=r"^ir-sim is not installed: pip install 'vla_rl\[irsim\]'$"):
        IrSimControl("tracking_slow", 1)


@needs_irsim
def test_it_drives_scans_and_collides_as_ours_does() -> None:
    sim = IrSimControl("tracking_slow", 1, scene={"standing": (1, 1), "moving": (0, 0), "boxes": (0, 0)})
    sim.reset([3])
    begin, obstacle = sim.plants.poses[0].copy(), sim.scenarios[0].obstacles[0]
    away = np.array([obstacle["x"], obstacle["y"]]) - begin[:2]
    bearing = (math.atan2(away[1], away[0]) - begin[2]) % (2 * math.pi)
    nearest = int(np.argmin(sim.plants.ranges[0]))
    assert sim.plants.ranges[0, nearest] == pytest.approx(math.hypot(*away) - obstacle["radius"], abs=0.1)
    assert (nearest * math.pi / 30 - math.pi) % (2 * math.pi) == pytest.approx(bearing, abs=0.15)
    for _ in range(20):
        outcome = sim.step(np.array([[1.0, 0.0]], np.float32))
    way = sim.plants.poses[0, :2] - begin[:2]
    assert 0.5 < math.hypot(*way) < 0.9, "two seconds at up to 0.4 m/s"
    assert outcome.observation.shape == (1, sim.observation_dim)
    sim.close()


@needs_irsim
def test_pictures_show_where_those_who_walk_are_now() -> None:
    sim = IrSimControl("tracking_slow", 1, scene={"moving": (1, 1), "standing": (1, 1)})
    sim.reset([1])
    before, first = sim.plants.scene(0)[0].copy(), sim.frame()
    for _ in range(20):
        sim.step(np.zeros((1, 2), np.float32))
    after, last = sim.plants.scene(0)[0], sim.frame()
    sim.close()
    moved = np.hypot(after["x"] - before["x"], after["y"] - before["y"]) > 0.05
    np.testing.assert_array_equal(moved, before["speed"] != 0)
    assert first.shape == last.shape == (480, 480, 3) and (first != last).any()
