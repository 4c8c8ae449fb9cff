import numpy as np
import pytest

from vla_rl.data import DatasetError, Demonstration
from vla_rl.data.chunks import ChunkDataset


def demonstration(steps: int, first: float, stride: int = 1, size: int = 4) -> Demonstration:
    index = np.arange(0, steps, stride)
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 0] = first + np.arange(steps) / 100
    frames = np.broadcast_to((10 * first + index)[:, None, None, None], (len(index), size, size, 3)).astype(np.uint8)
    proprio = np.broadcast_to(first + np.arange(steps)[:, None], (steps, 8)).astype(np.float32)
    return Demonstration(f"task {first}", {"agentview": frames}, index, proprio, actions, np.zeros(steps, np.float32), True)


def test_a_chunk_holds_the_actions_that_follow_its_frame_and_stops_at_the_end() -> None:
    # Two demonstrations of 5 and 3 steps: 8 samples. Sample 3 is step 3 of the first, so a chunk of 4 has 2 real actions.
    dataset = ChunkDataset.from_demonstrations([demonstration(5, 1.0), demonstration(3, 2.0)], ["agentview"], 4)
    assert len(dataset) == 8
    observation, actions, mask = dataset[np.array([0, 3, 5, 7])]
    np.testing.assert_allclose(actions[0, :, 0], [1.00, 1.01, 1.02, 1.03], rtol=1e-6)
    np.testing.assert_allclose(actions[1, :, 0], [1.03, 1.04, 1.04, 1.04], rtol=1e-6)
    assert mask[1].tolist() == [True, True, False, False]
    np.testing.assert_allclose(actions[2, :, 0], [2.00, 2.01, 2.02, 2.02], rtol=1e-6)
    assert mask[2].tolist() == [True, True, True, False]
    assert mask[3].tolist() == [True, False, False, False]
    assert observation.instruction == ["task 1.0", "task 1.0", "task 2.0", "task 2.0"]
    assert observation.images["agentview"][:, 0, 0, 0].tolist() == [10, 13, 20, 22]
    assert observation.proprio[:, 0].tolist() == [1, 4, 2, 4]


def test_thinned_frames_are_fewer_samples_with_whole_chunks() -> None:
    dataset = ChunkDataset.from_demonstrations([demonstration(7, 1.0, stride=3)], ["agentview"], 2)
    observation, actions, mask = dataset[np.arange(len(dataset))]
    assert len(dataset) == 3
    np.testing.assert_allclose(actions[:, :, 0], [[1.00, 1.01], [1.03, 1.04], [1.06, 1.06]], rtol=1e-6)
    assert mask.tolist() == [[True, True], [True, True], [True, False]]
    assert observation.proprio[:, 0].tolist() == [1, 4, 7]


def test_with_a_stride_each_action_is_where_its_steps_end() -> None:
    # Steps 0 to 6, stride 3. From step 0: where steps 0-2 and 3-5 end, so 2 and 5, then the last step's, 6, whose stride is cut
    # short. From step 4: where 4-6 end, 6, and nothing behind it.
    dataset = ChunkDataset.from_demonstrations([demonstration(7, 1.0), demonstration(3, 2.0)], ["agentview"], 3, stride=3)
    _, actions, mask = dataset[np.array([0, 4])]
    np.testing.assert_allclose(actions[:, :, 0], [[1.02, 1.05, 1.06], [1.06, 1.06, 1.06]], rtol=1e-6)
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_the_experts_label_is_cloned_where_it_is_known() -> None:
    demo = demonstration(3, 1.0)
    clean = np.full((3, 7), 0.25, np.float32)
    taught = Demonstration(**{**demo.__dict__, "expert_actions": clean})
    _, actions, _ = ChunkDataset.from_demonstrations([taught], ["agentview"], 2)[np.array([0])]
    assert (actions == 0.25).all()


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(DatasetError, match="several sizes"):
        ChunkDataset.from_demonstrations([demonstration(3, 1.0), demonstration(3, 1.0, size=6)], ["agentview"], 2)


def test_no_demonstration_at_all_is_refused() -> None:
    with pytest.raises(DatasetError, match="no successful demonstration in no file at all"):
        ChunkDataset.load([], ["agentview"], 2)
