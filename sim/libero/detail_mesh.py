"""Fewer faces for a triangle mesh, with shading normals and texture coordinates carried over. Arrays in, arrays out.

Legend: V vertices, F faces, S samples on a surface, Q query points, K candidate faces of a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import fast_simplification
import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_PULL = 0.15
"""How far a corner is pulled towards the centre of its face before it is looked up on the original: a corner on a
crease or a texture seam then takes the side that its own face lies on."""
_CANDIDATES = 6
"""Faces tried for each closest-point query; they come from the nearest samples."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh whose normals and texture coordinates belong to face corners, so that creases and seams survive."""

    vertices: Float[np.ndarray, "V 3"]
    """In metres."""
    faces: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "F 3 3"]
    """Unit shading normal of each corner."""
    texcoords: Float[np.ndarray, "F 3 2"] | None = None

    def corners(self) -> Float[np.ndarray, "F 3 3"]:
        return self.vertices[self.faces]

    def area(self) -> float:
        """Surface area in square metres."""
        return float(face_areas(self.corners()).sum())


def face_areas(corners: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "F"]:
    """Area of each triangle, in the squared unit of its corners."""
    return 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)


def weld(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Merge vertices at the same place (to a millionth of the mesh's size) and drop the faces that collapse by it.

    Files store a vertex once per face; without welding, decimation sees only borders and stalls at about 60% of the faces.
    """
    size = float(np.ptp(vertices, axis=0).max(initial=0.0)) or 1.0
    keys = np.round((vertices - vertices.min(axis=0)) / (1e-6 * size)).astype(np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    welded = inverse.reshape(-1)[faces]
    distinct = (welded[:, 0] != welded[:, 1]) & (welded[:, 1] != welded[:, 2]) & (welded[:, 2] != welded[:, 0])
    return vertices[first], welded[distinct]


def decimate(mesh: Mesh, num_faces: int) -> Mesh:
    """A mesh of about `num_faces` faces (quadric error metric), or `mesh` itself where that would not make it smaller.

    Normals and texture coordinates are read off the closest point of the original surface, inside the texture chart that
    the new face's centre lies in: a face across a seam otherwise mixes two far corners of the picture.
    """
    if num_faces >= len(mesh.faces):
        return mesh
    points, triangles = weld(mesh.vertices, mesh.faces)
    if num_faces < len(triangles):
        points, triangles = fast_simplification.simplify(
            np.ascontiguousarray(points, np.float32), np.ascontiguousarray(triangles, np.int32), target_count=int(num_faces)
        )
    points, triangles = np.asarray(points, np.float64), np.asarray(triangles, np.int64)
    triangles = triangles[face_areas(points[triangles]) > 0]
    if len(triangles) == 0 or len(triangles) >= len(mesh.faces):
        return mesh
    normals, texcoords = _carry_over(mesh, points[triangles])
    return Mesh(points, triangles, normals, texcoords)


def texture_charts(mesh: Mesh) -> Int[np.ndarray, "F"]:
    """Chart of each face: faces belong together when they share a vertex at the same place and texture coordinate."""
    if mesh.texcoords is None:
        return np.zeros(len(mesh.faces), np.int64)
    position = mesh.corners().reshape(-1, 3)
    size = float(np.ptp(position, axis=0).max()) or 1.0
    keys = np.concatenate([position / size, mesh.texcoords.reshape(-1, 2)], axis=1)
    _, vertex = np.unique(np.round(keys * 1e5).astype(np.int64), axis=0, return_inverse=True)
    vertex = vertex.reshape(-1, 3)
    rows, columns = vertex[:, [0, 1]].reshape(-1), vertex[:, [1, 2]].reshape(-1)
    count = int(vertex.max()) + 1
    _, label = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count)), directed=False)
    return label[vertex[:, 0]].astype(np.int64)


def _carry_over(original: Mesh, corners: Float[np.ndarray, "F 3 3"]) -> tuple[np.ndarray, np.ndarray | None]:
    """Normals [F, 3, 3] and texture coordinates [F, 3, 2] of new corners, from the closest points of the original."""
    centre = corners.mean(axis=1)
    queries = corners + _PULL * (centre[:, None] - corners)
    charts = texture_charts(original)
    samples, owner = _sample(original)
    home, _ = _closest(original, samples, owner, centre)
    wanted = charts[home]
    face = np.empty(corners.shape[:2], np.int64)
    weights = np.empty(corners.shape)
    for chart in np.unique(wanted):
        rows = wanted == chart
        mine = charts[owner] == chart
        found, barycentric = _closest(original, samples[mine], owner[mine], queries[rows].reshape(-1, 3))
        face[rows], weights[rows] = found.reshape(-1, 3), barycentric.reshape(-1, 3, 3)
    normals = np.einsum("fck,fckd->fcd", weights, original.normals[face])
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    flat = facing[:, None] / np.maximum(np.linalg.norm(facing, axis=1)[:, None, None], 1e-30)
    normals = np.where(length > 1e-6, normals / np.maximum(length, 1e-30), flat)
    if original.texcoords is None:
        return normals, None
    return normals, np.einsum("fck,fckd->fcd", weights, original.texcoords[face])


def _sample(mesh: Mesh) -> tuple[Float[np.ndarray, "S 3"], Int[np.ndarray, "S"]]:
    """Points on the surface and the face of each: every centre, more where a face is large against the mean."""
    corners = mesh.corners()
    area = face_areas(corners)
    count = 1 + np.minimum(area / max(area.sum() / 5000, 1e-30), 400).astype(np.int64)
    owner = np.repeat(np.arange(len(corners)), count)
    first = np.r_[True, owner[1:] != owner[:-1]]
    random = np.random.default_rng(0).random((len(owner), 2))
    random = np.where(random.sum(axis=1, keepdims=True) > 1, 1 - random, random)
    weights = np.c_[random, 1 - random.sum(axis=1)]
    weights[first] = 1 / 3
    return np.einsum("sk,skd->sd", weights, corners[owner]), owner


def _closest(
    mesh: Mesh, samples: Float[np.ndarray, "S 3"], owner: Int[np.ndarray, "S"], queries: Float[np.ndarray, "Q 3"]
) -> tuple[Int[np.ndarray, "Q"], Float[np.ndarray, "Q 3"]]:
    """Face and barycentric weights of the closest surface point, among the faces of the nearest samples."""
    nearest = cKDTree(samples).query(queries, k=min(_CANDIDATES, len(samples)))[1].reshape(len(queries), -1)
    candidates = owner[nearest]
    corners = mesh.corners()[candidates]
    weights = barycentric_of_closest(corners, queries[:, None])
    gap = np.linalg.norm(np.einsum("qkc,qkcd->qkd", weights, corners) - queries[:, None], axis=2)
    best = np.argmin(gap, axis=1)
    row = np.arange(len(queries))
    return candidates[row, best], weights[row, best]


def barycentric_of_closest(
    triangles: Float[np.ndarray, "Q K 3 3"], points: Float[np.ndarray, "Q 1 3"]
) -> Float[np.ndarray, "Q K 3"]:
    """Weights of each triangle's corners at its point closest to `points`.

    The closest point is the projection onto the plane when it falls inside, else the nearest of the closest points of the
    three edges.
    """
    a, b, c = triangles[..., 0, :], triangles[..., 1, :], triangles[..., 2, :]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    determinant = d00 * d11 - d01 * d01
    safe = np.where(determinant > 0, determinant, 1.0)
    v, w = (d11 * d20 - d01 * d21) / safe, (d00 * d21 - d01 * d20) / safe
    inside = (determinant > 0) & (v >= 0) & (w >= 0) & (v + w <= 1)
    best = np.stack([1 - v - w, v, w], axis=-1)
    gap = np.where(inside, -1.0, np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        edge = triangles[..., end, :] - triangles[..., start, :]
        squared = (edge * edge).sum(-1)
        t = np.clip(((points - triangles[..., start, :]) * edge).sum(-1) / np.where(squared > 0, squared, 1.0), 0, 1)
        distance = ((triangles[..., start, :] + t[..., None] * edge - points) ** 2).sum(-1)
        weights = np.zeros_like(best)
        weights[..., start], weights[..., end] = 1 - t, t
        closer = distance < gap
        best, gap = np.where(closer[..., None], weights, best), np.where(closer, distance, gap)
    return best
