"""Errors along a path, worked out by hand."""

import math
import time

import numpy as np
import pytest

from vla_rl.driving.path import Paths, resample

ROW = np.zeros(1, np.int64)


def located(points: list[tuple[float, float]], *poses: tuple[float, float, float], spacing: float = 0.1) -> Paths:
    paths = Paths(1, spacing, 400)
    paths.set(0, np.array(points))
    for pose in poses:
        paths.locate(np.array([pose]), ROW)
    return paths


def test_left_of_the_path_is_positive() -> None:
    # Along x; the robot is 1.23 m along, 0.2 m to the left, and looks 0.5 rad to the left.
    paths = located([(0, 0), (4, 0)], (1.23, 0.2, 0.5))
    assert paths.errors[0] == pytest.approx([1.23, 0.2, 0.5, 4 - 1.23])
    # Along y, and the same place is now 1.23 m to the right; 0.5 - pi/2 of heading error.
    paths = located([(0, 0), (0, 4)], (1.23, 0.2, 0.5))
    assert paths.errors[0] == pytest.approx([0.2, -1.23, 0.5 - math.pi / 2, 3.8])


def test_before_the_beginning_and_beyond_the_end() -> None:
    assert located([(0, 0), (1, 0)], (-0.3, 0.1, 0)).errors[0] == pytest.approx([-0.3, 0.1, 0, 1.3])
    assert located([(0, 0), (1, 0)], (1.2, -0.1, 0)).errors[0] == pytest.approx([1.2, -0.1, 0, -0.2])


def test_points_ahead_are_in_the_robots_frame() -> None:
    # The robot stands at (1, 0.5) and looks along y. The path point 1 m ahead of the nearest one is (2, 0): that is
    # 0.5 m behind the robot and 1 m to its right. 9 m ahead is beyond the end, which is (4, 0).
    paths = located([(0, 0), (4, 0)], (1.0, 0.5, math.pi / 2))
    out = np.zeros((1, 2, 2))
    paths.ahead(np.array([[1.0, 0.5, math.pi / 2]]), np.array([1.0, 9.0]), ROW, out)
    assert out[0] == pytest.approx(np.array([[-0.5, -1.0], [-0.5, -3.0]]))


def test_a_crossing_does_not_skip_the_loop_between() -> None:
    """A figure that comes back to its start: near the start, progress stays near 0."""
    loop = [(0.0, 0.0), (3.0, 0.0), (3.0, 3.0), (0.0, 3.0), (0.0, 0.05)]
    paths = located(loop, (0.1, 0.05, 0.0))
    assert paths.errors[0, 0] == pytest.approx(0.1, abs=0.05)
    for pose in [(x, 0.0, 0.0) for x in np.arange(0.5, 3.1, 0.5)]:
        paths.locate(np.array([pose]), ROW)
    assert paths.errors[0, 0] == pytest.approx(3.0, abs=0.05)


def test_resampled_points_are_evenly_spaced_and_keep_both_ends() -> None:
    # 1 m + 0.55 m in steps of about 0.1 m: 15.5 rounds to 16 gaps (half to even) of 1.55 / 16 m.
    points, length = resample(np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 0.55)]), 0.1, 400)
    assert length == pytest.approx(1.55) and len(points) == 17
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == pytest.approx([1.0, 0.55])
    assert points[8] == pytest.approx([0.775, 0.0])


@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(0.0, 0.0), (math.nan, 1.0)], [(0.0, 0.0), (0.0, 0.0)], [(1.0, 2.0, 3.0)] * 2])
def test_what_is_no_path_is_refused_in_one_line(points: list[tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*path[^\n]*$"):
        resample(np.array(points), 0.1, 400)


def test_too_long_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="the path is 100 m long; at most 40 m can be followed"):
        located([(0, 0), (100, 0)])


@pytest.mark.parametrize("far", [4e5, 1e12, 1e308])
def test_a_path_of_any_length_is_refused_before_room_is_made_for_it(far: float) -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"the path is (\d+|inf) m long; at most 40 m can be followed"):
        located([(-far, 0), (far, 0)])
    assert time.perf_counter() - began < 0.05


def test_the_longest_path_takes_all_points() -> None:
    # 39.94 m are 399.4 gaps of 0.1 m, rounded 399: all 400 points. 39.96 m would be 400 gaps.
    assert located([(0, 0), (39.94, 0)]).counts[0] == 400
    with pytest.raises(ValueError, match="at most 40 m"):
        located([(0, 0), (39.96, 0)])


def test_a_path_may_come_back_on_itself() -> None:
    # 0.13 m in steps of about 0.05 m: three gaps of 0.0433 m, so points at 0, 0.0433, 0.0433 (on the way back) and 0 m. The
    # two that are one leave a path of 0.0867 m; beyond its turn the robot is nearest to both ways, and the first counts.
    paths = located([(0, 0), (0.065, 0), (0, 0)], (0.05, 0.01, 0.0), spacing=0.05)
    assert paths.counts[0] == 3 and paths.spacings[0] == pytest.approx(0.13 / 3)
    assert paths.errors[0] == pytest.approx([0.13 / 3, math.hypot(0.05 - 0.13 / 3, 0.01), 0.0, 0.13 / 3])
    for length in np.linspace(0.06, 2.0, 100):
        paths = located([(0, 0), (length, 0), (0, 0)], *[(x, 0.01, 0.0) for x in np.arange(0, length, 0.02)], spacing=0.05)
        assert np.isfinite(paths.errors).all()


def test_a_path_that_only_turns_round_is_refused() -> None:
    # 0.06 m in steps of about 0.05 m: one gap, from the beginning to the end, which is the same place.
    with pytest.raises(ValueError, match="the path is 0.060 m long and ends where it begins"):
        located([(0, 0), (0.03, 0), (0, 0)], spacing=0.05)
