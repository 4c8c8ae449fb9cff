import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from pendulum_run import pendulum_policy

from vla_rl.evaluate import evaluate, record_videos
from vla_rl.sim.pool import SimPool
from vla_rl.types import EpisodeSpec

SPECS = [EpisodeSpec("pendulum", limit, seed=i) for i, limit in enumerate([6, 14, 9, 14, 6, 11])]


@pytest.fixture
def sim() -> Iterator[SimPool]:
    pool = SimPool(
        "pendulum_backend:PendulumBackend", num_envs=4, num_workers=1, cameras=("front", "side"), image_size=16, options={}
    )
    with closing(pool):
        yield pool


def test_an_evaluation_counts_each_episode_once_and_by_task(sim: SimPool, tmp_path: Path) -> None:
    result = evaluate(pendulum_policy(), sim, SPECS, name="start", step=3, temperature=1.0, seed=4)
    assert [o.spec for o in result.outcomes] == SPECS
    result.save(tmp_path / "evaluation" / "start.json")
    record = json.loads((tmp_path / "evaluation" / "start.json").read_text())
    assert [(t["task_id"], t["episodes"]) for t in record["tasks"]] == [(6, 2), (14, 2), (9, 1), (11, 1)]
    assert record["total"]["successes"] == sum(o.success for o in result.outcomes) == sum(t["successes"] for t in record["tasks"])
    assert record["mode"] == "sampled" and record["step"] == 3
    assert "start" in str(result.table().title)


def test_a_sampled_evaluation_repeats_with_its_seed(sim: SimPool) -> None:
    policy = pendulum_policy()
    first, again, other = (evaluate(policy, sim, SPECS, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first.outcomes, again.outcomes, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
    assert any(
        not np.array_equal(one.actions[:2], two.actions[:2]) for one, two in zip(first.outcomes, other.outcomes, strict=True)
    )


def test_videos_repeat_the_episodes(sim: SimPool, tmp_path: Path) -> None:
    import av

    result = evaluate(pendulum_policy(), sim, SPECS, name="start", temperature=1.0)
    wanted = {True: min(2, result.successes), False: min(2, len(SPECS) - result.successes)}
    record_videos(result, sim, tmp_path, count=2)
    for label, count in wanted.items():
        assert sum(result.outcomes[i].success is label for i in result.videos) == count
    for index, path in result.videos.items():
        with av.open(str(tmp_path / path)) as video:
            frames = sum(1 for _ in video.decode(video=0))
        # The first frame and one for every second control step.
        assert frames == 1 + -(-result.outcomes[index].steps // 2)


def test_the_table_of_no_success_is_honest(sim: SimPool) -> None:
    policy = pendulum_policy()
    with torch.no_grad():
        policy.model.language_model.lm_head.weight.zero_()  # every token alike: the greedy command is a constant
    total = evaluate(policy, sim, SPECS).to_dict()["total"]
    assert total["low"] <= total["rate"] <= total["high"]
    assert total["episodes"] == len(SPECS)
