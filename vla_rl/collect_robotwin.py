"""Demonstrations of RoboTwin's scripted expert: expert processes in RoboTwin's interpreter -> HDF5, one file a task.

Demonstration k of a task is the k-th seed from a start of its own that the expert solves, whatever the number of
processes. As in RoboTwin's data, the action of a step is what the drives aimed at 15 physics steps (0.06 s) later.

Legend: T steps, 14 = two arms of six joints (rad) and a gripper (0 closed, 1 open) each.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from vla_rl.config import CollectSettings, RoboTwinOptions
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import TaskHeader, add_episode, finished_parts, merge_parts
from vla_rl.data.resume import finished_episodes
from vla_rl.progress import Progress
from vla_rl.sim.base import SimError
from vla_rl.sim.robotwin.expert_process import MAX_FAULTS, ExpertProcess
from vla_rl.sim.robotwin.tasks import MESH_FREE, SUITE, RoboTwinTask, find_task, suite_tasks
from vla_rl.sim.robotwin.world import ACTION_DIM, check_cameras
from vla_rl.types import EpisodeSpec

FPS = 250 / 15
"""Recorded steps a second: RoboTwin takes a picture every 15 of 250 physics steps."""
FIRST_SEED, SEEDS_PER_DEMONSTRATION = 10_000_000, 20
"""Seeds of demonstrations lie far from those of initial states, so that no evaluation begins where one did."""


def scene_options(options: RoboTwinOptions) -> dict[str, Any]:
    """What determines RoboTwin's scenes and observations, and so demonstrations, which hold every step whatever an action is."""
    return options.model_dump(exclude={"control", "waypoint_stride"})


def collect_robotwin(settings: CollectSettings, progress: bool = True) -> list[Path]:
    """As `collect.collect_demonstrations`. Raises `SimError` where RoboTwin cannot run, `DatasetError` as that does."""
    check_cameras(settings.cameras)
    names = settings.task_ids or tuple(task.id for task in suite_tasks(SUITE) if task.name in MESH_FREE)
    tasks = [find_task(SUITE, task_id) for task_id in dict.fromkeys(names)]
    files = {task: settings.output / f"{task.name}_demo.hdf5" for task in tasks}
    jobs = [
        (task, number)
        for task, path in files.items()
        for number in sorted(
            set(range(settings.episodes)) - finished_episodes(path, _collection(settings, task), settings.episodes)
        )
    ]
    total = settings.episodes * len(files)
    if jobs:
        with Progress("demonstrations", total, total - len(jobs)) as bar:
            for task, demonstration, number, failures in _made(settings, jobs):
                add_episode(files[task], _header(settings, task), number, demonstration, settings.compression)
                if progress:
                    bar.advance(f"{task.name}: {len(demonstration)} steps" + (f", {failures} seeds failed" if failures else ""))
    for path in files.values():
        if finished_parts(path):
            merge_parts(path)
    return list(files.values())


def _made(
    settings: CollectSettings, jobs: list[tuple[RoboTwinTask, int]]
) -> Iterator[tuple[RoboTwinTask, Demonstration, int, int]]:
    """Demonstrations as they are finished; all processes end with the first error."""
    count = min(settings.workers or len(os.sched_getaffinity(0)), len(jobs))
    idle: SimpleQueue[ExpertProcess] = SimpleQueue()
    processes = [ExpertProcess(settings.python) for _ in range(count)]
    for process in processes:
        idle.put(process)
    pool = ThreadPoolExecutor(count)

    def make(task: RoboTwinTask, number: int) -> tuple[RoboTwinTask, Demonstration, int, int]:
        process = idle.get()
        try:
            demonstration, failures = _demonstrate(process, settings, task, number)
        finally:
            idle.put(process)
        return task, demonstration, number, failures

    waiting: set[Future[tuple[RoboTwinTask, Demonstration, int, int]]] = set()
    try:
        waiting = {pool.submit(make, task, number) for task, number in jobs}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in waiting:
            future.cancel()
        for process in processes:
            process.close()
        pool.shutdown()


def _demonstrate(process: ExpertProcess, settings: CollectSettings, task: RoboTwinTask, number: int) -> tuple[Demonstration, int]:
    """Demonstration `number` of a task, and how many seeds failed before. Raises `DatasetError` where all fail, `SimError`
    where the process does so over `MAX_FAULTS` seeds in a row."""
    faults = 0
    start = FIRST_SEED + (settings.seed * 100_000 + number) * SEEDS_PER_DEMONSTRATION
    with tempfile.TemporaryDirectory(prefix="vla_rl_robotwin_") as folder:
        path = Path(folder) / "episode.npz"
        for failures in range(SEEDS_PER_DEMONSTRATION):
            seed = (start + failures) % 2**32
            job = {
                "task_id": task.id,
                "seed": seed,
                "cameras": list(settings.cameras),
                "image_size": settings.image_size,
                "path": str(path),
                **scene_options(settings.robotwin),
            }
            try:
                reply, faults = process.ask(job), 0
            except SimError:
                faults += 1
                if faults == MAX_FAULTS:
                    raise
                continue
            if reply["solved"]:
                with np.load(path) as arrays:
                    return _assemble(settings, task, seed, reply, dict(arrays)), failures
    raise DatasetError(
        f"the expert failed on {SEEDS_PER_DEMONSTRATION} seeds of {task.name} in a row, from {start} on; take another seed="
    )


def _assemble(
    settings: CollectSettings, task: RoboTwinTask, seed: int, reply: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Demonstration:
    states = arrays["states"].astype(np.float32)
    steps = len(states) - 1
    index = np.arange(0, steps, settings.frame_stride)
    rewards = np.zeros(steps, np.float32)
    rewards[-1] = 1.0
    return Demonstration(
        instruction=reply["instruction"],
        images={camera: arrays[f"image {camera}"][index] for camera in settings.cameras},
        frame_index=index,
        proprio=states[:-1],
        actions=states[1:, :ACTION_DIM],
        rewards=rewards,
        success=True,
        spec=EpisodeSpec(SUITE, task.id, seed=seed),
        fps=FPS,
        provenance={
            **scene_options(settings.robotwin),
            "source": "RoboTwin's scripted expert",
            "profile": reply["profile"],
            "comparable_with_published_scores": reply["comparable"],
        },
    )


def _collection(settings: CollectSettings, task: RoboTwinTask) -> str:
    """What determines the data of one file, as a text."""
    same = ("suite", "seed", "cameras", "image_size", "frame_stride")
    values: dict[str, Any] = {"task_id": task.id, **settings.model_dump(mode="json", include=set(same))}
    return json.dumps({**values, **scene_options(settings.robotwin)}, sort_keys=True)


def _header(settings: CollectSettings, task: RoboTwinTask) -> TaskHeader:
    return TaskHeader(
        env_name=task.name,
        problem_info={"problem_name": task.name, "domain_name": SUITE, "language_instruction": task.name.replace("_", " ")},
        bddl_file_name="",
        bddl_file_content="",
        env_args={"type": 1, "env_name": task.name, "env_kwargs": {"control_freq": FPS}},
        extra={"collection": _collection(settings, task)},
        image_convention="opencv",
    )
