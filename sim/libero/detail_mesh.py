"""Fewer faces for a triangle mesh, with shading normals and texture coordinates carried over. Arrays in, arrays out.

Legend: V vertices, F faces, C = 3 F face corners, S samples on a surface, Q query points, K candidate faces of a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import fast_simplification
import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_PULL = 0.15
"""How far a corner is pulled towards the centre of its face before its normal is looked up on the original: a corner on a
crease then takes the side that its own face lies on."""
_CANDIDATES = 6
"""Faces tried for each closest-point query; they come from the nearest samples."""
_SMOOTH_COSINE = math.cos(math.radians(25))
"""Corners whose normals are this close to their mean share it: OpenGL computes a shared vertex once."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with one shading normal and texture coordinate per vertex.

    Where a crease or a texture seam runs, two vertices lie at the same place.
    """

    vertices: Float[np.ndarray, "V 3"]
    """In metres."""
    faces: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "V 3"]
    """Of unit length."""
    texcoords: Float[np.ndarray, "V 2"] | None = None

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


def decimate(mesh: Mesh, counts: Sequence[int]) -> list[Mesh]:
    """For each count, a mesh of about so many faces (quadric error metric), or `mesh` itself where none would be dropped.

    Normals and texture coordinates are read off the closest point of the original surface, coordinates inside the texture
    chart that the new face's centre lies in: a face across a seam otherwise mixes two far corners of the picture.
    """
    points, triangles = weld(mesh.vertices, mesh.faces)
    surface = _Surface(mesh)
    found = []
    for count in counts:
        new_points, new = points, triangles
        if count < len(triangles):
            new_points, new = fast_simplification.simplify(
                np.ascontiguousarray(points, np.float32), np.ascontiguousarray(triangles, np.int32), target_count=int(count)
            )
        new_points, new = np.asarray(new_points, np.float64), np.asarray(new, np.int64)
        new = new[face_areas(new_points[new]) > 0]
        found.append(_carry_over(surface, new_points, new) if 0 < len(new) < len(mesh.faces) else mesh)
    return found


def texture_charts(mesh: Mesh) -> Int[np.ndarray, "F"]:
    """Chart of each face: faces belong together when they share a vertex at the same place and texture coordinate."""
    if mesh.texcoords is None:
        return np.zeros(len(mesh.faces), np.int64)
    size = float(np.ptp(mesh.vertices, axis=0).max()) or 1.0
    keys = np.round(np.concatenate([mesh.vertices / size, mesh.texcoords], axis=1) * 1e5).astype(np.int64)
    vertex = np.unique(_one_number(keys), return_inverse=True)[1].reshape(-1)[mesh.faces]
    rows, columns = vertex[:, [0, 1]].reshape(-1), vertex[:, [1, 2]].reshape(-1)
    count = int(vertex.max()) + 1
    _, label = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count)), directed=False)
    return label[vertex[:, 0]].astype(np.int64)


def _one_number(keys: Int[np.ndarray, "N K"]) -> np.ndarray:
    """Rows of small integers as one comparable item each: sorting those is far quicker than sorting rows."""
    packed = np.ascontiguousarray(keys - keys.min(axis=0)).astype(np.int32)
    return packed.view(np.dtype((np.void, packed.dtype.itemsize * packed.shape[1]))).reshape(-1)


class _Surface:
    """An original mesh, ready for many closest-point queries."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.charts = texture_charts(mesh)
        self._corners = mesh.corners()
        self._points, self._owner = _sample(self._corners)
        self._trees: dict[int | None, tuple[cKDTree, np.ndarray]] = {None: (cKDTree(self._points), self._owner)}

    def closest(
        self, queries: Float[np.ndarray, "Q 3"], chart: int | None = None
    ) -> tuple[Int[np.ndarray, "Q"], Float[np.ndarray, "Q 3"]]:
        """Face and barycentric weights of the closest surface point (in one chart), among the faces of the nearest samples."""
        if chart not in self._trees:
            mine = self.charts[self._owner] == chart
            self._trees[chart] = cKDTree(self._points[mine]), self._owner[mine]
        tree, owner = self._trees[chart]
        candidates = owner[tree.query(queries, k=min(_CANDIDATES, len(owner)))[1].reshape(len(queries), -1)]
        corners = self._corners[candidates]
        weights = barycentric_of_closest(corners, queries[:, None])
        gap = ((np.einsum("qkc,qkcd->qkd", weights, corners) - queries[:, None]) ** 2).sum(axis=2)
        best = np.argmin(gap, axis=1)
        row = np.arange(len(queries))
        return candidates[row, best], weights[row, best]


def _carry_over(surface: _Surface, points: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Mesh:
    """The mesh of `triangles` over `points`, with the normals and texture coordinates of the original surface."""
    original, corners = surface.mesh, points[triangles]
    centre = corners.mean(axis=1)
    face, weights = surface.closest((corners + _PULL * (centre[:, None] - corners)).reshape(-1, 3))
    normals = np.einsum("ck,ckd->cd", weights, original.normals[original.faces[face]])
    home = surface.charts[surface.closest(centre)[0]]
    corner_chart = np.repeat(home, 3)
    vertex, normals = _share_normals(triangles.reshape(-1) * (int(surface.charts.max()) + 1) + corner_chart, normals)
    first = np.unique(vertex, return_index=True)[1]
    vertices, texcoords = points[triangles.reshape(-1)][first], None
    if original.texcoords is not None:
        texcoords = np.empty((len(first), 2))
        for chart in np.unique(home).tolist():
            rows = corner_chart[first] == chart
            face, weights = surface.closest(vertices[rows], chart)
            texcoords[rows] = np.einsum("ck,ckd->cd", weights, original.texcoords[original.faces[face]])
    return Mesh(vertices, vertex.reshape(-1, 3), normals, texcoords)


def _share_normals(
    place: Int[np.ndarray, "C"], normals: Float[np.ndarray, "C 3"]
) -> tuple[Int[np.ndarray, "C"], Float[np.ndarray, "V 3"]]:
    """Vertex of each corner, and each vertex's normal: corners at one place share a vertex unless a crease parts them."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    _, group = np.unique(place, return_inverse=True)
    mean = np.stack([np.bincount(group, normals[:, axis]) for axis in range(3)], axis=1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    apart = (normals * mean[group]).sum(axis=1) < _SMOOTH_COSINE
    label = np.where(apart, len(mean) + np.arange(len(group)), group)
    _, first, vertex = np.unique(label, return_index=True, return_inverse=True)
    return vertex.reshape(-1), np.where(apart[first, None], normals[first], mean[group[first]])


def _sample(corners: Float[np.ndarray, "F 3 3"]) -> tuple[Float[np.ndarray, "S 3"], Int[np.ndarray, "S"]]:
    """Points on the surface and the face of each: every centre, and more where a face is large against the mean."""
    area = face_areas(corners)
    count = 1 + np.minimum(area / max(area.sum() / 5000, 1e-30), 400).astype(np.int64)
    owner = np.repeat(np.arange(len(corners)), count)
    random = np.random.default_rng(0).random((len(owner), 2))
    random = np.where(random.sum(axis=1, keepdims=True) > 1, 1 - random, random)
    weights = np.c_[random, 1 - random.sum(axis=1)]
    weights[np.r_[True, owner[1:] != owner[:-1]]] = 1 / 3
    return np.einsum("sk,skd->sd", weights, corners[owner]), owner


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
