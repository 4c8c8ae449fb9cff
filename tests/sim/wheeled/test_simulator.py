"""The wheeled simulator: its promises as a `ControlSim`, and its physics against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vla_rl.sim.base import SimError
from vla_rl.sim.control import episode_seed
from vla_rl.sim.wheeled.plant import Plants
from vla_rl.sim.wheeled.render import TopView
from vla_rl.sim.wheeled.scenario import _standing, draw
from vla_rl.sim.wheeled.settings import TASKS, WheeledSettings, task_settings
from vla_rl.sim.wheeled.simulator import WheeledControl

ROW = np.zeros(1, np.int64)
PERFECT: dict[str, Any] = {
    "plant": {
        name: (0.0, 0.0)
        for name in ("track_error", "wheel_error", "delay", "slip", "slip_variation", "skid", "encoder_noise", "gyro_noise",
                     "gyro_bias", "fix_noise", "scan_noise", "scan_noise_relative", "scan_dropout")
    } | {"lag": (0.02, 0.02), "wheel_acceleration": (50.0, 50.0)},
}  # fmt: skip
"""A robot that does at once what it is told (its lag is one tick), and measures it exactly."""


def perfect(**plant: tuple[float, float]) -> WheeledSettings:
    return task_settings("tracking_slow", {"plant": PERFECT["plant"] | plant})


def started(settings: WheeledSettings, pose: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Plants:
    """One robot alone in the world."""
    plants = Plants(settings, 1)
    plants.begin(0, draw(settings, 0))
    plants.obstacle_counts[0] = plants.wall_counts[0] = 0
    plants.poses[0] = plants.estimates[0] = pose
    return plants


def drive(plants: Plants, forward: float, turn: float, seconds: float) -> None:
    for _ in range(round(seconds / 0.02)):
        plants.advance(np.array([[forward, turn]]), ROW)


def actions(step: int, seeds: list[int]) -> np.ndarray:
    """That depend on the seed of the row and the step alone."""
    return np.array([np.random.default_rng([seed, step]).uniform((-0.2, -1), 1, 2) for seed in seeds], np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_a_row_depends_on_its_seed_and_actions_alone(task: str) -> None:
    """Alone or among others, in whatever row, and through restarts: the same bits."""
    short = {"time_limit": 2.0}
    seeds = [8, 3, 5, 8, 12]
    many, alone = WheeledControl(task, 5, **short), WheeledControl(task, 1, **short)
    seen, reference = many.reset(seeds), alone.reset([8])
    assert seen[0].tobytes() == seen[3].tobytes() == reference[0].tobytes()
    assert seen[0].tobytes() != seen[1].tobytes()
    ended = 0
    for step in range(45):
        outcome, expected = many.step(actions(step, seeds)), alone.step(actions(step, [8]))
        for row in (0, 3):
            for mine, theirs in zip(outcome[:5], expected[:5], strict=True):
                assert mine[row].tobytes() == theirs[0].tobytes(), f"step {step}"
        ended += int(outcome.truncated[0])
    assert ended == 2, "two episodes of 20 decisions end within 45"


def test_an_episode_restarts_with_the_next_seed_of_its_row() -> None:
    sim, other = (WheeledControl("tracking_slow", 1, time_limit=0.3) for _ in range(2))
    sim.reset([4])
    for _ in range(3):
        outcome = sim.step(np.zeros((1, 2), np.float32))
    assert outcome.truncated[0] and not outcome.terminated[0]
    assert outcome.final_observation.tobytes() != outcome.observation.tobytes()
    assert sim.scenarios[0].path.tobytes() == draw(sim.settings, episode_seed(4, 1)).path.tobytes()
    assert outcome.measures["success"][0] == 0 and outcome.measures["seconds"][0] == pytest.approx(0.3)
    assert other.reset([4]).tobytes() != outcome.observation.tobytes()


def test_a_perfect_robot_drives_straight() -> None:
    plants = started(perfect())
    drive(plants, 0.3, 0.0, 2.0)
    assert plants.poses[0] == pytest.approx([0.6, 0, 0])
    assert plants.estimates[0] == pytest.approx([0.6, 0, 0]) and plants.velocities[0] == pytest.approx([0.3, 0])


def test_a_perfect_robot_drives_a_circle() -> None:
    # 0.2 m/s and 0.5 rad/s for 2 pi / 0.5 = 12.566 s is a circle of 0.4 m radius; 12.56 s end 0.003 rad short of it.
    plants = started(perfect())
    drive(plants, 0.2, 0.5, 12.56)
    assert plants.poses[0, :2] == pytest.approx([0, 0], abs=2e-3)
    assert plants.poses[0, 2] == pytest.approx(6.28)


def test_slip_is_not_seen_by_the_wheels() -> None:
    # A tenth of the way is lost; the encoders count all of it. No map corrects them here.
    settings = perfect(slip=(0.1, 0.1))
    settings = settings.model_copy(update={"plant": settings.plant.model_copy(update={"fix_period": 0.0})})
    plants = started(settings)
    drive(plants, 0.4, 0.0, 5.0)
    assert plants.poses[0, 0] == pytest.approx(1.8) and plants.estimates[0, 0] == pytest.approx(2.0)


def test_a_fix_by_the_map_ends_the_drift() -> None:
    plants = started(perfect(slip=(0.1, 0.1)))
    drive(plants, 0.4, 0.0, 5.0)
    assert plants.estimates[0, 0] == pytest.approx(plants.poses[0, 0])
    drive(plants, 0.4, 0.0, 0.5)
    assert plants.estimates[0, 0] - plants.poses[0, 0] == pytest.approx(0.02)


def test_unequal_wheels_bend_the_way_and_the_gyroscope_drifts() -> None:
    # The right wheel is 1% larger: at 0.3 m/s it rolls 0.303 m/s, so that the robot turns with 0.003 / 0.3 = 0.01 rad/s.
    plants = started(perfect())
    plants.plant["right_error"], plants.plant["gyro_bias"] = 0.01, 0.02
    plants.plant["fix_period"] = 0
    drive(plants, 0.3, 0.0, 10.0)
    assert plants.poses[0, 2] == pytest.approx(0.1) and plants.estimates[0, 2] == pytest.approx(0.3)


def test_lag_delay_and_wheel_acceleration() -> None:
    # 0.1 s of delay: five ticks of rest. Then a lag of 0.2 s: each tick closes a tenth of the gap, 0.04 of 0.4 m/s first.
    plants = started(perfect(delay=(0.1, 0.1), lag=(0.2, 0.2)))
    drive(plants, 0.4, 0.0, 0.1)
    assert plants.body["forward"][0] == 0
    drive(plants, 0.4, 0.0, 0.04)
    assert plants.body["forward"][0] == pytest.approx(0.04 + 0.1 * 0.36)
    # Wheels that reach 1 m/s^2 gain 0.02 m/s a tick.
    plants = started(perfect(wheel_acceleration=(1.0, 1.0)))
    drive(plants, 0.4, 0.0, 0.1)
    assert plants.body["forward"][0] == pytest.approx(0.1)


def test_skidding_goes_outward() -> None:
    # 0.4 m/s and 1 rad/s with 0.05 s of skid: 0.02 m/s to the right in a left turn, so that the circle is a little wider.
    plants = started(perfect(skid=(0.05, 0.05)))
    drive(plants, 0.4, 1.0, 0.04)
    assert plants.poses[0, 1] < 0


def test_a_scan_measures_discs_and_walls() -> None:
    # A disc of 0.5 m at (2, 0) and a wall along y at x = -1. Beam 30 looks forward: 1.5 m; beam 0 backward: 1 m; beam 5
    # is 30 degrees off backward: 1 / cos 30. The others see nothing.
    plants = started(perfect())
    plants.obstacles[0, 0], plants.obstacle_counts[0] = _standing(np.array([2.0, 0.0]), 0.5), 1
    plants.walls[0, 0], plants.wall_counts[0] = (-1, -2, -1, 2), 1
    plants.sweep(ROW)
    ranges = plants.ranges[0]
    assert ranges[30] == pytest.approx(1.5) and ranges[0] == pytest.approx(1.0)
    assert ranges[5] == ranges[55] == pytest.approx(1 / math.cos(math.pi / 6))
    assert np.isinf(ranges[[15, 45]]).all()
    plants.poses[0] = (1.47, 0.0, math.pi)  # 0.03 m before the disc, which is now behind: nearer than range_min
    plants.sweep(ROW)
    assert ranges[0] == -math.inf


def test_noise_and_dropout_have_the_size_that_is_asked_for() -> None:
    plants = started(perfect(scan_noise=(0.02, 0.02), scan_noise_relative=(0.01, 0.01), scan_dropout=(0.3, 0.3)))
    plants.walls[0, :4] = [(-2, -2, 2, -2), (2, -2, 2, 2), (2, 2, -2, 2), (-2, 2, -2, -2)]
    plants.wall_counts[0] = 4
    forward, kinds = [], np.zeros(3)
    for _ in range(400):
        plants.sweep(ROW)
        ranges = plants.ranges[0]
        kinds += [np.isnan(ranges).sum(), (ranges == 0).sum(), np.isposinf(ranges).sum()]
        forward.append(ranges[30])
    # 2 m straight ahead: 0.02 + 0.01 * 2 = 0.04 m. Of 24,000 beams 30% drop out, a third of them each way.
    measured = np.array([value for value in forward if np.isfinite(value) and value > 0])
    assert measured.std() == pytest.approx(0.04, rel=0.15) and measured.mean() == pytest.approx(2.0, abs=0.01)
    assert kinds / 24_000 == pytest.approx([0.1] * 3, abs=0.01)


def test_contact_ends_an_episode_as_a_failure() -> None:
    sim = WheeledControl("tracking_slow", 1, robot={"safety": {"time_to_collision": 0}}, **PERFECT)
    sim.reset([2])
    pose = sim.plants.poses[0]
    ahead = pose[:2] + 0.5 * np.array([math.cos(pose[2]), math.sin(pose[2])])
    sim.plants.obstacles[0, 0], sim.plants.obstacle_counts[0] = _standing(ahead, 0.1), 1
    for _ in range(20):
        outcome = sim.step(np.array([[1.0, 0.0]], np.float32))
        if outcome.terminated[0]:
            break
    assert outcome.terminated[0] and outcome.measures["collision"][0] == 1 and outcome.measures["success"][0] == 0
    assert outcome.reward[0] < -15


def test_the_safety_layer_stops_before_contact() -> None:
    sim = WheeledControl("tracking_slow", 1, **PERFECT)
    sim.reset([2])
    pose = sim.plants.poses[0]
    ahead = pose[:2] + 0.5 * np.array([math.cos(pose[2]), math.sin(pose[2])])
    sim.plants.obstacles[0, 0], sim.plants.obstacle_counts[0] = _standing(ahead, 0.1), 1
    sim._sense(ROW)
    for _ in range(60):
        outcome = sim.step(np.array([[1.0, 0.0]], np.float32))
    assert not outcome.terminated[0] and sim.builder.commands[0, 0] == 0
    assert 0 < sim.plants.clearances[0] < 0.1


def test_those_who_walk_turn_back_and_yield() -> None:
    settings = task_settings("tracking_slow", {"scene": {"moving": (1, 1), "standing": (0, 0)}})
    plants = Plants(settings, 1)
    plants.begin(0, draw(settings, 2))
    plants.wall_counts[0] = 0
    walker = plants.obstacles[0, 0]
    plants.poses[0] = (50, 50, 0)
    places = []
    for _ in range(3000):
        plants.advance(np.zeros((1, 2)), ROW)
        places.append(float(plants.obstacles[0, 0]["along"]))
    assert min(places) == 0 and max(places) == pytest.approx(float(walker["length"]))
    middle = 0.5 * float(walker["length"])
    plants.poses[0, :2] = [walker["from_x"] + middle * walker["direction_x"], walker["from_y"] + middle * walker["direction_y"]]
    plants.obstacles[0, 0]["along"], plants.obstacles[0, 0]["speed"] = 0, 0.2
    for _ in range(1000):
        plants.advance(np.zeros((1, 2)), ROW)
    assert 0 < plants.clearances[0] <= settings.scene.yield_distance


@pytest.mark.parametrize("task", TASKS)
def test_scenarios_are_free_at_both_ends(task: str) -> None:
    settings = task_settings(task)
    for seed in range(40):
        scenario = draw(settings, seed)
        plants = Plants(settings, 1)
        for place in (scenario.pose[:2], scenario.path[-1]):
            plants.begin(0, scenario)
            plants.obstacles["speed"] = 0
            still = [o for o in scenario.obstacles if o["speed"] == 0]
            gaps = [math.hypot(o["x"] - place[0], o["y"] - place[1]) - o["radius"] for o in still]
            assert min(gaps, default=1) > settings.robot.radius + settings.robot.safety.margin


def test_randomisation_shrinks_to_the_middle_and_changes_nothing_else() -> None:
    wide, none = task_settings("tracking_slow"), task_settings("tracking_slow", {"randomisation": 0})
    assert draw(none, 1).plant["lag"] == draw(none, 2).plant["lag"] == pytest.approx(0.075)
    assert draw(wide, 1).plant["lag"] != draw(wide, 2).plant["lag"]
    assert draw(wide, 1).path.tobytes() == draw(none, 1).path.tobytes()
    assert draw(wide, 1).obstacles.tobytes() == draw(none, 1).obstacles.tobytes()


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("racing", {}, "there is no wheeled task 'racing'; choose one of: tracking_slow"),
        ("goal_slow", {"plnt": {}}, "unknown key 'plnt' in the options of goal_slow; did you mean 'plant'"),
        ("goal_slow", {"scene": {"moving": (3, 1)}}, "the lower end 3 is above the upper end 1"),
        ("goal_slow", {"robot": {"radius": -1}}, "robot.radius in the options of goal_slow is -1"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimError, match=r"^[^\n]*$") as caught:
        WheeledControl(id, 1, **options)
    assert message in str(caught.value)


def test_bad_actions_and_seeds_are_refused_and_move_nothing() -> None:
    sim = WheeledControl("goal_slow", 2)
    with pytest.raises(SimError, match="call reset first"):
        sim.step(np.zeros((2, 2), np.float32))
    with pytest.raises(SimError, match="1 seeds for 2 environments"):
        sim.reset([1])
    sim.reset([1, 2])
    before = sim.plants.poses.copy()
    with pytest.raises(SimError, match="the action of row 1 is not finite"):
        sim.step(np.array([[0, 0], [0, math.nan]], np.float32))
    with pytest.raises(SimError, match="shape"):
        sim.step(np.zeros((1, 2), np.float32))
    assert sim.plants.poses.tobytes() == before.tobytes()


def test_the_view_from_above_shows_robot_and_obstacles() -> None:
    settings = task_settings("tracking_slow")
    path = np.array([(0.0, 0.0), (4.0, 0.0)])
    view = TopView(path, settings.robot, size=200)
    free = view.draw(np.array([0.0, 0.0, 0.0]), np.zeros(0, Plants(settings, 1).obstacles.dtype), np.zeros((0, 4)))
    # The robot is at the left end of the path, in the middle of the height; nothing is drawn above.
    assert free.shape == (200, 200, 3) and free.dtype == np.uint8
    row, column = np.argwhere((free == (22, 130, 90)).all(axis=2)).mean(axis=0)
    assert row == pytest.approx(100, abs=3) and column < 60
    disc = np.array([_standing(np.array([2.0, 1.0]), 0.3)])
    drawn = view.draw(np.array([0.0, 0.0, 0.0]), disc, np.zeros((0, 4)))
    row, column = np.argwhere((drawn == (120, 120, 120)).all(axis=2)).mean(axis=0)
    assert row < 80 and column == pytest.approx(100, abs=3)
