"""Suites, tasks and initial states as LIBERO ships them."""

import numpy as np
import pytest

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.tasks import MAX_STEPS, STANDARD_SUITES, find_task, suite_names, suite_tasks


def test_the_130_tasks_of_the_standard_suites() -> None:
    counts = {suite: len(suite_tasks(suite)) for suite in STANDARD_SUITES}
    assert counts == {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
    assert len(suite_names()) == 5 + 4 * 4


def test_step_budgets_of_published_evaluations() -> None:
    assert [MAX_STEPS[suite] for suite in STANDARD_SUITES] == [220, 280, 300, 520, 400]
    assert find_task("libero_10_swap", 0).max_steps == 520


def test_instructions_are_those_of_the_task_names() -> None:
    """The BDDL file of libero_spatial 0 says "Pick the akita black bowl ...": policies were trained on the other wording."""
    expected = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert find_task("libero_spatial", 0).instruction == expected
    # "KITCHEN_SCENE3_turn_on_the_stove_and_..." and "LIVING_ROOM_SCENE1_...": the scene's name is not part of it.
    assert find_task("libero_10", 2).instruction == "turn on the stove and put the moka pot on it"
    assert all(not task.instruction.isupper() and "scene" not in task.instruction.lower() for task in suite_tasks("libero_90"))


def test_every_standard_task_has_its_files() -> None:
    for suite in STANDARD_SUITES:
        for task in suite_tasks(suite):
            assert task.bddl_path.is_file(), task
            assert len(task.initial_states()) == 50, task


def test_initial_states_are_numbered_and_read_only() -> None:
    task = find_task("libero_object", 3)
    assert np.array_equal(task.initial_state(49), task.initial_states()[49])
    with pytest.raises(ValueError, match="read-only"):
        task.initial_states()[0, 0] = 1.0


@pytest.mark.parametrize(
    ("suite", "task_id", "message"),
    [
        ("libero_mars", 0, "libero_spatial, libero_object"),
        ("libero_goal", 10, "tasks 0 to 9, there is no task 10"),
        ("libero_goal", -1, "there is no task -1"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(suite: str, task_id: int, message: str) -> None:
    with pytest.raises(SimError, match=message):
        find_task(suite, task_id)


@pytest.mark.parametrize("index", [-1, 50])
def test_unknown_initial_state(index: int) -> None:
    with pytest.raises(SimError, match=f"initial states 0 to 49, there is no {index}"):
        find_task("libero_goal", 0).initial_state(index)
