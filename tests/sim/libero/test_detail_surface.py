"""Decimated meshes take over texture and normals, whatever the simplification leaves."""

import numpy as np

from vla_rl.sim.libero.detail_surface import carry_over
from vla_rl.sim.libero.mesh import Mesh


def test_a_new_vertex_that_nothing_fell_to_continues_the_texture_of_the_nearest_face() -> None:
    """A unit square of two triangles, textured by its own coordinates; the new mesh has a fifth vertex in the middle."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    square = Mesh(corners, faces, np.tile([0.0, 0.0, 1.0], (4, 1)), corners[:, :2].copy())
    points = np.concatenate([corners, [[0.5, 0.5, 0]]])
    fan = np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    made = carry_over(square, faces, faces, points, fan)
    assert len(made.faces) == 4 and made.texcoords is not None
    np.testing.assert_allclose(made.corners(), points[fan])
    np.testing.assert_allclose(made.normals, np.tile([0.0, 0.0, 1.0], (len(made.normals), 1)))
    np.testing.assert_allclose(made.texcoords[made.faces], points[fan][:, :, :2], atol=1e-12)


def test_corners_that_fell_to_nothing_lend_their_texture_to_no_vertex() -> None:
    """The square, and two triangles beside it that simplification dropped, where the fifth vertex is the last one again."""
    corners = np.array(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [3, 0, 0], [2, 1, 0], [4, 0, 0], [5, 0, 0], [4, 1, 0]], float
    )
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [7, 8, 9]])
    original = Mesh(corners, faces, np.tile([0.0, 0.0, 1.0], (10, 1)), corners[:, :2].copy())
    points = np.concatenate([corners[:4], [[0.5, 0.5, 0]]])
    fan = np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    made = carry_over(original, faces, np.where(faces < 4, faces, -1), points, fan)
    assert made.texcoords is not None
    np.testing.assert_allclose(made.texcoords[made.faces], points[fan][:, :, :2], atol=1e-12)
