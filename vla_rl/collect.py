"""Demonstrations of the scripted expert: expert x LIBERO -> HDF5, one file a task.

Every episode is a function of (seed, task, its number) alone, so the number of processes and interruptions do not
change the data. Each is written as soon as it is done; a second run with the same settings goes on where the first
stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from vla_rl.config import CollectSettings, ConfigError, RoboTwinOptions
from vla_rl.data.dataset import ReadOptions
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.formats import read_episodes
from vla_rl.data.libero_hdf5 import finished_parts, merge_parts
from vla_rl.data.resume import finished_episodes
from vla_rl.progress import Progress
from vla_rl.sim.base import SimError, VectorSim
from vla_rl.sim.line_process import LineProcess
from vla_rl.sim.registry import make_sim
from vla_rl.sim.robotwin.tasks import SUITE as ROBOTWIN_SUITE
from vla_rl.types import EpisodeSpec

REPLAY_CHUNK = 25
"""Actions that RoboTwin executes as one trajectory when they are replayed, as in SimpleVLA-RL."""
LIBERO_ALONE = ("noise", "varied", "shipped_states", "render_quality", "antialiasing", "controller")
"""Settings that RoboTwin's expert does not know."""

if TYPE_CHECKING:
    from vla_rl.collect_worker import Collection
    from vla_rl.sim.libero.backend import LiberoBackend


def check_settings(settings: CollectSettings) -> None:
    """Raises `ConfigError` for settings other than the default that nobody reads in this suite."""
    unread = LIBERO_ALONE if settings.suite == ROBOTWIN_SUITE else ("robotwin",)
    given = [name for name in unread if getattr(settings, name) != CollectSettings.model_fields[name].default]
    if given:
        raise ConfigError(f"the expert of suite {settings.suite} does not read {', '.join(given)}; leave out {given[0]}=")


def collect_demonstrations(settings: CollectSettings, progress: bool = True) -> list[Path]:
    """Collect successful demonstrations; returns one file `<TASK>_demo.hdf5` a task, in the order of `settings.task_ids`.

    Episodes in which the expert fails are dropped and replaced. Raises `SimError` for tasks that do not exist or that the
    expert does not know, `DatasetError` when the folder holds data of other settings, cannot be written, or the expert
    fails again and again.
    """
    if settings.suite == ROBOTWIN_SUITE:
        from vla_rl.collect_robotwin import collect_robotwin

        return collect_robotwin(settings, progress)
    if settings.python is not None:
        raise SimError("LIBERO's expert runs in our interpreter; leave python= out")
    from vla_rl.collect_worker import Collection
    from vla_rl.sim.libero.pictures import check_pictures
    from vla_rl.sim.libero.tasks import find_task, suite_tasks

    check_pictures(settings.render_quality, settings.antialiasing)
    begin, count = time.monotonic(), settings.episodes
    files: dict[Path, Collection] = {}
    jobs: list[dict[str, Any]] = []
    for task_id in dict.fromkeys(settings.task_ids or range(len(suite_tasks(settings.suite)))):
        path = settings.output / f"{find_task(settings.suite, task_id).name}_demo.hdf5"
        collection = Collection.of(settings, task_id)
        files[path] = collection
        done = finished_episodes(path, collection.to_json(), count)
        job = {"collection": collection.to_json(), "path": str(path), "compression": settings.compression}
        jobs += [job | {"number": number} for number in range(count) if number not in done]
    outcomes = _run(jobs, settings.workers or len(os.sched_getaffinity(0)), count * len(files), progress)
    for path, collection in files.items():
        if finished_parts(path):
            merge_parts(path)
        made = [outcome for outcome in outcomes if outcome["task_id"] == collection.task_id]
        if progress and made:
            _report(path, made)
    if progress and outcomes:
        seconds = time.monotonic() - begin
        Console().print(
            f"{len(outcomes)} demonstrations in {seconds:.0f} s: {3600 * len(outcomes) / seconds:.0f} an hour",
            highlight=False,
        )
    return list(files)


@dataclass(frozen=True)
class ReplayReport:
    """What became of stored actions when they were executed again."""

    episodes: int
    """Stored as successes; others are not replayed."""
    successes: int
    """Episodes that succeeded as stored."""
    compared: int
    """Episodes that hold the states that they passed through."""
    exact: int
    """Of those, how many passed through the same again, bit for bit."""
    failed: tuple[str, ...]
    """Which did not succeed, in words."""


def replay(path: Path, limit: int | None = None) -> ReplayReport:
    """Execute the stored actions of a dataset of any format again, from the stored specs, without rendering, with the arm
    controller that they were collected with.

    `limit` is the number of episodes (of each file, where there are several). Raises `DatasetError` for episodes that do
    not say how they began and where no episode was a success, `SimError` for a suite or task that does not exist.
    """
    from vla_rl.sim.libero.backend import LiberoBackend

    successes = compared = exact = episodes = 0
    failed = []
    backends: dict[str, LiberoBackend] = {}
    bimanual: VectorSim | None = None
    try:
        for number, (_, demonstration) in enumerate(read_episodes(path, ReadOptions(cameras=(), limit=limit))):
            if demonstration.spec is None:
                raise DatasetError(f"{path}, episode {number} holds no episode spec: only demonstrations of ours can be replayed")
            if not demonstration.success:
                continue
            if demonstration.is_bimanual:
                bimanual = bimanual or _bimanual_sim(demonstration)
                success = _execute_chunks(bimanual, demonstration.spec, demonstration)
                episodes, successes = episodes + 1, successes + success
                failed += [] if success else [f"episode {number} ({demonstration.spec})"]
                continue
            controller = str(demonstration.provenance.get("controller", "exact"))
            if controller not in backends:
                backends[controller] = LiberoBackend(num_slots=1, cameras=(), controller=controller)
            success, same = _execute(backends[controller], demonstration.spec, demonstration)
            episodes, successes = episodes + 1, successes + success
            compared, exact = compared + (demonstration.states is not None), exact + same
            if not success:
                failed.append(f"episode {number} ({demonstration.spec})")
    finally:
        for backend in backends.values():
            backend.close()
        if bimanual is not None:
            bimanual.close()
    if episodes == 0:
        raise DatasetError(f"{path} holds no successful episode to replay")
    return ReplayReport(episodes, successes, compared, exact, tuple(failed))


def _execute(backend: LiberoBackend, spec: EpisodeSpec, demonstration: Demonstration) -> tuple[bool, bool]:
    """Whether the actions succeed, and whether every state on the way is the stored one."""
    backend.reset(0, spec)
    success, same = False, demonstration.states is not None
    for t, action in enumerate(demonstration.actions):
        if demonstration.states is not None:
            data = backend.data(0)
            same &= np.array_equal(np.concatenate([[data.time], data.qpos, data.qvel]), demonstration.states[t])
        result = backend.step(0, action)
        success |= result.success
        if result.terminated and not result.success:  # the physics diverged
            return False, False
    return success, same


def _bimanual_sim(demonstration: Demonstration) -> VectorSim:
    known = RoboTwinOptions.model_fields
    options = {name: value for name, value in demonstration.provenance.items() if name in known}
    return make_sim("robotwin", num_envs=1, num_workers=1, cameras=(), **options)


def _execute_chunks(sim: VectorSim, spec: EpisodeSpec, demonstration: Demonstration) -> bool:
    """Whether RoboTwin's chunks of stored actions succeed: its trajectories are planned a chunk at a time."""
    sim.reset([spec])
    for start in range(0, len(demonstration), REPLAY_CHUNK):
        turn = sim.step_chunk(demonstration.actions[None, start : start + REPLAY_CHUNK])
        for error in turn.errors.values():
            raise SimError(error.strip().splitlines()[-1])
        if turn.finished[0]:
            return bool(turn.success[0])
    return False


# -- processes ---------------------------------------------------------------------------------------------------------
def _run(jobs: list[dict[str, Any]], workers: int, total: int, progress: bool) -> list[dict[str, Any]]:
    """Do the jobs in worker processes; raises the first error after stopping all of them."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    replies: queue.SimpleQueue[dict[str, Any] | Exception] = queue.SimpleQueue()
    processes = [_Worker(waiting, replies) for _ in range(min(workers, len(jobs)))]
    outcomes: list[dict[str, Any]] = []
    failures = 0
    try:
        with Progress("demonstrations", total, total - len(jobs)) if progress and jobs else contextlib.nullcontext() as bar:
            for _ in jobs:
                reply = replies.get()
                if isinstance(reply, Exception):
                    raise reply
                outcomes.append(reply)
                failures += len(reply["failures"])
                if bar is not None:
                    rate = len(outcomes) / (len(outcomes) + failures)
                    bar.advance(f"expert succeeds in {rate:.0%}", to=total - len(jobs) + len(outcomes))
    finally:
        for process in processes:
            process.stop()
    return outcomes


class _Worker:
    """A process that makes demonstrations, and the thread that feeds it."""

    def __init__(
        self, waiting: queue.SimpleQueue[dict[str, Any]], replies: queue.SimpleQueue[dict[str, Any] | Exception]
    ) -> None:
        self._waiting, self._replies, self._stopping = waiting, replies, False
        self._process = LineProcess([sys.executable, "-m", "vla_rl.collect_worker"], {})
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._process.send(job)
                reply = json.loads(self._process.read_line())
            except (OSError, ValueError):
                if not self._stopping:
                    self._replies.put(self._death(job))
                return
            if "error" in reply:
                self._replies.put((SimError if reply["sim"] else DatasetError)(reply["error"]))
                return
            if "crash" in reply:
                self._replies.put(RuntimeError(f"a collecting process failed:\n{reply['crash']}"))
                return
            self._replies.put(reply)

    def _death(self, job: dict[str, Any]) -> DatasetError:
        code = self._process.wait()
        return DatasetError(
            f"a collecting process ended with code {code} while making {Path(job['path']).name} "
            f"({self._process.last_words()}); "
            "finished episodes are kept: run it again to go on, with fewer processes (workers=1) if memory ran out"
        )

    def stop(self) -> None:
        """End the process; an episode under way is lost."""
        self._stopping = True
        self._process.kill()
        self._thread.join()
        self._process.close()


def _report(path: Path, outcomes: list[dict[str, Any]]) -> None:
    failures = [failure for outcome in outcomes for failure in outcome["failures"]]
    steps = np.array([outcome["steps"] for outcome in outcomes])
    console = Console()
    console.print(
        f"{path.name}: {len(outcomes)} demonstrations of {steps.min()}-{steps.max()} steps; the expert solved "
        f"{len(outcomes)} of {len(outcomes) + len(failures)} episodes",
        highlight=False,
        soft_wrap=True,
    )
    for failure in failures:
        console.print(f"  dropped: {failure}", highlight=False, soft_wrap=True)
