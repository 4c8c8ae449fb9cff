"""The control loop: 25 substeps of physics and controller for each action, one dynamics pass a substep.

robosuite's `env.step` computes the same with three passes a substep. What an observation shows is LIBERO's too: its
observables are sampled once a control step, and in an episode that starts from `set_init_state`, as published
evaluations start, that is after substep 24 of 25, with the poses that the forward pass of that substep found.

Legend: K integration state, nq coordinates, F fixtures, V sites that show a state.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.controller import ACTION_DIM, ArmController, ArmReading, ControllerState
from vla_rl.sim.libero.engine import mujoco
from vla_rl.sim.libero.sampling import initial_state
from vla_rl.sim.libero.scene import Scene
from vla_rl.sim.libero.stage import STATE
from vla_rl.types import EpisodeSpec

SUBSTEPS = 25
"""Of 2 ms, for each control step of 50 ms."""
OBSERVED_SUBSTEP = 24
"""After which of them (1 to 25) an observation is taken."""
SETTLING_STEPS = 10
SETTLED_KEPT = 256
"""Beginnings of episodes, settled, that a scene remembers; some kilobytes each."""
_NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_DIVERGED = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)


class PhysicsDiverged(SimError):
    """MuJoCo found numbers that are not finite or absurd, and threw the state away."""


@dataclass
class Episode:
    """Everything that distinguishes one slot from another on the same scene; with it any slot can continue."""

    spec: EpisodeSpec
    controller: ControllerState
    fixture_poses: Float64[np.ndarray, "F 7"]
    site_alpha: Float64[np.ndarray, "V"]
    """As shown by the frames of the last control step; LIBERO's lag one control step behind the joints."""
    integration: Float64[np.ndarray, "K"]
    """MuJoCo's mjSTATE_INTEGRATION; stale while the episode is the active one of its scene."""
    observed_qpos: Float64[np.ndarray, "nq"]
    """Where a camera sees things: qpos at the beginning of the observed substep."""
    proprio: Float32[np.ndarray, "8"]
    success: bool = False

    def copy(self) -> Episode:
        """Another episode in the same state. `integration` is copied as it is: pull it first."""
        return replace(
            self,
            controller=self.controller.copy(),
            integration=self.integration.copy(),
            observed_qpos=self.observed_qpos.copy(),
            proprio=self.proprio.copy(),
        )


class Stepper:
    """Runs episodes on one scene, one at a time."""

    def __init__(self, scene: Scene, controller: str = "exact") -> None:
        model, data, robot = scene.model, scene.data, scene.robot
        self.scene = scene
        self._arm = ArmController(model, data, robot, controller)
        self._qpos, self._hand_quaternion = data.qpos, data.xquat[robot.hand_body]
        self._settled: OrderedDict[EpisodeSpec, Episode] = OrderedDict()
        if round(0.05 / model.opt.timestep) != SUBSTEPS:
            raise SimError(f"{scene.task.suite} task {scene.task.task_id} has a time step of {model.opt.timestep} s, not 0.002 s")

    def start(self, spec: EpisodeSpec) -> Episode:
        """A new episode, settled for ten control steps; one that began alike lately is not settled again but copied."""
        if spec in self._settled:
            self._settled.move_to_end(spec)
        else:
            episode = self._settle(spec)
            self.scene.stage.pull(episode)
            self._settled[spec] = episode
            if len(self._settled) > SETTLED_KEPT:
                self._settled.popitem(last=False)
        return self._settled[spec].copy()

    def _settle(self, spec: EpisodeSpec) -> Episode:
        scene, stage = self.scene, self.scene.stage
        start = initial_state(scene, spec)
        episode = Episode(
            spec=spec,
            controller=scene.fresh_controller(),
            fixture_poses=start.fixture_poses,
            site_alpha=scene.default_site_alpha,
            integration=np.zeros(stage.state_size),
            observed_qpos=start.qpos.copy(),
            proprio=np.zeros(8, dtype=np.float32),
        )
        stage.clear()
        scene.fixture_poses, scene.site_alpha = episode.fixture_poses, episode.site_alpha
        scene.data.time, scene.data.qpos[:], scene.data.qvel[:] = start.time, start.qpos, start.qvel
        stage.give_to(episode)
        for step in range(SETTLING_STEPS):
            # robosuite's controller does not look again before its first torques: it still knows the arm of the reset.
            self._run(episode, _NO_OP, scene.arm_at_reset if step == 0 else self._arm.live)
        return episode

    def activate(self, episode: Episode) -> None:
        """Write the episode's state into the scene's data, unless it is there already."""
        scene, stage = self.scene, self.scene.stage
        if stage.is_active(episode):
            return
        stage.clear()
        scene.fixture_poses, scene.site_alpha = episode.fixture_poses, episode.site_alpha
        mujoco.mj_setState(scene.model, scene.data, episode.integration, STATE)
        stage.give_to(episode)

    def step(self, episode: Episode, action: np.ndarray) -> None:
        """One control step (50 ms) of an action [7]. Raises `SimError` for a bad action, `PhysicsDiverged`."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise SimError(f"an action must be {ACTION_DIM} finite numbers, and this one is {action.tolist()}")
        self.activate(episode)
        self._run(episode, action, self._arm.live)

    def _run(self, episode: Episode, action: Float64[np.ndarray, "7"], first: ArmReading) -> None:
        """The substeps of one action; `first` is what the controller knows in the first of them."""
        scene, controller, arm = self.scene, episode.controller, self._arm
        model, data = scene.model, scene.data
        scene.update_site_alpha()
        for substep in range(1, SUBSTEPS + 1):
            if substep == OBSERVED_SUBSTEP:
                episode.observed_qpos = self._qpos.copy()
            mujoco.mj_step1(model, data)
            arm.look()
            if substep == 1:
                controller.set_goal(action[:6], first)
            arm.command(controller, action[6], first if substep == 1 else arm.live)
            mujoco.mj_step2(model, data)
            if substep == OBSERVED_SUBSTEP:
                episode.proprio = self._proprio()
        if any(data.warning[kind].number for kind in _DIVERGED):
            raise PhysicsDiverged(f"the physics of {episode.spec} diverged; reset the environment")
        episode.site_alpha = scene.site_alpha
        episode.success = scene.success()

    def _proprio(self) -> Float32[np.ndarray, "8"]:
        fingers = self._qpos[self.scene.robot.finger_qpos]
        return np.concatenate([self._arm.live.position, _axis_angle(self._hand_quaternion), fingers]).astype(np.float32)


def _axis_angle(quaternion: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "3"]:
    """Axis times angle (rad, 0 to 2 pi) of a quaternion (w, x, y, z), with robosuite's choice of sign."""
    w = min(max(float(quaternion[0]), -1.0), 1.0)
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine == 0.0 else quaternion[1:] * (2.0 * np.arccos(w) / sine)
