"""`vla-rl bench fidelity`: whether our simulator is LIBERO's, step by step and pixel by pixel, and what `fast` costs.

Our backend and LIBERO's own environment run the same episodes in lockstep: random actions, and those of the scripted
expert. Along the way states are kept, at which fast pictures are compared with exact ones.

Legend: H x W image size.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from vla_rl.bench.actions import random_actions
from vla_rl.bench.image_quality import psnr, ssim
from vla_rl.bench.published_env import PublishedEnv
from vla_rl.progress import Progress
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.expert import ExpertError, SceneView, TaskExpert
from vla_rl.sim.libero.tasks import STANDARD_SUITES, LiberoTask, suite_tasks
from vla_rl.types import EpisodeSpec

CAMERAS = ("agentview", "robot0_eye_in_hand")
QUALITY_SIZES = (224, 128)
AFTER_SUCCESS = 5
"""Control steps that an expert's episode goes on after its success."""


@dataclass(frozen=True)
class FidelitySettings:
    suites: tuple[str, ...] = STANDARD_SUITES
    tasks: int = 4
    """Of each suite, evenly spread over its task ids."""
    steps: int = 200
    """Random actions of an episode."""
    expert: bool = True
    """Also an episode of the scripted expert, where it knows the task."""
    image_size: int = 128
    """Of the pictures that are compared with LIBERO's, px."""
    look_every: int = 50
    """Control steps between two looks."""
    quality_sizes: tuple[int, ...] = QUALITY_SIZES
    """At which fast pictures are compared with exact ones, px."""

    def chosen(self) -> list[LiberoTask]:
        """Raises `SimError` for an unknown suite."""
        return [task for suite in self.suites for task in spread_out(suite_tasks(suite), self.tasks)]


@dataclass
class EpisodeComparison:
    """One episode in both simulators."""

    kind: str
    """random or expert."""
    init_state_id: int
    steps: int = 0
    success: bool = False
    qpos_difference: float = 0.0
    """Largest difference of any coordinate (m, rad) over all control steps."""
    labels_that_differ: int = 0
    """Control steps whose success labels differ."""
    frames: int = 0
    """Frames compared, over both cameras."""
    pixel_difference: int = 0
    """Largest difference of any channel of any pixel, of 255."""


@dataclass(frozen=True)
class PictureQuality:
    """A fast picture against the exact one of the same state."""

    camera: str
    size: int
    """px."""
    psnr: float
    """dB."""
    ssim: float


@dataclass
class TaskComparison:
    suite: str
    task_id: int
    instruction: str
    episodes: list[EpisodeComparison] = field(default_factory=list)
    pictures: list[PictureQuality] = field(default_factory=list)
    note: str = ""
    """Why there is no expert's episode."""


def spread_out(tasks: Sequence[LiberoTask], count: int) -> list[LiberoTask]:
    """`count` of the tasks, the first and the last among them, or all if there are no more."""
    chosen = np.linspace(0, len(tasks) - 1, min(count, len(tasks))).round().astype(int)
    return [tasks[index] for index in chosen]


def measure(
    settings: FidelitySettings, on_task: Callable[[Sequence[TaskComparison]], None] = lambda so_far: None
) -> list[TaskComparison]:
    """Compare every chosen task; `on_task` gets those that are done. Raises `SimError` for an unknown suite."""
    tasks, compared = settings.chosen(), []
    with Progress("bench fidelity", len(tasks)) as progress:
        for task in tasks:
            compared.append(compare_task(task, settings))
            on_task(compared)
            worst = max(episode.qpos_difference for episode in compared[-1].episodes)
            progress.advance(f"{task.suite} task {task.task_id}: qpos within {worst:.1e}")
    return compared


def compare_task(task: LiberoTask, settings: FidelitySettings) -> TaskComparison:
    """The episodes of one task in both simulators, and fast against exact pictures along them."""
    result = TaskComparison(task.suite, task.task_id, task.instruction)
    pair = _Pair(task, settings)
    try:
        random = iter(random_actions(task.task_id, settings.steps))
        result.episodes.append(pair.run("random", 0, lambda: next(random, None)))
        if settings.expert:
            try:
                result.episodes.append(pair.run("expert", 1, _Expert(pair.ours, task.max_steps).act))
            except ExpertError as error:
                result.note = str(error)
        result.pictures = pair.picture_quality()
    finally:
        pair.close()
        del pair
        gc.collect()
    return result


class _Pair:
    """Our backend and LIBERO's environment on one task.

    LIBERO's is a new one for every episode: after a second reset of its own it repeats an episode with other last bits
    (seen on libero_10 task 8), which contacts amplify.
    """

    def __init__(self, task: LiberoTask, settings: FidelitySettings) -> None:
        self._task, self._settings = task, settings
        self._states: list[bytes] = []
        self.ours = LiberoBackend(num_slots=1, cameras=CAMERAS, image_size=settings.image_size, max_scenes=1)
        self._theirs: PublishedEnv | None = None

    def run(self, kind: str, init_state_id: int, next_action: Callable[[], np.ndarray | None]) -> EpisodeComparison:
        """One episode in lockstep, until there is no next action."""
        result = EpisodeComparison(kind, init_state_id)
        self._close_theirs()
        theirs = self._theirs = PublishedEnv(self._task, self._settings.image_size, CAMERAS)
        self.ours.reset(0, EpisodeSpec(self._task.suite, self._task.task_id, init_state_id=init_state_id))
        self._look(theirs.start(init_state_id, look=True), result)
        while (action := next_action()) is not None:
            result.steps += 1
            look = result.steps % self._settings.look_every == 0
            success = self.ours.step(0, action).success
            observation, expected = theirs.step(action, look)
            result.success |= success
            result.labels_that_differ += success != expected
            difference = float(np.abs(self.ours.data(0).qpos - theirs.qpos).max())
            result.qpos_difference = max(result.qpos_difference, difference)
            if look:
                self._look(observation, result)
        return result

    def _look(self, observation: Mapping[str, np.ndarray], result: EpisodeComparison) -> None:
        self._states.append(self.ours.save_state(0))
        for camera in CAMERAS:
            frame = _frame(self.ours, camera, self._settings.image_size)
            difference = np.abs(frame.astype(int) - observation[f"{camera}_image"])
            result.frames += 1
            result.pixel_difference = max(result.pixel_difference, int(difference.max()))

    def picture_quality(self) -> list[PictureQuality]:
        """Fast against exact pictures at every look so far."""
        found = []
        for size in self._settings.quality_sizes:
            fast = LiberoBackend(num_slots=1, cameras=CAMERAS, image_size=size, render_quality="fast", max_scenes=1)
            try:
                for state in self._states:
                    self.ours.load_state(0, state)
                    fast.load_state(0, state)
                    for camera in CAMERAS:
                        a, b = _frame(self.ours, camera, size), _frame(fast, camera, size)
                        found.append(PictureQuality(camera, size, psnr(a, b), ssim(a, b)))
            finally:
                fast.close()
        return found

    def close(self) -> None:
        self._close_theirs()
        self.ours.close()

    def _close_theirs(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
        self._theirs = None
        gc.collect()  # LIBERO's problem objects hold each other, and with them hundreds of megabytes


class _Expert:
    """The scripted expert in slot 0 of a backend, from its first action until a little after its success."""

    def __init__(self, backend: LiberoBackend, max_steps: int) -> None:
        self._backend, self._left = backend, max_steps
        self._expert: TaskExpert | None = None
        self._has_succeeded = False

    def act(self) -> np.ndarray | None:
        """Raises `ExpertError` at the first action of a task that the expert does not know."""
        if self._expert is None:
            self._expert = TaskExpert.of(self._backend, 0)
        if self._backend.success(0) and not self._has_succeeded:
            self._has_succeeded, self._left = True, min(self._left, AFTER_SUCCESS)
        self._left -= 1
        if self._left < 0:
            return None
        return self._expert.act(SceneView(self._backend.model(0), self._backend.data(0))).action


def _frame(backend: LiberoBackend, camera: str, size: int) -> UInt8[np.ndarray, "H W 3"]:
    out = np.zeros((size, size, 3), np.uint8)
    backend.render(0, camera, out)
    return out
