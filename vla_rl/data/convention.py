"""What the numbers of a dataset mean: orientation, gripper, frames, rate. Formats do not say it, so we write it down.

Everything in memory is in `NATIVE` convention; readers and writers convert from and to what a file states, and refuse
data that contradict it. Nothing is turned round because it looks as if it should be.

Legend: N rows, H x W image size, D = 7 action size, P state size (8 with axis-angle, 9 with quaternions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.data.demonstration import DatasetError

Orientation = Literal["axis_angle", "quaternion_xyzw", "quaternion_wxyz"]
Gripper = Literal["-1_opens_+1_closes", "+1_opens_-1_closes", "1_opens_0_closes", "0_opens_1_closes"]
Frames = Literal["opengl", "upright", "rotated_180"]

GRIPPER = 6
"""Column of the gripper in an action."""


@dataclass(frozen=True)
class Convention:
    """How a dataset stores what has no unit of its own.

    Example: OpenVLA trains on `Convention(gripper="1_opens_0_closes", frames="rotated_180")`.
    """

    orientation: Orientation = "axis_angle"
    """Of the end effector in the state: axis-angle (3, rad), or a unit quaternion (4) in one of the two orders."""
    gripper: Gripper = "-1_opens_+1_closes"
    """Which values of an action's last number do what."""
    frames: Frames = "opengl"
    """opengl: the first row is the lowest (as LIBERO stores them); upright: top row first; rotated_180: both axes of an
    opengl frame reversed (as OpenVLA and LeRobot's LIBERO sets do), which is upright and mirrored."""
    fps: float = 20.0
    """Control steps a second, Hz."""

    def __post_init__(self) -> None:
        for name, kind in (("orientation", Orientation), ("gripper", Gripper), ("frames", Frames)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise DatasetError(f"{name} convention {value!r} is unknown; choose one of: {', '.join(known)}")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise DatasetError(f"{self.fps} control steps a second make no sense; state the rate in Hz, LIBERO's is 20")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Convention:
        try:
            return Convention(**record)
        except TypeError as error:
            raise DatasetError(f"the stored convention {dict(record)} cannot be understood ({error})") from None

    def __str__(self) -> str:
        return f"orientation {self.orientation}, gripper {self.gripper}, frames {self.frames}, {self.fps:g} Hz"


NATIVE = Convention()


# -- actions -----------------------------------------------------------------------------------------------------------
def actions_to(convention: Convention, actions: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Native actions as a dataset of this convention stores them.

    Raises `DatasetError` where the way there and back would change a bit: [0, 1] cannot hold every number of [-1, 1].
    """
    stored = _gripper(actions, NATIVE.gripper, convention.gripper)
    if not np.array_equal(_gripper(stored, convention.gripper, NATIVE.gripper).view(np.uint32), _bits(actions)):
        raise DatasetError(
            f"gripper commands would be rounded on the way to {convention.gripper}; keep the convention {NATIVE.gripper}"
        )
    return stored


def actions_from(convention: Convention, stored: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Actions of a dataset in native convention. Raises `DatasetError` for grippers that contradict the convention."""
    gripper = stored[:, GRIPPER]
    low, high = float(gripper.min(initial=0)), float(gripper.max(initial=0))
    unit = convention.gripper in ("1_opens_0_closes", "0_opens_1_closes")
    # A set of [-1, 1] that never goes below 0 but does hold zeros is one of [0, 1].
    contradiction = low < 0 or high > 1 if unit else len(gripper) > 0 and gripper.min() == 0 and high == 1
    if contradiction:
        raise DatasetError(
            f"gripper commands from {gripper.min():g} to {gripper.max():g} contradict the convention "
            f"{convention.gripper}; state the right one (gripper={' | '.join(get_args(Gripper))})"
        )
    return _gripper(stored, convention.gripper, NATIVE.gripper)


def _bits(actions: Float32[np.ndarray, "N D"]) -> np.ndarray:
    # Subtracting turns -0 into +0, which commands the same.
    return np.ascontiguousarray(actions + np.float32(0)).view(np.uint32)


def _gripper(actions: np.ndarray, source: Gripper, target: Gripper) -> np.ndarray:
    """The last column from one convention into another; other columns keep their bits."""
    result = np.array(actions, dtype=np.float32)
    if source == target:
        return result
    half, one = np.float32(0.5), np.float32(1)
    value = result[:, GRIPPER] + np.float32(0)
    closing = {  # how far it closes, in [-1, 1]
        "-1_opens_+1_closes": lambda: value,
        "+1_opens_-1_closes": lambda: -value,
        "0_opens_1_closes": lambda: 2 * value - one,
        "1_opens_0_closes": lambda: one - 2 * value,
    }[source]()
    result[:, GRIPPER] = {
        "-1_opens_+1_closes": lambda: closing,
        "+1_opens_-1_closes": lambda: -closing,
        "0_opens_1_closes": lambda: (closing + one) * half,
        "1_opens_0_closes": lambda: (one - closing) * half,
    }[target]()
    result[:, GRIPPER] += np.float32(0)
    return result


# -- states ------------------------------------------------------------------------------------------------------------
def state_to(convention: Convention, proprio: Float32[np.ndarray, "N 8"]) -> Float32[np.ndarray, "N P"]:
    """Position, orientation, fingers, as a dataset of this convention stores them."""
    if convention.orientation == "axis_angle":
        return proprio
    quaternions = quaternion(proprio[:, 3:6].astype(np.float64))
    if convention.orientation == "quaternion_wxyz":
        quaternions = quaternions[:, [3, 0, 1, 2]]
    return np.concatenate([proprio[:, :3], quaternions.astype(np.float32), proprio[:, 6:]], axis=1)


def state_from(convention: Convention, state: Float32[np.ndarray, "N P"]) -> Float32[np.ndarray, "N 8"]:
    """A dataset's states with the orientation as axis-angle. Raises `DatasetError` where the width contradicts."""
    wanted = 8 if convention.orientation == "axis_angle" else 9
    if state.ndim != 2 or state.shape[1] != wanted:
        raise DatasetError(
            f"states of shape {state.shape} contradict the orientation convention {convention.orientation} "
            f"({wanted} numbers: position 3, orientation {wanted - 5}, fingers 2); state the right one"
        )
    if convention.orientation == "axis_angle":
        return state
    quaternions = state[:, 3:7].astype(np.float64)
    if convention.orientation == "quaternion_wxyz":
        quaternions = quaternions[:, [1, 2, 3, 0]]
    norms = np.linalg.norm(quaternions, axis=1)
    if (np.abs(norms - 1) > 1e-2).any():
        raise DatasetError(f"orientations of norm {norms.min():.3g} to {norms.max():.3g} are no unit quaternions")
    return np.concatenate([state[:, :3], axis_angle(quaternions).astype(np.float32), state[:, 7:]], axis=1)


def quaternion(axis_angle: Float64[np.ndarray, "N 3"]) -> Float64[np.ndarray, "N 4"]:
    """Unit quaternions (x, y, z, w) of axis-angle vectors, rad."""
    angle = np.linalg.norm(axis_angle, axis=1, keepdims=True)
    axis = np.divide(axis_angle, angle, out=np.zeros_like(axis_angle), where=angle > 0)
    return np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=1)


def axis_angle(quaternions: Float64[np.ndarray, "N 4"]) -> Float64[np.ndarray, "N 3"]:
    """Axis-angle vectors (rad, angles in [0, 2 pi)) of quaternions (x, y, z, w).

    The sign of a quaternion is kept, as robosuite does: q and -q are one rotation but two axis-angle vectors, and a state
    that jumped between them would look like a turn.
    """
    vector, w = quaternions[:, :3], quaternions[:, 3:]
    sine = np.linalg.norm(vector, axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, w)
    return np.divide(vector * angle, sine, out=np.zeros_like(vector), where=sine > 0)


# -- frames ------------------------------------------------------------------------------------------------------------
def turn_frames(frames: UInt8[np.ndarray, "N H W 3"], source: Frames, target: Frames) -> UInt8[np.ndarray, "N H W 3"]:
    """Frames of one convention in another (a view)."""
    # Each is its own inverse, seen from opengl.
    for kind in (source, target):
        if kind == "upright":
            frames = frames[:, ::-1]
        elif kind == "rotated_180":
            frames = frames[:, ::-1, ::-1]
    return frames
