"""Level of detail: visual meshes with no more faces than an image of the wanted size can show.

LIBERO's scenes carry about 300,000 visual faces for pictures of 128 x 128 pixels, and on software OpenGL the time of a
frame follows the faces. Decimated copies of a mesh, its levels, are added to the model beside the original; a geom shows
one of them through `geom_dataid`, so that everything that physics reads (collision meshes, inertia, frames) stays as it
was, bit for bit.

Legend: G geoms, L levels of a mesh, V vertices, F faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import fast_simplification
import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_rl.sim.libero.detail_cache import Arrays, cached, content_key
from vla_rl.sim.libero.detail_mesh import decimate
from vla_rl.sim.libero.mesh import Mesh

FACES_PER_PIXEL = 0.6
"""Faces of a mesh for each pixel that its whole surface would cover, seen straight on."""
MIN_FACES = 60
LEVEL_RATIO = 2.5
"""Faces of a level over those of the next coarser one."""
MAX_SCREENS = 0.7
"""No mesh is taken to cover more than so many times the picture, however large or near it is."""
_NEAREST = 0.15
"""Metres from a camera at which the finest level is still fine enough; LIBERO's nearest things are those in the gripper."""
_FIELD_OF_VIEW = math.radians(75)
"""Of the camera that may come so near: the one in the hand."""
_VERSION = 9
"""Part of the cache key: raise it whenever the same input gives another mesh."""
_NAME = "vla_rl_level"


def visual_mesh_geoms(model: mujoco.MjModel) -> Bool[np.ndarray, "G"]:
    """Which geoms are meshes that only show: they collide with nothing."""
    return (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_contype == 0) & (model.geom_conaffinity == 0)


def mesh_of(model: mujoco.MjModel, mesh_id: int) -> Mesh:
    """A mesh of a compiled model, in the frame that the compiled model keeps it in."""
    faces = slice(model.mesh_faceadr[mesh_id], model.mesh_faceadr[mesh_id] + model.mesh_facenum[mesh_id])
    index = [model.mesh_face[faces].reshape(-1), model.mesh_facenormal[faces].reshape(-1)]
    textured = model.mesh_texcoordadr[mesh_id] >= 0
    if textured:
        index.append(model.mesh_facetexcoord[faces].reshape(-1))
    _, first, corner = np.unique(
        np.ravel_multi_index(index, [int(i.max()) + 1 for i in index]), return_index=True, return_inverse=True
    )
    corners = np.stack(index, axis=1)[first]
    return Mesh(
        vertices=model.mesh_vert[model.mesh_vertadr[mesh_id] + corners[:, 0]].astype(np.float64),
        faces=corner.reshape(-1, 3).astype(np.int64),
        normals=model.mesh_normal[model.mesh_normaladr[mesh_id] + corners[:, 1]].astype(np.float64),
        texcoords=model.mesh_texcoord[model.mesh_texcoordadr[mesh_id] + corners[:, 2]].astype(np.float64) if textured else None,
    )


def faces_wanted(
    area: Float[np.ndarray, "*G"] | float, pixels_per_metre: Float[np.ndarray, "*G"] | float, image_size: int
) -> Float[np.ndarray, "*G"]:
    """Faces that surfaces of `area` square metres deserve where a metre covers so many pixels of a frame."""
    pixels = np.minimum(area * np.square(pixels_per_metre), MAX_SCREENS * image_size**2)
    return np.maximum(MIN_FACES, FACES_PER_PIXEL * pixels)


def reduce_visual_meshes(spec: mujoco.MjSpec, model: mujoco.MjModel, image_size: int) -> mujoco.MjModel:
    """`model`, the compiled `spec`, with visual meshes in levels that suit frames of `image_size` pixels.

    `spec` gains the levels. The result's geoms, ids and frames are those of `model`, and so is its physics; only
    `geom_dataid` (the finest level of each visual mesh) and the mesh arrays differ, and original meshes that nothing uses
    any more have no faces left (they would only be uploaded to the GPU). Levels come from the cache on disk where they have
    been built before. Ray casts (`mj_ray`) do not see reduced meshes.

    Raises ValueError when `image_size` is not positive or `model` was not compiled from `spec`.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be a positive number of pixels")
    if len(spec.meshes) != model.nmesh or len(spec.geoms) != model.ngeom:
        raise ValueError("the model was not compiled from this MjSpec: their numbers of meshes or geoms differ")
    levels: dict[str, tuple[int, Mesh]] = {}
    for mesh_id in np.unique(model.geom_dataid[visual_mesh_geoms(model)]).tolist():
        for number, mesh in enumerate(build_levels(mesh_of(model, mesh_id), image_size)):
            levels[f"{_NAME}_{mesh_id}_{number}"] = mesh_id, mesh
    for name, (_, mesh) in levels.items():
        _add_mesh(spec, name, mesh)
    result = spec.compile()
    for name, (mesh_id, mesh) in levels.items():
        _write_mesh(result, mesh_id, int(result.mesh(name).id), mesh)
    for geom in np.flatnonzero(visual_mesh_geoms(result)):
        finest = f"{_NAME}_{result.geom_dataid[geom]}_0"
        if finest in levels:
            result.geom_dataid[geom] = result.mesh(finest).id
    # A camera at rest draws things at rest once, and then in full.
    at_rest = result.body_weldid[result.geom_bodyid] == 0
    shown = set(result.geom_dataid[result.geom_type == mujoco.mjtGeom.mjGEOM_MESH].tolist())
    shown |= set(model.geom_dataid[visual_mesh_geoms(model) & at_rest].tolist())
    for mesh_id, _ in levels.values():
        if mesh_id not in shown:
            result.mesh_facenum[mesh_id] = 0
    return result


@dataclass(frozen=True)
class Levels:
    """The levels of one mesh in a compiled model."""

    original: int
    """Mesh id; the mesh has no faces left unless something at rest shows it."""
    area: float
    """Surface in square metres."""
    faces: Int[np.ndarray, "L"]
    mesh_ids: Int[np.ndarray, "L"]
    """Finest first."""

    def suited(self, wanted: float) -> int:
        """Mesh id of the coarsest level with at least about `wanted` faces."""
        return int(self.mesh_ids[max(0, int(np.count_nonzero(self.faces >= 0.8 * wanted)) - 1)])


def level_table(model: mujoco.MjModel) -> dict[int, Levels]:
    """Geom -> its levels; geoms without levels are left out."""
    members: dict[int, list[int]] = {}
    for mesh_id in range(model.nmesh):
        if (name := model.mesh(mesh_id).name).startswith(_NAME):
            members.setdefault(int(name.split("_")[-2]), []).append(mesh_id)
    by_finest = {
        ids[0]: Levels(original, mesh_of(model, ids[0]).area(), model.mesh_facenum[ids].copy(), np.array(ids))
        for original, ids in members.items()
    }
    shown = {geom: int(model.geom_dataid[geom]) for geom in np.flatnonzero(visual_mesh_geoms(model)).tolist()}
    return {geom: by_finest[mesh_id] for geom, mesh_id in shown.items() if mesh_id in by_finest}


def build_levels(mesh: Mesh, image_size: int) -> list[Mesh]:
    """The levels of a mesh, finest first; none where the mesh is simple enough as it is.

    The finest suits the nearest plausible view in a frame of `image_size` pixels, or is the mesh itself where that has not
    many more faces; each next level has `LEVEL_RATIO` times fewer faces, down to `MIN_FACES`.
    """
    wanted = math.ceil(faces_wanted(mesh.area(), image_size / 2 / math.tan(_FIELD_OF_VIEW / 2) / _NEAREST, image_size))
    simple = len(mesh.faces) <= 1.3 * wanted
    counts = [int((len(mesh.faces) if simple else wanted) / LEVEL_RATIO**power) for power in range(20)]
    counts = [count for count in counts[simple:] if count >= MIN_FACES]
    if not counts:
        return []
    levels = [mesh] if simple else []
    for level in _cached_decimate(mesh, counts):
        if not levels or len(level.faces) < 0.8 * len(levels[-1].faces):
            levels.append(level)
    return levels if len(levels) > simple else []


def _cached_decimate(mesh: Mesh, counts: list[int]) -> list[Mesh]:
    """`decimate` to each face count, through the cache on disk."""
    key = content_key(_to_arrays(mesh, ""), counts=counts, version=_VERSION, library=fast_simplification.__version__)

    def build() -> Arrays:
        levels: Arrays = {}
        for number, level in enumerate(decimate(mesh, counts)):
            levels |= _to_arrays(level, f"{number}_")
        return levels

    stored = cached("detail", key, build, valid=lambda arrays: f"{len(counts) - 1}_normals" in arrays)
    return [_from_arrays(stored, f"{number}_") for number in range(len(counts))]


def _to_arrays(mesh: Mesh, prefix: str) -> Arrays:
    arrays: Arrays = {f"{prefix}vertices": mesh.vertices, f"{prefix}faces": mesh.faces, f"{prefix}normals": mesh.normals}
    if mesh.texcoords is not None:
        arrays[f"{prefix}texcoords"] = mesh.texcoords
    return arrays


def _from_arrays(arrays: Arrays, prefix: str) -> Mesh:
    return Mesh(
        arrays[f"{prefix}vertices"], arrays[f"{prefix}faces"], arrays[f"{prefix}normals"], arrays.get(f"{prefix}texcoords")
    )


def _add_mesh(spec: mujoco.MjSpec, name: str, mesh: Mesh) -> None:
    added = spec.add_mesh(name=name)
    # A shell needs no volume, which a decimated flat piece may lack; no geom takes its inertia from this mesh anyway.
    added.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    added.uservert = mesh.vertices.reshape(-1).tolist()
    added.userface = mesh.faces.reshape(-1).tolist()
    added.usernormal = mesh.normals.reshape(-1).tolist()
    if mesh.texcoords is not None:
        added.usertexcoord = mesh.texcoords.reshape(-1).tolist()


def _write_mesh(model: mujoco.MjModel, original: int, level: int, mesh: Mesh) -> None:
    """Write a level in its original's frame: the compiler has centred it on its own principal axes.

    With one frame for all levels, a geom changes its level by `geom_dataid` alone.
    """
    num_vertices, num_faces = len(mesh.vertices), len(mesh.faces)
    sizes = (int(model.mesh_vertnum[level]), int(model.mesh_normalnum[level]), int(model.mesh_facenum[level]))
    if sizes != (num_vertices, num_vertices, num_faces):
        raise RuntimeError(f"MuJoCo {mujoco.__version__} stored a reduced mesh in a way that this code does not expect: {sizes}")
    faces = slice(model.mesh_faceadr[level], model.mesh_faceadr[level] + num_faces)
    model.mesh_vert[model.mesh_vertadr[level] :][:num_vertices] = mesh.vertices
    model.mesh_normal[model.mesh_normaladr[level] :][:num_vertices] = mesh.normals
    model.mesh_face[faces] = model.mesh_facenormal[faces] = mesh.faces
    if mesh.texcoords is not None:
        model.mesh_texcoord[model.mesh_texcoordadr[level] :][:num_vertices] = mesh.texcoords
        model.mesh_facetexcoord[faces] = mesh.faces
    model.mesh_pos[level], model.mesh_quat[level] = model.mesh_pos[original], model.mesh_quat[original]
