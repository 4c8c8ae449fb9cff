"""Offscreen frames: one OpenGL context per process, one set of uploaded meshes and textures per scene."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import math
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float64, UInt8

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.engine import choose_platform, mujoco, rendering_failure
from vla_rl.sim.libero.scene import Scene
from vla_rl.sim.libero.stage import Stage

MAX_GEOMS = 1000
"""As robosuite's renderer has it."""


class Frames(Protocol):
    """Draws one model."""

    def draw(self, data: mujoco.MjData, camera_id: int, context: mujoco.MjrContext, out: UInt8[np.ndarray, "H W 3"]) -> None:
        """Draw the present poses of `data` into `out`, C-contiguous, on the buffer of `context`."""
        ...


@contextlib.contextmanager
def _current(context: Any) -> Iterator[None]:
    """Draw in this OpenGL context, then give the thread back to whose it was: robosuite never makes its own current again."""
    egl = sys.modules.get("mujoco.egl")
    before = egl.EGL.eglGetCurrentContext() if egl else None
    context.make_current()
    try:
        yield
    finally:
        if egl and before and egl.EGL.eglGetCurrentContext().address != before.address:
            egl.EGL.eglMakeCurrent(egl.EGL_DISPLAY, egl.EGL.EGL_NO_SURFACE, egl.EGL.EGL_NO_SURFACE, before)


class ExactFrames:
    """Frames as LIBERO's own observations have them, pixel for pixel."""

    def __init__(self, model: mujoco.MjModel, options: mujoco.MjvOption) -> None:
        self._model, self._options = model, options
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturbation = mujoco.MjvPerturb()

    def draw(self, data: mujoco.MjData, camera_id: int, context: mujoco.MjrContext, out: UInt8[np.ndarray, "H W 3"]) -> None:
        self._camera.fixedcamid = camera_id
        category, scene = mujoco.mjtCatBit.mjCAT_ALL, self._scene
        mujoco.mjv_updateScene(self._model, data, self._options, self._perturbation, self._camera, category, scene)
        viewport = mujoco.MjrRect(0, 0, out.shape[1], out.shape[0])
        mujoco.mjr_render(viewport, scene, context)
        mujoco.mjr_readPixels(out, None, viewport, context)


class _StageGraphics:
    """What OpenGL holds of one compiled scene."""

    def __init__(self, model: mujoco.MjModel, render_quality: str, samples: int, size: int) -> None:
        options = mujoco.MjvOption()
        options.geomgroup[0] = 0  # collision shapes
        self.size = size
        if render_quality == "fast":
            from vla_rl.sim.libero.fast_frames import FastFrames

            scale, msaa = math.isqrt(samples), 0
            self.frames: Frames = FastFrames(model, options, scale, MAX_GEOMS)
        else:
            scale, msaa = 1, samples if samples > 1 else 0
            self.frames = ExactFrames(model, options)
        model.vis.global_.offwidth = model.vis.global_.offheight = size * scale
        model.vis.quality.offsamples = msaa
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        if self.context.offSamples != msaa:
            offered = self.context.offSamples
            self.context.free()
            raise SimError(f"OpenGL offers {max(1, offered)} samples a pixel here, not antialiasing={samples}; set that")


class Renderer:
    """Draws scenes the way up that LIBERO's own observations have (robosuite's "opengl": the first row is the lowest).

    At most `max_stages` scenes stay in OpenGL's memory; the one that was not drawn for longest goes first.
    """

    def __init__(self, render_quality: str, samples: int, max_stages: int) -> None:
        self._render_quality, self._samples, self._max_stages = render_quality, samples, max_stages
        self._graphics: OrderedDict[Stage, _StageGraphics] = OrderedDict()
        platform = choose_platform()
        try:
            self._gl: Any = importlib.import_module(f"mujoco.{platform}").GLContext(64, 64)
        except Exception as error:
            raise rendering_failure(error) from error
        self.close = weakref.finalize(self, _free, self._gl, self._graphics)
        # Freed after the platform has shut its display down, contexts print errors. That is registered by now, and exit
        # handlers run in reverse; finalizers would run at the turn of the process's first one, which may be too late.
        self.close.atexit = False
        atexit.register(self.close)

    def render(self, scene: Scene, qpos: Float64[np.ndarray, "nq"], camera: str, out: UInt8[np.ndarray, "H W 3"]) -> None:
        """Draw the scene with its joints at `qpos` into `out`. The scene's state is left as it was.

        Raises `SimError` for a camera that the scene does not have.
        """
        camera_id, model, data = scene.camera_id(camera), scene.model, scene.data
        now = data.qpos.copy()
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        data.qpos[:] = now
        picture = out if out.flags.c_contiguous else np.empty(out.shape, np.uint8)
        with _current(self._gl):
            graphics = self._upload(scene.stage, max(out.shape[:2]))
            # Before every frame: another scene's buffer may be bound, and MuJoCo would draw into that one.
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, graphics.context)
            graphics.frames.draw(data, camera_id, graphics.context, picture)
        if picture is not out:
            out[:] = picture

    def _upload(self, stage: Stage, size: int) -> _StageGraphics:
        graphics = self._graphics.get(stage)
        if graphics is not None and graphics.size < size:
            self.forget(stage)
            graphics = None
        if graphics is None:
            while len(self._graphics) >= self._max_stages:
                self.forget(next(iter(self._graphics)))
            graphics = self._graphics[stage] = _StageGraphics(stage.model, self._render_quality, self._samples, size)
        self._graphics.move_to_end(stage)
        return graphics

    def forget(self, stage: Stage) -> None:
        """Free what OpenGL holds of a compiled scene."""
        if stage in self._graphics:
            with _current(self._gl):
                self._graphics.pop(stage).context.free()


def _free(context: Any, graphics: OrderedDict[Stage, _StageGraphics]) -> None:
    # Where another library has shut the display down already, everything on it is gone, and each call would complain.
    with contextlib.suppress(Exception), _current(context):
        for held in graphics.values():
            held.context.free()
        graphics.clear()
    with contextlib.suppress(Exception):
        context.free()
