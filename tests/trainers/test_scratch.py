"""What a new policy takes from simulator and demonstrations."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.config import Config, PolicyConfig, SimConfig, TaskConfig
from vla_rl.data.chunks import ChunkDataset
from vla_rl.sim.environments import find_environment
from vla_rl.trainers.scratch import filled, new_policy, proprio_range


def dataset(actions: np.ndarray, proprio: np.ndarray, instruction: str) -> ChunkDataset:
    steps = len(actions)
    return ChunkDataset(
        images={},
        proprio=proprio.astype(np.float32),
        instruction=[instruction] * steps,
        actions=actions.astype(np.float32),
        start=np.arange(steps),
        end=np.full(steps, steps),
        chunk_length=2,
    )


def config(name: str, cameras: tuple[str, ...] = ()) -> Config:
    task = TaskConfig(suite="robotwin", task_ids=(45,)) if name == "robotwin" else TaskConfig()
    sim = SimConfig(name=name, cameras=cameras)  # type: ignore[arg-type]
    return Config(task=task, sim=sim, policy=PolicyConfig(chunk_length=2))


def test_the_range_of_proprioception_by_hand() -> None:
    """-1 to 2 has the middle .5 and half the range 1.5; .3 to .34 counts as .2 wide around .32."""
    found = proprio_range(np.array([[-1.0, 0.3], [2.0, 0.34], [0.0, 0.31]]))
    np.testing.assert_allclose(found["proprio_centre"], [0.5, 0.32])
    np.testing.assert_allclose(found["proprio_scale"], [1.5, 0.1])


def test_motions_get_symmetric_bins_and_positions_their_bounds() -> None:
    actions = np.tile([[-0.1], [0.4]], (1, 7))
    libero = new_policy(config("libero"), dataset(actions, np.zeros((2, 8)), "go")).statistics
    # The larger of .1 and .4 to both sides, with an exact zero.
    np.testing.assert_allclose([libero.low, libero.high], [[-0.4] * 7, [0.4] * 7], atol=1e-6)
    assert libero.exact_zero
    actions, proprio = np.tile([[-0.1], [0.4]], (1, 14)), np.tile([[-0.1], [0.4]], (1, 41))
    policy = new_policy(config("robotwin"), dataset(actions, proprio, "Stack the red block"))
    # .02 of the range of .5 beyond either end.
    np.testing.assert_allclose([policy.statistics.low, policy.statistics.high], [[-0.11] * 14, [0.41] * 14], atol=1e-6)
    assert not policy.statistics.exact_zero
    np.testing.assert_allclose(policy.config.proprio_centre, 0.15, atol=1e-6)
    np.testing.assert_allclose(policy.config.proprio_scale, 0.25, atol=1e-6)


def test_a_template_names_either_arm() -> None:
    assert list(filled("{a} takes {A}, then {b} rests.")) == [
        "the left arm takes , then the left arm rests.",
        "the right arm takes , then the right arm rests.",
    ]


@pytest.mark.skipif(find_environment("robotwin") is None, reason="vla-rl sim install robotwin")
def test_each_word_of_all_instructions_is_one_token_and_no_word_fails() -> None:
    """Only one sentence is demonstrated; others are RoboTwin's, seen and unseen, such as this one of its templates."""
    data = dataset(np.zeros((2, 14)), np.zeros((2, 14)), "Bring red block to the center, then stack green block over it.")
    prompts = new_policy(config("robotwin"), data).prompts
    plain = len(prompts.encode("the")) - 1
    sentence = "Utilize the left arm to grab red block, then layer green block atop it"
    assert len(prompts.encode(sentence)) - plain == len(sentence.replace(",", " ,").split())
    assert len(prompts.encode("Défenestrate the 紅 block")) > plain
