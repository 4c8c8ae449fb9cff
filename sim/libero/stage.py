"""Compiled scenes: LIBERO's XML made into a MuJoCo model, once for all tasks that share it.

The ten tasks of libero_spatial differ in their goals alone, and so do those of libero_goal; libero_90 has 20 scenes.
"""

from __future__ import annotations

import hashlib
import weakref
from typing import Protocol

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero import textures
from vla_rl.sim.libero.engine import MjSim, mujoco

STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def compile_model(xml: str, render_quality: str, image_size: int) -> mujoco.MjModel:
    """Compile a scene, with every texture in linear colour space.

    MuJoCo above 3.3.2 reads the colour space from the texture's file, which darkens LIBERO's scenes; policies were
    trained on the older look. "fast" also thins out what frames of `image_size` pixels cannot show: faces of meshes that
    collide with nothing, and texels. Physics is the same, bit for bit, in both qualities.
    """
    spec = mujoco.MjSpec.from_string(xml)
    textures.linearize(spec)
    model = spec.compile()
    if render_quality == "fast":
        from vla_rl.sim.libero import detail  # its libraries take half a second to import

        textures.shrink_textures(spec, model, image_size)
        model = detail.reduce_visual_meshes(spec, model, image_size)
    return model


class Actor(Protocol):
    """Whoever's state is in a stage's data."""

    integration: Float64[np.ndarray, "K"]


class Stage:
    """A compiled model and its one MjData, on which the episodes of all tasks with this scene take turns.

    What moves from one episode to the next is some kilobytes of state, so a worker needs no MjData for each slot.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.sim = MjSim(model)
        self.model, self.data = model, self.sim.data._data
        self.state_size = mujoco.mj_stateSize(model, STATE)
        self._active: Actor | None = None
        self._places = model.body_pos.copy(), model.body_quat.copy()
        self.compiled_site_alpha: Float64[np.ndarray, "nsite"] = model.site_rgba[:, 3].astype(np.float64)

    def pull(self, actor: Actor) -> None:
        """Bring `actor.integration` up to date."""
        if self._active is actor:
            mujoco.mj_getState(self.model, self.data, actor.integration, STATE)

    def clear(self) -> None:
        """Save the active actor's state, and put the data and the bodies' places back as they were when compiled."""
        if self._active is not None:
            self.pull(self._active)
        self._active = None
        mujoco.mj_resetData(self.model, self.data)
        self.model.body_pos[:], self.model.body_quat[:] = self._places

    def is_active(self, actor: Actor) -> bool:
        return self._active is actor

    def give_to(self, actor: Actor) -> None:
        """From now on the data is `actor`'s. Call `clear` first, then write its state."""
        self._active = actor


class Stages:
    """The stages of a worker, by content; each lives as long as somebody uses it."""

    def __init__(self, render_quality: str, image_size: int) -> None:
        self._render_quality, self._image_size = render_quality, image_size
        self._stages: weakref.WeakValueDictionary[bytes, Stage] = weakref.WeakValueDictionary()

    def find(self, xml: str) -> Stage:
        """The stage of a scene, compiled if it is not there, and cleared."""
        key = hashlib.sha256(xml.encode()).digest()
        stage = self._stages.get(key)
        if stage is None:
            stage = self._stages[key] = Stage(compile_model(xml, self._render_quality, self._image_size))
        stage.clear()
        return stage
