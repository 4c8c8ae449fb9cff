"""`vla-rl bench wheeled`: speed of simulator, exported policy and control loop, and how well the classical baseline drives.

Legend: N environments, D action size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vla_rl.bench.control_loop import ControlBenchmark, control_record, control_targets, measure_control
from vla_rl.bench.output import target_table
from vla_rl.bench.spread import Spread, Target
from vla_rl.machine import describe_machine
from vla_rl.sim.control import ControlSim, evaluation_seeds, training_seeds
from vla_rl.sim.wheeled.baseline import PursuitBaseline
from vla_rl.sim.wheeled.foreign import IrSimControl
from vla_rl.sim.wheeled.settings import TASKS
from vla_rl.sim.wheeled.simulator import WheeledControl
from vla_rl.trainers.control_evaluation import film_episode
from vla_rl.trainers.driving_evaluation import evaluate_driving
from vla_rl.video import write_video

BLIND: dict[str, Any] = {"robot": {"view": {"sectors": 0}, "safety": {"time_to_collision": 0.0}}}
"""A task without the scanner."""
CASES: dict[str, tuple[dict[str, Any], float]] = {"without lidar": (BLIND, 100_000.0), "60 beams": ({}, 20_000.0)}
"""What is measured, and the env-steps per CPU second that are wanted; an env-step is one decision, five control periods."""


@dataclass
class WheeledBenchmark:
    num_envs: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Env-steps per CPU second by case, one number a repeat."""
    drivers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`SIMULATOR TASK` -> how the baseline drives there."""
    control: ControlBenchmark = field(default_factory=ControlBenchmark)
    """Of exported policy and control loop."""


def measure(
    num_envs: int,
    seconds: float,
    repeats: int,
    tasks: Sequence[str] = tuple(TASKS),
    episodes: int = 200,
    foreign_episodes: int = 0,
    videos: Path | None = None,
    loop_seconds: float = 0.0,
    on_progress: Callable[[WheeledBenchmark], None] = lambda so_far: None,
) -> WheeledBenchmark:
    """Speed of tracking_slow, restarts of finished episodes included, for `seconds` of each case; then the baseline on so many
    held-out episodes of each task, the first of them filmed into the folder `videos`; then an exported policy, and the robot's
    control loop for `loop_seconds`.

    Raises `SimError` for an unknown task, and where ir-sim is asked for but missing.
    """
    found = WheeledBenchmark(num_envs, {name: [] for name in CASES})
    sims = {name: WheeledControl("tracking_slow", num_envs, **options) for name, (options, _) in CASES.items()}
    for sim in sims.values():
        sim.reset(training_seeds(0, 0, num_envs))
        sim.step(np.zeros((num_envs, 2), np.float32))  # compiles
    for _ in range(repeats):
        for name, sim in sims.items():
            found.rates[name].append(_rate(sim, seconds / repeats))
    on_progress(found)
    for task in tasks:
        if episodes:
            found.drivers[f"ours {task}"] = _drive(WheeledControl(task, min(episodes, 64)), episodes)
            on_progress(found)
        if videos is not None:
            sim = WheeledControl(task, 1)
            frames = film_episode(sim, PursuitBaseline(sim.builder, sim.settings.target_speed).act, evaluation_seeds(1)[0])
            write_video(videos / f"{task}.mp4", frames, fps=sim.frame_rate)
        if foreign_episodes:
            found.drivers[f"ir-sim {task}"] = _drive(IrSimControl(task, 1), foreign_episodes)
            on_progress(found)
    if loop_seconds:
        found.control = measure_control(loop_seconds, repeats)
        on_progress(found)
    return found


def _rate(sim: ControlSim, seconds: float) -> float:
    rng = np.random.default_rng(0)
    actions = rng.uniform((-0.2, -1.0), 1.0, (64, sim.num_envs, 2)).astype(np.float32)
    began, steps = time.process_time(), 0
    while steps == 0 or time.process_time() - began < seconds:
        sim.step(actions[steps % len(actions)])
        steps += 1
    return steps * sim.num_envs / (time.process_time() - began)


def _drive(sim: WheeledControl, episodes: int) -> dict[str, Any]:
    try:
        return evaluate_driving(sim, PursuitBaseline(sim.builder, sim.settings.target_speed).act, episodes)
    finally:
        sim.close()


def targets(found: WheeledBenchmark) -> list[Target]:
    return [
        Target(f"env-steps per CPU second, {name}", ">=", wanted, Spread.of(found.rates[name]) if found.rates[name] else None)
        for name, (_, wanted) in CASES.items()
    ] + control_targets(found.control)


def tables(found: WheeledBenchmark) -> list[Table]:
    table = Table(title="pure pursuit with dynamic window on held-out episodes, 95% Wilson intervals")
    for heading in ("simulator, task", "success", "collisions", "cross-track error, m", "time, s", "slowed"):
        table.add_column(heading, justify="left" if heading.startswith("sim") else "right")
    for name, record in found.drivers.items():
        success = record["success"]
        interval = f"{success['count']}/{record['episodes']} ({success['low']:.1%} to {success['high']:.1%})"
        figures = [
            "-" if record[key] is None else f"{record[key]:{form}}"
            for key, form in (("cross_track", ".3f"), ("seconds", ".1f"), ("slowed", ".1%"))
        ]
        table.add_row(name, interval, str(record["collision"]["count"]), *figures)
    return [target_table(targets(found)), *([table] if found.drivers else []), *_latency_table(found.control)]


def _latency_table(control: ControlBenchmark) -> list[Table]:
    if not control.latency_p99:
        return []
    table = Table(title="times of exported policy and control loop, ms; median of the repeats, and their range")
    for heading in ("what", "median", "p99"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    rows = {
        "exported policy, 3 x 256, one thread": (control.inference_median, control.inference_p99),
        "oldest input of a decision to its command; scans at 10 Hz": (control.latency_median, control.latency_p99),
    }
    for name, figures in rows.items():
        table.add_row(name, *(Spread.of(values).text() for values in figures))
    return [table]


def to_dict(found: WheeledBenchmark) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "num_envs": found.num_envs,
        "env_steps_per_cpu_second": found.rates,
        "baseline": found.drivers,
        "control": control_record(found.control),
        "targets": [target.to_dict() for target in targets(found)],
    }
