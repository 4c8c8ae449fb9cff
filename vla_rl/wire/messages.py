"""Messages as openpi's clients write them: msgpack, in which an array is a map of its type, shape and bytes.

{b"__ndarray__": True, b"dtype": "<f4", b"shape": [8, 7], b"data": bytes}, in C order, and for a numpy scalar
{b"__npgeneric__": True, b"dtype": "<f4", b"data": 0.5}. Only numbers, truth values and text make arrays: nothing is unpickled.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import msgpack
import numpy as np

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_KINDS = "biufUS"
_TEXT = {"S": bytes, "U": str}
_DTYPE = re.compile(rf"[<>|=]?[{_KINDS}][1-9][0-9]{{0,5}}")
_MAX_DIMENSIONS = 8
_MAX_LIST = 1 << 12
_MAX_MAP = 1 << 8
_MAX_CONTAINERS = 1 << 10
"""Maps and lists of one message: each costs some 60 bytes of memory and only one of the message."""


class WireError(RuntimeError):
    """A message or a connection is not as it must be; the message says what is wrong, in one line."""


def encode(message: Any) -> bytes:
    """A message of plain values, numpy arrays and numpy scalars. Raises `WireError` for anything else, such as object arrays."""
    try:
        return bytes(msgpack.packb(message, default=_pack))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot send this: {_one_line(error)}") from error


def decode(data: bytes) -> Any:
    """The message of `encode`, with read-only arrays. Raises `WireError` for bytes that are none.

    Memory stays within a small multiple of the bytes received, whatever sizes they declare.
    """
    containers = 0

    def count(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > _MAX_CONTAINERS:
            raise WireError(f"malformed message: more than {_MAX_CONTAINERS} maps and lists")
        return _unpack(container) if isinstance(container, dict) else container

    try:
        return msgpack.unpackb(data, object_hook=count, list_hook=count, max_array_len=_MAX_LIST, max_map_len=_MAX_MAP)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise WireError(f"malformed message: {_one_line(error)}") from error


def _pack(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"arrays of {value.dtype} have no place in a message")
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} has no place in a message")


def _unpack(record: dict[Any, Any]) -> Any:
    if _ARRAY in record:
        return _array(_dtype(record), record.get(b"shape"), record.get(b"data"))
    if _SCALAR in record:
        return _scalar(_dtype(record), record.get(b"data"))
    return record


def _dtype(record: dict[Any, Any]) -> np.dtype:
    name = record.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"an array of type {str(name)[:40]!r}; numbers, truth values and text can be sent")
    return np.dtype(name)


def _scalar(dtype: np.dtype, data: Any) -> Any:
    # Text of an integer would be as many zero bytes.
    if dtype.kind in _TEXT and not isinstance(data, _TEXT[dtype.kind]):
        raise ValueError(f"a scalar of type {dtype.str} with data of {type(data).__name__}")
    return dtype.type(data)


def _array(dtype: np.dtype, shape: Any, data: Any) -> np.ndarray:
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of shape {str(shape)[:40]!r}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ValueError(f"an array of shape {shape} and type {dtype.str} with data of {found}")
    if dtype.kind == "U":
        points = np.ndarray(len(data) // 4, np.dtype("u4").newbyteorder(dtype.byteorder), data)
        if ((points > sys.maxunicode) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise ValueError("an array of text with code points that no character has")
    return np.ndarray(shape, dtype, data)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
