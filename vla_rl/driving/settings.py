"""What a differential-drive robot is, what its policy sees, and what its safety layer allows."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vla_rl.config import Count, Fraction, Positive, Rate, Section

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DriveLimits(Section):
    """Of the command that the robot gets."""

    speed: Rate = 0.4
    """Forward, m/s; action 1."""
    reverse: NotNegative = 0.1
    """Backward, m/s; action -1."""
    turn: Rate = math.pi / 3
    """Either way, rad/s; actions 1 (left) and -1."""
    acceleration: Rate = 1.8
    """While speeding up, m/s^2."""
    turn_acceleration: Rate = 3.0
    """While turning faster, rad/s^2."""
    braking: Rate = 2.5
    """While slowing down, m/s^2; also of every stop."""
    turn_braking: Rate = 6.0
    """While turning slower, rad/s^2."""


class ScannerLayout(Section):
    """The beams of a LaserScan message, and where the scanner sits on the robot."""

    beams: Positive = 60
    """Ranges of a scan."""
    angle_min: float = -math.pi
    """Of the first beam, rad from the scanner's x axis."""
    angle_increment: Rate = 2 * math.pi / 60
    """From each beam to the next, counter-clockwise, rad."""
    range_min: Rate = 0.05
    """Shorter ranges are not measured, m."""
    range_max: Rate = 6.0
    """Longer ranges are reported as +inf, m."""
    x: float = 0.0
    """Of the scanner in base_link, m."""
    y: float = 0.0
    """Of the scanner in base_link, m."""
    yaw: float = 0.0
    """Of the scanner in base_link, rad."""

    @model_validator(mode="after")
    def _check(self) -> ScannerLayout:
        if self.beams * self.angle_increment > 2 * math.pi + 1e-6:
            raise ValueError(f"{self.beams} beams of {self.angle_increment:.4f} rad are more than a full turn")
        if self.range_min >= self.range_max:
            raise ValueError(f"range_min {self.range_min} is not below range_max {self.range_max}")
        return self

    @property
    def field_of_view(self) -> float:
        """rad."""
        return self.beams * self.angle_increment


class ViewSettings(Section):
    """What of the robot's inputs the policy sees."""

    reference: Literal["path", "goal"] = "path"
    """Errors and points ahead of a path, or distance and direction of a goal."""
    sectors: Count = 30
    """Of the scan: each holds its nearest return; 0: a policy that does not see the scan."""
    view_range: Rate = 3.0
    """Returns from farther away look like free space, m."""
    scan_lag: Positive = 3
    """The older scan beside the newest, by which motion shows, is so many decisions old."""
    preview: tuple[Rate, ...] = (0.15, 0.3, 0.6, 1.0, 1.5)
    """Arc lengths of the path points that are shown, ahead of the nearest one, m."""
    error_scale: Rate = 0.5
    """Cross-track error that is shown as 1, m; from twice that on all look alike."""
    distance_scale: Rate = 2.0
    """Distance to the end that is shown as 1, m; all beyond look alike."""
    path_spacing: Rate = 0.05
    """Paths are resampled to points so far apart, m."""
    path_points: Positive = 512
    """Longest path, in such points."""


class SafetySettings(Section):
    """Of the layer between policy and motors, in training as on the robot."""

    time_to_collision: NotNegative = 1.0
    """Speed is limited such that contact with what the scan shows is at least so far away, s; 0: no such limit."""
    margin: NotNegative = 0.05
    """Added to the robot's radius when contact is predicted, m."""
    creep: NotNegative = 0.02
    """Slower than this, what the limit leaves becomes a stop, m/s."""
    input_timeout: Rate = 0.17
    """A scan or an odometry older than this stops the robot, s; with a control period and some lateness, within 0.2."""
    invalid_share: Fraction = 0.3
    """A scan with a larger share of invalid beams stops the robot."""
    invalid_gap: Rate = 0.6
    """So does a run of neighbouring invalid beams that is wider than this, rad."""


class RobotSettings(Section):
    """A differential-drive robot; the defaults are the 0.3 m/s class."""

    radius: Rate = 0.17
    """Of the circle around base_link that holds the whole robot, m."""
    control_period: Rate = 0.02
    """Between two commands to the motors, s."""
    decision_ticks: Positive = 5
    """Commands from one decision of the policy to the next."""
    limits: DriveLimits = DriveLimits()
    scanner: ScannerLayout = ScannerLayout()
    view: ViewSettings = ViewSettings()
    safety: SafetySettings = SafetySettings()

    @model_validator(mode="after")
    def _check(self) -> RobotSettings:
        if self.limits.reverse > 0 and self.scanner.field_of_view < 1.5 * math.pi:
            raise ValueError(
                f"a scanner that sees {math.degrees(self.scanner.field_of_view):.0f} degrees cannot guard driving backward; "
                "set limits.reverse=0"
            )
        if self.view.sectors > self.scanner.beams:
            raise ValueError(f"{self.view.sectors} sectors cannot be made of {self.scanner.beams} beams")
        return self

    @property
    def decision_period(self) -> float:
        """Between two decisions of the policy, s."""
        return self.control_period * self.decision_ticks

    @property
    def scans(self) -> bool:
        """Whether policy or safety layer need the scanner."""
        return self.view.sectors > 0 or self.safety.time_to_collision > 0


FAST = RobotSettings(
    radius=0.25,
    limits=DriveLimits(speed=1.2, reverse=0.3, turn=1.8, acceleration=1.5, turn_acceleration=4.0, braking=3.0, turn_braking=8.0),
    scanner=ScannerLayout(range_max=12.0),
    view=ViewSettings(view_range=6.0, preview=(0.4, 0.8, 1.6, 2.6, 4.0), error_scale=1.0, distance_scale=5.0, path_spacing=0.1),
    safety=SafetySettings(margin=0.08),
)
"""The 1 m/s class."""
ROBOTS: dict[str, RobotSettings] = {"slow": RobotSettings(), "fast": FAST}
"""Classes of robots by name."""
