"""Fewer faces for a triangle mesh, with shading normals and texture coordinates carried over. Arrays in, arrays out.

Legend: V vertices, W welded vertices, F faces, E edges, M new vertices, N new faces.
"""

from __future__ import annotations

from collections.abc import Sequence

import fast_simplification
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_rl.sim.libero.detail_surface import carry_over
from vla_rl.sim.libero.mesh import Mesh, face_vectors


def weld(mesh: Mesh, *, cut_seams: bool) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "F 3"]]:
    """Merge vertices at the same place (to a millionth of the mesh's size), or with `cut_seams` only those that also agree
    in texture coordinate.

    Returns a vertex of each welded one, and the faces over welded vertices; faces that collapse by it stay, with corners
    alike. Files store a vertex once per face: without welding, decimation sees only borders and stalls at about 60% of the
    faces.
    """
    size = float(np.ptp(mesh.vertices, axis=0).max(initial=0.0)) or 1.0
    keys = np.round((mesh.vertices - mesh.vertices.min(axis=0)) / (1e-6 * size)).astype(np.int64)
    if mesh.texcoords is not None and cut_seams:
        keys = np.concatenate([keys, np.round(mesh.texcoords * 1e5).astype(np.int64)], axis=1)
    packed = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)[mesh.faces]


def _has_area(faces: Int[np.ndarray, "F 3"]) -> Bool[np.ndarray, "F"]:
    return (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])


def decimate(mesh: Mesh, counts: Sequence[int]) -> list[Mesh]:
    """For each count, a mesh of about so many faces (quadric error metric), or `mesh` itself where none would be dropped.

    Borders and texture seams stay about where they are.
    """
    first, welded = weld(mesh, cut_seams=False)
    sheets = weld(mesh, cut_seams=True)[1]
    points, solid = mesh.vertices[first], _has_area(welded)
    triangles = welded[solid]
    ridges = _border_and_seams(triangles, sheets[solid])
    found = []
    for count in counts:
        if not 0 < count < len(triangles):
            found.append(mesh)
            continue
        new_points, new, became = _simplify(points, triangles, ridges, count)
        new = new[np.linalg.norm(face_vectors(new_points[new]), axis=1) > 0]
        small = 0 < len(new) < len(mesh.faces)
        found.append(carry_over(mesh, sheets, became[welded], new_points, new) if small else mesh)
    return found


def _border_and_seams(triangles: Int[np.ndarray, "F 3"], sheets: Int[np.ndarray, "F 3"]) -> Int[np.ndarray, "E"]:
    """Half-edges (3 x face + corner that it starts at), one per edge that borders on nothing or on another texture chart."""
    start, end = triangles.reshape(-1), np.roll(triangles, -1, axis=1).reshape(-1)
    side_start, side_end = sheets.reshape(-1), np.roll(sheets, -1, axis=1).reshape(-1)
    swap = start > end
    edge = np.minimum(start, end) * (int(triangles.max()) + 1) + np.maximum(start, end)
    side = np.where(swap, side_end, side_start) * (int(sheets.max()) + 1) + np.where(swap, side_start, side_end)
    _, index, inverse, uses = np.unique(edge, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    parted = np.bincount(inverse, side != side[index[inverse]], minlength=len(index)) > 0
    return index[(uses == 1) | parted]


def _simplify(
    points: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"], ridges: Int[np.ndarray, "E"], count: int
) -> tuple[Float[np.ndarray, "M 3"], Int[np.ndarray, "N 3"], Int[np.ndarray, "V"]]:
    """New points and faces, and the new point that each old one became; -1 where its last face vanished.

    The library lets borders and seams drift: a flat patch may shrink at no cost. Fins that stand on these edges while it
    works add an upright plane to what the edge must stay on.
    """
    tips, fins = _fins(points, triangles, ridges)
    with_fins = np.ascontiguousarray(np.concatenate([points, tips]), np.float32)
    faces = np.ascontiguousarray(np.concatenate([triangles, fins]), np.int32)
    total = min(len(faces) - 1, count + min(len(fins), count // 2))
    for _ in range(4):
        _, _, collapses = fast_simplification.simplify(with_fins, faces, target_count=total, return_collapses=True)
        new_points, new, became = fast_simplification.replay_simplification(with_fins, faces, collapses)
        real = np.zeros(len(new_points), dtype=bool)
        real[became[: len(points)][became[: len(points)] >= 0]] = True
        kept = np.asarray(new[real[new].all(axis=1)], np.int64)
        kept = kept[_has_area(kept)]
        wanted = min(len(faces) - 1, max(count // 2, round(total + (count - len(kept)) * max(1.0, len(new) / max(len(kept), 1)))))
        if abs(len(kept) - count) <= 0.05 * count or wanted == total or len(new) > 1.05 * total:
            break
        total = wanted
    return np.asarray(new_points, np.float64), kept, np.asarray(became[: len(points)], np.int64)


def _fins(
    points: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"], ridges: Int[np.ndarray, "E"]
) -> tuple[Float[np.ndarray, "E 3"], Int[np.ndarray, "E2 3"]]:
    """A point above the middle of each edge, and two triangles (one for each side) from the edge up to it."""
    start = triangles.reshape(-1)[ridges]
    end = np.roll(triangles, -1, axis=1).reshape(-1)[ridges]
    normal = face_vectors(points[triangles[ridges // 3]])
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    height = 0.3 * float(np.ptp(points, axis=0).max())
    tips = (points[start] + points[end]) / 2 + height * normal
    tip = len(points) + np.arange(len(ridges))
    return tips, np.concatenate([np.stack([end, start, tip], axis=1), np.stack([start, end, tip], axis=1)])
