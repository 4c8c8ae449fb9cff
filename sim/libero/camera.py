"""Offscreen frames: one OpenGL context per process, one set of uploaded meshes and textures per scene."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from vla_rl.sim.libero.engine import choose_platform, mujoco, rendering_failure
from vla_rl.sim.libero.scene import Scene
from vla_rl.sim.libero.stage import Stage

MAX_GEOMS = 1000
"""As robosuite's renderer has it."""


@dataclass(frozen=True)
class Sampling:
    """How a frame is antialiased: rendered `scale` times larger with `msaa` samples a pixel, then averaged down."""

    scale: int
    msaa: int


SAMPLING = {"exact": Sampling(scale=1, msaa=4), "fast": Sampling(scale=2, msaa=0)}
"""By render quality. LIBERO has 4 samples a pixel; so has "fast", at well under the cost of MSAA on software OpenGL."""


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


class _StageGraphics:
    """What OpenGL holds of one compiled scene."""

    def __init__(self, model: mujoco.MjModel, size: int, samples: int) -> None:
        self.size = size
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = samples
        self.geometry = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)

    def free(self) -> None:
        self.context.free()


class Renderer:
    """Draws scenes as LIBERO's own observations show them (robosuite's convention "opengl": the first row is the lowest).

    At most `max_stages` scenes stay in OpenGL's memory; the one that was not drawn for longest goes first.
    """

    def __init__(self, sampling: Sampling, max_stages: int) -> None:
        self._scale, self._samples, self._max_stages = sampling.scale, sampling.msaa, max_stages
        self._graphics: OrderedDict[Stage, _StageGraphics] = OrderedDict()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._perturbation = mujoco.MjvPerturb()
        self._pixels = np.zeros((0, 0, 3), dtype=np.uint8)
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
        self._camera.fixedcamid = scene.camera_id(camera)
        with _current(self._gl):
            self._draw(scene, qpos, out)

    def _draw(self, scene: Scene, qpos: Float64[np.ndarray, "nq"], out: UInt8[np.ndarray, "H W 3"]) -> None:
        height, width = out.shape[0] * self._scale, out.shape[1] * self._scale
        graphics = self._upload(scene.stage, max(height, width))
        model, data = scene.model, scene.data
        now = data.qpos.copy()
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        data.qpos[:] = now
        category = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, self._perturbation, self._camera, category, graphics.geometry)
        viewport = mujoco.MjrRect(0, 0, width, height)
        # Before every frame: another scene's buffer may be bound, and MuJoCo would draw into that one.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, graphics.context)
        mujoco.mjr_render(viewport, graphics.geometry, graphics.context)
        self._read(viewport, graphics.context, out)

    def _read(self, viewport: mujoco.MjrRect, context: mujoco.MjrContext, out: UInt8[np.ndarray, "H W 3"]) -> None:
        if self._scale == 1 and out.flags.c_contiguous:
            mujoco.mjr_readPixels(out, None, viewport, context)
            return
        if self._pixels.shape[:2] != (viewport.height, viewport.width):
            self._pixels = np.empty((viewport.height, viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(self._pixels, None, viewport, context)
        area = self._scale**2
        blocks = self._pixels.reshape(out.shape[0], self._scale, out.shape[1], self._scale, 3)
        out[:] = (blocks.sum(axis=(1, 3), dtype=np.uint16) + area // 2) // area

    def _upload(self, stage: Stage, size: int) -> _StageGraphics:
        graphics = self._graphics.get(stage)
        if graphics is not None and graphics.size < size:
            self.forget(stage)
            graphics = None
        if graphics is None:
            while len(self._graphics) >= self._max_stages:
                self.forget(next(iter(self._graphics)))
            graphics = self._graphics[stage] = _StageGraphics(stage.model, size, self._samples)
        self._graphics.move_to_end(stage)
        return graphics

    def forget(self, stage: Stage) -> None:
        """Free what OpenGL holds of a compiled scene."""
        if stage in self._graphics:
            with _current(self._gl):
                self._graphics.pop(stage).free()


def _free(context: Any, graphics: OrderedDict[Stage, _StageGraphics]) -> None:
    # Where another library has shut the display down already, everything on it is gone, and each call would complain.
    with contextlib.suppress(Exception), _current(context):
        for held in graphics.values():
            held.free()
        graphics.clear()
    with contextlib.suppress(Exception):
        context.free()
