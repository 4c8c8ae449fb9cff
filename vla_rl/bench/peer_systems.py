"""What our simulator replaces, driven as its own documents say: LIBERO's vector environment, RLinf's, robosuite's loop.

Legend: B environments, A actions of a chunk, D action size.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import multiprocessing
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.bench.sim_settings import ACTION_DIM, SimSettings
from vla_rl.sim.base import SimError

INSTALL_RLINF = (
    "pip install --no-deps --target FOLDER rlinf==0.3.0 omegaconf 'antlr4-python3-runtime==4.9.*' gym gym_notices regex, "
    "then run this again with PYTHONPATH=FOLDER"
)
_SETTLING_STEPS = 10
_NO_OP = np.array([0.0] * (ACTION_DIM - 1) + [-1.0])


class LiberoVectorSystem:
    """`libero.libero.envs.venv.SubprocVectorEnv` of `OffScreenRenderEnv`: a process an environment, a frame a step."""

    def __init__(self, settings: SimSettings) -> None:
        from vla_rl.sim.libero.engine import choose_platform
        from vla_rl.sim.libero.tasks import find_task

        choose_platform()
        # As LIBERO's own scripts: an OpenGL display does not survive a fork.
        multiprocessing.set_start_method("spawn", force=True)
        venv: Any = importlib.import_module("libero.libero.envs.venv")
        task = find_task(settings.suite, settings.task_id)
        self._states = [task.initial_state(spec.init_state_id or 0) for spec in settings.specs()]
        arguments = {
            "bddl_file_name": str(task.bddl_path),
            "camera_names": list(settings.cameras),
            "camera_heights": settings.image_size,
            "camera_widths": settings.image_size,
            "ignore_done": True,
        }
        self._env = venv.SubprocVectorEnv([_OffScreen(arguments)] * settings.num_envs)
        self._env.seed(0)
        self._env.reset()

    def restart(self) -> None:
        # Without settling: ten control steps of all environments would take longer than a repeat.
        self._env.set_init_state(self._states)

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        for step in range(actions.shape[1]):
            self._env.step(actions[:, step])
        return actions.shape[0] * actions.shape[1]

    def reset_times(self) -> dict[str, list[float]]:
        def reset() -> None:
            self._env.reset(id=[0])
            self._env.set_init_state(self._states[:1], id=[0])

        def settle() -> None:
            for _ in range(_SETTLING_STEPS):
                self._env.step(_NO_OP[None], id=[0])

        return _time_resets(reset, settle)

    def parts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._env.close()


def _time_resets(reset: Callable[[], None], settle: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds until two resets are done, before and after settling."""
    times: dict[str, list[float]] = {"settled": [], "unsettled": []}
    for _ in range(2):
        begin = time.perf_counter()
        reset()
        times["unsettled"].append(time.perf_counter() - begin)
        settle()
        times["settled"].append(time.perf_counter() - begin)
    return times


class _OffScreen:
    """Makes LIBERO's environment in a worker process."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments

    def __call__(self) -> Any:
        from libero.libero.envs import OffScreenRenderEnv

        return OffScreenRenderEnv(**self._arguments)


class RobosuiteSystem:
    """LIBERO's own environment without cameras and renderer: robosuite's stepping loop on one core."""

    def __init__(self, settings: SimSettings) -> None:
        from vla_rl.sim.libero import engine  # noqa: F401 (before LIBERO, whose import has side effects)
        from vla_rl.sim.libero.tasks import find_task

        wrapper: Any = importlib.import_module("libero.libero.envs.env_wrapper")
        task = find_task(settings.suite, settings.task_id)
        self._state = task.initial_state(0)
        self._env = wrapper.ControlEnv(
            bddl_file_name=str(task.bddl_path), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True
        )
        self._env.seed(0)
        self._env.reset()

    def restart(self) -> None:
        self._env.set_init_state(self._state)
        self._settle()

    def _settle(self) -> None:
        for _ in range(_SETTLING_STEPS):
            self._env.step(_NO_OP)

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        for action in actions[0]:
            self._env.step(action.astype(np.float64))
        return actions.shape[1]

    def reset_times(self) -> dict[str, list[float]]:
        def reset() -> None:
            self._env.reset()
            self._env.set_init_state(self._state)

        return _time_resets(reset, self._settle)

    def parts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._env.close()


class RlinfSystem:
    """RLinf's `LiberoEnv` in this process, with its own worker processes, as a training run sets it."""

    def __init__(self, settings: SimSettings) -> None:
        from vla_rl.sim.libero.engine import choose_platform

        choose_platform()
        if not rlinf_is_there():
            raise SimError(f"RLinf is not installed: {INSTALL_RLINF}")
        if sorted(settings.cameras) != ["agentview", "robot0_eye_in_hand"]:
            raise SimError("RLinf always renders agentview and robot0_eye_in_hand")
        stand_in_for_ray()
        omegaconf: Any = importlib.import_module("omegaconf")
        libero_env: Any = importlib.import_module("rlinf.envs.libero.libero_env")
        self._env = libero_env.LiberoEnv(omegaconf.OmegaConf.create(_rlinf_config(settings)), settings.num_envs, 0, 1, None)
        self._env.is_start = False  # its first reset would draw other initial states than those asked for
        first = int(self._env.cumsum_trial_id_bins[settings.task_id - 1]) if settings.task_id else 0
        self._states = first + np.array([spec.init_state_id for spec in settings.specs()])
        self._is_new = True

    def restart(self) -> None:
        if self._is_new:
            self._env.reset(reset_state_ids=self._states)
            self._is_new = False

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        self._env.chunk_step(actions)
        return actions.shape[0] * actions.shape[1]

    def reset_times(self) -> dict[str, list[float]]:
        begin = time.perf_counter()
        self._env.reset(env_idx=np.array([0]), reset_state_ids=self._states[:1])
        return {"settled": [time.perf_counter() - begin]}

    def parts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._env.env.close()


def rlinf_is_there() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("rlinf", "omegaconf", "gym"))


def stand_in_for_ray() -> None:
    """Let RLinf's environments be imported without Ray: they use nothing of its scheduler but a logger."""
    if importlib.util.find_spec("ray") is not None:
        return
    for name in ("rlinf.scheduler", "rlinf.scheduler.worker", "rlinf.scheduler.worker.worker"):
        module: Any = types.ModuleType(name)
        module.Worker = type("Worker", (), {"logger": logging.getLogger("rlinf")})
        sys.modules.setdefault(name, module)


def _rlinf_config(settings: SimSettings) -> dict[str, Any]:
    """The keys that RLinf's own LIBERO training configurations set; an episode never ends while it is measured."""
    return {
        "seed": 0,
        "group_size": 1,
        "use_fixed_reset_state_ids": True,
        "use_ordered_reset_state_ids": False,
        "ignore_terminations": True,
        "auto_reset": False,
        "is_eval": False,
        "task_suite_name": settings.suite,
        "task_id_filter": [settings.task_id],
        "use_rel_reward": True,
        "reward_coef": 1.0,
        "reset_gripper_open": True,
        "max_episode_steps": 10**6,
        "video_cfg": {"save_video": False},
        "init_params": {
            "camera_heights": settings.image_size,
            "camera_widths": settings.image_size,
            "ignore_done": True,
        },
    }
