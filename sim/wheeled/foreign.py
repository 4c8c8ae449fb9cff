"""The same episodes in ir-sim, somebody else's simulator (Han et al.): for evaluation on dynamics that no training has seen.

ir-sim moves the robot, casts the beams and finds collisions; those who walk avoid others by reciprocal velocity obstacles.
It knows no delay, slip or odometry: pose and speed are exact.

Legend: N environments (one), K beams, C obstacles, W walls.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32, Float64, Int64

from vla_rl.sim.base import SimError
from vla_rl.sim.wheeled.physics import BODY
from vla_rl.sim.wheeled.scenario import Scenario
from vla_rl.sim.wheeled.settings import WheeledSettings
from vla_rl.sim.wheeled.simulator import WheeledControl

MOTION_NOISE = 0.003
"""ir-sim's alpha: variance of both speeds a step, per square of the speed."""
SCAN_NOISE = 0.02
"""Standard deviation of a range, m."""


class IrSimControl(WheeledControl):
    """The tasks of the wheeled simulator in ir-sim: `sim.name=irsim sim.id=tracking_slow`."""

    def __init__(self, id: str, num_envs: int, **options: Any) -> None:
        """As `WheeledControl`. Raises `SimError` where ir-sim is missing, and for more than one environment."""
        if num_envs != 1:
            raise SimError(f"ir-sim has one world a process, and {num_envs} were asked for; set sim.num_envs=1")
        super().__init__(id, num_envs, **options)
        self.plants: IrSimPlants = IrSimPlants(self.settings, _load())  # type: ignore[assignment]

    def close(self) -> None:
        self.plants.close()


def _load() -> ModuleType:
    try:
        # Its import tells of each window system that it does not find.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import irsim
    except ImportError:
        raise SimError("ir-sim is not installed: pip install 'vla_rl[irsim]'") from None
    loaded: ModuleType = irsim
    return loaded


class IrSimPlants:
    """One robot in ir-sim, with the interface of `Plants`."""

    def __init__(self, settings: WheeledSettings, irsim: ModuleType) -> None:
        self._settings, self._irsim = settings, irsim
        self.poses, self.estimates, self.velocities = np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 2))
        self.ranges: Float32[np.ndarray, "N K"] = np.full((1, settings.robot.scanner.beams), np.inf, np.float32)
        self.clearances = np.full(1, np.inf)
        self.body = np.zeros(1, BODY)
        self._world: Any = None
        self._scenario: Scenario | None = None

    def begin(self, row: int, scenario: Scenario) -> None:
        self.close()
        self._scenario = scenario
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "world.yaml"
            path.write_text(yaml.safe_dump(world_of(self._settings, scenario)))
            # ir-sim takes seeds below 2^32.
            seed = int(scenario.random % np.uint64(2**32))
            self._world = self._irsim.make(str(path), headless=True, log_level="ERROR", seed=seed)
        self.clearances[0] = np.inf
        self._read()

    def forget_clearances(self) -> None:
        self.clearances[self.clearances > 0] = np.inf

    def advance(self, commands: Float64[np.ndarray, "N 2"], rows: Int64[np.ndarray, "R"]) -> None:
        if self.clearances[0] <= 0:
            return
        self._world.step(commands[0].reshape(2, 1))
        self._read()
        shape = self._world.robot.geometry
        free = min((shape.distance(thing.geometry) for thing in self._world.obstacle_list), default=np.inf)
        self.clearances[0] = min(self.clearances[0], 0.0 if self._world.robot.collision else free)

    def sweep(self, rows: Int64[np.ndarray, "R"]) -> None:
        ranges = np.asarray(self._world.get_lidar_scan()["ranges"], np.float64)
        # A beam without a return reads range_max, and then gets noise like any other.
        seen = ranges < self._settings.robot.scanner.range_max - 4 * SCAN_NOISE
        self.ranges[0] = np.where(seen, ranges, np.inf)

    def scene(self, row: int) -> tuple[np.ndarray, Float64[np.ndarray, "W 4"]]:
        assert self._scenario is not None
        discs = self._scenario.obstacles.copy()
        # Discs come first in `world_of`, walls after them.
        for disc, thing in zip(discs, self._world.obstacle_list, strict=False):
            disc["x"], disc["y"] = thing.state[:2, 0]
        return discs, self._scenario.walls

    def close(self) -> None:
        if self._world is not None:
            self._world.end()
            self._world = None

    def _read(self) -> None:
        robot = self._world.robot
        self.poses[0] = self.estimates[0] = robot.state[:3, 0]
        self.velocities[0] = robot.velocity[:2, 0]
        self.body["forward"] = self.velocities[0, 0]


def world_of(settings: WheeledSettings, scenario: Scenario) -> dict[str, Any]:
    """The scenario as ir-sim's YAML describes a world."""
    robot, layout = settings.robot, settings.robot.scanner
    limits = robot.limits
    # ir-sim spreads its beams over an angle around the scanner's x axis, both ends included.
    span = layout.angle_increment * (layout.beams - 1)
    lidar = {
        "name": "lidar2d", "range_min": 0.0, "range_max": layout.range_max, "angle_range": span, "number": layout.beams,
        "noise": True, "std": SCAN_NOISE, "angle_std": 0.0,
        "offset": [layout.x, layout.y, layout.yaw + layout.angle_min + span / 2],
    }  # fmt: skip
    body = {
        "kinematics": {"name": "diff", "noise": True, "alpha": [MOTION_NOISE, 0, 0, MOTION_NOISE]},
        "shape": {"name": "circle", "radius": robot.radius},
        "state": [float(value) for value in scenario.pose],
        "goal": [*(float(value) for value in scenario.path[-1]), 0.0],
        "vel_max": [limits.speed, limits.turn],
        "vel_min": [-limits.reverse, -limits.turn],
        "acce": [max(limits.braking, limits.acceleration), max(limits.turn_braking, limits.turn_acceleration)],
        "sensors": [lidar],
    }
    things = [_disc(thing) for thing in scenario.obstacles]
    things += [
        {"shape": {"name": "linestring", "vertices": [[float(a), float(b)], [float(c), float(d)]]}, "state": [0, 0, 0]}
        for a, b, c, d in scenario.walls
    ]
    world: dict[str, Any] = {
        "height": 80,
        "width": 80,
        "offset": [-40, -40],
        "step_time": robot.control_period,
        "collision_mode": "stop",
    }
    return {"world": world | {"control_mode": "auto"}, "robot": [body], "obstacle": things}


def _disc(thing: np.void) -> dict[str, Any]:
    made: dict[str, Any] = {
        "shape": {"name": "circle", "radius": float(thing["radius"])},
        "state": [float(thing["x"]), float(thing["y"]), 0.0],
    }
    if thing["speed"] == 0:
        return made
    begin = np.array([thing["from_x"], thing["from_y"]])
    end = begin + thing["length"] * np.array([thing["direction_x"], thing["direction_y"]])
    ends = [end, begin] if thing["speed"] > 0 else [begin, end]
    speed = float(abs(thing["speed"]))
    made["kinematics"] = {"name": "omni"}
    made["goal"] = [[float(x), float(y), 0.0] for x, y in ends]
    made["behavior"] = {"name": "rvo", "vxmax": speed, "vymax": speed, "acce": 1.0, "factor": 1.0, "loop": True}
    made["vel_max"], made["vel_min"] = [speed, speed], [-speed, -speed]
    return made
