"""Triangle meshes as arrays.

Legend: V vertices, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


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
