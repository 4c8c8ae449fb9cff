"""What a simulator worker and its parent share: framed msgpack messages and one anonymous shared memory.

Messages are maps of plain values, so that a worker may run under another Python; nothing is ever unpickled. Numbers that
grow with the image size or the chunk length travel through the shared memory instead.

Legend: B environments, A actions of a chunk, D action size, P proprioception size, H x W image size.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

Message = dict[str, Any]

_HEADER = struct.Struct("<I")
_MAX_MESSAGE = 1 << 30
_ALIGNMENT = 64
_READ_SIZE = 1 << 16


def encode(message: Mapping[str, Any]) -> bytes:
    """A message with its length in front (little-endian uint32)."""
    body = msgpack.packb(message, use_bin_type=True)
    return _HEADER.pack(len(body)) + body


def decode(buffer: bytearray) -> list[Message]:
    """Take the complete messages off the front of `buffer`; raises `ValueError` for what is no message."""
    messages, start = [], 0
    while len(buffer) - start >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer, start)
        if length > _MAX_MESSAGE:
            raise ValueError(f"a message of {length} bytes was announced; the limit is {_MAX_MESSAGE}")
        end = start + _HEADER.size + length
        if len(buffer) < end:
            break
        messages.append(msgpack.unpackb(bytes(buffer[start + _HEADER.size : end]), raw=False))
        start = end
    del buffer[:start]
    return messages


def frame_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a frame: of a square one by its side, else as given."""
    return (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))


class BlockingChannel:
    """The worker's end: one message at a time, waiting for the parent as long as it lives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._messages: list[Message] = []

    def receive(self) -> Message | None:
        """The next message, or None when the parent has gone."""
        while not self._messages:
            try:
                data = self._sock.recv(_READ_SIZE)
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffer += data
            self._messages = decode(self._buffer)
        return self._messages.pop(0)

    def send(self, message: Mapping[str, Any]) -> None:
        self._sock.sendall(encode(message))


class PollingChannel:
    """The parent's end: never blocks, so that one stuck worker cannot hold up the others."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def has_output(self) -> bool:
        """Whether the socket must be watched for room to write."""
        return bool(self._outgoing)

    def queue(self, message: Mapping[str, Any]) -> None:
        self._outgoing += encode(message)

    def flush(self) -> None:
        """Write what fits now; raises `ConnectionError` when the worker has gone."""
        while self._outgoing:
            try:
                sent = self.sock.send(self._outgoing)
            except BlockingIOError:
                return
            del self._outgoing[:sent]

    def receive(self) -> tuple[list[Message], bool]:
        """The messages that have arrived, and whether the worker's end is still open."""
        try:
            data = self.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return decode(self._incoming), True
        except ConnectionError:
            return decode(self._incoming), False
        self._incoming += data
        return decode(self._incoming), bool(data)


class SharedArrays:
    """Arrays over a memory file, which has no name and so vanishes with the last process that holds it.

    `heartbeats` int64 [workers] counts signs of life and `patience` float64 [workers] is the time (s) that the next one may
    take; `images[camera]` uint8 [B, H, W, 3], `proprio` float32 [B, P], `actions` float32
    [B, A, D] (written by the parent), `rewards` float32 [B, A]. A longest chunk of 0 maps the first two alone: that is
    all a worker can use before its backend has told the sizes. What depends on the chunk lies last, so that a longer
    chunk leaves the rest in place.
    """

    def __init__(
        self,
        fd: int,
        *,
        num_workers: int,
        num_envs: int,
        cameras: Sequence[str],
        image_size: int | Sequence[int],
        proprio_dim: int = 0,
        action_dim: int = 0,
        chunk_length: int = 0,
    ) -> None:
        self.chunk_length = chunk_length
        image_shape = (num_envs, *frame_size(image_size), 3)
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "heartbeats": ((num_workers,), np.int64),
            "patience": ((num_workers,), np.float64),
        }
        if chunk_length:
            shapes |= {f"image {camera}": (image_shape, np.uint8) for camera in cameras}
            shapes["proprio"] = ((num_envs, proprio_dim), np.float32)
            shapes["actions"] = ((num_envs, chunk_length, action_dim), np.float32)
            shapes["rewards"] = ((num_envs, chunk_length), np.float32)
        offsets, end = {}, 0
        for name, (shape, dtype) in shapes.items():
            offsets[name] = end
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        if os.fstat(fd).st_size < end:
            os.ftruncate(fd, end)
        memory = mmap.mmap(fd, end)
        arrays = {name: np.ndarray(shape, dtype, memory, offsets[name]) for name, (shape, dtype) in shapes.items()}
        self.heartbeats, self.patience = arrays["heartbeats"], arrays["patience"]
        if chunk_length:
            self.images = {camera: arrays[f"image {camera}"] for camera in cameras}
            self.proprio, self.actions, self.rewards = arrays["proprio"], arrays["actions"], arrays["rewards"]
