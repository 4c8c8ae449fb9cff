"""Shadow mode: an exported policy rides along on a recording, and what it wants is compared with what was driven.

Legend: K beams, M points of a path, O observation size, N decisions. Commands are (forward m/s, left turn rad/s).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from rich.table import Table

from vla_rl.config import ConfigError
from vla_rl.driving.manifest import ExportError
from vla_rl.driving.observation import ObservationBuilder
from vla_rl.driving.safety import SafetyLayer, command_of
from vla_rl.driving.scan import scan_problem
from vla_rl.driving.settings import RobotSettings
from vla_rl.robot.exported import ExportedPolicy
from vla_rl.robot.messages import (
    read_odometry_message,
    read_path_message,
    read_scan_message,
    read_twist_message,
    stamp_of,
)  # fmt: skip
from vla_rl.robot.poses import PoseHistory
from vla_rl.robot.watchdog import Watchdog
from vla_rl.robot.wheeled import Act

TOPICS = {"scan": "/scan", "odom": "/odom", "path": "/path", "cmd_vel": "/cmd_vel"}
"""Inputs and the topics that they are recorded under by default."""
KINDS = {
    "scan": ("sensor_msgs/msg/LaserScan",), "odom": ("nav_msgs/msg/Odometry",), "path": ("nav_msgs/msg/Path",),
    "cmd_vel": ("geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/Twist"),
}  # fmt: skip
"""Message types that each may have."""
SPEED_TOLERANCE, TURN_TOLERANCE = 0.05, 0.15
"""Commands that are nearer than this agree, m/s and rad/s."""
SAME_INSTANT = 1e-5
"""Messages nearer together than this came at once, s."""
_ROW = np.zeros(1, np.int64)


@dataclass(frozen=True)
class ShadowDecision:
    """What the policy would have done at one of its decisions."""

    time: float
    """Since the first decision, s."""
    pose: tuple[float, float, float]
    shadow: tuple[float, float]
    """Command that the robot would have had a decision period later, within all limits."""
    driven: tuple[float, float]
    """Command that it had then."""
    problem: str | None
    """Why the node would have stopped the robot instead of asking the policy."""

    @property
    def differs(self) -> bool:
        v, w = (abs(a - b) for a, b in zip(self.shadow, self.driven, strict=True))
        return v > SPEED_TOLERANCE or w > TURN_TOLERANCE


class Shadow:
    """Takes a recorded stream in its order and decides once a decision period, as the node would have."""

    def __init__(self, settings: RobotSettings, act: Act) -> None:
        self.settings, self._act = settings, act
        self.builder = ObservationBuilder(settings, 1)
        self.observations: list[Float32[np.ndarray, "O"]] = []
        """That the policy got."""
        self.decisions: list[ShadowDecision] = []
        self._safety = SafetyLayer(settings, 1)
        timeout = settings.safety.input_timeout
        self._scan, self._odometry = Watchdog("scan", timeout), Watchdog("odometry", timeout)
        self._poses = PoseHistory(2 * timeout)
        self._open: dict[str, Any] | None = None
        self._has_path = False
        self._count = 0
        """Decisions since the first, which was made at `_began`, s."""
        self._began: float | None = None
        self._newest = math.inf
        """Time of the last message, s."""

    def advance(self, now: float) -> None:
        """All decisions that are due before `now`, the time of the next message, s; the first, once there are all inputs."""
        while self._ready():
            due = self._newest if self._began is None else self._began + self._count * self.settings.decision_period
            if now <= due + SAME_INSTANT:
                break
            if self._began is None:
                self._began = due
            self._count += 1
            self._close()
            self._decide(due, self._began)
        self._newest = now

    def on_path(self, points: Float64[np.ndarray, "M 2"], now: float) -> None:
        """Raises `ValueError` for what is no path."""
        self.advance(now)
        commands = self.builder.commands.copy()
        self.builder.start(0, points)
        self.builder.commands[:] = commands
        self._has_path = True

    def on_scan(self, ranges: Float32[np.ndarray, "K"], measured: float, now: float, problem: str | None) -> None:
        self.advance(now)
        if problem is None:
            self.builder.scan(ranges[None], _ROW)
            self.builder.scan_poses[0] = self._poses.at(measured)
            problem = scan_problem(self.settings, self.builder.scans, 0)
        self._scan.feed(measured, now, problem)

    def on_odometry(self, pose: Any, velocity: Any, measured: float, now: float, problem: str | None) -> None:
        self.advance(now)
        if not (np.isfinite(pose).all() and np.isfinite(velocity).all()):
            problem = problem or "the odometry is not finite"
        if problem is None:
            self.builder.poses[0], self.builder.velocities[0] = pose, velocity
            self._poses.add(measured, pose)
        self._odometry.feed(measured, now, problem)

    def on_command(self, command: tuple[float, float], now: float) -> None:
        self.advance(now)
        self.builder.commands[0] = command

    def finish(self) -> None:
        """The recording is over."""
        self._close()

    def _ready(self) -> bool:
        dogs = [self._odometry] + ([self._scan] if self.settings.scans else [])
        return self._has_path and all(dog.age(0.0) != math.inf for dog in dogs)

    def _decide(self, now: float, began: float) -> None:
        dogs = [self._odometry] + ([self._scan] if self.settings.scans else [])
        problems = [text for dog in dogs if (text := dog.problem(now)) is not None]
        builder, command = self.builder, self.builder.commands.copy()
        if problems:
            for _ in range(self.settings.decision_ticks):
                self._safety.stop(command, _ROW)
        else:
            observation = np.zeros((1, builder.size), np.float32)
            builder.observe(_ROW, observation)
            self.observations.append(observation[0])
            wanted = command_of(self.settings, self._act(observation))
            for _ in range(self.settings.decision_ticks):
                self._safety.limit(wanted, command, builder.scans.points, builder.scan_poses, builder.poses, _ROW)
        self._open = {
            "time": now - began, "pose": tuple(builder.poses[0].tolist()), "shadow": tuple(command[0].tolist()),
            "problem": "; ".join(problems) or None,
        }  # fmt: skip

    def _close(self) -> None:
        """What was driven in the period since the last decision is known now."""
        if self._open is not None:
            self.decisions.append(ShadowDecision(driven=tuple(self.builder.commands[0].tolist()), **self._open))
            self._open = None


@dataclass(frozen=True)
class ShadowReport:
    export: str
    bag: str
    decisions: list[ShadowDecision]
    refused_paths: list[str] = field(default_factory=list)
    """Why paths in the recording were not followed."""

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(decision) | {"differs": decision.differs} for decision in self.decisions]
        return {"export": self.export, "bag": self.bag, "summary": self.summary(), "decisions": rows}

    def summary(self) -> dict[str, Any]:
        """Shares of all decisions, and differences of the commands at the ends of the decision periods."""
        asked = [decision for decision in self.decisions if decision.problem is None]
        gaps = np.abs([np.subtract(decision.shadow, decision.driven) for decision in asked]).reshape(-1, 2)
        begin, end = longest_difference(self.decisions)
        summary: dict[str, Any] = {
            "decisions": len(self.decisions),
            "differ": sum(decision.differs for decision in asked),
            "would have stopped": len(self.decisions) - len(asked),
            "longest difference": [begin, end],
        }
        for name, column in (("speed", 0), ("turn", 1)):
            found = gaps[:, column]
            summary[f"{name} difference"] = (
                {"mean": float(found.mean()), "p95": float(np.quantile(found, 0.95))} if len(found) else None
            )
        return summary


def longest_difference(decisions: Sequence[ShadowDecision]) -> tuple[float, float]:
    """Beginning and end of the longest stretch of decisions that differ, s; (0, 0) where none does."""
    best, begin = (0.0, 0.0), None
    for i, decision in enumerate(decisions):
        begin = (decision.time if begin is None else begin) if decision.differs else None
        if begin is not None:
            end = decisions[i + 1].time if i + 1 < len(decisions) else decision.time
            best = max(best, (begin, end), key=lambda stretch: stretch[1] - stretch[0])
    return best


def topic_names(changes: Sequence[str]) -> dict[str, str]:
    """`TOPICS` with changes such as `scan=/front/scan`. Raises `ConfigError` for an input that there is not."""
    topics = dict(TOPICS)
    for change in changes:
        name, separator, topic = change.partition("=")
        if not separator or name not in TOPICS:
            raise ConfigError(f"cannot read --topic {change!r}; write INPUT=TOPIC, where INPUT is one of {', '.join(TOPICS)}")
        topics[name] = topic
    return topics


def replay_bag(export: Path, bag: Path, topics: dict[str, str]) -> ShadowReport:
    """Ride along on a rosbag2 folder. Raises `ExportError` where export or bag cannot be used."""
    policy = ExportedPolicy(export)
    shadow, refused = Shadow(policy.settings, policy.act), list[str]()
    feed_bag(bag, topics, shadow, refused.append)
    if not shadow.decisions:
        reason = "; ".join(refused) or f"it needs messages on {', '.join(topics.values())}"
        raise ExportError(f"the policy could decide nothing on {bag}: {reason}")
    return ShadowReport(str(export), str(bag), shadow.decisions, refused)


def feed_bag(bag: Path, topics: dict[str, str], shadow: Shadow, on_refused: Callable[[str], None]) -> None:
    """Give a bag's messages to `shadow` in the order of their arrival."""
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise ExportError("rosbags is not installed: pip install 'vla_rl[ros]'") from None
    inputs = {topic: name for name, topic in topics.items()}
    try:
        with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_KILTED)) as reader:
            chosen = [connection for connection in reader.connections if connection.topic in inputs]
            recorded = {connection.topic for connection in reader.connections}
            if missing := sorted(set(inputs) - recorded):
                found = ", ".join(sorted(recorded)) or "nothing"
                raise ExportError(f"{bag} has no {', '.join(missing)}, but {found}; name its topics with --topic INPUT=TOPIC")
            for connection in chosen:
                name = inputs[connection.topic]
                if connection.msgtype not in KINDS[name]:
                    wanted = " or ".join(KINDS[name])
                    raise ExportError(
                        f"{connection.topic} in {bag} is {connection.msgtype}, but {name} must be {wanted}; name another topic "
                        f"with --topic {name}=TOPIC"
                    )
            for connection, arrived, raw in reader.messages(chosen):
                message = reader.deserialize(raw, connection.msgtype)
                _feed(shadow, inputs[connection.topic], message, 1e-9 * arrived, on_refused)
    except (AnyReaderError, FileNotFoundError) as error:
        raise ExportError(f"cannot read {bag} as a rosbag2 folder: {error}") from None
    shadow.finish()


def _feed(shadow: Shadow, name: str, message: Any, now: float, on_refused: Callable[[str], None]) -> None:
    if name == "scan":
        ranges, problem = read_scan_message(message, shadow.settings)
        shadow.on_scan(ranges, stamp_of(message), now, problem)
    elif name == "odom":
        pose, velocity, problem = read_odometry_message(message)
        shadow.on_odometry(pose, velocity, stamp_of(message), now, problem)
    elif name == "cmd_vel":
        shadow.on_command(read_twist_message(message), now)
    else:
        try:
            shadow.on_path(read_path_message(message), now)
        except ValueError as error:
            on_refused(str(error))


def shadow_table(report: ShadowReport) -> Table:
    """The summary, for a terminal."""
    found = report.summary()
    table = Table(title=f"{report.export} riding along on {report.bag}", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    count = max(found["decisions"], 1)
    table.add_row("decisions", str(found["decisions"]))
    limits = f"{SPEED_TOLERANCE} m/s or {TURN_TOLERANCE} rad/s"
    table.add_row(f"differ from the driven command by more than {limits}", f"{found['differ']} ({found['differ'] / count:.1%})")
    stops = found["would have stopped"]
    table.add_row("would have stopped: stale or bad inputs", f"{stops} ({stops / count:.1%})")
    for name, unit in (("speed", "m/s"), ("turn", "rad/s")):
        gap = found[f"{name} difference"]
        table.add_row(f"{name} difference, mean and p95, {unit}", "-" if gap is None else f"{gap['mean']:.3f}, {gap['p95']:.3f}")
    begin, end = found["longest difference"]
    table.add_row("longest stretch that differs, s since the first decision", f"{begin:.1f} to {end:.1f}")
    return table
