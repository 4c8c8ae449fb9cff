"""RoboTwin's scripted expert, in RoboTwin's interpreter: one JSON job a line on stdin, one JSON reply a line on stdout.

A job has the expert act from a seed (`play`), or asks for the instruction templates of a task. It ends when stdin does.

Legend: T recorded steps, H x W image size, 14 = see `world`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from typing import Any

import numpy as np

from vla_rl.sim.base import SimError
from vla_rl.sim.channel import frame_size
from vla_rl.sim.robotwin.assets import check_files, choose_profile
from vla_rl.sim.robotwin.runtime import Settings
from vla_rl.sim.robotwin.tasks import SUITE, find_task
from vla_rl.types import EpisodeSpec


class Recorder:
    """Notes proprioception and pictures each time that RoboTwin's control loop would take a picture: every 15 physics steps."""

    def __init__(self, world: Any, cameras: list[str]) -> None:
        self._world, self._cameras = world, cameras
        self.states: list[np.ndarray] = []
        self.images: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
        self._last: np.ndarray | None = None
        self.error: Exception | None = None

    def __call__(self) -> None:
        try:
            self._note()
        except Exception as error:
            self.error = error
            raise

    def _note(self) -> None:
        joints = self._world.env.robot.left_entity.get_qpos()
        if self._last is not None and np.array_equal(joints, self._last):
            return  # the end of one motion is the beginning of the next
        self._last = joints
        self.states.append(self._world.proprio())
        for camera in self._cameras:
            self.images[camera].append(self._world.render(camera))


def play(job: dict[str, Any]) -> dict[str, Any]:
    """Have the expert act from a seed; writes `job["path"]` (npz) where it is given and the expert succeeded."""
    from vla_rl.sim.robotwin.world import World, check_cameras

    check_cameras(job["cameras"])
    settings = Settings(
        choose_profile(job["profile"], job["shader"], job["planner"]),
        job["task_config"],
        job["instructions"],
        frame_size(job["image_size"]),
        job["privileged"],
    )
    task = find_task(SUITE, job["task_id"])
    check_files(task, settings.profile)
    world = World(task, EpisodeSpec(SUITE, task.id, seed=job["seed"]), job["seed"], settings)
    recorder = Recorder(world, job["cameras"])
    try:
        if job.get("path"):
            world.env.recorder = recorder
        with contextlib.suppress(Exception):  # RoboTwin's tasks fail in many ways where a plan is missing
            world.env.play_once()
        if recorder.error is not None:  # that one is ours
            raise recorder.error
        recorder()
        solved = bool(world.env.plan_success and world.env.check_success())
        reply = {
            "solved": solved and world.seed == job["seed"],
            "instruction": world.instruction,
            "profile": settings.profile.name,
            "comparable": settings.profile.published,
        }
        if job.get("path") and reply["solved"]:
            arrays: dict[str, Any] = {f"image {camera}": np.stack(frames) for camera, frames in recorder.images.items()}
            np.savez(job["path"], states=np.stack(recorder.states), **arrays)
        return reply
    finally:
        world.close()


def templates(task: str) -> list[str]:
    """Every instruction template of a task, seen and unseen; {A} stands for an object, {a} for an arm."""
    texts = importlib.import_module("robotwin.description.instructions").load_task_instructions(task)
    return [*texts["seen"], *texts["unseen"]]


def main() -> None:
    # RoboTwin and its libraries print; only replies may reach the parent's pipe.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            job = json.loads(line)
            reply = {"templates": templates(job["templates"])} if "templates" in job else play(job)
        except SimError as error:
            reply = {"error": str(error)}
        except Exception:
            reply = {"crash": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
    replies.flush()
    os._exit(0)  # libraries that draw often crash while the interpreter takes itself apart


if __name__ == "__main__":
    main()
