"""Messages and shared memory between a pool and its workers."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.sim.channel import BlockingChannel, PollingChannel, SharedArrays, decode, encode

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
messages_of = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5)


def test_a_message_by_hand() -> None:
    """{"a": 1} in msgpack: map of one (0x81), text of one (0xa1) "a", 1; three more bytes of length come first, lowest first."""
    assert encode({"a": 1}) == b"\x04\x00\x00\x00" + b"\x81\xa1a\x01"


@given(messages_of, st.lists(st.integers(1, 9), min_size=1))
def test_messages_survive_any_cutting_of_the_stream(messages: list[dict], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in messages)
    buffer, received, position, i = bytearray(), [], 0, 0
    while position < len(stream):
        size = cuts[i % len(cuts)]
        buffer += stream[position : position + size]
        received += decode(buffer)
        position, i = position + size, i + 1
    assert received == messages and not buffer


@pytest.mark.parametrize("rubbish", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", b"\x02\x00\x00\x00\x01\x02"])
def test_rubbish_is_a_value_error(rubbish: bytes) -> None:
    with pytest.raises(ValueError):
        decode(bytearray(rubbish))


def test_a_message_larger_than_the_socket_takes_does_not_block_the_parent() -> None:
    ours, theirs = socket.socketpair()
    parent, worker = PollingChannel(ours), BlockingChannel(theirs)
    state = os.urandom(5_000_000)
    parent.queue({"state": state})
    parent.flush()
    assert parent.has_output
    received = []
    thread = threading.Thread(target=lambda: received.append(worker.receive()))
    thread.start()
    while parent.has_output:
        parent.flush()
    thread.join()
    assert received == [{"state": state}]
    worker.send({"ok": 1})
    assert parent.receive() == ([{"ok": 1}], True)
    assert parent.receive() == ([], True)
    theirs.close()
    assert parent.receive() == ([], False)
    ours.close()


def test_the_end_of_the_parent_ends_the_wait() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    assert BlockingChannel(theirs).receive() is None
    theirs.close()


def test_shared_arrays_see_each_other_and_grow_in_place() -> None:
    fd = os.memfd_create("test")
    shape = {"num_workers": 3, "num_envs": 2, "cameras": ("a", "b"), "image_size": 5}
    sizes = {"proprio_dim": 7, "action_dim": 3}
    small = SharedArrays(fd, **shape, **sizes, chunk_length=2)
    other = SharedArrays(fd, **shape, **sizes, chunk_length=2)
    assert SharedArrays(fd, **shape).heartbeats.shape == (3,)
    rng = np.random.default_rng(0)
    for mine, theirs in zip(arrays_of(small), arrays_of(other), strict=True):
        mine[...] = rng.integers(1, 100, mine.shape)
        np.testing.assert_array_equal(mine, theirs)
    # Nothing overlaps: what was written first is still there after all else was written.
    rng = np.random.default_rng(0)
    for theirs in arrays_of(other):
        np.testing.assert_array_equal(theirs, rng.integers(1, 100, theirs.shape))
    large = SharedArrays(fd, **shape, **sizes, chunk_length=1000)
    assert large.actions.shape == (2, 1000, 3) and large.rewards.shape == (2, 1000)
    np.testing.assert_array_equal(large.heartbeats, small.heartbeats)
    np.testing.assert_array_equal(large.images["b"], small.images["b"])
    np.testing.assert_array_equal(large.proprio, small.proprio)
    os.close(fd)


def arrays_of(shared: SharedArrays) -> list[np.ndarray]:
    return [shared.heartbeats, shared.patience, *shared.images.values(), shared.proprio, shared.actions, shared.rewards]
