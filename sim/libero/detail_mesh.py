"""Fewer faces for a triangle mesh, with shading normals and texture coordinates carried over. Arrays in, arrays out.

Legend: V vertices, F faces, M new vertices, N new faces, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fast_simplification
import numpy as np
from jaxtyping import Float, Int

_SMOOTH_COSINE = 0.9
"""Corners of a vertex whose normals are this close to their mean (25 degrees) share it: a crease stays a crease, and
OpenGL computes a shared vertex once."""


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
        return float(np.linalg.norm(face_vectors(self.corners()), axis=1).sum())


def face_vectors(corners: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "F 3"]:
    """For each triangle, the normal of its counterclockwise side, as long as the triangle's area."""
    return 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def weld(mesh: Mesh) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "F 3"]]:
    """Merge vertices that agree in place and texture coordinate (to a millionth of the mesh's size, and 1e-5).

    Returns a vertex of each welded one, and the faces over welded vertices; faces that collapse by it stay, with corners
    alike. Files store a vertex once per face: without welding, decimation sees only borders and stalls at about 60% of the
    faces. A texture seam stays cut, so that decimation keeps it where it is.
    """
    size = float(np.ptp(mesh.vertices, axis=0).max(initial=0.0)) or 1.0
    keys = np.round((mesh.vertices - mesh.vertices.min(axis=0)) / (1e-6 * size)).astype(np.int64)
    if mesh.texcoords is not None:
        keys = np.concatenate([keys, np.round(mesh.texcoords * 1e5).astype(np.int64)], axis=1)
    packed = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)[mesh.faces]


def _has_area(faces: Int[np.ndarray, "F 3"]) -> np.ndarray:
    return (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])


def decimate(mesh: Mesh, counts: Sequence[int]) -> list[Mesh]:
    """For each count, a mesh of about so many faces (quadric error metric), or `mesh` itself where none would be dropped.

    Borders and texture seams stay where they are, so a mesh of many texture charts may stay above a small count.
    """
    first, welded = weld(mesh)
    points, triangles = mesh.vertices[first], welded[_has_area(welded)]
    found = []
    for count in counts:
        if not 0 < count < len(triangles):
            found.append(mesh)
            continue
        new_points, new, became = _simplify(points, triangles, count)
        new = new[np.linalg.norm(face_vectors(new_points[new]), axis=1) > 0]
        small = 0 < len(new) < len(mesh.faces)
        found.append(_carry_over(mesh, became[welded], new_points, new) if small else mesh)
    return found


def _simplify(
    points: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"], count: int
) -> tuple[Float[np.ndarray, "M 3"], Int[np.ndarray, "N 3"], Int[np.ndarray, "V"]]:
    """New points and faces, and the new point that each old one became.

    The library lets borders drift: a flat patch may shrink at no cost. Fins, upright on every border edge while it works,
    add the upright plane to what its edge must stay on.
    """
    tips, fins = _fins(points, triangles)
    with_fins = np.ascontiguousarray(np.concatenate([points, tips]), np.float32)
    faces = np.ascontiguousarray(np.concatenate([triangles, fins]), np.int32)
    total = min(len(faces) - 1, count + min(len(fins), count // 2))
    for _ in range(4):
        _, _, collapses = fast_simplification.simplify(with_fins, faces, target_count=total, return_collapses=True)
        new_points, new, became = fast_simplification.replay_simplification(with_fins, faces, collapses)
        real = np.zeros(len(new_points), dtype=bool)
        real[became[: len(points)]] = True
        kept = np.asarray(new[real[new].all(axis=1)], np.int64)
        kept = kept[_has_area(kept)]
        wanted = min(len(faces) - 1, max(count // 2, round(total + (count - len(kept)) * max(1.0, len(new) / max(len(kept), 1)))))
        if abs(len(kept) - count) <= 0.05 * count or wanted == total or len(new) > 1.05 * total:
            break
        total = wanted
    return np.asarray(new_points, np.float64), kept, np.asarray(became[: len(points)], np.int64)


def _fins(
    points: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> tuple[Float[np.ndarray, "E 3"], Int[np.ndarray, "E2 3"]]:
    """A point above the middle of every border edge, and two triangles (both sides) from the edge up to it."""
    edges = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    low, high = edges.min(axis=1), edges.max(axis=1)
    _, index, uses = np.unique(low * len(points) + high, return_index=True, return_counts=True)
    border = index[uses == 1]
    start, end = edges[border].T
    normal = face_vectors(points[triangles[border // 3]])
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    height = 0.3 * float(np.ptp(points, axis=0).max())
    tips = (points[start] + points[end]) / 2 + height * normal
    tip = len(points) + np.arange(len(border))
    return tips, np.concatenate([np.stack([end, start, tip], axis=1), np.stack([start, end, tip], axis=1)])


def _carry_over(
    original: Mesh, became: Int[np.ndarray, "F 3"], points: Float[np.ndarray, "M 3"], triangles: Int[np.ndarray, "N 3"]
) -> Mesh:
    """The mesh of `triangles` over `points`; `became` tells which new vertex each corner of the original fell to."""
    corner_vertex = triangles.reshape(-1)
    facing = face_vectors(points[triangles])
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    normals = _mean_normals(original, became, corner_vertex, np.repeat(facing, 3, axis=0))
    vertex, first, normals = _share(corner_vertex, normals)
    texcoords = None
    if original.texcoords is not None:
        texcoords = _texcoords(original, became, points)[corner_vertex[first]]
    return Mesh(points[corner_vertex[first]], vertex.reshape(-1, 3), normals, texcoords)


def _mean_normals(
    original: Mesh, became: Int[np.ndarray, "F 3"], corner_vertex: Int[np.ndarray, "C"], facing: Float[np.ndarray, "C 3"]
) -> Float[np.ndarray, "C 3"]:
    """Unit normal of each new corner: the mean over the original corners that fell to its vertex.

    The mean is weighted by area and by how well an original normal agrees with the new face (squared cosine), so that each
    side of a crease keeps its own; taking it over all of them blurs relief that the new faces cannot show.
    """
    area = np.repeat(np.linalg.norm(face_vectors(original.corners()), axis=1), 3)
    source_vertex, source_normal = became.reshape(-1), original.normals[original.faces.reshape(-1)]
    order = np.argsort(source_vertex, kind="stable")
    start = np.searchsorted(source_vertex[order], corner_vertex)
    length = np.searchsorted(source_vertex[order], corner_vertex, side="right") - start
    corner = np.repeat(np.arange(len(corner_vertex)), length)
    source = order[np.arange(len(corner)) - np.repeat(np.cumsum(length) - length, length) + np.repeat(start, length)]
    agreement = np.maximum((source_normal[source] * facing[corner]).sum(axis=1), 0.0) ** 2 * area[source]
    total = np.stack(
        [np.bincount(corner, agreement * source_normal[source, axis], minlength=len(corner_vertex)) for axis in range(3)], axis=1
    )
    size = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(size > 0, total / np.where(size > 0, size, 1.0), facing)


def _share(
    place: Int[np.ndarray, "C"], normals: Float[np.ndarray, "C 3"]
) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "M"], Float[np.ndarray, "M 3"]]:
    """Vertex of each corner, a corner of each vertex, and its normal: corners at one place share a vertex unless a crease
    parts them."""
    _, group = np.unique(place, return_inverse=True)
    mean = np.stack([np.bincount(group, normals[:, axis]) for axis in range(3)], axis=1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    apart = (normals * mean[group]).sum(axis=1) < _SMOOTH_COSINE
    label = np.where(apart, len(mean) + np.arange(len(group)), group)
    _, first, vertex = np.unique(label, return_index=True, return_inverse=True)
    return vertex.reshape(-1), first, np.where(apart[first, None], normals[first], mean[group[first]])


def _texcoords(original: Mesh, became: Int[np.ndarray, "F 3"], points: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M 2"]:
    """Texture coordinates of each new vertex: those of the closest point of the original faces that fell to it.

    Only those lie on its own side of a seam.
    """
    assert original.texcoords is not None
    vertex = became.reshape(-1)
    face = np.repeat(np.arange(len(became)), 3)
    corners = original.corners()[face]
    weights = barycentric_of_closest(corners, points[vertex])
    gap = ((np.einsum("qc,qcd->qd", weights, corners) - points[vertex]) ** 2).sum(axis=1)
    order = np.lexsort((gap, vertex))
    reached, best = np.unique(vertex[order], return_index=True)
    best = order[best]
    texcoords = np.zeros((len(points), 2))
    texcoords[reached] = np.einsum("qc,qcd->qd", weights[best], original.texcoords[original.faces[face[best]]])
    return texcoords


def barycentric_of_closest(triangles: Float[np.ndarray, "Q 3 3"], points: Float[np.ndarray, "Q 3"]) -> Float[np.ndarray, "Q 3"]:
    """Weights of each triangle's corners at its point closest to the point of the same row.

    The closest point is the projection onto the plane when it falls inside, else the nearest of the closest points of the
    three edges.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    d20, d21 = (ap * ab).sum(1), (ap * ac).sum(1)
    determinant = d00 * d11 - d01 * d01
    safe = np.where(determinant > 0, determinant, 1.0)
    v, w = (d11 * d20 - d01 * d21) / safe, (d00 * d21 - d01 * d20) / safe
    inside = (determinant > 0) & (v >= 0) & (w >= 0) & (v + w <= 1)
    best = np.stack([1 - v - w, v, w], axis=1)
    gap = np.where(inside, -1.0, np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        edge = triangles[:, end] - triangles[:, start]
        squared = (edge * edge).sum(1)
        t = np.clip(((points - triangles[:, start]) * edge).sum(1) / np.where(squared > 0, squared, 1.0), 0, 1)
        distance = ((triangles[:, start] + t[:, None] * edge - points) ** 2).sum(1)
        weights = np.zeros_like(best)
        weights[:, start], weights[:, end] = 1 - t, t
        closer = distance < gap
        best, gap = np.where(closer[:, None], weights, best), np.where(closer, distance, gap)
    return best
