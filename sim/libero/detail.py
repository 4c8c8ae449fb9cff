"""Level of detail: visual meshes with no more faces than an image of the wanted size can show.

LIBERO's scenes carry about 300,000 visual faces for pictures of 128 x 128 pixels, and on software OpenGL the time of a
frame follows the faces. Decimated copies are added to the model beside the original meshes, and visual geoms are pointed
to them, so that everything that physics reads (collision meshes, inertia, frames) stays as it was, bit for bit.

Legend: G geoms, F faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import fast_simplification
import mujoco
import numpy as np
from jaxtyping import Bool

from vla_rl.sim.libero.detail_cache import Arrays, cached, content_key
from vla_rl.sim.libero.detail_mesh import Mesh, decimate

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""The cameras that the face budget is made for, where a scene has them."""
FACES_PER_PIXEL = 0.25
"""Faces of a mesh for each pixel that its whole surface would cover, seen straight on from the nearest plausible place."""
MIN_FACES = 60
_FIXED_NEAREST = 0.7
"""Metres between a fixed camera and a thing that moves, at the least: LIBERO's cameras stand back from the table."""
_MOVING_NEAREST = 0.2
"""Metres between the hand's camera and a thing that is not part of the hand, at the least."""
_VERSION = 1
"""Part of the cache key: raise it whenever the same input gives another mesh."""


@dataclass(frozen=True)
class Sampling:
    """How a frame is antialiased: rendered `scale` times larger with `msaa` samples a pixel, then averaged down."""

    scale: int
    msaa: int


EXACT_SAMPLING = Sampling(scale=1, msaa=4)
"""What LIBERO ships with."""
FAST_SAMPLING = Sampling(scale=2, msaa=0)
"""Four samples a pixel as well, at well under the cost of MSAA on software OpenGL."""


def visual_mesh_geoms(model: mujoco.MjModel) -> Bool[np.ndarray, "G"]:
    """Which geoms are meshes that only show: they collide with nothing."""
    return (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_contype == 0) & (model.geom_conaffinity == 0)


def mesh_of(model: mujoco.MjModel, mesh_id: int) -> Mesh:
    """A mesh of a compiled model, in the frame that the compiled model keeps it in."""
    faces = slice(model.mesh_faceadr[mesh_id], model.mesh_faceadr[mesh_id] + model.mesh_facenum[mesh_id])
    vertices = slice(model.mesh_vertadr[mesh_id], model.mesh_vertadr[mesh_id] + model.mesh_vertnum[mesh_id])
    normals = slice(model.mesh_normaladr[mesh_id], model.mesh_normaladr[mesh_id] + model.mesh_normalnum[mesh_id])
    texcoords = None
    if model.mesh_texcoordadr[mesh_id] >= 0:
        start = model.mesh_texcoordadr[mesh_id]
        table = model.mesh_texcoord[start : start + model.mesh_texcoordnum[mesh_id]]
        texcoords = table[model.mesh_facetexcoord[faces]].astype(np.float64)
    return Mesh(
        vertices=model.mesh_vert[vertices].astype(np.float64),
        faces=model.mesh_face[faces].astype(np.int64),
        normals=model.mesh_normal[normals][model.mesh_facenormal[faces]].astype(np.float64),
        texcoords=texcoords,
    )


def face_budgets(model: mujoco.MjModel, image_size: int) -> dict[int, int]:
    """Faces that each visual mesh deserves: mesh id -> the largest budget of the geoms that show it.

    The budget of a geom is `FACES_PER_PIXEL` times its surface in pixels, from the camera that may come nearest.
    """
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    cameras = [i for i in range(model.ncam) if model.camera(i).name in CAMERAS]
    area = {int(i): mesh_of(model, int(i)).area() for i in np.unique(model.geom_dataid[visual_mesh_geoms(model)])}
    budgets: dict[int, int] = {}
    for geom in np.flatnonzero(visual_mesh_geoms(model)):
        mesh_id = int(model.geom_dataid[geom])
        pixels_per_metre = max(
            (_pixels_per_metre(model, data, int(geom), camera, image_size) for camera in cameras), default=math.inf
        )
        wanted = max(MIN_FACES, FACES_PER_PIXEL * area[mesh_id] * pixels_per_metre**2)
        budgets[mesh_id] = max(budgets.get(mesh_id, 0), int(min(wanted, model.mesh_facenum[mesh_id])))
    return budgets


def _pixels_per_metre(model: mujoco.MjModel, data: mujoco.MjData, geom: int, camera: int, image_size: int) -> float:
    """Pixels that a metre covers at the geom's nearest plausible distance from a camera."""
    body, camera_body = int(model.geom_bodyid[geom]), int(model.cam_bodyid[camera])
    distance = float(np.linalg.norm(data.geom_xpos[geom] - data.cam_xpos[camera])) - float(model.geom_rbound[geom])
    moves = model.body_weldid[body] != 0
    if model.body_weldid[camera_body] == 0:
        distance = max(distance, _FIXED_NEAREST) if not moves else _FIXED_NEAREST
    elif model.body_weldid[body] == model.body_weldid[camera_body]:
        distance = max(distance, 0.05)
    else:
        distance = _MOVING_NEAREST
    focal = image_size / 2 / math.tan(math.radians(float(model.cam_fovy[camera])) / 2)
    return focal / distance


def reduce_visual_meshes(spec: mujoco.MjSpec, model: mujoco.MjModel, image_size: int) -> mujoco.MjModel:
    """`model`, the compiled `spec`, with visual meshes that suit frames of `image_size` pixels. Physics is unchanged.

    `spec` gains the reduced meshes. The result's geoms, ids and frames are those of `model`; only `geom_dataid` and the mesh
    arrays differ, and original meshes that nothing uses any more have no faces left (they would cost time at every upload to
    the GPU). Reduced meshes come from the cache on disk where they have been built before. Ray casts (`mj_ray`) do not see
    reduced meshes.

    Raises ValueError when `image_size` is not positive or `model` was not compiled from `spec`.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be a positive number of pixels")
    if len(spec.meshes) != model.nmesh or len(spec.geoms) != model.ngeom:
        raise ValueError("the model was not compiled from this MjSpec: their numbers of meshes or geoms differ")
    reduced: dict[int, Mesh] = {}
    for mesh_id, budget in face_budgets(model, image_size).items():
        original = mesh_of(model, mesh_id)
        mesh = cached_decimate(original, budget)
        if len(mesh.faces) < 0.9 * len(original.faces):
            reduced[mesh_id] = mesh
    for mesh_id, mesh in reduced.items():
        _add_mesh(spec, f"vla_rl_detail_{mesh_id}", mesh)
    result = spec.compile()
    lod_ids = {mesh_id: int(result.mesh(f"vla_rl_detail_{mesh_id}").id) for mesh_id in reduced}
    for mesh_id, lod_id in lod_ids.items():
        _restore_frame(result, mesh_id, lod_id, reduced[mesh_id])
    for geom in np.flatnonzero(visual_mesh_geoms(result)):
        result.geom_dataid[geom] = lod_ids.get(int(result.geom_dataid[geom]), result.geom_dataid[geom])
    used = set(result.geom_dataid[result.geom_type == mujoco.mjtGeom.mjGEOM_MESH].tolist())
    for mesh_id in lod_ids:
        if mesh_id not in used:
            result.mesh_facenum[mesh_id] = 0
    return result


def cached_decimate(mesh: Mesh, num_faces: int) -> Mesh:
    """`decimate`, through the cache on disk."""
    arrays: Arrays = {"vertices": mesh.vertices, "faces": mesh.faces, "normals": mesh.normals}
    if mesh.texcoords is not None:
        arrays["texcoords"] = mesh.texcoords
    key = content_key(arrays, num_faces=num_faces, version=_VERSION, library=fast_simplification.__version__)

    def build() -> Arrays:
        small = decimate(mesh, num_faces)
        found: Arrays = {"vertices": small.vertices, "faces": small.faces, "normals": small.normals}
        if small.texcoords is not None:
            found["texcoords"] = small.texcoords
        return found

    stored = cached("detail", key, build)
    return Mesh(stored["vertices"], stored["faces"], stored["normals"], stored.get("texcoords"))


def _add_mesh(spec: mujoco.MjSpec, name: str, mesh: Mesh) -> None:
    corner = np.arange(3 * len(mesh.faces)).tolist()
    added = spec.add_mesh(name=name)
    added.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    added.uservert = mesh.vertices.reshape(-1).tolist()
    added.userface = mesh.faces.reshape(-1).tolist()
    added.usernormal = mesh.normals.reshape(-1).tolist()
    added.userfacenormal = corner
    if mesh.texcoords is not None:
        # MuJoCo flips the vertical coordinate of files only when it reads them: the compiled arrays go back as they are.
        added.usertexcoord = mesh.texcoords.reshape(-1).tolist()
        added.userfacetexcoord = corner


def _restore_frame(model: mujoco.MjModel, original: int, lod: int, mesh: Mesh) -> None:
    """Write a reduced mesh in its original's frame: the compiler centres every mesh on its own principal axes.

    With one frame for both, a geom changes its mesh by `geom_dataid` alone. Normals and their indices are written too:
    MuJoCo 3.17 scrambles the indices given as `userfacenormal`.
    """
    sizes = (int(model.mesh_vertnum[lod]), int(model.mesh_facenum[lod]), int(model.mesh_normalnum[lod]))
    if sizes != (len(mesh.vertices), len(mesh.faces), 3 * len(mesh.faces)):
        raise RuntimeError(f"MuJoCo {mujoco.__version__} stored a reduced mesh in a way that this code does not expect: {sizes}")
    num_vertices, num_faces, num_normals = sizes
    model.mesh_vert[model.mesh_vertadr[lod] :][:num_vertices] = mesh.vertices
    model.mesh_face[model.mesh_faceadr[lod] :][:num_faces] = mesh.faces
    model.mesh_normal[model.mesh_normaladr[lod] :][:num_normals] = mesh.normals.reshape(-1, 3)
    model.mesh_facenormal[model.mesh_faceadr[lod] :][:num_faces] = np.arange(num_normals).reshape(-1, 3)
    model.mesh_pos[lod], model.mesh_quat[lod] = model.mesh_pos[original], model.mesh_quat[original]
