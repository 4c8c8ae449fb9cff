"""LIBERO's own environment under the protocol of published evaluations: what our simulator must equal.

Legend: H x W image size, nq coordinates.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.engine import MjSim
from vla_rl.sim.libero.stage import compile_model
from vla_rl.sim.libero.tasks import LiberoTask

SETTLING_STEPS = 10
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


class PublishedEnv:
    """`OffScreenRenderEnv`: `seed(0)`, `reset`, `set_init_state`, ten no-ops, actions; robosuite's own stepping loop.

    Its model is compiled with linear textures, as ours, so that pictures can be equal; nothing else is touched. Frames
    are drawn where `look` asks for them alone: they take most of the time, and the rest does not depend on them.
    """

    def __init__(self, task: LiberoTask, image_size: int, cameras: Sequence[str]) -> None:
        wrapper: Any = importlib.import_module("libero.libero.envs.env_wrapper")
        self._task, self._size, self._looks = task, image_size, False
        with self._linear_textures():
            self._env = wrapper.OffScreenRenderEnv(
                bddl_file_name=str(task.bddl_path),
                camera_names=list(cameras),
                camera_heights=image_size,
                camera_widths=image_size,
                ignore_done=True,
            )

    def start(self, init_state_id: int, look: bool = False) -> dict[str, Any]:
        """Begin an episode in a shipped initial state; returns LIBERO's observation after settling.

        Raises `SimError` for an initial state that does not exist.
        """
        state = self._task.initial_state(init_state_id)
        with self._linear_textures():
            self._env.seed(0)
            self._env.reset()
        self._gate_rendering()
        self._env.set_init_state(state)
        for _ in range(SETTLING_STEPS - 1):
            self.step(NO_OP)
        return self.step(NO_OP, look)[0]

    def step(self, action: np.ndarray, look: bool = False) -> tuple[dict[str, Any], bool]:
        """One control step; returns LIBERO's observation, whose frames are black unless `look`, and whether the goal holds."""
        self._looks = look
        observation, _, success, _ = self._env.step(np.asarray(action, dtype=np.float64))
        return observation, bool(success)

    @property
    def qpos(self) -> Float64[np.ndarray, "nq"]:
        """A copy of the joints' present coordinates."""
        return np.array(self._env.sim.data.qpos)

    def close(self) -> None:
        self._env.close()

    def _linear_textures(self) -> Any:
        def compile_linear(cls: type, xml: str) -> MjSim:
            return cls(compile_model(xml, "exact", self._size))

        return mock.patch.object(MjSim, "from_xml_string", classmethod(compile_linear))

    def _gate_rendering(self) -> None:
        simulation = self._env.sim
        draw, black = simulation.render, np.zeros((self._size, self._size, 3), np.uint8)

        def render(*args: Any, **kwargs: Any) -> Any:
            return draw(*args, **kwargs) if self._looks else black

        simulation.render = render
