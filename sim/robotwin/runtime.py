"""RoboTwin's task classes, made ready to run: what is imported, which robot they get, and where they are kept from waste."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_rl.sim.base import SimError
from vla_rl.sim.robotwin.assets import Profile
from vla_rl.sim.robotwin.tasks import RoboTwinTask

NATIVE_SIZE = (240, 320)
"""Height and width of RoboTwin's own pictures, px."""
_HEAVY = ("torch", "open3d")
"""Imported by RoboTwin's modules, used by nothing that the lite profile runs, some GB together."""


@dataclass(frozen=True)
class Settings:
    """What all episodes of a backend have in common."""

    profile: Profile
    task_config: str = "demo_clean"
    instructions: str = "seen"
    frame_size: tuple[int, int] = NATIVE_SIZE
    privileged: bool = False


def task_class(task: RoboTwinTask, settings: Settings) -> type[Any]:
    """RoboTwin's class of a task, with the robot and the shader of the profile. Imports the simulator."""
    _stand_in_for_heavy_modules()
    original = getattr(importlib.import_module(f"robotwin.envs.{task.name}"), task.name)
    return type(f"{task.name}_{settings.profile.name}", (_Watched, original), {"settings": settings})


def task_arguments(settings: Settings) -> dict[str, Any]:
    """What `setup_demo` takes besides the seed: a task configuration of the runtime, and the embodiment."""
    profile, config = settings.profile, importlib.import_module("robotwin.config")
    try:
        arguments = config.load_task_config(settings.task_config)
    except ValueError as error:
        raise SimError(f"RoboTwin has no task configuration {settings.task_config!r}: {error}") from None
    robot_folder, embodiment = profile.embodiment(config)
    files = {f"{arm}_robot_file": str(robot_folder) for arm in ("left", "right")}
    embodiments = {f"{arm}_embodiment_config": embodiment for arm in ("left", "right")}
    return {
        **arguments,
        **files,
        **embodiments,
        "dual_arm_embodied": True,
        "eval_mode": True,
        "eval_video_log": False,
        "render_freq": 0,
        "planner_backend": profile.planner,
    }


class _Watched:
    """Mixed in front of a task class: the robot and shader of a profile; pictures are prepared only when they are taken."""

    settings: Settings
    robot: Any
    cameras: Any
    scene: Any
    need_topp: bool
    crazy_random_light: bool
    objects: tuple[Any, ...]
    """What the task itself has put into the scene, in that order."""
    looks = False
    recorder: Callable[[], None] | None = None
    """Called where RoboTwin takes a picture of a demonstration."""

    def setup_scene(self, **kwargs: Any) -> None:
        super().setup_scene(**{**kwargs, **({} if self.settings.profile.ray_tracing else {"shadow": False})})  # type: ignore[misc]
        if not self.settings.profile.ray_tracing:
            importlib.import_module("sapien").render.set_camera_shader_dir("default")

    def load_actors(self) -> None:
        scenery = set(map(id, vars(self).values()))
        super().load_actors()  # type: ignore[misc]
        actor = importlib.import_module("robotwin.envs.utils.actor_utils").Actor
        self.objects = tuple(value for value in vars(self).values() if isinstance(value, actor) and id(value) not in scenery)

    def load_robot(self, **kwargs: Any) -> None:
        if self.settings.profile.name != "lite":
            return super().load_robot(**kwargs)  # type: ignore[misc]
        robot_class = _lite_robot()
        self.robot = robot_class(self.scene, self.need_topp, **kwargs)
        self.robot.set_planner(self.scene)
        self.robot.init_joints()
        for link in self.robot.left_entity.get_links():
            link.set_mass(1)  # as RoboTwin has it for all its robots

    def load_camera(self, **kwargs: Any) -> None:
        """With the wanted number of pixels: always the whole view of 4 x 3, squeezed or stretched as a resized picture is."""
        module: Any = importlib.import_module("robotwin.envs.camera.camera")
        height, width = self.settings.frame_size
        load = module.load_task_config

        def sized(name: str) -> dict[str, Any]:
            return {kind: values | {"w": width, "h": height} for kind, values in load(name).items()}

        module.load_task_config = sized
        try:
            super().load_camera(**kwargs)  # type: ignore[misc]
        finally:
            module.load_task_config = load
        for camera in (*self.cameras.static_camera_list, self.cameras.left_camera, self.cameras.right_camera):
            # SAPIEN gives square pixels, of a height that the vertical angle of view decides.
            focus = camera.fy / height
            fx, fy = focus * NATIVE_SIZE[0] / NATIVE_SIZE[1] * width, focus * height
            camera.set_perspective_parameters(camera.near, camera.far, fx, fy, width / 2, height / 2, 0.0)

    def _update_render(self) -> None:
        # RoboTwin's control loops call this at every physics step, though nobody looks before the end of a chunk.
        if self.looks or self.crazy_random_light:
            super()._update_render()  # type: ignore[misc]

    def _take_picture(self, reward: Any = None) -> None:
        if self.recorder is not None:
            self.recorder()


def _lite_robot() -> type[Any]:
    module = importlib.import_module("robotwin.envs.robot.robot")
    from vla_rl.sim.robotwin.planner import LitePlanner

    class LiteRobot(module.Robot):  # type: ignore[name-defined, misc]
        """RoboTwin's robot with the lite arms' planner; time-optimal execution of chunks stays RoboTwin's."""

        def set_planner(self, scene: Any = None) -> None:
            self.communication_flag = False
            joints = [joint.get_name() for joint in self.left_entity.get_active_joints()]
            self.left_planner = LitePlanner("left", self.left_entity_origion_pose, joints, self.left_arm_joints_name)
            self.right_planner = LitePlanner("right", self.right_entity_origion_pose, joints, self.right_arm_joints_name)
            self.left_mplib_planner = self.right_mplib_planner = TimeOptimal(len(self.left_arm_joints_name))

    return LiteRobot


class TimeOptimal:
    """`TOPP` of mplib's planner, without the planning world that mplib builds from the scene at every reset."""

    def __init__(self, dof: int) -> None:
        planner = importlib.import_module("mplib.planner").Planner
        self.joint_vel_limits = self.joint_acc_limits = np.ones(dof)
        self.TOPP: Callable[..., Any] = types.MethodType(planner.TOPP, self)


def _stand_in_for_heavy_modules() -> None:
    for name in _HEAVY:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__path__ = []
            sys.modules[name] = module
            if name == "torch":
                module.manual_seed = lambda seed: None  # type: ignore[attr-defined]
                sys.modules["torch.multiprocessing"] = multiprocessing
