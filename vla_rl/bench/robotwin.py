"""`vla-rl bench sim sim.name=robotwin`: resets, chunks, memory, and what more processes bring.

Legend: B environments, A actions of a chunk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from vla_rl.bench.output import target_table
from vla_rl.bench.process_tree import cpu_seconds, memory_mib
from vla_rl.bench.spread import Spread, Target
from vla_rl.config import Config, ConfigError
from vla_rl.config_files import load_config
from vla_rl.progress import Progress
from vla_rl.sim.registry import make_sim
from vla_rl.sim.robotwin.assets import score_note
from vla_rl.sim.robotwin.tasks import SUITE, find_task
from vla_rl.types import EpisodeSpec

DEFAULTS = (
    "sim.name=robotwin",
    f"task.suite={SUITE}",
    "task.task_ids=[45]",
    "sim.num_envs=4",
    "sim.cameras=[head_camera, left_camera, right_camera]",
    "sim.image_size=[240, 320]",
    "policy.chunk_length=25",
)
"""Overrides of the configuration's own defaults; task 45 is stack_blocks_two."""


@dataclass(frozen=True)
class Measurement:
    """One number of processes."""

    num_workers: int
    start_seconds: float
    """Until the workers answer."""
    first_reset_seconds: float
    """Of all rows, with import, scene and first picture."""
    reset_seconds: list[float]
    """Of single environments, pictures included."""
    round_seconds: list[float]
    """Of a chunk in all rows, pictures included."""
    cpu_seconds: float
    """CPU time of a chunk in one row, of all processes: does not depend on what else runs."""
    mib: float | None
    """Of all worker processes."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    config: Config
    repeats: int = 8

    @staticmethod
    def from_overrides(overrides: Sequence[str]) -> Settings:
        """Raises `ConfigError`, and `SimError` for an unknown task."""
        config = load_config(None, [*DEFAULTS, *overrides])
        if len(config.task.task_ids) != 1:
            raise ConfigError("bench sim measures one task: task.task_ids=[45]")
        find_task(config.task.suite, config.task.task_ids[0])
        return Settings(config)

    @property
    def title(self) -> str:
        task = find_task(self.config.task.suite, self.config.task.task_ids[0])
        note = score_note(self.config.sim.robotwin.profile, self.config.sim.robotwin.shader)
        what = f"RoboTwin {task.name}, {self.config.sim.num_envs} environments, chunks of {self.config.policy.chunk_length}"
        return f"{what}; {note}" if note else what


def measure(settings: Settings) -> list[Measurement]:
    """With one process, and with one a core. Raises `SimError` where the simulator does not run."""
    sim = settings.config.sim
    most = min(sim.num_workers or len(os.sched_getaffinity(0)), sim.num_envs)
    counts = sorted({1, most})
    with Progress("bench sim", 2 * len(counts)) as progress:
        return [_measure(settings, workers, progress) for workers in counts]


def _measure(settings: Settings, workers: int, progress: Progress) -> Measurement:
    config = settings.config
    (task_id,), suite, rows = config.task.task_ids, config.task.suite, config.sim.num_envs
    begin = time.perf_counter()
    sim = make_sim(
        "robotwin",
        num_envs=rows,
        num_workers=workers,
        cameras=config.sim.cameras,
        image_size=config.sim.image_size,
        python=config.sim.python,
        **config.sim.robotwin.model_dump(),
    )
    try:
        started = time.perf_counter()
        observation = sim.reset([EpisodeSpec(suite, task_id, seed=row) for row in range(rows)])
        first = time.perf_counter()
        progress.advance(f"{workers} processes started")
        resets, rounds = [], []
        for number in range(settings.repeats):
            before = time.perf_counter()
            observation = sim.reset([EpisodeSpec(suite, task_id, seed=100 + number)], [number % rows])
            resets.append(time.perf_counter() - before)
        cpu = cpu_seconds(os.getpid())
        for number in range(settings.repeats):
            actions = _gentle_actions(observation.proprio, config.policy.chunk_length, number)
            before = time.perf_counter()
            observation = sim.step_chunk(actions).observation
            rounds.append(time.perf_counter() - before)
        cpu = (cpu_seconds(os.getpid()) - cpu) / (settings.repeats * rows)
        mib = memory_mib(os.getpid())
        own = memory_of_this_process()
        progress.advance(f"{workers} processes measured")
    finally:
        sim.close()
    memory = None if mib is None else mib - own
    return Measurement(workers, started - begin, first - started, resets, rounds, cpu, memory)


def memory_of_this_process() -> float:
    """Proportional set size without children, MiB."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def _gentle_actions(proprio: np.ndarray, length: int, seed: int) -> np.ndarray:
    """From where each arm is, up to 0.3 rad away in every joint: a second or two of motion, as an expert's chunks are."""
    way = np.random.default_rng(seed).uniform(-0.3, 0.3, proprio.shape)
    shares = np.linspace(1 / length, 1, length)[:, None]
    return (proprio[:, None] + shares * way[:, None]).astype(np.float32)


def targets(settings: Settings, found: Sequence[Measurement]) -> list[Target]:
    """What two cores should reach."""
    one, most, rows = found[0], found[-1], settings.config.sim.num_envs
    per_env = [seconds / rows for seconds in one.round_seconds]
    gains = [a / b for a, b in zip(one.round_seconds, most.round_seconds, strict=True)]
    wanted = [
        Target("reset of one environment", "<", 1.0, Spread.of(one.reset_seconds), "s"),
        Target("chunk and pictures, an environment", "<", 0.7, Spread.of(per_env), "s"),
    ]
    if len(found) > 1:
        wanted.append(Target(f"{most.num_workers} processes over one", ">=", 1.5, Spread.of(gains), "x"))
    return wanted


def tables(settings: Settings, found: Sequence[Measurement]) -> list[Table]:
    table = Table(title=settings.title)
    for heading in ("processes", "start, s", "first reset of all, s", "reset, s", "chunk of all, s", "CPU s a chunk", "MiB"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            str(one.num_workers),
            f"{one.start_seconds:.1f}",
            f"{one.first_reset_seconds:.1f}",
            Spread.of(one.reset_seconds).text(),
            Spread.of(one.round_seconds).text(),
            f"{one.cpu_seconds:.2f}",
            "-" if one.mib is None else f"{one.mib:.0f}",
        )
    return [table, target_table(targets(settings, found))]


def to_dict(settings: Settings, found: Sequence[Measurement]) -> dict[str, Any]:
    return {"title": settings.title, "measurements": [asdict(one) for one in found]}
