"""`vla-rl bench fidelity`: its choices and verdicts, and, on two tasks, that our simulator is LIBERO's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vla_rl.bench import fidelity, fidelity_report
from vla_rl.bench.actions import random_actions
from vla_rl.bench.fidelity import EpisodeComparison, FidelitySettings, PictureQuality, TaskComparison
from vla_rl.bench.output import markdown
from vla_rl.sim.base import SimError
from vla_rl.sim.libero.tasks import find_task, suite_tasks

SMALL = FidelitySettings(steps=40, image_size=64, look_every=20, quality_sizes=())


def test_tasks_are_spread_over_a_suite() -> None:
    assert [task.task_id for task in fidelity.spread_out(suite_tasks("libero_90"), 4)] == [0, 30, 59, 89]
    assert [task.task_id for task in fidelity.spread_out(suite_tasks("libero_goal"), 99)] == list(range(10))
    assert len(FidelitySettings().chosen()) == 20
    with pytest.raises(SimError, match="no suite 'libero_gaol'"):
        FidelitySettings(suites=("libero_gaol",)).chosen()


def test_random_actions_leave_the_limits_and_keep_some_rotations_exactly_zero() -> None:
    actions = random_actions(1, 30)
    assert np.abs(actions).max() > 1.1 and not actions[::3, 3:6].any() and actions[1::3, 3:6].all()
    assert np.array_equal(actions, random_actions(1, 30))


def made_up(**changes: float) -> list[TaskComparison]:
    episode = EpisodeComparison("random", 0, steps=200, frames=10)
    pictures = [PictureQuality("agentview", 128, 28.0, 0.95), PictureQuality("agentview", 128, 30.0, 0.97)]
    good = TaskComparison("libero_goal", 3, "push", [episode], pictures, note="the expert knows no pushing")
    expert = EpisodeComparison("expert", 1, steps=120, success=True, frames=6)
    return [good, TaskComparison("libero_goal", 6, "put", [episode, replace(expert, **changes)], [])]


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, [True, True, True]),
        ({"qpos_difference": 1.1e-10}, [False, True, True]),
        ({"labels_that_differ": 1}, [True, False, True]),
        ({"pixel_difference": 1}, [True, True, False]),
    ],
)
def test_one_deviation_in_one_episode_is_enough(changes: dict[str, float], verdicts: list[bool]) -> None:
    assert [target.met for target in fidelity_report.targets(made_up(**changes))] == verdicts


def test_tables() -> None:
    settings = FidelitySettings(suites=("libero_goal",), quality_sizes=(128,))
    text = "\n".join(markdown(table) for table in fidelity_report.tables(made_up(qpos_difference=2e-16), settings))
    assert "| libero_goal | 3, 6 | 400 | 120 | 1 of 1 | 2.0e-16 | 0 | 26 | 0 |" in text
    assert "no episode of the expert, which has no plan for them: libero_goal 3" in text
    assert "| libero_goal | agentview | 128 | 2 | 29.0 (28.0) | 0.960 (0.950) |" in text
    assert json.loads(json.dumps(fidelity_report.to_dict(made_up(), settings)))["tasks"][1]["episodes"][1]["success"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "task_id"), [("libero_object", 0), ("libero_10", 8)])
def test_ours_is_liberos(suite: str, task_id: int) -> None:
    """Coordinates, labels and pixels along random actions and the expert, on a task that it solves and one that it does not."""
    expert_solves_it = suite == "libero_object"
    settings = replace(SMALL, quality_sizes=(64,) if expert_solves_it else ())
    compared = fidelity.compare_task(find_task(suite, task_id), settings)
    assert [target.met for target in fidelity_report.targets([compared])] == [True, True, True]
    assert compared.episodes[0].steps == 40 and compared.episodes[0].frames == 6
    if expert_solves_it:
        assert compared.episodes[1].kind == "expert" and compared.episodes[1].success
        assert {picture.camera for picture in compared.pictures} == set(fidelity.CAMERAS)
        assert len(compared.pictures) == sum(episode.frames for episode in compared.episodes)
        assert min(picture.psnr for picture in compared.pictures) > 20
        assert min(picture.ssim for picture in compared.pictures) > 0.8
