"""A small real simulator for the tests of the pool: a MuJoCo pendulum that must swing up, and the faults a simulator can have.

`EpisodeSpec.task_id` is the time limit in control steps. `EpisodeSpec.suite` names a fault and where it strikes, as in
"pendulum", "segfault in step 3", "hang in reset", "slow in reset" (2.5 s) or "raise in render"; `fault_file`, which grows by
a byte each time, limits it to `fault_times`. "end at step 3" is a failure that ends the task. No worker starts on one of
`broken_devices`, or only while `fault_file` does not exist.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path

import mujoco
import numpy as np

from vla_rl.sim.base import SimError, StepResult
from vla_rl.types import EpisodeSpec

_MODEL = """
<mujoco><option timestep="0.01" integrator="RK4"/><visual><quality shadowsize="0" offsamples="0"/></visual><worldbody>
  <light pos="0 -1 2" castshadow="false"/><camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
  <camera name="side" pos="3 0 0" xyaxes="0 1 0 0 0 1"/>
  <body><joint name="hinge" type="hinge" axis="0 1 0" damping="0.05"/>
    <geom type="capsule" fromto="0 0 0 0 0 -1" size="0.05" rgba="1 0.3 0.1 1"/></body>
</worldbody><actuator><motor joint="hinge" gear="40"/></actuator></mujoco>
"""
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_SUBSTEPS = 5
_UPRIGHT = -0.9


class PendulumBackend:
    """Action: torque in [-1, 1] of 40 Nm. Success: the tip is above 0.9 m. Reward 1 for the success, else -|action| / 10."""

    action_dim = 1
    proprio_dim = 2

    def __init__(
        self,
        *,
        num_slots: int,
        cameras: tuple[str, ...],
        image_size: int,
        fault_file: str | None = None,
        fault_times: int = 1,
        broken_devices: tuple[str, ...] = (),
    ) -> None:
        device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
        if device in broken_devices and (fault_file is None or Path(fault_file).exists()):
            raise SimError(f"device {device} is broken")
        self._model = mujoco.MjModel.from_xml_string(_MODEL)
        for camera in cameras:
            if mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera) < 0:
                raise SimError(f"there is no camera {camera!r}; choose front or side")
        self._data = [mujoco.MjData(self._model) for _ in range(num_slots)]
        self._specs: list[EpisodeSpec | None] = [None] * num_slots
        self._steps = [0] * num_slots
        os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)  # the numbers of the tests' devices are made up
        self._renderer = mujoco.Renderer(self._model, image_size, image_size)
        self._fault_file, self._fault_times = fault_file, fault_times

    def reset(self, slot: int, spec: EpisodeSpec) -> None:
        if spec.task_id < 1:
            raise SimError(f"a pendulum's time limit must be at least 1 step,\nnot {spec.task_id}")
        self._specs[slot], self._steps[slot] = spec, 0
        self._strike(slot, "reset")
        mujoco.mj_resetData(self._model, self._data[slot])
        generator = np.random.default_rng(spec.seed)
        self._data[slot].qpos[0] = generator.uniform(-0.5, 0.5) if spec.init_state_id is None else 0.1 * spec.init_state_id
        mujoco.mj_forward(self._model, self._data[slot])

    def max_steps(self, slot: int) -> int:
        return self._spec(slot).task_id

    def step(self, slot: int, action: np.ndarray) -> StepResult:
        self._steps[slot] += 1
        self._strike(slot, f"step {self._steps[slot]}")
        if self._spec(slot).suite == f"end at step {self._steps[slot]}":
            return StepResult(0.0, success=False, terminated=True)
        data = self._data[slot]
        data.ctrl[:] = action
        mujoco.mj_step(self._model, data, nstep=_SUBSTEPS)
        success = bool(np.cos(data.qpos[0]) < _UPRIGHT)
        return StepResult(1.0 if success else -abs(float(action[0])) / 10, success, success)

    def proprio(self, slot: int) -> np.ndarray:
        return np.array([self._data[slot].qpos[0], self._data[slot].qvel[0]], np.float32)

    def instruction(self, slot: int) -> str:
        return f"swing up within {self._spec(slot).task_id} steps"

    def render(self, slot: int, camera: str, out: np.ndarray) -> None:
        self._strike(slot, "render")
        self._renderer.update_scene(self._data[slot], camera)
        self._renderer.render(out=out)

    def save_state(self, slot: int) -> bytes:
        state = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data[slot], state, _STATE)
        spec = self._spec(slot)
        suite = spec.suite.encode()
        return struct.pack("<qqqq", spec.task_id, spec.seed, self._steps[slot], len(suite)) + suite + state.tobytes()

    def load_state(self, slot: int, state: bytes) -> None:
        task_id, seed, steps, length = struct.unpack_from("<qqqq", state)
        suite, numbers = state[32 : 32 + length].decode(), np.frombuffer(state[32 + length :])
        if len(numbers) != mujoco.mj_stateSize(self._model, _STATE):
            raise SimError("this is not the state of a pendulum")
        self._specs[slot], self._steps[slot] = EpisodeSpec(suite, task_id, None, seed), steps
        self._strike(slot, "load")
        mujoco.mj_setState(self._model, self._data[slot], numbers, _STATE)
        mujoco.mj_forward(self._model, self._data[slot])

    def vacate(self, slot: int) -> None:
        self._specs[slot] = None

    def close(self) -> None:
        self._renderer.close()

    def _spec(self, slot: int) -> EpisodeSpec:
        spec = self._specs[slot]
        assert spec is not None
        return spec

    def _strike(self, slot: int, place: str) -> None:
        """Let the fault that the suite names happen, if this is its place."""
        fault, _, where = self._spec(slot).suite.partition(" in ")
        if where != place:
            return
        if self._fault_file is not None:
            with Path(self._fault_file).open("ab") as struck:
                if struck.tell() >= self._fault_times:
                    return
                struck.write(b".")
        if fault == "raise":
            raise ValueError(f"the pendulum broke in {place}")
        if fault == "exit":
            os.write(2, b"the pendulum says goodbye\n")
            os._exit(7)
        if fault == "hang":
            time.sleep(3600)
        if fault == "slow":
            time.sleep(2.5)
        else:
            os.kill(os.getpid(), {"segfault": signal.SIGSEGV, "kill": signal.SIGKILL}[fault])
