"""One episode's path, obstacles and plant, drawn from a seed; every simulator of the task builds the same from it.

Legend: M points of a path, C obstacles, W walls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.base import SimError
from vla_rl.sim.wheeled.physics import OBSTACLE, PLANT
from vla_rl.sim.wheeled.settings import WheeledSettings

ATTEMPTS = 200
"""Draws of a place for one thing before it is left out."""


@dataclass(frozen=True)
class Scenario:
    """What `WheeledSettings` and a seed make. The frame is that of the map: the path begins at its origin."""

    path: Float64[np.ndarray, "M 2"]
    """m; of a goal task, start and goal."""
    pose: Float64[np.ndarray, "3"]
    """Of the robot at the start, m and rad."""
    obstacles: np.ndarray
    """[C] of `OBSTACLE`."""
    walls: Float64[np.ndarray, "W 4"]
    """Segments (x, y, x, y), m."""
    plant: np.ndarray
    """A scalar of `PLANT`."""
    random: np.uint64
    """State of the random stream of motion and sensors."""


def draw(settings: WheeledSettings, seed: int) -> Scenario:
    """The scenario of a seed. Raises `SimError` where the settings leave no room for an obstacle that they ask for."""
    rng = np.random.default_rng(seed)
    to_goal = settings.robot.view.reference == "goal"
    length = rng.uniform(*settings.scene.path_length)
    path = _straight(rng, length) if to_goal else _winding(settings, rng, length)
    pose = _start(settings, rng, path)
    if to_goal:
        obstacles, walls = _arena(settings, rng, path)
    else:
        obstacles, walls = _beside_path(settings, rng, path)
    return Scenario(path, pose, obstacles, walls, _plant(settings, rng), rng.integers(2**63, dtype=np.uint64))


def _straight(rng: np.random.Generator, length: float) -> Float64[np.ndarray, "2 2"]:
    heading = rng.uniform(-math.pi, math.pi)
    return np.array([[0.0, 0.0], [length * math.cos(heading), length * math.sin(heading)]])


def _winding(settings: WheeledSettings, rng: np.random.Generator, length: float) -> Float64[np.ndarray, "M 2"]:
    """The heading swings as the sum of two sines of arc length, so that a path bends but does not cross itself."""
    scene, spacing = settings.scene, settings.robot.view.path_spacing / 2
    stations = np.arange(0, length, spacing)
    bend, wave = rng.uniform(*scene.bend), rng.uniform(*scene.wavelength)
    second_bend, second_wave = rng.uniform(0, 0.4) * bend, 0.6 * rng.uniform(*scene.wavelength)
    phases = rng.uniform(0, 2 * math.pi, 2)
    heading = rng.uniform(-math.pi, math.pi) + bend * np.sin(2 * math.pi * stations / wave + phases[0])
    heading += second_bend * np.sin(2 * math.pi * stations / second_wave + phases[1])
    steps = spacing * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _start(settings: WheeledSettings, rng: np.random.Generator, path: np.ndarray) -> Float64[np.ndarray, "3"]:
    """Beside the first point of a path, looking along it; of a goal task, looking anywhere."""
    heading = math.atan2(*(path[1] - path[0])[::-1])
    offset = rng.uniform(-1, 1) * settings.scene.start_offset
    turn = rng.uniform(-1, 1) * (math.pi if settings.robot.view.reference == "goal" else settings.scene.start_turn)
    return np.array([path[0, 0] - offset * math.sin(heading), path[0, 1] + offset * math.cos(heading), heading + turn])


def _plant(settings: WheeledSettings, rng: np.random.Generator) -> np.ndarray:
    """All spans are drawn in a fixed order, whatever `randomisation` is, so that it changes nothing else of a scenario."""
    plant = settings.plant
    period = settings.robot.control_period

    def value(span: tuple[float, float]) -> float:
        middle = 0.5 * (span[0] + span[1])
        return middle + settings.randomisation * (rng.uniform(*span) - middle)

    made = np.zeros((), PLANT)
    made["track"] = plant.track
    made["left_error"], made["right_error"] = value(plant.wheel_error), value(plant.wheel_error)
    for name in PLANT.names or ():
        if name not in ("track", "left_error", "right_error", "delay", "fix_period"):
            made[name] = value(getattr(plant, name))
    made["delay"] = round(value(plant.delay) / period)
    made["fix_period"] = round(plant.fix_period / period)
    return made


def _beside_path(settings: WheeledSettings, rng: np.random.Generator, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scene = settings.scene
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=1)
    places = len(path)
    arc = np.linspace(0, float(np.hypot(*np.diff(path, axis=0).T).sum()), places)
    inner = np.flatnonzero((arc > scene.obstacle_spacing) & (arc < arc[-1] - scene.obstacle_spacing))
    if len(inner) == 0:
        raise SimError(f"a path of {arc[-1]:.1f} m has no room for obstacles; lower scene.obstacle_spacing")
    obstacles: list[np.ndarray] = []
    for _ in range(int(rng.integers(scene.standing[0], scene.standing[1] + 1))):
        radius = rng.uniform(*scene.obstacle_radius)
        for _ in range(ATTEMPTS):
            i = inner[rng.integers(len(inner))]
            centre = path[i] + rng.uniform(-1, 1) * scene.obstacle_offset * normals[i]
            if all(math.hypot(o["x"] - centre[0], o["y"] - centre[1]) > scene.obstacle_spacing for o in obstacles):
                obstacles.append(_standing(centre, radius))
                break
    for _ in range(int(rng.integers(scene.moving[0], scene.moving[1] + 1))):
        i = inner[rng.integers(len(inner))]
        heading = math.atan2(normals[i, 1], normals[i, 0]) + rng.uniform(-0.6, 0.6) + math.pi * rng.integers(2)
        obstacles.append(_walking(settings, rng, path[i], heading))
    walls: list[np.ndarray] = []
    for _ in range(int(rng.integers(scene.boxes[0], scene.boxes[1] + 1))):
        width, height = rng.uniform(*scene.box_side, 2)
        away = scene.corridor + 0.5 * math.hypot(width, height)
        for _ in range(ATTEMPTS):
            i = rng.integers(places)
            centre = path[i] + ((2 * rng.integers(2) - 1) * (away + rng.exponential(scene.corridor))) * normals[i]
            if np.hypot(*(path - centre).T).min() > away:
                walls.append(_box(centre, width, height, rng.uniform(0, math.pi)))
                break
    return np.array(obstacles, OBSTACLE), np.concatenate(walls) if walls else np.zeros((0, 4))


def _arena(settings: WheeledSettings, rng: np.random.Generator, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Four walls around start and goal, and obstacles between them with a way for the robot around each."""
    scene, radius = settings.scene, settings.robot.radius
    margin = 2 * scene.corridor
    low, high = path.min(axis=0) - margin, path.max(axis=0) + margin
    width, height = high - low
    walls = _box(0.5 * (low + high), float(width), float(height), 0.0)
    obstacles: list[np.ndarray] = []
    for _ in range(int(rng.integers(scene.standing[0], scene.standing[1] + 1))):
        size = rng.uniform(*scene.obstacle_radius)
        for _ in range(ATTEMPTS):
            along = path[0] + rng.uniform() * (path[1] - path[0])
            centre = along + rng.normal(0, scene.obstacle_offset, 2)
            free = min((math.hypot(o["x"] - centre[0], o["y"] - centre[1]) - o["radius"] for o in obstacles), default=math.inf)
            ends = np.hypot(*(path - centre).T).min()
            if free - size > min(scene.corridor, 3 * radius) and ends - size > 2 * radius:
                obstacles.append(_standing(centre, size))
                break
    for _ in range(int(rng.integers(scene.moving[0], scene.moving[1] + 1))):
        centre = path[0] + rng.uniform(0.3, 0.8) * (path[1] - path[0])
        obstacles.append(_walking(settings, rng, centre, rng.uniform(-math.pi, math.pi)))
    return np.array(obstacles, OBSTACLE), walls


def _standing(centre: np.ndarray, radius: float) -> np.ndarray:
    return _obstacle(centre, radius, centre, 0.0, 0.0, 0.0, 0.0)


def _walking(settings: WheeledSettings, rng: np.random.Generator, middle: np.ndarray, heading: float) -> np.ndarray:
    """To and fro over `middle`, beginning anywhere on its way."""
    scene = settings.scene
    length = rng.uniform(*scene.walk)
    begin = middle - 0.5 * length * np.array([math.cos(heading), math.sin(heading)])
    along = rng.uniform() * length
    speed = rng.uniform(*scene.obstacle_speed)
    centre = begin + along * np.array([math.cos(heading), math.sin(heading)])
    return _obstacle(centre, rng.uniform(*scene.obstacle_radius), begin, heading, length, along, speed)


def _obstacle(
    centre: np.ndarray, radius: float, begin: np.ndarray, heading: float, length: float, along: float, speed: float
) -> np.ndarray:
    values = (centre[0], centre[1], radius, begin[0], begin[1], math.cos(heading), math.sin(heading), length, along, speed)
    return np.array(values, OBSTACLE)


def _box(centre: np.ndarray, width: float, height: float, turn: float) -> Float64[np.ndarray, "4 4"]:
    corners = 0.5 * np.array([[-width, -height], [width, -height], [width, height], [-width, height]])
    cosine, sine = math.cos(turn), math.sin(turn)
    corners = corners @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    return np.concatenate([corners, np.roll(corners, -1, axis=0)], axis=1)
