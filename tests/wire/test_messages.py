"""openpi's messages: the bytes, and what is refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest

from vla_rl.wire import WireError, decode, encode

VALUES: list[Any] = [
    None,
    True,
    -7,
    1 << 63,
    0.5,
    "a mug",
    b"\x00\xff",
    [1, [2.5, "x"]],
    {"a": {"b": []}},
    np.float32(0.25),
    np.int64(-3),
    np.bool_(True),
    np.array(1.5),
    np.zeros((0, 4), np.float32),
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[::-1, ::-1],
    np.array([[True, False]]),
    np.array([np.nan, np.inf]),
    np.array(["lift", "ü"]),
    np.array(["lift", "\U0010ffff"], ">U4"),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    {"images/front": np.ones((2, 2, 3), np.uint8), "proprio": np.arange(8.0)},
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_message_survives(value: Any) -> None:
    assert same(value, decode(encode(value)))


def test_the_bytes_of_an_array() -> None:
    """By hand: a map of 4 (84), binary keys of 11, 4, 5 and 5 bytes (c4 NN), true (c3), 4 bytes of data (1.5 is 0x3fc00000,
    little end first), a text of 3 (a3), a list of 1 (91)."""
    expected = b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x04\x00\x00\xc0\x3f\xc4\x05dtype\xa3<f4\xc4\x05shape\x91\x01"
    assert encode(np.array([1.5], np.float32)) == expected
    assert decode(expected) == np.float32(1.5)


def test_openpis_own_code_reads_ours_and_writes_the_same_bytes() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="pip install --no-deps openpi-client")
    for value in VALUES:
        assert theirs.packb(value) == encode(value)
        assert same(value, theirs.unpackb(encode(value)))


def array(dtype: Any, shape: Any, data: Any) -> bytes:
    return bytes(msgpack.packb({b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "incomplete|Unpack failed"),
        (b"\xc1", "."),
        (encode({"a": np.zeros(9)})[:-3], "incomplete|Unpack failed"),
        (encode(1) + b"\x00", "extra data"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\xc6\xff\xff\xff\xff", "incomplete"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\x91" * 5000 + b"\x90", "."),
        (b"\xa2\xff\xfe", "utf-8"),
        (b"\x81\x01\x02", "int is not allowed for map key"),
        (array("|O", [1], b"\x00" * 8), r"type '\|O'"),
        (array("V8", [1], b"\x00" * 8), "type 'V8'"),
        (array("f4,i4", [1], b"\x00" * 8), "type 'f4,i4'"),
        (array("<f3", [1], b"\x00" * 3), "."),
        (array("U0", [1 << 40], b""), "type 'U0'"),
        (array(None, [1], b""), "type 'None'"),
        (array("<f4", [1 << 62, 1 << 62], b"\x00" * 4), "with data of 4 bytes"),
        (array("<f4", [0, 1 << 62, 1 << 62], b""), "."),
        (array("<f4", [-1, -1], b"\x00" * 4), "shape"),
        (array("<f4", [True], b"\x00" * 4), "shape"),
        (array("<f4", "1", b"\x00" * 4), "shape"),
        (array("<f4", [1] * 33, b"\x00" * 4), "shape"),
        (array("<f4", [1], "text"), "data of str"),
        (array("<f4", [2], b"\x00" * 4), "data of 4 bytes"),
        (bytes(msgpack.packb({b"__npgeneric__": True, b"dtype": "<i4", b"data": "x"})), "."),
        (bytes(msgpack.packb({b"__npgeneric__": True, b"dtype": "<i2", b"data": 1 << 40})), "."),
        (bytes(msgpack.packb({b"__npgeneric__": True, b"dtype": "<U1", b"data": 5})), "scalar of type <U1 with data of int"),
        (array("<U1", [1], b"\xff\xff\xff\xff"), "code points"),
        (array(">U1", [1], b"\x00\x11\x00\x00"), "code points"),
        (array("<U1", [2], b"a\x00\x00\x00\x00\xd8\x00\x00"), "code points"),
        (b"\xc7\x03\xff123", "."),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=rf"^malformed message: [^\n]*(?:{reason})[^\n]*$"):
        decode(data)


def test_declared_sizes_take_no_memory() -> None:
    """A million empty maps are a megabyte of message, and would be 64 of memory."""
    bombs = [
        msgpack.packb([[{}] * 1000] * 1000),
        b"\xdc\x10\x00" * 5000,
        b"\xdd\x00\x00\x10\x00" * 200_000,
        msgpack.packb([[]] * 4000),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "|S1", b"data": 50_000_000}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "|S1", b"data": 1 << 62}),
    ]
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(WireError):
            decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


_NO_PLACE = {
    "object": object(),
    "objects": np.array([object()]),
    "complex": np.array([1j]),
    "set": {1, 2},
    "long integer": 1 << 70,
    "function": {"a": lambda: 0},
}


@pytest.mark.parametrize("value", _NO_PLACE.values(), ids=_NO_PLACE)
def test_what_has_no_place_in_a_message_is_not_sent(value: Any) -> None:
    with pytest.raises(WireError, match="cannot send this"):
        encode(value)
