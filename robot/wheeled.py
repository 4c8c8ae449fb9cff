"""The core of a wheeled robot: inputs in, one limited command out at every tick. A node only feeds and asks it.

Legend: K beams, M points of a path, O observation size. Commands are (forward m/s, left turn rad/s) of base_link.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from vla_rl.driving.observation import ObservationBuilder
from vla_rl.driving.safety import ACCELERATION, COLLISION, SPEED, SafetyLayer, command_of
from vla_rl.driving.scan import scan_problem
from vla_rl.driving.settings import RobotSettings
from vla_rl.robot.arbiter import Arbiter, Decision, Proposal, Situation, Source
from vla_rl.robot.endings import Ending
from vla_rl.robot.poses import PoseHistory
from vla_rl.robot.record import RobotLog
from vla_rl.robot.schedule import DecisionSchedule
from vla_rl.robot.supervision import SupervisionSettings
from vla_rl.robot.watchdog import Watchdog

Act = Callable[[Float32[np.ndarray, "1 O"]], Float32[np.ndarray, "1 2"]]
_ROW = np.zeros(1, np.int64)
_CLIPS = {SPEED: "speed", ACCELERATION: "acceleration", COLLISION: "collision"}


@dataclass(frozen=True)
class Tick:
    """What a tick decided."""

    command: Float64[np.ndarray, "2"]
    decision: Decision
    clips: tuple[str, ...]
    """Which limits changed what was wanted: speed, acceleration, collision."""
    ending: Ending | None
    """How the last episode ended; None while one is under way, and before the first."""
    latency: float | None
    """Age of the oldest input of a policy's decision that goes out for the first time, s; None at all other ticks."""


class WheeledCore:
    """Thread-safe: callbacks of a middleware feed it while a control loop ticks."""

    def __init__(
        self,
        settings: RobotSettings,
        act: Act | None,
        supervision: SupervisionSettings | None = None,
        log: RobotLog | None = None,
        policy_version: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `act` only an operator drives."""
        self.settings, self.supervision = settings, supervision or SupervisionSettings()
        self.arbiter = Arbiter(self.supervision.recovery)
        self.builder = ObservationBuilder(settings, 1)
        self.ending: Ending | None = None
        self.observation = np.zeros((1, self.builder.size), np.float32)
        """The last one that the policy got."""
        self._act, self._log, self.version, self._clock = act, log, policy_version, clock
        self._safety = SafetyLayer(settings, 1)
        timeout = settings.safety.input_timeout
        self._scan, self._odometry = Watchdog("scan", timeout), Watchdog("odometry", timeout)
        self._poses = PoseHistory(2 * timeout)
        self._teleop = Watchdog("operator's message", self.supervision.teleop_timeout)
        self._button = Watchdog("e-stop heartbeat", self.supervision.estop_timeout or np.inf)
        self._pressed: str | None = None
        self._human = False
        self._human_proposal: Proposal | None = None
        self._proposal: Proposal | None = None
        self._outside: dict[str, str] = {}
        self._has_path = False
        self._schedule = DecisionSchedule(settings.decision_ticks, settings.decision_period)
        self._began: float | None = None
        self._fault_since: float | None = None
        self._policy_seconds = 0.0
        self._latency: float | None = None
        self._number = 0
        self._lock = threading.RLock()

    # Inputs. `measured` is the steady time at which the content was true, s; by default now. `problem` says what is wrong
    # with the rest of the message, such as its frame: then its content is not used.

    def on_scan(self, ranges: Float32[np.ndarray, "K"], measured: float | None = None, problem: str | None = None) -> None:
        """Ranges as the driver sends them, m. A scan of another layout, or too blind a one, is a fault."""
        with self._lock:
            ranges = np.asarray(ranges, np.float32)
            if ranges.shape != (self.settings.scanner.beams,):
                problem = problem or f"the scan has {ranges.size} beams, not {self.settings.scanner.beams}"
            if problem is None:
                self.builder.scan(ranges[None], _ROW)
                self.builder.scan_poses[0] = self._poses.at(self._clock() if measured is None else measured)
                problem = scan_problem(self.settings, self.builder.scans, 0)
                self._schedule.scan(self._clock())
            self._feed(self._scan, measured, problem)

    def on_odometry(
        self,
        pose: tuple[float, float, float],
        velocity: tuple[float, float],
        measured: float | None = None,
        problem: str | None = None,
    ) -> None:
        """(x, y, yaw) in the frame of the path, m and rad, and (forward, turn) of base_link, m/s and rad/s."""
        with self._lock:
            if not (np.isfinite(pose).all() and np.isfinite(velocity).all()):
                problem = problem or "the odometry is not finite"
            if problem is None:
                self.builder.poses[0], self.builder.velocities[0] = pose, velocity
                self._poses.add(self._clock() if measured is None else measured, pose)
            self._feed(self._odometry, measured, problem)

    def on_path(self, points: Float64[np.ndarray, "M 2"]) -> None:
        """Follow another path from its beginning. Raises `ValueError` for what is no path; the old one then stays."""
        with self._lock:
            commands = self.builder.commands.copy()
            self.builder.start(0, points)
            self.builder.commands[:] = commands
            self._has_path, self._proposal = True, None
            self._schedule.restart()

    def on_goal(self, points: Float64[np.ndarray, "2 2"]) -> None:
        """As `on_path`, where the end is all that counts. Raises `ValueError` for a policy that follows paths."""
        if self.settings.view.reference != "goal":
            raise ValueError("this policy follows paths and cannot find the way to a goal; send a path")
        self.on_path(points)

    def on_human(self, holds: bool, command: tuple[float, float], measured: float | None = None) -> None:
        """The operator's message: whether they hold the dead-man switch, and (forward m/s, turn rad/s)."""
        with self._lock:
            problem = None if np.isfinite(command).all() else "the operator's command is not finite"
            at = self._feed(self._teleop, measured, problem)
            self._human, self._human_proposal = holds, Proposal(np.array(command, np.float64), at)

    def on_estop(self, pressed: bool, measured: float | None = None) -> None:
        """The e-stop's message or heartbeat. A press is latched at once: it may be over before the next tick."""
        with self._lock:
            pressed_before = self._pressed
            self._feed(self._button, measured, None)
            self._pressed = "the e-stop is pressed" if pressed else None
            if pressed and not pressed_before:
                self._event("input", self._clock(), input="e-stop", problem=self._pressed)
            if self._pressed is not None:
                self.estop(self._pressed)

    def on_outside(self, name: str, problem: str | None) -> None:
        """What else must stop the robot while it lasts, such as a second publisher on its command topic; None: it is over."""
        with self._lock:
            if problem is None:
                self._outside.pop(name, None)
            elif self._outside.get(name) != problem:
                self._outside[name] = problem
                self._event("input", self._clock(), input=name, problem=problem)

    def _feed(self, dog: Watchdog, measured: float | None, problem: str | None) -> float:
        """Returns when the content was true, s. The log tells when the first bad message of several came."""
        now = self._clock()
        at = now if measured is None else measured
        before = dog.problem(now)
        dog.feed(at, now, problem)
        if problem is not None and before != problem:
            self._event("input", now, input=dog.name, problem=problem)
        return at

    @property
    def pose(self) -> tuple[float, float, float]:
        """The newest estimate, m and rad."""
        with self._lock:
            x, y, yaw = self.builder.poses[0].tolist()
            return x, y, yaw

    # What an operator asks for.

    def start(self) -> None:
        """Begin an episode. Raises `RuntimeError` without policy or path, with a bad input, or with a latched e-stop."""
        with self._lock:
            now = self._clock()
            if self._act is None:
                raise RuntimeError("there is no policy here; only an operator drives")
            if not self._has_path:
                raise RuntimeError("there is no path or goal; send one first")
            if faults := self._faults(now):
                raise RuntimeError(f"cannot start: {'; '.join(faults)}")
            self.arbiter.decide(self._situation(now))
            self.arbiter.start()
            # Bumpless: limits act from the motion that the robot has, not from one that it was once told.
            limits = self.settings.limits
            low, high = (-limits.reverse, -limits.turn), (limits.speed, limits.turn)
            self.builder.commands[0] = np.clip(self.builder.velocities[0], low, high)
            self._began, self.ending, self._fault_since = now, None, None
            self._schedule.restart()
            self._proposal = None
            self._event("start", now)

    def stop(self, ending: Ending = Ending.OPERATOR_ABORT) -> None:
        with self._lock:
            self._end(ending, self._clock())

    def estop(self, reason: str = "asked for by a service") -> None:
        with self._lock:
            self.arbiter.estop(reason)
            self._end(Ending.ESTOP, self._clock())

    def clear_estop(self) -> None:
        """Raises `RuntimeError` while its cause lasts."""
        with self._lock:
            if (cause := self._estop_cause(self._clock())) is not None:
                raise RuntimeError(f"the e-stop cannot be cleared: {cause}")
            self.arbiter.clear_estop()
            self._event("clear e-stop", self._clock())

    def resume(self) -> None:
        """Back to the policy after the operator's messages had stopped during an intervention."""
        with self._lock:
            self.arbiter.resume()
            self._event("resume", self._clock())

    def tick(self) -> Tick:
        """The next command; call it once a control period."""
        with self._lock:
            now = self._clock()
            self._latency = None
            self._decide_with_policy(now)
            decision = self.arbiter.decide(self._situation(now))
            self._supervise(decision, now)
            commands, builder = self.builder.commands, self.builder
            clips: tuple[str, ...] = ()
            if decision.wanted is None:
                self._safety.stop(commands, _ROW)
            else:
                wanted = decision.wanted[None]
                self._safety.limit(wanted, commands, builder.scans.points, builder.scan_poses, builder.poses, _ROW)
                clips = tuple(name for bit, name in _CLIPS.items() if self._safety.clips[0] & bit)
            latency = self._latency if decision.source == Source.POLICY else None
            made = Tick(commands[0].copy(), decision, clips, self.ending, latency)
            self._write(made, now)
            return made

    def _decide_with_policy(self, now: float) -> None:
        """Ask the policy where its schedule says so, if its inputs are good."""
        if not self.arbiter.running or self._act is None:
            self._proposal = None
            return
        if self._faults(now):
            self._proposal = None
            self._schedule.restart()
            return
        if self._schedule.tick():
            observed = now - max(self._scan.age(now) if self.settings.scans else 0.0, self._odometry.age(now))
            began = time.perf_counter()
            self.builder.observe(_ROW, self.observation)
            action = np.asarray(self._act(self.observation), np.float32).reshape(1, 2)
            self._policy_seconds = time.perf_counter() - began
            command = command_of(self.settings, action)[0] if np.isfinite(action).all() else np.full(2, np.nan)
            self._proposal = Proposal(command, observed)
            self._latency = self._clock() - observed

    def _faults(self, now: float) -> list[str]:
        needed = [self._odometry] + ([self._scan] if self.settings.scans else [])
        problems = [problem for dog in needed if (problem := dog.problem(now)) is not None]
        return [*problems, *self._outside.values()]

    def _estop_cause(self, now: float) -> str | None:
        if self._pressed is not None:
            return self._pressed
        return self._button.problem(now) if self.supervision.estop_timeout is not None else None

    def _situation(self, now: float) -> Situation:
        return Situation(
            now=now,
            estop=self._estop_cause(now),
            faults=self._faults(now),
            human=self._human,
            human_alive=self._teleop.problem(now) is None,
            human_proposal=self._human_proposal,
            policy_proposal=self._proposal,
        )

    def _supervise(self, decision: Decision, now: float) -> None:
        """End the episode where it is over."""
        if decision.source != Source.FAULT:
            self._fault_since = None
        elif self._fault_since is None:
            self._fault_since = now
        if self._began is None:
            return
        if decision.source == Source.ESTOP:
            self._end(Ending.ESTOP, now)
        elif self._fault_since is not None and now - self._fault_since > self.supervision.fault_limit:
            self._end(Ending.COMMUNICATION_LOSS, now)
        elif now - self._began > self.supervision.time_limit:
            self._end(Ending.TIMEOUT, now)
        elif decision.source == Source.POLICY and self._arrived():
            self._end(Ending.SUCCESS, now)

    def _arrived(self) -> bool:
        paths, near = self.builder.paths, self.supervision.arrival
        away = paths.points[0, paths.counts[0] - 1] - self.builder.poses[0, :2]
        remains = self.settings.view.reference == "path" and paths.errors[0, 3] > near + self.settings.view.path_spacing
        return bool(np.hypot(*away) < near and not remains)

    def _end(self, ending: Ending, now: float) -> None:
        self.arbiter.stop()
        if self._began is not None:
            self.ending, self._began = ending, None
            self._event("end", now, ending=str(ending))

    def _event(self, name: str, now: float, **details: Any) -> None:
        self._record({"event": name, "time": now, **details}, durable=True)

    def _record(self, record: Mapping[str, Any], durable: bool = False) -> None:
        """A log that cannot be written stops the robot, but must not keep the command that does so from going out."""
        try:
            if self._log is not None:
                self._log.write(record, durable)
            self._outside.pop("log", None)
        except OSError as error:
            self._outside["log"] = f"the log cannot be written: {error.strerror}"

    def _write(self, made: Tick, now: float) -> None:
        self._number += 1
        wanted = made.decision.wanted
        record = {
            "tick": self._number,
            "time": now,
            "source": str(made.decision.source),
            "reason": made.decision.reason,
            "policy": None if self._proposal is None else self._proposal.command,
            "wanted": wanted,
            "command": made.command,
            "clips": made.clips,
            "intervention": self.arbiter.intervening,
            "policy_version": self.version,
            "ages": {dog.name: dog.age(now) for dog in (self._scan, self._odometry, self._teleop, self._button)},
            "policy_seconds": self._policy_seconds,
            "latency": made.latency,
        }
        self._record(record)


def warm_up(settings: RobotSettings, act: Act | None) -> None:
    """Drive nothing for some ticks, so that the first ones of a robot wait neither for a compiler nor for a cold policy."""
    now = [0.0]
    core = WheeledCore(settings, act or (lambda observation: np.zeros((1, 2), np.float32)), clock=lambda: now[0])
    core.on_path(np.array([(0.0, 0.0), (10 * settings.view.path_spacing, 0.0)]))
    for tick in range(2 * settings.decision_ticks):
        now[0] = tick * settings.control_period
        core.on_scan(np.full(settings.scanner.beams, np.inf, np.float32))
        core.on_odometry((0.0, 0.0, 0.0), (0.0, 0.0))
        core.tick()
        if tick == 0:
            core.start()
    core.stop()
    core.tick()
