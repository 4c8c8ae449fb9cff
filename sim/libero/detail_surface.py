"""What a decimated mesh takes over from its original: shading normals and texture coordinates.

A decimation tells which new vertex each original vertex fell to. Around a texture seam, the original vertices that fell to
one new vertex form several sheets, one for each side of the seam, and a new face takes its coordinates from its own side.

Legend: V vertices, F faces, M new vertices, N new faces, C = 3 N corners of new faces, S sheets, Q queries.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from vla_rl.sim.libero.mesh import Mesh, face_vectors

_SMOOTH_COSINE = 0.9
"""Corners of a vertex whose normals are this close to their mean (25 degrees) share it: a crease stays a crease, and
OpenGL computes a shared vertex once."""
_STRETCH = 3.0
"""A new face whose texture is this many times more stretched than that of nearly every original face lies across a seam."""
_TURN = 0.05
"""What it costs a face to point another way when the closest is sought, in mesh sizes for each unit of difference."""


def carry_over(
    original: Mesh,
    welded: Int[np.ndarray, "F 3"],
    became: Int[np.ndarray, "F 3"],
    points: Float[np.ndarray, "M 3"],
    triangles: Int[np.ndarray, "N 3"],
) -> Mesh:
    """The mesh of `triangles` over `points`, with the original's normals and texture coordinates.

    For each corner of the original, `welded` numbers its vertex, parted at seams, and `became` is the new vertex it fell to,
    -1 for none.
    """
    corner_vertex = triangles.reshape(-1)
    facing = face_vectors(points[triangles])
    facing = np.repeat(facing / np.linalg.norm(facing, axis=1, keepdims=True), 3, axis=0)
    normals = _mean_normals(original, became, corner_vertex, facing)
    if original.texcoords is None:
        vertex, first, normals = _share(corner_vertex, normals)
        return Mesh(points[corner_vertex[first]], vertex.reshape(-1, 3), normals)
    sheet = _sheets(welded, became)
    place = _sheet_of_corners(original, sheet, became, points, triangles, facing)
    texcoords = _texcoords_of_sheets(original, sheet, became, points)[place].reshape(-1, 3, 2)
    # A vertex that nothing fell to, as simplification leaves some, has no sheet to take coordinates from.
    orphaned = ~np.isin(triangles, became).all(axis=1)
    torn = orphaned | _torn(original, points[triangles], texcoords)
    texcoords[torn] = _extrapolated(original, points[triangles[torn]], facing.reshape(-1, 3, 3)[torn, 0])
    alone = np.repeat(torn, 3)
    place = np.where(alone, int(place.max()) + 1 + np.arange(len(place)), place)
    vertex, first, normals = _share(place, normals)
    return Mesh(points[corner_vertex[first]], vertex.reshape(-1, 3), normals, texcoords.reshape(-1, 2)[first])


def _pairs(keys: Int[np.ndarray, "A"], sources: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "K"], Int[np.ndarray, "K"]]:
    """All (i, j) with `keys[i] == sources[j]`, ordered by i."""
    order = np.argsort(sources, kind="stable")
    start = np.searchsorted(sources[order], keys)
    length = np.searchsorted(sources[order], keys, side="right") - start
    left = np.repeat(np.arange(len(keys)), length)
    return left, order[np.arange(len(left)) + np.repeat(start - np.cumsum(length) + length, length)]


def _mean_normals(
    original: Mesh, became: Int[np.ndarray, "F 3"], corner_vertex: Int[np.ndarray, "C"], facing: Float[np.ndarray, "C 3"]
) -> Float[np.ndarray, "C 3"]:
    """Unit normal of each new corner: the mean over the original corners that fell to its vertex.

    The mean is weighted by area and by how well an original normal agrees with the new face (squared cosine), so that each
    side of a crease keeps its own; taking it over all of them blurs relief that the new faces cannot show.
    """
    area = np.repeat(np.linalg.norm(face_vectors(original.corners()), axis=1), 3)
    source_normal = original.normals[original.faces.reshape(-1)]
    corner, source = _pairs(corner_vertex, became.reshape(-1))
    weight = np.maximum((source_normal[source] * facing[corner]).sum(axis=1), 0.0) ** 2 * area[source]
    count = len(corner_vertex)
    total = np.stack([np.bincount(corner, weight * source_normal[source, axis], minlength=count) for axis in range(3)], axis=1)
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


def _sheets(welded: Int[np.ndarray, "F 3"], became: Int[np.ndarray, "F 3"]) -> Int[np.ndarray, "F 3"]:
    """Sheet of each original corner: welded vertices that fell to one new vertex and hang together by edges."""
    start, end = welded.reshape(-1), np.roll(welded, -1, axis=1).reshape(-1)
    together = (became == np.roll(became, -1, axis=1)).reshape(-1)
    count = int(welded.max()) + 1
    graph = coo_matrix((np.ones(int(together.sum())), (start[together], end[together])), shape=(count, count))
    return connected_components(graph, directed=False)[1][welded].astype(np.int64)


def _sheet_of_corners(
    original: Mesh,
    sheet: Int[np.ndarray, "F 3"],
    became: Int[np.ndarray, "F 3"],
    points: Float[np.ndarray, "M 3"],
    triangles: Int[np.ndarray, "N 3"],
    facing: Float[np.ndarray, "C 3"],
) -> Int[np.ndarray, "C"]:
    """Sheet that each new corner lies on: that of the original face with the closest centre, from inside the new face.

    Any sheet for a corner whose vertex no original corner became.
    """
    corner_vertex = triangles.reshape(-1)
    lowest, highest = np.full(len(points), np.iinfo(np.int64).max), np.zeros(len(points), np.int64)
    left = became >= 0
    np.minimum.at(lowest, became[left], sheet[left])
    np.maximum.at(highest, became[left], sheet[left])
    found = np.minimum(lowest, highest)[corner_vertex]
    several = np.flatnonzero(lowest[corner_vertex] < highest[corner_vertex])
    if len(several) == 0:
        return found
    corners = points[triangles]
    inside = (0.6 * corners + 0.4 * corners.mean(axis=1, keepdims=True)).reshape(-1, 3)
    row, source = _pairs(corner_vertex[several], became.reshape(-1))
    corner = several[row]
    middle, vectors = original.corners().mean(axis=1), face_vectors(original.corners())
    directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    cosine = (directions[source // 3] * facing[corner]).sum(axis=1)
    reach = ((inside - corners.reshape(-1, 3)) ** 2).sum(axis=1)[corner]
    cost = ((middle[source // 3] - inside[corner]) ** 2).sum(axis=1) + reach * (1 - cosine)
    order = np.lexsort((cost, row))
    best = order[np.unique(row[order], return_index=True)[1]]
    found[several] = sheet.reshape(-1)[source[best]]
    return found


def _gap(
    triangles: Float[np.ndarray, "Q 3 3"], points: Float[np.ndarray, "Q 3"]
) -> tuple[Float[np.ndarray, "Q"], Float[np.ndarray, "Q 3"]]:
    """Squared distance of each point to its triangle, and the closest point's barycentric weights."""
    weights = barycentric_of_closest(triangles, points)
    return ((np.einsum("qc,qcd->qd", weights, triangles) - points) ** 2).sum(axis=1), weights


def _texcoords_of_sheets(
    original: Mesh, sheet: Int[np.ndarray, "F 3"], became: Int[np.ndarray, "F 3"], points: Float[np.ndarray, "M 3"]
) -> Float[np.ndarray, "S 2"]:
    """Texture coordinates of each sheet where it is closest to its new vertex."""
    assert original.texcoords is not None
    face = np.repeat(np.arange(len(became)), 3)
    gap, weights = _gap(original.corners()[face], points[became.reshape(-1)])
    order = np.lexsort((gap, sheet.reshape(-1)))
    labels, best = np.unique(sheet.reshape(-1)[order], return_index=True)
    best = order[best]
    texcoords = np.zeros((int(labels.max()) + 1, 2))
    texcoords[labels] = np.einsum("qc,qcd->qd", weights[best], original.texcoords[original.faces[face[best]]])
    return texcoords


def _stretch(corners: Float[np.ndarray, "F 3 3"], texcoords: Float[np.ndarray, "F 3 2"]) -> Float[np.ndarray, "F"]:
    """Length in the texture for each metre, of the edge where it is largest."""
    metres = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
    return (np.linalg.norm(texcoords - np.roll(texcoords, -1, axis=1), axis=2) / np.maximum(metres, 1e-9)).max(axis=1)


def _torn(original: Mesh, corners: Float[np.ndarray, "N 3 3"], texcoords: Float[np.ndarray, "N 3 2"]) -> Bool[np.ndarray, "N"]:
    """Which new faces lie across a seam all the same, so that their corners come from places far apart in the texture."""
    assert original.texcoords is not None
    usual = np.quantile(_stretch(original.corners(), original.texcoords[original.faces]), 0.99)
    return _stretch(corners, texcoords) > _STRETCH * usual


def _extrapolated(
    original: Mesh, corners: Float[np.ndarray, "N 3 3"], facing: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N 3 2"]:
    """Texture coordinates of new corners as the original face closest to their centre would continue."""
    assert original.texcoords is not None
    faces = original.corners()
    vectors = face_vectors(faces)
    normals = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    turn = _TURN * float(np.ptp(original.vertices, axis=0).max())
    tree = cKDTree(np.concatenate([faces.mean(axis=1), turn * normals], axis=1))
    near = tree.query(np.concatenate([corners.mean(axis=1), turn * facing], axis=1))[1]
    edges = np.stack([faces[near, 1] - faces[near, 0], faces[near, 2] - faces[near, 0]], axis=2)
    slopes = original.texcoords[original.faces[near]]
    local = np.einsum("nki,nci->nck", np.linalg.pinv(edges, rcond=1e-3), corners - faces[near, None, 0])
    return slopes[:, None, 0] + np.einsum("nck,nkt->nct", local, slopes[:, 1:] - slopes[:, :1])


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
