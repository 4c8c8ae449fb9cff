"""How fast an exported policy answers, and how punctual the robot's control loop is, without a middleware.

Legend: O observation size.
"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.bench.spread import Spread, Target
from vla_rl.control_config import ControlConfig
from vla_rl.driving.observation import observation_size
from vla_rl.driving.settings import RobotSettings
from vla_rl.export import export_policy
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.robot.exported import ExportedPolicy
from vla_rl.robot.loop import ControlLoop
from vla_rl.robot.record import RobotLog
from vla_rl.robot.wheeled import WheeledCore, warm_up
from vla_rl.sim.wheeled.plant import Plants
from vla_rl.sim.wheeled.scenario import draw
from vla_rl.sim.wheeled.settings import task_settings

HIDDEN = (256, 256, 256)
CALLS = 2_000
"""Of the policy, a repeat."""
WANTED_INFERENCE, WANTED_LATENESS = 1.0, 5.0
"""ms, p99."""


@dataclass
class ControlBenchmark:
    """One number a repeat, ms."""

    inference_median: list[float] = field(default_factory=list)
    inference_p99: list[float] = field(default_factory=list)
    lateness_p99: list[float] = field(default_factory=list)
    """Of the beginning of a tick after its time."""
    latency_median: list[float] = field(default_factory=list)
    latency_p99: list[float] = field(default_factory=list)
    """From the measurement of a decision's oldest input to its command."""
    skipped: int = 0
    """Ticks that came more than a period late."""


def measure_control(seconds: float, repeats: int) -> ControlBenchmark:
    """A random policy of 3 x 256, exported; a 50 Hz loop around it for `seconds` in all, whose sensors are simulated by a second
    thread: odometry at 50 Hz, scans at 10 Hz, and the log is written."""
    found = ControlBenchmark()
    torch.manual_seed(0)
    config = ControlConfig.model_validate({"sim": {"name": "wheeled", "id": "tracking_slow"}})
    policy = GaussianPolicy(observation_size(RobotSettings()), 2, HIDDEN)
    with tempfile.TemporaryDirectory() as folder:
        exported = ExportedPolicy(export_policy(policy, config, Path(folder) / "export"))
        for repeat in range(repeats):
            _time_inference(exported, found)
            _time_loop(exported, seconds / repeats, Path(folder) / f"{repeat}.jsonl", found)
    return found


def _time_inference(exported: ExportedPolicy, found: ControlBenchmark) -> None:
    observations = np.random.default_rng(0).normal(size=(64, 1, observation_size(exported.settings))).astype(np.float32)
    times = np.empty(CALLS)
    for i in range(CALLS):
        began = time.perf_counter()
        exported.act(observations[i % 64])
        times[i] = 1e3 * (time.perf_counter() - began)
    found.inference_median.append(float(np.median(times)))
    found.inference_p99.append(float(np.quantile(times, 0.99)))


def _time_loop(exported: ExportedPolicy, seconds: float, log_path: Path, found: ControlBenchmark) -> None:
    task = task_settings("tracking_slow")
    robot, scenario = task.robot, draw(task, 1)
    plants, row = Plants(task, 1), np.zeros(1, np.int64)
    plants.begin(0, scenario)
    warm_up(robot, exported.act)
    latencies: list[float] = []
    with RobotLog(log_path) as log:
        core = WheeledCore(robot, exported.act, log=log)
        core.on_path(scenario.path)

        def sense() -> bool:
            core.on_odometry(tuple(plants.estimates[0].tolist()), tuple(plants.velocities[0].tolist()))
            if sensing.times.ticks % robot.decision_ticks == 1:
                plants.sweep(row)
                core.on_scan(plants.ranges[0])
            plants.advance(core.builder.commands, row)
            return True

        def tick() -> bool:
            made = core.tick()
            if made.latency is not None:
                latencies.append(1e3 * made.latency)
            return time.monotonic() < until

        sensing, control = ControlLoop(robot.control_period, sense), ControlLoop(robot.control_period, tick)
        thread = threading.Thread(target=sensing.run)
        thread.start()
        time.sleep(3 * robot.decision_period)
        core.start()
        until = time.monotonic() + seconds
        control.run()
        sensing.stop()
        thread.join()
    found.lateness_p99.append(1e3 * control.times.quantile(0.99))
    found.skipped += control.times.skipped
    if latencies:
        found.latency_median.append(float(np.median(latencies)))
        found.latency_p99.append(float(np.quantile(latencies, 0.99)))


def control_targets(found: ControlBenchmark) -> list[Target]:
    def spread(values: list[float]) -> Spread | None:
        return Spread.of(values) if values else None

    lateness = f"{found.skipped} ticks skipped"
    return [
        Target("exported policy, 3 x 256, p99", "<", WANTED_INFERENCE, spread(found.inference_p99), "ms"),
        Target("control loop at 50 Hz, p99 lateness", "<", WANTED_LATENESS, spread(found.lateness_p99), "ms", lateness),
    ]


def control_record(found: ControlBenchmark) -> dict[str, Any]:
    return dict(vars(found))
