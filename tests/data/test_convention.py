import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.data import DatasetError
from vla_rl.data.convention import (
    NATIVE,
    Convention,
    actions_from,
    actions_to,
    axis_angle,
    quaternion,
    state_from,
    state_to,
    turn_frames,
)


def grippers(*values: float) -> np.ndarray:
    actions = np.random.default_rng(0).uniform(-1, 1, (len(values), 7)).astype(np.float32)
    actions[:, 6] = values
    return actions


@pytest.mark.parametrize(
    ("gripper", "stored"),
    [
        ("-1_opens_+1_closes", [-1, 1, 0.5]),
        ("+1_opens_-1_closes", [1, -1, -0.5]),
        ("1_opens_0_closes", [1, 0, 0.25]),
        ("0_opens_1_closes", [0, 1, 0.75]),
    ],
)
def test_grippers_are_converted_as_stated_and_back_to_the_bit(gripper: str, stored: list[float]) -> None:
    convention = Convention(gripper=gripper)  # type: ignore[arg-type]
    native = grippers(-1, 1, 0.5)  # open, close, three quarters closed
    there = actions_to(convention, native)
    assert there[:, 6].tolist() == stored
    np.testing.assert_array_equal(there[:, :6], native[:, :6])
    np.testing.assert_array_equal(actions_from(convention, there), native)


def test_a_gripper_that_would_be_rounded_is_refused() -> None:
    with pytest.raises(DatasetError, match="would be rounded"):
        actions_to(Convention(gripper="1_opens_0_closes"), grippers(np.float32(1e-9)))


@pytest.mark.parametrize(
    ("gripper", "values"), [("-1_opens_+1_closes", (0, 1)), ("1_opens_0_closes", (-1, 1)), ("0_opens_1_closes", (0, 2))]
)
def test_grippers_that_contradict_the_convention_are_refused(gripper: str, values: tuple[float, float]) -> None:
    with pytest.raises(DatasetError, match="contradict the convention"):
        actions_from(Convention(gripper=gripper), grippers(*values))  # type: ignore[arg-type]


def test_a_convention_that_nobody_knows_is_refused() -> None:
    with pytest.raises(DatasetError, match="gripper convention 'open' is unknown; choose one of"):
        Convention(gripper="open")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="0.0 control steps a second"):
        Convention(fps=0.0)
    with pytest.raises(DatasetError, match="cannot be understood"):
        Convention.from_dict({"thumb": 1})
    assert Convention.from_dict(NATIVE.to_dict()) == NATIVE


def test_quaternions_of_axis_angles() -> None:
    # No turn; 180 degrees about x: (sin 90, 0, 0, cos 90); 90 degrees about z: (0, 0, sin 45, cos 45).
    turns = np.array([[0, 0, 0], [np.pi, 0, 0], [0, 0, np.pi / 2]])
    quaternions = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0.5**0.5, 0.5**0.5]])
    np.testing.assert_allclose(quaternion(turns), quaternions, atol=1e-15)
    np.testing.assert_allclose(axis_angle(quaternions), turns, atol=1e-15)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_orientations_survive_both_ways(turn: list[float]) -> None:
    # Below a full turn; LIBERO's hand hangs near half a turn, where the sign of the quaternion decides.
    proprio = np.array([[0.1, 0.2, 0.3, *turn, 0.04, -0.04]], np.float32)
    for orientation in ("axis_angle", "quaternion_xyzw", "quaternion_wxyz"):
        convention = Convention(orientation=orientation)  # type: ignore[arg-type]
        np.testing.assert_allclose(state_from(convention, state_to(convention, proprio)), proprio, atol=1e-5)


def test_the_order_of_quaternions() -> None:
    proprio = np.array([[0, 0, 0, np.pi, 0, 0, 0.04, -0.04]], np.float32)
    xyzw = state_to(Convention(orientation="quaternion_xyzw"), proprio)[0, 3:7]
    wxyz = state_to(Convention(orientation="quaternion_wxyz"), proprio)[0, 3:7]
    np.testing.assert_allclose(xyzw, [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(wxyz, [0, 1, 0, 0], atol=1e-6)


def test_states_that_contradict_the_convention_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"states of shape \(2, 9\) contradict the orientation convention axis_angle"):
        state_from(NATIVE, np.zeros((2, 9), np.float32))
    with pytest.raises(DatasetError, match="no unit quaternions"):
        state_from(Convention(orientation="quaternion_xyzw"), np.zeros((2, 9), np.float32))


def test_frames_are_turned_as_stated() -> None:
    frame = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)  # pixels (rows) a b / c d
    names = {tuple(frame[0, row, column]): name for (row, column), name in zip(np.ndindex(2, 2), "abcd", strict=True)}

    def read(frames: np.ndarray) -> str:
        return "".join(names[tuple(pixel)] for pixel in frames[0].reshape(4, 3))

    assert read(turn_frames(frame, "opengl", "upright")) == "cdab"
    assert read(turn_frames(frame, "opengl", "rotated_180")) == "dcba"
    assert read(turn_frames(frame, "rotated_180", "upright")) == "badc"
    for one in ("opengl", "upright", "rotated_180"):
        for other in ("opengl", "upright", "rotated_180"):
            assert read(turn_frames(turn_frames(frame, one, other), other, one)) == "abcd"  # type: ignore[arg-type]
