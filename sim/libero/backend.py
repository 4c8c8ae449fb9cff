"""LIBERO as a simulator backend: the slots of one worker process."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.sim.base import SimError, StepResult
from vla_rl.sim.libero.camera import Renderer
from vla_rl.sim.libero.controller import ACTION_DIM, ControllerState
from vla_rl.sim.libero.engine import mujoco
from vla_rl.sim.libero.pictures import check_pictures
from vla_rl.sim.libero.scene import Scene
from vla_rl.sim.libero.stage import Stage, Stages
from vla_rl.sim.libero.stepper import Episode, PhysicsDiverged, Stepper
from vla_rl.sim.libero.tasks import LiberoTask, find_task
from vla_rl.types import EpisodeSpec

CONTROLLERS = ("exact", "fast")
_STATE_FORMAT = 1


class LiberoBackend:
    """LIBERO environments that take turns on compiled scenes.

    Every slot may run another task. A scene costs seconds to compile and some hundred megabytes; tasks that differ in their
    goals alone share one, and the worker keeps up to `max_scenes` (more only while its slots use more at a time). A reset
    on a scene that is there takes milliseconds plus settling.

    Besides the `Backend` protocol, for scripted experts and analysis of a slot's present state (not the slightly older
    one that `proprio` and `render` show): `task`, `model`, `data`, `goal`, `end_effector`, `body_pose`, `site_pose`,
    `object_body`, `success`.
    """

    action_dim = ACTION_DIM
    proprio_dim = 8

    def __init__(
        self,
        *,
        num_slots: int,
        cameras: Sequence[str] = ("agentview",),
        image_size: int = 128,
        render_quality: str = "exact",
        antialiasing: int = 4,
        controller: str = "exact",
        max_scenes: int = 4,
    ) -> None:
        """`antialiasing` is in samples a pixel: MSAA in exact frames, supersampling in fast ones. `controller` "exact" is
        robosuite's to the bit, "fast" the same up to rounding.

        Raises `SimError` for an unknown render quality, antialiasing or controller, or where offscreen rendering does not work.
        """
        check_pictures(render_quality, antialiasing)
        if not isinstance(image_size, int):
            raise SimError(f"LIBERO's frames are square: image_size is one number, not {list(image_size)}")
        if controller not in CONTROLLERS:
            raise SimError(f"LIBERO has no controller {controller!r}; choose one of: {', '.join(CONTROLLERS)}")
        self._controller = controller
        self._cameras, self._max_scenes = tuple(cameras), max_scenes
        self._stages = Stages(render_quality, image_size)
        self._steppers: OrderedDict[LiberoTask, Stepper] = OrderedDict()
        self._episodes: list[Episode | None] = [None] * num_slots
        self._renderer = Renderer(render_quality, antialiasing, max(max_scenes, num_slots)) if self._cameras else None

    # -- the Backend protocol ----------------------------------------------------------------------------------------
    def reset(self, slot: int, spec: EpisodeSpec) -> None:
        """Raises `SimError` for a suite, task, initial state or camera that does not exist; the slot is then as it was."""
        task = find_task(spec.suite, spec.task_id)
        if spec.init_state_id is not None:
            task.initial_state(spec.init_state_id)
        self._episodes[slot] = self._stepper_of(task).start(spec)

    def max_steps(self, slot: int) -> int:
        return self.task(slot).max_steps

    def step(self, slot: int, action: Float32[np.ndarray, "D"]) -> StepResult:
        """Reward 1 and the end of the task at success, as LIBERO's predicates judge it; otherwise 0.

        Actions under which the physics diverges end the task as well, without success, in the state before the last of them.
        """
        stepper, episode = self._at(slot)
        stepper.scene.stage.pull(episode)
        before = episode.copy()
        try:
            stepper.step(episode, action)
        except PhysicsDiverged:
            self._episodes[slot] = before
            return StepResult(reward=0.0, success=False, terminated=True)
        return StepResult(reward=float(episode.success), success=episode.success, terminated=episode.success)

    def proprio(self, slot: int) -> Float32[np.ndarray, "P"]:
        """End-effector position (3, m), orientation as axis-angle (3, rad), finger joints (2, m), as OpenVLA reads them."""
        return self._at(slot)[1].proprio.copy()

    def instruction(self, slot: int) -> str:
        return self.task(slot).instruction

    def render(self, slot: int, camera: str, out: UInt8[np.ndarray, "H W 3"]) -> None:
        """Draw what LIBERO's observation `<camera>_image` shows; the first row is the lowest of the picture."""
        stepper, episode = self._at(slot)
        if self._renderer is None:
            raise SimError("this simulator was made without cameras; name them in make_sim(cameras=...)")
        stepper.activate(episode)
        self._renderer.render(stepper.scene, episode.observed_qpos, camera, out)

    def save_state(self, slot: int) -> bytes:
        """Everything that the episode's future depends on; see `load_state`."""
        stepper, episode = self._at(slot)
        stepper.scene.stage.pull(episode)
        arrays = {
            "integration": episode.integration,
            "observed_qpos": episode.observed_qpos,
            "fixture_poses": episode.fixture_poses,
            "site_alpha": episode.site_alpha,
            "proprio": episode.proprio.astype(np.float64),
            **asdict(episode.controller),
        }
        record = {"format": _STATE_FORMAT, "spec": episode.spec.to_dict(), "success": episode.success}
        return msgpack.packb(record | {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()})

    def load_state(self, slot: int, state: bytes) -> None:
        """Continue from a saved state, bit for bit, in any slot of any process with the same MuJoCo.

        Raises `SimError` for bytes that are no such state; the slot is then as it was.
        """
        try:
            record = msgpack.unpackb(state)
            if record["format"] != _STATE_FORMAT:
                raise ValueError(f"format {record['format']}")
            spec = EpisodeSpec.from_dict(record["spec"])
        except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise SimError(f"these bytes are not a state saved by this version of the LIBERO simulator ({error})") from error
        stepper = self._stepper_of(find_task(spec.suite, spec.task_id))
        self._episodes[slot] = _unpack_episode(stepper, spec, record)

    def vacate(self, slot: int) -> None:
        """Forget the slot's episode; its scene stays for others as `max_scenes` allows."""
        self._episodes[slot] = None

    def close(self) -> None:
        """Free OpenGL's memory and every scene."""
        if self._renderer is not None:
            self._renderer.close()
        self._episodes = [None] * len(self._episodes)
        self._steppers.clear()

    # -- for scripted experts and analysis ---------------------------------------------------------------------------
    def task(self, slot: int) -> LiberoTask:
        spec = self._at(slot)[1].spec
        return find_task(spec.suite, spec.task_id)

    def model(self, slot: int) -> mujoco.MjModel:
        """The compiled model. Shared by the slots of this task; the furniture's places in it are those of the active slot."""
        stepper, episode = self._at(slot)
        stepper.activate(episode)
        return stepper.scene.model

    def data(self, slot: int) -> mujoco.MjData:
        """MuJoCo's data with every pose and contact of the slot's present joints.

        All slots of a task share one MjData: read it before another slot is used, ask again after each step, and
        write nothing.
        """
        stepper, episode = self._at(slot)
        stepper.activate(episode)
        mujoco.mj_fwdPosition(stepper.scene.model, stepper.scene.data)
        return stepper.scene.data

    def problem(self, slot: int) -> Any:
        """LIBERO's own problem object (`BDDLBaseDomain`), bound to this slot's data until another slot is used."""
        stepper, episode = self._at(slot)
        stepper.activate(episode)
        return stepper.scene.problem

    def goal(self, slot: int) -> list[list[str]]:
        """BDDL's goal, a conjunction of predicates: [["in", "alphabet_soup_1", "basket_1_contain_region"]]."""
        return [list(predicate) for predicate in self._at(slot)[0].scene.problem.parsed_problem["goal_state"]]

    def success(self, slot: int) -> bool:
        """Whether the goal held at the end of the last control step."""
        return self._at(slot)[1].success

    def object_body(self, slot: int, name: str) -> str:
        """Name of the root body of a BDDL object or fixture. Raises `SimError` for an unknown one."""
        problem = self._at(slot)[0].scene.problem
        things = problem.objects_dict | problem.fixtures_dict
        if name not in things:
            raise SimError(f"{self._at(slot)[1].spec} has no object {name!r}; it has: {', '.join(sorted(things))}")
        return str(things[name].root_body)

    def body_pose(self, slot: int, name: str) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3 3"]]:
        """Position (m) and rotation in the world of a MuJoCo body, or of a BDDL object or fixture by its name."""
        data = self.data(slot)
        if mujoco.mj_name2id(self.model(slot), mujoco.mjtObj.mjOBJ_BODY, name) < 0:
            name = self.object_body(slot, name)
        body = data.body(name)
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()

    def site_pose(self, slot: int, name: str) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3 3"]]:
        """Position (m) and rotation in the world of a MuJoCo site; BDDL's regions are sites. Raises `SimError`."""
        data = self.data(slot)
        if mujoco.mj_name2id(self.model(slot), mujoco.mjtObj.mjOBJ_SITE, name) < 0:
            raise SimError(f"{self._at(slot)[1].spec} has no site {name!r}")
        site = data.site(name)
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def end_effector(self, slot: int) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3 3"]]:
        """Position (m) and rotation of the point between the finger pads: what the controller moves."""
        data, site = self.data(slot), self._at(slot)[0].scene.robot.grip_site
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    # -- scenes ------------------------------------------------------------------------------------------------------
    def _at(self, slot: int) -> tuple[Stepper, Episode]:
        episode = self._episodes[slot]
        if episode is None:
            raise SimError(f"environment slot {slot} holds no episode; reset it first")
        return self._steppers[find_task(episode.spec.suite, episode.spec.task_id)], episode

    def _stepper_of(self, task: LiberoTask) -> Stepper:
        if task not in self._steppers:
            scene = Scene(task, self._stages)
            for camera in self._cameras:
                scene.camera_id(camera)
            self._steppers[task] = Stepper(scene, self._controller)
            self._drop_idle(scene.stage)
        self._steppers.move_to_end(task)
        return self._steppers[task]

    def _drop_idle(self, newest: Stage) -> None:
        """Drop compiled scenes beyond `max_scenes` that no slot uses, the longest unused first."""
        used = {self._at(slot)[0].scene.stage for slot, episode in enumerate(self._episodes) if episode is not None} | {newest}
        stages = dict.fromkeys(stepper.scene.stage for stepper in reversed(self._steppers.values()))
        excess = max(0, len(stages) - self._max_scenes)
        leaving = [stage for stage in reversed(stages) if stage not in used][:excess]
        if not leaving:
            return
        for task in [task for task, stepper in self._steppers.items() if stepper.scene.stage in leaving]:
            del self._steppers[task]
        while leaving:
            if self._renderer is not None:
                self._renderer.forget(leaving[-1])
            leaving.pop()
        gc.collect()  # LIBERO's problem objects hold each other, and with them hundreds of megabytes


def _unpack_episode(stepper: Stepper, spec: EpisodeSpec, record: dict[str, Any]) -> Episode:
    scene = stepper.scene
    shapes = {
        "integration": (scene.stage.state_size,),
        "observed_qpos": (scene.model.nq,),
        "fixture_poses": scene.default_fixture_poses.shape,
        "site_alpha": scene.default_site_alpha.shape,
        "proprio": (LiberoBackend.proprio_dim,),
        "goal_position": (3,),
        "goal_rotation": (3, 3),
        "rest_joints": scene.nominal_joints.shape,
        "fingers": (2,),
    }
    try:
        arrays = {name: np.frombuffer(record[name], dtype=np.float64).reshape(shape).copy() for name, shape in shapes.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise SimError(f"the saved state of {spec} does not fit this MuJoCo's model of the task ({error})") from error
    controller = ControllerState(
        **{name: arrays.pop(name) for name in ("goal_position", "goal_rotation", "rest_joints", "fingers")}
    )
    proprio = arrays.pop("proprio").astype(np.float32)
    return Episode(spec=spec, controller=controller, proprio=proprio, success=bool(record["success"]), **arrays)
