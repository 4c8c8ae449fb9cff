"""One episode of RoboTwin: its task object, the chunks that it executed, and how it is told again from them.

Legend: A actions of a chunk, P proprioception size, 14 = two arms of six joints (rad) and a gripper (0 closed, 1 open) each,
left before right.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.sim.base import SimError
from vla_rl.sim.robotwin.runtime import Settings, task_arguments, task_class
from vla_rl.sim.robotwin.tasks import RoboTwinTask
from vla_rl.types import EpisodeSpec

ACTION_DIM = 14
CAMERAS = ("head_camera", "left_camera", "right_camera")
MOST_OBJECTS = 3
"""Whose poses a privileged policy is told: what the tasks without meshes have at most."""
PRIVILEGED_DIM = ACTION_DIM + 9 * MOST_OBJECTS
_UNSTABLE_TRIES = 20
_STRIDE = 1_000_003
"""Between the seeds that are tried in turn where objects do not come to rest: far from anybody's own."""


def check_cameras(cameras: Sequence[str]) -> None:
    """Raises `SimError` for a camera that RoboTwin does not have."""
    if unknown := [camera for camera in cameras if camera not in CAMERAS]:
        raise SimError(f"RoboTwin has no camera {unknown[0]!r}; choose from: {', '.join(CAMERAS)}")


@dataclass
class Progress:
    """How far the arms have come in the chunk under way."""

    lengths: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    def share(self) -> float:
        """Of the chunk, by the arm that is ahead."""
        return max((self.done[arm] / max(1, self.lengths.get(arm, 50)) for arm in self.done), default=1.0)


class World:
    """A task that has been set up. Raises `SimError` where no seed of those tried lets its objects come to rest."""

    def __init__(self, task: RoboTwinTask, spec: EpisodeSpec, seed: int, settings: Settings) -> None:
        self.task, self.spec = task, spec
        self.chunks: list[Float32[np.ndarray, "A 14"]] = []
        self._privileged = settings.privileged
        self.success = False
        self._progress = Progress()
        with contextlib.redirect_stdout(io.StringIO()):
            self.env, self.seed = _set_up(task, seed, settings)
        self._count_gripper_commands()
        self.instruction = self._instruction(settings.instructions)

    # -- acting ------------------------------------------------------------------------------------------------------
    def run_chunk(self, actions: Float32[np.ndarray, "A 14"]) -> int:
        """One time-optimal trajectory through all actions, as RLinf and SimpleVLA-RL execute them.

        Returns how many actions it took: all, or those until success, counted by the share of the trajectory.
        """
        self._begin(actions)
        self.env.gen_sparse_reward_data(actions.astype(np.float64))
        self.success = bool(self.env.eval_success)
        return min(len(actions), max(1, math.ceil(self._progress.share() * len(actions)))) if self.success else len(actions)

    def run_action(self, action: Float32[np.ndarray, "14"]) -> None:
        """One action with a trajectory of its own, from rest to rest, as RoboTwin's own evaluation executes it."""
        self._begin(action[None])
        with contextlib.redirect_stdout(io.StringIO()):
            self.env.take_action(action.astype(np.float64), action_type="qpos")
        self.success = bool(self.env.eval_success)

    def _begin(self, actions: Float32[np.ndarray, "A 14"]) -> None:
        self.chunks.append(actions.copy())
        self._progress = Progress(done={"left": 0, "right": 0})
        # An arm that is told to stand still is shaken by numpy's global generator, which other episodes use as well.
        np.random.seed((self.seed * 7919 + len(self.chunks)) % 2**32)

    def _count_gripper_commands(self) -> None:
        """Both are called once for each time step, or trajectory, of an arm: what tells how much of a chunk has run."""
        set_gripper, robot = self.env.robot.set_gripper, self.env.robot

        def counted(value: Any, arm_tag: str, *arguments: Any) -> None:
            if arm_tag in self._progress.done:
                self._progress.done[arm_tag] += 1
            set_gripper(value, arm_tag, *arguments)

        robot.set_gripper = counted
        downsample = self.env.downsample_trajectory

        def measured(positions: np.ndarray, velocities: np.ndarray, *arguments: Any) -> Any:
            result = downsample(positions, velocities, *arguments)
            arm = "right" if "left" in self._progress.lengths else "left"
            self._progress.lengths[arm] = len(result[0])
            return result

        self.env.downsample_trajectory = measured

    # -- seeing ------------------------------------------------------------------------------------------------------
    def joints(self) -> Float32[np.ndarray, "14"]:
        """Joint angles (rad) that the drives aim at, and gripper openings: RoboTwin's `state`, not the measured joints."""
        robot = self.env.robot
        return np.array([*robot.get_left_arm_jointState(), *robot.get_right_arm_jointState()], np.float32)

    def proprio(self) -> Float32[np.ndarray, "P"]:
        """The joints; where the settings are privileged, the poses of the task's objects behind them."""
        return np.concatenate([self.joints(), object_poses(self.task, self.env)]) if self._privileged else self.joints()

    def render(self, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """RoboTwin's picture of a camera."""
        cameras = self.env.cameras
        found = {"left_camera": cameras.left_camera, "right_camera": cameras.right_camera}
        found |= dict(zip(cameras.static_camera_name, cameras.static_camera_list, strict=True))
        device = found[camera]
        self.env.looks = True
        self.env._update_render()
        self.env.looks = False
        device.take_picture()
        return (device.get_picture("Color")[..., :3] * 255).clip(0, 255).astype(np.uint8)

    # -- words -------------------------------------------------------------------------------------------------------
    def _instruction(self, kind: str) -> str:
        """An instruction of the task's templates, drawn by the seed."""
        describe = importlib.import_module("robotwin.description").generate_episode_descriptions
        # Some tasks name their arms by acting; without a plan they only name them.
        self.env.plan_success = False
        try:
            info = self.env.get_info()
        except Exception:
            info = {}
        self.env.plan_success = True
        info = {key: str(value) for key, value in (info or {}).items()}
        with contextlib.redirect_stdout(io.StringIO()):
            found = describe(self.task.name, [info], 100, self.seed)
        if not found or not found[0][kind]:
            raise SimError(f"RoboTwin has no {kind} instruction for {self.task.name}")
        texts = found[0][kind]
        return str(texts[np.random.default_rng(self.seed).integers(len(texts))])

    def close(self) -> None:
        self.env.close_env()


def object_poses(task: RoboTwinTask, env: Any) -> Float32[np.ndarray, "27"]:
    """Position (m) of each of the task's objects and the first two axes of its frame, in the world's frame.

    Axes, as they change continuously under every rotation (Zhou et al., arXiv 1812.07035). In the order in which the task
    makes them: stack_blocks_two has red, then green. Places without an object hold 0. Raises `SimError` for too many objects.
    """
    if len(env.objects) > MOST_OBJECTS:
        raise SimError(
            f"{task.name} has {len(env.objects)} objects, and sim.robotwin.privileged tells of {MOST_OBJECTS} at most; unset it"
        )
    poses = np.zeros((MOST_OBJECTS, 9), np.float32)
    for row, made in zip(poses, env.objects, strict=False):
        pose = made.get_pose()
        row[:3], row[3:] = pose.p, pose.to_transformation_matrix()[:3, :2].T.ravel()
    return poses.ravel()


def _set_up(task: RoboTwinTask, seed: int, settings: Settings) -> tuple[Any, int]:
    """The task with its objects at rest, and the seed that brought it there."""
    make, arguments = task_class(task, settings), task_arguments(settings)
    unstable = importlib.import_module("robotwin.envs.utils.create_actor").UnStableError
    for number in range(_UNSTABLE_TRIES):
        tried = (seed + number * _STRIDE) % 2**32
        env = make()
        try:
            env.setup_demo(now_ep_num=tried, seed=tried, is_test=True, task_name=task.name, **arguments)
            return env, tried
        except unstable:
            env.close_env()
    raise SimError(f"{task.name}: the objects do not come to rest with seed {seed} or {_UNSTABLE_TRIES - 1} others; take another")
