"""RoboTwin as a simulator backend: the slots of one worker process, which runs in RoboTwin's own interpreter.

Legend: A actions of a chunk, P proprioception size, H x W image size, 14 = see `world`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence

import msgpack
import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.sim.base import SimError, StepResult
from vla_rl.sim.channel import frame_size
from vla_rl.sim.robotwin.assets import check_files, choose_profile
from vla_rl.sim.robotwin.runtime import Settings
from vla_rl.sim.robotwin.seeds import find_seed
from vla_rl.sim.robotwin.tasks import RoboTwinTask, find_task
from vla_rl.sim.robotwin.world import ACTION_DIM, PRIVILEGED_DIM, World, check_cameras
from vla_rl.types import EpisodeSpec

CONTROLS = ("chunk", "action")
_STATE_FORMAT = 1


class RoboTwinBackend:
    """RoboTwin environments, each with a SAPIEN scene of its own.

    Actions and proprioception are those of RoboTwin's `qpos` control: six joint angles (rad) and the gripper's opening (0
    to 1) of the left arm, then of the right one. SAPIEN cannot save what its solver remembers of contacts; a saved state
    is therefore the seed and all actions so far, and loading it runs them again, bit for bit, at a third of a second a
    chunk. Rows stay with their workers for that reason.
    """

    action_dim = ACTION_DIM
    loads_by_replay = True

    def __init__(
        self,
        *,
        num_slots: int,
        cameras: Sequence[str] = ("head_camera",),
        image_size: int | Sequence[int] = (240, 320),
        control: str = "chunk",
        waypoint_stride: int = 1,
        profile: str = "auto",
        shader: str = "auto",
        planner: str = "auto",
        task_config: str = "demo_clean",
        instructions: str = "seen",
        privileged: bool = False,
    ) -> None:
        """`control`: `chunk` runs a chunk as one time-optimal trajectory (RLinf, SimpleVLA-RL), `action` each action as one
        of its own (RoboTwin's evaluation); the same actions move the robot differently. `waypoint_stride`: an action stands
        for so many of RoboTwin's, so that the step limit is that many times smaller. `profile`, `shader` and `planner`: see
        `assets.choose_profile`. `task_config` is one of the runtime's (demo_clean, demo_randomized), `instructions`
        seen or unseen. With `privileged`, proprioception goes on with the poses of the task's objects, see `world.object_poses`.

        Raises `SimError` for options that do not exist, and where the interpreter or the machine lacks what they need.
        """
        check_cameras(cameras)
        if control not in CONTROLS:
            raise SimError(f"RoboTwin has no control {control!r}; choose one of: {', '.join(CONTROLS)}")
        if waypoint_stride < 1:
            raise SimError(f"RoboTwin's waypoint_stride must be at least 1, not {waypoint_stride}")
        if instructions not in ("seen", "unseen"):
            raise SimError(f"RoboTwin's instructions are seen or unseen, not {instructions!r}")
        chosen = choose_profile(profile, shader, planner)
        self.settings = Settings(chosen, task_config, instructions, frame_size(image_size), privileged)
        self.proprio_dim = PRIVILEGED_DIM if privileged else ACTION_DIM
        self._control, self._waypoint_stride = control, waypoint_stride
        self._worlds: list[World | None] = [None] * num_slots

    # -- the Backend protocol ----------------------------------------------------------------------------------------
    def reset(self, slot: int, spec: EpisodeSpec) -> None:
        """Raises `SimError` for a suite, task or initial state that does not exist, and for missing files, at once."""
        task = find_task(spec.suite, spec.task_id)
        check_files(task, self.settings.profile)
        seed = spec.seed if spec.init_state_id is None else find_seed(task, self.settings.profile, spec.init_state_id)
        if not 0 <= seed < 2**32:
            raise SimError(f"a seed must lie between 0 and {2**32 - 1}, not at {seed}")
        world = self._build(task, spec, seed)
        self.vacate(slot)
        self._worlds[slot] = world

    def max_steps(self, slot: int) -> int:
        return math.ceil(self.world(slot).task.max_steps / self._waypoint_stride)

    def step(self, slot: int, action: Float32[np.ndarray, "14"]) -> StepResult:
        """A chunk of one action."""
        return next(iter(self.step_chunk(slot, action[None])))

    def step_chunk(self, slot: int, actions: Float32[np.ndarray, "A 14"]) -> Iterator[StepResult]:
        """Outcomes of the actions that ran: reward 1 and the end of the task at success, as RoboTwin judges it."""
        world = self.world(slot)
        if self._control == "chunk":
            executed = world.run_chunk(actions)
            yield from [_outcome(False)] * (executed - 1)
            yield _outcome(world.success)
            return
        for action in actions:
            world.run_action(action)
            yield _outcome(world.success)
            if world.success:
                return

    def proprio(self, slot: int) -> Float32[np.ndarray, "P"]:
        return self.world(slot).proprio()

    def instruction(self, slot: int) -> str:
        return self.world(slot).instruction

    def render(self, slot: int, camera: str, out: UInt8[np.ndarray, "H W 3"]) -> None:
        """Upright; 240 x 320 is RoboTwin's own picture, another size the same view squeezed or stretched into it."""
        out[:] = self.world(slot).render(camera)

    def save_state(self, slot: int) -> bytes:
        """Seed and actions; see the class."""
        world = self.world(slot)
        chunks = [[len(chunk), np.ascontiguousarray(chunk, "<f4").tobytes()] for chunk in world.chunks]
        return msgpack.packb({**self._header(), "spec": world.spec.to_dict(), "seed": world.seed, "chunks": chunks})

    def load_state(self, slot: int, state: bytes) -> None:
        """Run the episode again up to its saved state. Raises `SimError` for bytes that are no state of these settings."""
        try:
            record = msgpack.unpackb(state)
            spec, seed = EpisodeSpec.from_dict(record["spec"]), int(record["seed"])
            chunks = [np.frombuffer(data, "<f4").reshape(length, 14) for length, data in record["chunks"]]
            header = {name: record[name] for name in self._header()}
        except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise SimError(f"these bytes are not a state saved by this version of the RoboTwin simulator ({error})") from error
        if header != self._header():
            raise SimError(f"this state was saved with {header}, and this simulator has {self._header()}")
        task = find_task(spec.suite, spec.task_id)
        check_files(task, self.settings.profile)
        world = self._build(task, spec, seed)
        for chunk in chunks:
            world.run_chunk(chunk) if self._control == "chunk" else world.run_action(chunk[0])
        self.vacate(slot)
        self._worlds[slot] = world

    def vacate(self, slot: int) -> None:
        """Forget the slot's episode and free its scene."""
        world, self._worlds[slot] = self._worlds[slot], None
        if world is not None:
            world.close()
            del world
            gc.collect()  # tasks, scenes and robots hold each other

    def close(self) -> None:
        for slot in range(len(self._worlds)):
            self.vacate(slot)

    # -- for scripted experts and analysis ---------------------------------------------------------------------------
    def world(self, slot: int) -> World:
        world = self._worlds[slot]
        if world is None:
            raise SimError(f"environment slot {slot} holds no episode; reset it first")
        return world

    def _build(self, task: RoboTwinTask, spec: EpisodeSpec, seed: int) -> World:
        return World(task, spec, seed, self.settings)

    def _header(self) -> dict[str, object]:
        return {
            "format": _STATE_FORMAT,
            "control": self._control,
            "profile": self.settings.profile.name,
            "task_config": self.settings.task_config,
            "instructions": self.settings.instructions,
        }


def _outcome(success: bool) -> StepResult:
    return StepResult(reward=float(success), success=success, terminated=success)
