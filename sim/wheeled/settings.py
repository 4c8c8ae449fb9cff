"""Tasks of the wheeled simulator, and what is drawn anew for each episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from vla_rl.config import ConfigError, Count, Fraction, Positive, Rate, Section
from vla_rl.config_files import validated
from vla_rl.driving.settings import ROBOTS, NotNegative, RobotSettings
from vla_rl.sim.base import SimError


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"the lower end {span[0]} is above the upper end {span[1]}")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Lower and upper end of a uniform distribution, drawn once an episode."""
NotNegativeSpan = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_ordered)]
PositiveSpan = Annotated[tuple[Rate, Rate], AfterValidator(_ordered)]
ShareSpan = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]
_RelativeError = Annotated[float, Field(gt=-1, allow_inf_nan=False)]
ErrorSpan = Annotated[tuple[_RelativeError, _RelativeError], AfterValidator(_ordered)]
"""Of relative errors, which leave something of what they are errors of."""
CountSpan = Annotated[tuple[Count, Count], AfterValidator(_ordered)]


class PlantSettings(Section):
    """The robot's body and sensors, as they really are; equations in docs/wheeled.md."""

    track: Rate = 0.3
    """Distance between the wheels that the motor controller assumes, m."""
    track_error: ErrorSpan = (-0.05, 0.05)
    """Relative error of that distance."""
    wheel_error: ErrorSpan = (-0.01, 0.01)
    """Relative error of each wheel's radius."""
    delay: NotNegativeSpan = (0.0, 0.1)
    """From a command to the motors' reaction, s."""
    lag: PositiveSpan = (0.03, 0.12)
    """Time constant of the motors, s."""
    wheel_acceleration: PositiveSpan = (2.5, 4.0)
    """What the motors reach, m/s^2 at the rim."""
    slip: ShareSpan = (0.0, 0.05)
    """Mean share of a wheel's way that is lost to slip."""
    slip_variation: NotNegativeSpan = (0.0, 0.03)
    """Standard deviation of that share, which changes within about half a second."""
    skid: Span = (0.0, 0.05)
    """Sideways speed per forward speed and turning speed, outward, s."""
    encoder_noise: NotNegativeSpan = (0.0, 0.02)
    """Relative standard deviation of the measured forward speed."""
    gyro_noise: NotNegativeSpan = (0.0, 0.02)
    """Standard deviation of the measured turning speed, rad/s."""
    gyro_bias: Span = (-0.01, 0.01)
    """Its constant error, rad/s."""
    fix_period: NotNegative = 1.0
    """Between two corrections of the estimated pose by a map, s; 0: odometry alone, whose drift nothing bounds."""
    fix_noise: NotNegativeSpan = (0.0, 0.02)
    """Standard deviation of such a correction along x and y, m; half as many rad in yaw."""
    scan_noise: NotNegativeSpan = (0.005, 0.02)
    """Standard deviation of a range, m."""
    scan_noise_relative: NotNegativeSpan = (0.0, 0.01)
    """The part of it that grows with the range."""
    scan_dropout: ShareSpan = (0.0, 0.03)
    """Share of beams that read NaN, 0 or +inf instead of their range, each as likely."""


class SceneSettings(Section):
    """Paths and obstacles."""

    path_length: PositiveSpan = (4.0, 6.0)
    """m; of a goal task, the distance from start to goal."""
    wavelength: PositiveSpan = (2.5, 5.0)
    """Of the bends of a path, m."""
    bend: Span = (0.2, 0.8)
    """How far the heading swings to either side of the mean, rad."""
    start_offset: NotNegative = 0.1
    """Largest distance of the start from the path, m."""
    start_turn: NotNegative = 0.3
    """Largest error of the first heading, rad."""
    standing: CountSpan = (1, 3)
    """Obstacles that stand on or near the path."""
    moving: CountSpan = (0, 2)
    """Obstacles that walk to and fro across the path."""
    obstacle_radius: PositiveSpan = (0.08, 0.18)
    """m."""
    obstacle_offset: NotNegative = 0.25
    """Largest distance of a standing obstacle's centre from the path, m."""
    obstacle_spacing: Rate = 1.0
    """Least distance between two standing obstacles, and to both ends of the path, m."""
    obstacle_speed: NotNegativeSpan = (0.08, 0.25)
    """Of those that move, m/s."""
    walk: NotNegativeSpan = (1.2, 2.0)
    """How far they walk before they turn back, m."""
    yield_distance: NotNegative = 0.15
    """An obstacle stops while the robot is ahead of it and nearer than this, m; 0: it walks into a robot that stands."""
    boxes: CountSpan = (0, 3)
    """Boxes beside the path: what the scanner sees behind the obstacles."""
    box_side: PositiveSpan = (0.3, 1.0)
    """m."""
    corridor: Rate = 0.8
    """Least distance of a box from the path, m; of a goal task, the widest gap that is always left around an obstacle."""


class RewardSettings(Section):
    """Of one decision."""

    progress: NotNegative = 1.0
    """For moving along the path (towards the goal) with the target speed; in proportion below, no more above."""
    time: NotNegative = 0.3
    """For each decision: what stands still, or has missed the end, is worse off than what arrives."""
    cross_track: NotNegative = 1.0
    """Against a cross-track error of `error_scale`; grows with its square until twice that."""
    overspeed: NotNegative = 1.0
    """Against exceeding the target speed by all of it; grows with the square."""
    clearance: NotNegative = 0.5
    """Against touching an obstacle; falls with the square to 0 at `clearance_distance`."""
    clearance_distance: Rate = 0.25
    """m between the robot's rim and the obstacle."""
    smoothness: NotNegative = 0.05
    """Against changing the action from one end to the other; grows with the square, summed over both dimensions."""
    intervention: NotNegative = 0.1
    """Against a decision in which the safety layer slowed the robot for an obstacle."""
    collision: NotNegative = 50.0
    """Against a collision, or leaving the path."""
    success: NotNegative = 50.0
    """For arriving; more than a critic that still overrates what may follow promises to those who never do."""


class WheeledSettings(Section):
    """One task of the wheeled simulator."""

    robot: RobotSettings = RobotSettings()
    plant: PlantSettings = PlantSettings()
    scene: SceneSettings = SceneSettings()
    reward: RewardSettings = RewardSettings()
    target_speed: Rate = 0.28
    """m/s."""
    time_limit: Rate = 50.0
    """s; the episode is truncated then."""
    tolerance: Rate = 0.15
    """Distance to the end of the path, or to the goal, from which the robot has arrived, m."""
    off_path: Rate = 1.0
    """A larger cross-track error ends an episode as a failure, m; not asked of a goal task."""
    randomisation: Fraction = 1.0
    """Every span of `plant` is shrunk to this share of itself around its middle; 0: the same plant in each episode."""

    @model_validator(mode="after")
    def _check(self) -> WheeledSettings:
        view, (shortest, longest) = self.robot.view, self.scene.path_length
        most = (view.path_points - 1) * view.path_spacing
        if shortest < view.path_spacing or longest >= most:
            raise ValueError(
                f"scene.path_length is [{shortest}, {longest}] m, but a path needs at least {view.path_spacing} m and less than "
                f"{most:.2f} m; change robot.view.path_points or robot.view.path_spacing for others"
            )
        return self

    @property
    def max_steps(self) -> Positive:
        """Decisions until an episode is truncated."""
        return round(self.time_limit / self.robot.decision_period)


_FAST: dict[str, Any] = {
    "robot": ROBOTS["fast"].model_dump(),
    "plant": {"track": 0.45, "wheel_acceleration": (2.5, 5.0), "lag": (0.03, 0.1)},
    "scene": {
        "path_length": (12.0, 18.0), "wavelength": (6.0, 12.0), "start_offset": 0.25, "obstacle_radius": (0.15, 0.35),
        "obstacle_offset": 0.5, "obstacle_spacing": 3.0, "obstacle_speed": (0.2, 0.7), "walk": (2.5, 4.0),
        "yield_distance": 0.3, "box_side": (0.5, 2.0), "corridor": 1.6,
    },
    "reward": {"clearance_distance": 0.5},
    "target_speed": 1.0, "time_limit": 40.0, "tolerance": 0.3, "off_path": 2.0,
}  # fmt: skip
_GOAL: dict[str, Any] = {"robot": {"view": {"reference": "goal"}}, "reward": {"cross_track": 0.0}, "scene": {"standing": (3, 6)}}
TASKS: dict[str, dict[str, Any]] = {
    "tracking_slow": {},
    "tracking_fast": _FAST,
    "goal_slow": _GOAL,
    "goal_fast": {},  # both of the above, filled in below
}
"""Tasks by name, as what differs from the defaults."""


def merged(record: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with `changes`, section by section."""
    result = dict(record)
    for key, value in changes.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(value, Mapping) and isinstance(known, Mapping) else value
    return result


TASKS["goal_fast"] = merged(_FAST, _GOAL)


def task_settings(id: str, options: Mapping[str, Any] | None = None) -> WheeledSettings:
    """The settings of a task by name, with `options` such as `{"scene": {"moving": [2, 4]}, "randomisation": 0}`.

    Raises `SimError` in one line for an unknown task, an unknown key or a value out of range.
    """
    if id not in TASKS:
        raise SimError(f"there is no wheeled task {id!r}; choose one of: {', '.join(TASKS)}")
    try:
        return validated(WheeledSettings, merged(TASKS[id], options or {}), f"the options of {id}")
    except ConfigError as error:
        raise SimError(str(error)) from None
