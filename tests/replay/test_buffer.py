import numpy as np
import pytest

from vla_rl.replay import ReplayBuffer


def add(buffer: ReplayBuffer, first: int, count: int) -> None:
    """Transitions number `first`, `first + 1`, ..., each of whose fields tells its number."""
    number = np.arange(first, first + count, dtype=np.float32)
    buffer.add(
        np.stack((number, -number), 1), number[:, None] / 100, number + 0.5, number % 2 == 1, np.stack((number + 1, -number), 1)
    )


def test_a_batch_holds_whole_transitions() -> None:
    buffer = ReplayBuffer(10, 2, 1)
    add(buffer, 0, 7)
    batch = buffer.sample(200, np.random.default_rng(0))
    number = batch.inputs[:, 0].numpy()
    assert set(number) == set(range(7))
    np.testing.assert_array_equal(batch.inputs[:, 1], -number)
    np.testing.assert_allclose(batch.inputs[:, 2], number / 100)
    np.testing.assert_array_equal(batch.reward, number + 0.5)
    np.testing.assert_array_equal(batch.terminated, number % 2)
    np.testing.assert_array_equal(batch.next_observation, np.stack((number + 1, -number), 1))


def test_the_oldest_are_forgotten() -> None:
    buffer = ReplayBuffer(10, 2, 1)
    for first in range(0, 21, 3):
        add(buffer, first, 3)
    assert len(buffer) == 10
    found = set(buffer.sample(500, np.random.default_rng(0)).inputs[:, 0].tolist())
    assert found == set(range(11, 21))


def test_a_restored_buffer_goes_on_like_the_first() -> None:
    first, second = ReplayBuffer(10, 2, 1), ReplayBuffer(10, 2, 1)
    add(first, 0, 14)
    second.load_state_dict(first.state_dict())
    for buffer in (first, second):
        add(buffer, 14, 3)
    one, two = (buffer.sample(50, np.random.default_rng(1)) for buffer in (first, second))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be() -> None:
    buffer = ReplayBuffer(10, 2, 1)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1, np.random.default_rng(0))
    add(buffer, 0, 3)
    with pytest.raises(ValueError, match="shape"):
        ReplayBuffer(10, 3, 1).load_state_dict(buffer.state_dict())
