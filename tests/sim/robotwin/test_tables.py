"""What is written down about RoboTwin: tasks, seeds, the lite arms. Needs no simulator."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_rl.sim import SimError
from vla_rl.sim.robotwin.arms import HOME, joint_names, urdf
from vla_rl.sim.robotwin.assets import Profile, score_note
from vla_rl.sim.robotwin.planner import Reach
from vla_rl.sim.robotwin.seeds import find_seed, known_seeds, search_seeds
from vla_rl.sim.robotwin.tasks import MESH_FREE, STEP_LIMITS, find_task, suite_tasks, task_named
from vla_rl.sim.suites import task_label

LITE = Profile("lite")


def test_there_are_fifty_tasks_in_alphabetical_order() -> None:
    names = [task.name for task in suite_tasks("robotwin")]
    assert len(names) == 50 and names == sorted(names)
    assert task_named("stack_blocks_two").id == 45 and find_task("robotwin", 45).max_steps == 800
    assert STEP_LIMITS["put_bottles_dustbin"] == 1700  # the longest
    with pytest.raises(SimError, match="has tasks 0 to 49, not 50"):
        find_task("robotwin", 50)
    with pytest.raises(SimError, match="one suite 'robotwin', not 'libero_goal'"):
        suite_tasks("libero_goal")


def test_tables_call_tasks_by_what_all_episodes_share() -> None:
    assert task_label("robotwin", 45, "Grab the red block.") == "stack_blocks_two"
    assert task_label("libero_goal", 0, "open the drawer") == "open the drawer"


@pytest.mark.parametrize("name", MESH_FREE)
def test_lite_states_ship(name: str) -> None:
    """40 to train on, 10 held out."""
    seeds = known_seeds(task_named(name), LITE)
    assert len(seeds) >= 50 and seeds == sorted(set(seeds)) and seeds[0] >= 100_000


def test_a_state_that_is_not_known_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))
    with pytest.raises(SimError, match=r"vla-rl sim seeds robotwin task_ids=\[5\] count=50"):
        find_seed(task_named("click_bell"), LITE, 0)


def test_the_search_keeps_what_it_finds_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Of the seeds 100000, 100001, ... every third is solved: 100002, 100005, 100008."""
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))
    task, tried = task_named("click_bell"), []

    def solves(seed: int) -> bool:
        tried.append(seed)
        return seed % 3 == 2  # 100000 is 1 modulo 3

    solved = [seed for seed in range(100_000, 100_010) if seed % 3 == 2]
    assert search_seeds(task, LITE, 2, solves) == solved[:2]
    assert search_seeds(task, LITE, 3, solves) == solved[:3]
    assert tried == list(range(100_000, solved[2] + 1))
    assert find_seed(task, LITE, 2) == solved[2]
    with pytest.raises(SimError, match="fails on 100 seeds of click_bell in a row"):
        search_seeds(task, LITE, 4, lambda seed: False)


def test_a_seed_that_cannot_be_tried_is_unsolved_unless_none_can(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """100000 to 100003 fail to run, 100004 is solved. Where five in a row fail, the next search tries the same ones."""
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))
    task, tried = task_named("click_bell"), []

    def solves(seed: int, works_from: int = 100_004) -> bool:
        tried.append(seed)
        if seed < works_from:
            raise SimError("the objects do not come to rest")
        return True

    assert search_seeds(task, LITE, 1, solves) == [100_004]
    for _ in range(2):
        tried.clear()
        with pytest.raises(SimError, match="do not come to rest"):
            search_seeds(task, LITE, 2, lambda seed: solves(seed, 200_000))
        assert tried == [100_005, 100_006, 100_007, 100_008, 100_009]
    assert search_seeds(task, LITE, 2, solves) == [100_004, 100_005]


def test_the_arms_have_the_official_joint_names() -> None:
    joints = {joint.get("name") for joint in ElementTree.fromstring(urdf()).iter("joint")}
    assert {*joint_names("left"), *joint_names("right"), "fl_joint7", "fl_joint8", "fr_joint7", "fr_joint8"} <= joints
    assert joint_names("right")[0] == "fr_joint1"


def test_forward_kinematics() -> None:
    """At zero: shoulder (0.23, 0.28, 0.75), 0.10 + 0.36 up, then 0.14 + 0.22 + 0.06 forward."""
    reach = Reach("left", (np.zeros(3), Rotation.identity()))
    position, rotation, jacobian = reach.forward(np.zeros(6))
    np.testing.assert_allclose(position, [0.65, 0.28, 1.21], atol=1e-12)
    np.testing.assert_allclose(rotation.as_matrix(), np.eye(3), atol=1e-12)
    # Turning the first joint moves the hand to the left, 0.42 m from its axis; the last joint only rolls it.
    np.testing.assert_allclose(jacobian[:, 0], [0, 0.42, 0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(jacobian[:, 5], [0, 0, 0, 1, 0, 0], atol=1e-12)


def test_inverse_kinematics_finds_a_pose_and_says_where_there_is_none() -> None:
    reach = Reach("right", (np.array([0.1, -0.65, 0.0]), Rotation.from_euler("z", 90, degrees=True)))
    wanted = np.array([0.3, -0.2, 0.4, 0.2, 0.9, -0.3])
    position, rotation, _ = reach.forward(wanted)
    found = reach.solve(position, rotation, np.array(HOME))
    assert found is not None
    there, turned, _ = reach.forward(found)
    assert np.linalg.norm(there - position) < 5e-4 and (turned * rotation.inv()).magnitude() < 5e-3
    assert reach.solve(position + np.array([0.0, 2.0, 0.0]), rotation, np.array(HOME)) is None


def test_scores_say_what_they_may_be_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not comparable" in score_note("auto", "auto") and "not comparable" in score_note("lite", "ray_tracing")
    monkeypatch.setenv("ROBOTWIN_ASSETS_ROOT", "/assets")
    assert score_note("auto", "auto") == "" and "not comparable" in score_note("official", "raster")
