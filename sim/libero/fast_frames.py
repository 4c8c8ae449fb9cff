"""Frames of one model at a fraction of the cost: only what the camera sees, only as fine as it shows, and once if it rests.

Legend: G geoms, L levels of detail, P planes of a view frustum, H x W image size.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from vla_rl.sim.libero.detail import faces_wanted, level_table

_BACKGROUND_BYTES = 2**26
"""Memory for backgrounds of one model, in which every placement of the furniture has its own."""
_DEFAULT_COLOUR = np.array([0.5, 0.5, 0.5, 1.0], dtype=np.float32)
"""Of a geom without a colour of its own, which shows its material's."""
_ALL, _STATIC, _MOVING = (
    mujoco.mjtCatBit.mjCAT_ALL,
    mujoco.mjtCatBit.mjCAT_STATIC,
    mujoco.mjtCatBit.mjCAT_DYNAMIC | mujoco.mjtCatBit.mjCAT_DECOR,
)


@dataclass(frozen=True)
class View:
    """Where a camera is and what it takes in."""

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    """Columns: right, up, backwards."""
    tangent: tuple[float, float]
    """Of half the field of view, across and up."""
    pixels_per_radian: float
    """At the centre of the picture, in pixels of the finished frame."""

    @staticmethod
    def of(model: mujoco.MjModel, data: mujoco.MjData, camera_id: int, height: int, width: int) -> View:
        up = math.tan(math.radians(float(model.cam_fovy[camera_id])) / 2)
        rotation = data.cam_xmat[camera_id].reshape(3, 3).copy()
        return View(data.cam_xpos[camera_id].copy(), rotation, (up * width / height, up), height / 2 / up)

    def planes(self) -> Float[np.ndarray, "P 3"]:
        """Normals, pointing outwards, of the planes through the camera that bound what it sees."""
        across, up = self.tangent
        normals = np.array([[1, 0, across], [-1, 0, across], [0, 1, up], [0, -1, up], [0, 0, 1]], dtype=np.float64)
        return normals @ self.rotation.T


class _Selection:
    """Chooses, for a camera, which geoms to draw and at which level of detail."""

    def __init__(self, model: mujoco.MjModel, hidden_group: int | None) -> None:
        self._model, self._hidden_group = model, hidden_group
        self._centre, self._half = model.geom_aabb[:, :3].copy(), model.geom_aabb[:, 3:].copy()
        self._endless = model.geom_rbound <= 0  # planes
        self._table = level_table(model)
        self.geoms = np.array(list(self._table), dtype=np.int64)
        self._area = np.array([levels.area for levels in self._table.values()])
        self._originals = np.array([levels.original for levels in self._table.values()], dtype=np.int64)

    def visible(self, data: mujoco.MjData, view: View) -> Bool[np.ndarray, "G"]:
        """Geoms whose bounding box is not wholly on the outer side of one of the frustum's planes."""
        rotation = data.geom_xmat.reshape(-1, 3, 3)
        centre = data.geom_xpos + np.einsum("gij,gj->gi", rotation, self._centre) - view.position
        planes = view.planes()
        nearest = centre @ planes.T - np.einsum("gpi,gi->gp", np.abs(planes @ rotation), self._half)
        return (nearest < 0).all(axis=1) | self._endless

    def levels(self, data: mujoco.MjData, view: View, image_size: int) -> Int[np.ndarray, "N"]:
        """Mesh ids for `self.geoms`: the coarsest level with as many faces as the geom's distance asks for.

        The distance is that of the bounding box, or half that of its centre: a level spends its faces on the whole of a
        thing that reaches up to the camera.
        """
        geoms = self.geoms
        rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
        local = np.einsum("gij,gi->gj", rotation, view.position - data.geom_xpos[geoms]) - self._centre[geoms]
        box = np.linalg.norm(np.maximum(np.abs(local) - self._half[geoms], 0), axis=1)
        distance = np.maximum(np.maximum(box, np.linalg.norm(local, axis=1) / 2), 0.01)
        wanted = faces_wanted(self._area, view.pixels_per_radian / distance, image_size)
        chosen = [levels.suited(faces) for levels, faces in zip(self._table.values(), wanted.tolist(), strict=True)]
        return np.array(chosen, dtype=np.int64)

    @contextlib.contextmanager
    def applied(self, data: mujoco.MjData, view: View, image_size: int, in_full: bool) -> Iterator[None]:
        """For the duration, the model shows only what `view` needs, meshes as they were before reduction if `in_full`.

        In full is for things at rest: other originals are no longer there.
        """
        model = self._model
        groups, meshes = model.geom_group.copy(), model.geom_dataid.copy()
        try:
            if self._hidden_group is not None:
                model.geom_group[~self.visible(data, view)] = self._hidden_group
            model.geom_dataid[self.geoms] = self._originals if in_full else self.levels(data, view, image_size)
            yield
        finally:
            model.geom_group[:], model.geom_dataid[:] = groups, meshes


@dataclass(frozen=True)
class _Background:
    """What a resting camera sees of all that cannot move."""

    pixels: UInt8[np.ndarray, "H W 3"]
    depth: Float32[np.ndarray, "H W"]


class FastFrames:
    """Draws one model. Three things make it fast, and none of them changes what is where in the picture:

    - geoms outside the view are not sent to OpenGL, and visual meshes are drawn at the level that their distance asks for;
    - a camera that rests draws all that cannot move once; later frames draw what moves and put it in front by depth;
    - antialiasing is by supersampling, with textures blurred as far as MSAA at the final size would blur them.

    Reflections are drawn in backgrounds only: a frame with them costs twice, and a LIBERO stove shows little of what moves.
    """

    def __init__(self, model: mujoco.MjModel, options: mujoco.MjvOption, scale: int, max_geoms: int = 1000) -> None:
        """Frames are drawn `scale` times larger in each direction and averaged down."""
        self._model, self._options, self._scale = model, options, scale
        self._scene = mujoco.MjvScene(model, maxgeom=max_geoms)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturbation = mujoco.MjvPerturb()
        hidden = np.flatnonzero(np.asarray(options.geomgroup) == 0).tolist()
        self._selection = _Selection(model, hidden[0] if hidden else None)
        self._static_geoms = model.body_weldid[model.geom_bodyid] == 0
        self._static_sites = model.body_weldid[model.site_bodyid] == 0
        self._backgrounds: OrderedDict[bytes, _Background] = OrderedDict()

    def draw(self, data: mujoco.MjData, camera_id: int, context: mujoco.MjrContext, out: UInt8[np.ndarray, "H W 3"]) -> None:
        """Draw into `out` (first row lowest). Positions in `data` must be up to date (`mj_kinematics`, `mj_camlight`).

        `context` must be current, without MSAA, and its offscreen buffer at least `scale` times as large as `out`.
        """
        self._camera.fixedcamid = camera_id
        viewport = mujoco.MjrRect(0, 0, out.shape[1] * self._scale, out.shape[0] * self._scale)
        view = View.of(self._model, data, camera_id, out.shape[0], out.shape[1])
        rests = self._model.body_weldid[self._model.cam_bodyid[camera_id]] == 0
        apart = rests and self._separable()
        with _texture_blur(math.log2(self._scale)):
            background = self._background(data, view, viewport, context) if apart else None
            with self._selection.applied(data, view, out.shape[0], in_full=False):
                pixels, depth = self._render(data, _MOVING if apart else _ALL, viewport, context, depth=apart, whole=not apart)
        if background is not None:
            behind = depth >= background.depth
            cv2.copyTo(background.pixels, behind.view(np.uint8), pixels)
        _average(pixels, out)

    def _background(self, data: mujoco.MjData, view: View, viewport: mujoco.MjrRect, context: mujoco.MjrContext) -> _Background:
        """From memory, if nothing at rest has changed since."""
        key = self._background_key(data, self._camera.fixedcamid, viewport.height, viewport.width)
        if key not in self._backgrounds:
            while self._backgrounds and (len(self._backgrounds) + 1) * 7 * viewport.height * viewport.width > _BACKGROUND_BYTES:
                self._backgrounds.popitem(last=False)
            flags, reflection = self._scene.flags, mujoco.mjtRndFlag.mjRND_REFLECTION
            with self._selection.applied(data, view, viewport.height // self._scale, in_full=True):
                flags[reflection] = True
                self._backgrounds[key] = _Background(*self._render(data, _STATIC, viewport, context, depth=True, whole=True))
                flags[reflection] = False
        self._backgrounds.move_to_end(key)
        return self._backgrounds[key]

    def _render(
        self,
        data: mujoco.MjData,
        category: int,
        viewport: mujoco.MjrRect,
        context: mujoco.MjrContext,
        depth: bool,
        whole: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and their depths; the depths mean nothing unless `depth` asked for them."""
        scene = self._scene
        mujoco.mjv_updateScene(self._model, data, self._options, self._perturbation, self._camera, category, scene)
        scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = whole
        mujoco.mjr_render(viewport, scene, context)
        pixels = np.empty((viewport.height, viewport.width, 3), dtype=np.uint8)
        distances = np.empty((viewport.height, viewport.width), dtype=np.float32)
        mujoco.mjr_readPixels(pixels, distances if depth else None, viewport, context)
        return pixels, distances

    def _separable(self) -> bool:
        """Whether what moves may be drawn by itself: nothing casts shadows, and nothing that moves lets light through."""
        model, options = self._model, self._options
        plain = (model.geom_rgba == _DEFAULT_COLOUR).all(axis=1) & (model.geom_matid >= 0)
        alpha = np.where(plain, model.mat_rgba[model.geom_matid, 3] if model.nmat else 1.0, model.geom_rgba[:, 3])
        shown = np.asarray(options.geomgroup, dtype=bool)[model.geom_group]
        sheer = ((alpha > 0) & (alpha < 1) & shown & ~self._static_geoms).any()
        site_alpha = model.site_rgba[:, 3]
        shown = np.asarray(options.sitegroup, dtype=bool)[model.site_group]
        sheer |= ((site_alpha > 0) & (site_alpha < 1) & shown & ~self._static_sites).any()
        return not (sheer or model.light_castshadow.any())

    def _background_key(self, data: mujoco.MjData, camera_id: int, height: int, width: int) -> bytes:
        model, geoms, sites = self._model, self._static_geoms, self._static_sites
        parts = (
            data.cam_xpos[camera_id],
            data.cam_xmat[camera_id],
            model.cam_fovy[camera_id],
            np.array([camera_id, height, width]),
            data.geom_xpos[geoms],
            data.geom_xmat[geoms],
            model.geom_rgba[geoms],
            model.geom_matid[geoms],
            data.site_xpos[sites],
            model.site_rgba[sites],
            data.light_xpos,
            data.light_xdir,
            model.mat_rgba,
        )
        return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def _average(pixels: np.ndarray, out: np.ndarray) -> None:
    """Shrink to the size of `out`, each pixel the mean of those that it covers."""
    if pixels.shape == out.shape:
        out[:] = pixels
    else:
        cv2.resize(pixels, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def _texture_blur(bias: float) -> Iterator[None]:
    from OpenGL import GL

    GL.glTexEnvf(GL.GL_TEXTURE_FILTER_CONTROL, GL.GL_TEXTURE_LOD_BIAS, bias)
    try:
        yield
    finally:
        GL.glTexEnvf(GL.GL_TEXTURE_FILTER_CONTROL, GL.GL_TEXTURE_LOD_BIAS, 0.0)
