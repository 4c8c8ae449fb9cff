import numpy as np
import pytest

from vla_rl.data import Demonstration
from vla_rl.data.quality import (
    action_variation,
    chunk_jump,
    log_dimensionless_jerk,
    no_ops,
    path_distances,
    quality_of,
    resample,
    sparc,
    warped_distances,
)

# The movement that the measures' authors use as their example: a bell of two seconds, sampled at 100 Hz.
BELL = np.exp(-5 * np.arange(-1, 1, 0.01) ** 2)


def test_smoothness_of_the_authors_example() -> None:
    assert sparc(BELL, 100) == pytest.approx(-1.41403, abs=5e-6)
    assert log_dimensionless_jerk(BELL, 100) == pytest.approx(-5.81636, abs=5e-6)


def test_smoothness_does_not_depend_on_scale_and_tremor_lowers_it() -> None:
    shaky = BELL + 0.1 * np.sin(2 * np.pi * 8 * np.arange(200) / 100)
    for measure in (sparc, log_dimensionless_jerk):
        assert measure(3 * BELL, 100) == pytest.approx(measure(BELL, 100))
        assert measure(shaky, 100) < measure(BELL, 100) - 0.1


def test_a_cutoff_at_half_the_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie below half"):
        sparc(BELL, 20, cutoff=10)


def test_no_movement_has_no_smoothness() -> None:
    for speed in (np.zeros(50), np.zeros(1), np.zeros(0)):
        assert np.isnan(sparc(speed, 100)) and np.isnan(log_dimensionless_jerk(speed, 100))


def test_variation_no_ops_and_seams_of_actions() -> None:
    actions = np.zeros((6, 7), np.float32)
    actions[:, 6] = [-1, -1, 1, 1, 1, 1]
    actions[3] += np.array([1, -0.5, 0, 0, 0, 0, 0], np.float32)
    # Changes of the arm: 0, 0, 1.5, 1.5, 0 over five pairs.
    assert action_variation(actions) == pytest.approx(3 / 5)
    # Step 0 has nothing before it, step 2 moves the gripper, step 3 the arm.
    assert no_ops(actions).tolist() == [False, True, False, False, True, True]
    # Chunks of 3 meet between steps 2 and 3: 1.5 there, (0 + 0 + 1.5 + 0) / 4 elsewhere.
    assert chunk_jump(actions, 3) == pytest.approx(1.5 / 0.375)
    assert np.isnan(chunk_jump(actions, 6))


def straight(steps: int, fps: float) -> Demonstration:
    proprio = np.zeros((steps, 8), np.float32)
    proprio[:, 0] = np.arange(steps) * 0.01
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 0] = 0.5
    actions[-2:, 6] = 1
    actions[:-2, 6] = -1
    return Demonstration("go", {}, np.arange(steps), proprio, actions, np.zeros(steps, np.float32), True, fps=fps)


def test_labels_of_an_episode() -> None:
    labels = quality_of(straight(11, 10.0))
    # Ten moves of 1 cm at 10 Hz.
    assert labels.path_length == pytest.approx(0.1)
    assert labels.peak_speed == pytest.approx(0.1)
    assert labels.directness == pytest.approx(1)
    assert labels.duration == pytest.approx(1.1)
    assert (labels.gripper_switches, labels.no_ops, labels.steps, labels.success) == (1, 0, 11, True)
    assert labels.action_variation == 0
    still = straight(1, 20.0)
    assert quality_of(still).sparc is None and quality_of(still).path_length == 0


def test_distances_of_paths() -> None:
    # Along x, along x again, and 3 cm beside it.
    line = np.stack([np.linspace(0, 1, 5), np.zeros(5), np.zeros(5)], axis=1)
    paths = np.stack([line, line, line + np.array([0, 0.03, 0])])
    np.testing.assert_allclose(path_distances(paths), [0, 0.03, 0.03])
    np.testing.assert_allclose(warped_distances(paths), [0, 0.03, 0.03])
    assert resample(line[::2], 5) == pytest.approx(line)


def test_warping_forgives_a_delay_but_no_detour() -> None:
    # The same stops, the second waits at the first, the other at the last: aligned at no cost.
    one = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 0]], float)
    late = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0]], float)
    far = np.array([[0, 0, 0], [1, 0, 0], [2, 5, 0], [2, 0, 0]], float)
    assert warped_distances(np.stack([one, late])) == pytest.approx([0])
    assert path_distances(np.stack([one, late]))[0] == pytest.approx(0.5)
    # The detour's point is cheapest held against the first path's second point (weight 1): sqrt(1 + 25), over 2 * 4. In a
    # diagonal step it weighs 2 * 5; held against the third point it costs 5, and 1 to get there.
    assert warped_distances(np.stack([one, far])) == pytest.approx([26**0.5 / 8])
