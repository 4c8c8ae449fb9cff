"""The lite profile's robot: two six-joint arms of primitive shapes, authored here, with the official robot's joint names.

Not the official ALOHA-AgileX: lengths, shapes and reach are our own. Frames: x forward (towards the table), y left, z up;
m and rad. The last link's x axis points out of the gripper, whose fingers close along its y axis.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

TOOL_LENGTH = 0.14
"""From the last joint to the point between the fingertips, m."""
FINGER_TRAVEL = 0.045
"""Of each finger, from closed to open, m."""
HOME = (0.0, -0.5, 0.55, 0.0, 1.5, 0.0)
"""Joint angles at the start of an episode, rad."""
_BASE = (0.23, 0.28, 0.75)
"""Of the left shoulder in the robot's frame, m; the right one is its mirror image."""


@dataclass(frozen=True)
class Joint:
    """A revolute joint: its place in the frame of the joint before it (m), its axis, and its range (rad)."""

    offset: tuple[float, float, float]
    axis: tuple[float, float, float]
    lower: float
    upper: float


JOINTS = (
    Joint((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), -2.8, 2.8),
    Joint((0.0, 0.0, 0.10), (0.0, 1.0, 0.0), -1.6, 2.2),
    Joint((0.0, 0.0, 0.36), (0.0, 1.0, 0.0), -1.2, 2.6),
    Joint((0.14, 0.0, 0.0), (1.0, 0.0, 0.0), -2.8, 2.8),
    Joint((0.22, 0.0, 0.0), (0.0, 1.0, 0.0), -2.4, 2.4),
    Joint((0.06, 0.0, 0.0), (1.0, 0.0, 0.0), -6.2, 6.2),
)
_SHAPES = (
    ((0.0, 0.0, 0.04), (0.09, 0.09, 0.08)),
    ((0.0, 0.0, 0.18), (0.06, 0.06, 0.32)),
    ((0.06, 0.0, 0.0), (0.14, 0.055, 0.055)),
    ((0.10, 0.0, 0.0), (0.18, 0.05, 0.05)),
    ((0.02, 0.0, 0.0), (0.05, 0.045, 0.045)),
    ((0.035, 0.0, 0.0), (0.03, 0.11, 0.04)),
)
"""Centre and size of the box that each link consists of, in its joint's frame, m."""
_COLOURS = ("0.25 0.27 0.30", "0.85 0.86 0.88", "0.25 0.27 0.30", "0.85 0.86 0.88", "0.25 0.27 0.30", "0.15 0.16 0.18")


def base_of(arm: str) -> Float64[np.ndarray, "3"]:
    """Place of the first joint of the arm `left` or `right` in the robot's frame, m."""
    x, y, z = _BASE
    return np.array([x, y if arm == "left" else -y, z])


def joint_names(arm: str) -> list[str]:
    return [f"{_prefix(arm)}_joint{number}" for number in range(1, 7)]


def _prefix(arm: str) -> str:
    return "fl" if arm == "left" else "fr"


def _link(name: str, boxes: list[tuple[tuple[float, ...], tuple[float, ...]]], colour: str) -> str:
    parts = [f'<link name="{name}"><inertial><mass value="1"/>']
    parts.append('<inertia ixx="0.01" iyy="0.01" izz="0.01" ixy="0" ixz="0" iyz="0"/></inertial>')
    for centre, size in boxes:
        where = f'<origin xyz="{_words(centre)}"/><geometry><box size="{_words(size)}"/></geometry>'
        parts.append(f'<visual>{where}<material name="{name}"><color rgba="{colour} 1"/></material></visual>')
        parts.append(f"<collision>{where}</collision>")
    return "".join([*parts, "</link>"])


def _joint(name: str, kind: str, parent: str, child: str, offset: tuple[float, ...], more: str = "", rpy: str = "0 0 0") -> str:
    ends = f'<parent link="{parent}"/><child link="{child}"/>'
    return f'<joint name="{name}" type="{kind}">{ends}<origin xyz="{_words(offset)}" rpy="{rpy}"/>{more}</joint>'


def _motion(axis: tuple[float, ...], lower: float, upper: float) -> str:
    return f'<axis xyz="{_words(axis)}"/><limit lower="{lower}" upper="{upper}" effort="1000" velocity="10"/>'


def _words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _arm(arm: str) -> Iterator[str]:
    prefix, parent = _prefix(arm), "base_link"
    for number, (joint, box, colour) in enumerate(zip(JOINTS, _SHAPES, _COLOURS, strict=True), start=1):
        name = f"{prefix}_link{number}"
        offset = tuple(base_of(arm)) if number == 1 else joint.offset
        yield _link(name, [box], colour)
        yield _joint(f"{prefix}_joint{number}", "revolute", parent, name, offset, _motion(joint.axis, joint.lower, joint.upper))
        parent = name
    for number, side in ((7, 1.0), (8, -1.0)):
        name = f"{prefix}_link{number}"
        # The pad's inner face lies on the axis when the gripper is closed.
        yield _link(name, [((0.05, side * 0.006, 0.0), (0.10, 0.012, 0.024))], "0.1 0.1 0.1")
        motion = _motion((0.0, side, 0.0), 0.0, FINGER_TRAVEL + 0.003)
        yield _joint(f"{prefix}_joint{number}", "prismatic", parent, name, (0.05, 0.0, 0.0), motion)
    camera = f"{arm}_camera"
    yield f'<link name="{camera}"/>'
    yield _joint(f"{camera}_mount", "fixed", parent, camera, (-0.06, 0.0, 0.09), rpy="0 0.45 0")


def urdf() -> str:
    """The robot as URDF: a stand without collisions, two arms, and a link where each wrist camera sits."""
    stand = "".join(
        f'<visual><origin xyz="{_words((0.23, y, 0.37))}"/><geometry><box size="0.1 0.1 0.74"/></geometry>'
        '<material name="stand"><color rgba="0.35 0.37 0.4 1"/></material></visual>'
        for y in (0.28, -0.28)
    )
    inertial = '<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'
    base = f'<link name="base_link">{inertial}{stand}</link>'
    return "".join(['<robot name="vla_rl_lite_arms">', base, *_arm("left"), *_arm("right"), "</robot>"])


@lru_cache(maxsize=1)
def embodiment_folder() -> Path:
    """A folder that lives as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="vla_rl_robotwin_")
    _FOLDERS.append(folder)
    return Path(folder.name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def write_embodiment(folder: Path) -> dict[str, Any]:
    """Write the URDF and return the embodiment's description, with the keys that RoboTwin's `Robot` and `Camera` read."""
    (folder / "arms.urdf").write_text(urdf(), encoding="utf-8")
    return {
        "urdf_path": "arms.urdf",
        "move_group": ["fl_link6", "fr_link6"],
        "ee_joints": ["fl_joint6", "fr_joint6"],
        "arm_joints_name": [joint_names("left"), joint_names("right")],
        "gripper_name": [{"base": f"{prefix}_joint7", "mimic": [[f"{prefix}_joint8", 1.0, 0.0]]} for prefix in ("fl", "fr")],
        "gripper_bias": TOOL_LENGTH,
        "gripper_scale": [0.0, FINGER_TRAVEL],
        "homestate": [list(HOME), list(HOME)],
        "delta_matrix": np.eye(3).tolist(),
        # SAPIEN's frame of a joint that turns about x is half a turn off its link's.
        "global_trans_matrix": np.diag([1.0, -1.0, -1.0]).tolist(),
        # A quarter turn: the robot's x is the world's y, in front of the table's long side.
        "robot_pose": [[0.0, -0.65, 0.0, 0.70710678, 0.0, 0.0, 0.70710678]],
        "rotate_lim": [0.0, 0.0],
        "grasp_perfect_direction": ["front_right", "front_left"],
        "static_camera_list": [
            {"name": "head_camera", "position": [-0.032, -0.45, 1.35], "forward": [0.0, 0.6, -0.8], "left": [-1.0, 0.0, 0.0]}
        ],
    }
