"""TFRecord files, and the `tf.train.Example` messages inside: two small, fixed formats.

A record is its length (uint64, little-endian), the masked CRC-32C of those eight bytes (uint32), the data, and the masked
CRC-32C of the data. An Example is a protobuf map from feature names to lists of bytes, floats or integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np

from vla_rl.data.demonstration import DatasetError

Feature = list[bytes] | np.ndarray
"""Bytes, or a flat array: floats become a float list (32 bits), integers and booleans an int64 list."""

CASTAGNOLI = 0x82F63B78
"""The reversed polynomial of CRC-32C (RFC 3720, appendix B.4)."""
MASK = 0xA282EAD8
"""Added to a rotated checksum, so that checksums of data that hold checksums stay good."""
_VARINT, _LENGTH = 0, 2
"""Protobuf's wire types that occur here: variable-length integers, and what begins with its length."""
_MAX_RECORD = 2**31


# -- records -----------------------------------------------------------------------------------------------------------
@cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(CASTAGNOLI), table >> 1).astype(np.uint32)
    return table


@cache
def _compiled() -> object:
    import numba

    @numba.njit(cache=False)
    def crc(data: np.ndarray, table: np.ndarray) -> int:
        value = np.uint32(0xFFFFFFFF)
        for byte in data:
            value = table[(value ^ byte) & np.uint32(0xFF)] ^ (value >> np.uint32(8))
        return int(value ^ np.uint32(0xFFFFFFFF))

    return crc


def masked_crc(data: bytes) -> int:
    """The checksum that TFRecord files store."""
    crc = int(_compiled()(np.frombuffer(data, np.uint8), _table()))  # type: ignore[operator]
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


def write_record(file: IO[bytes], data: bytes) -> int:
    """Append a record; returns the bytes that it takes."""
    length = struct.pack("<Q", len(data))
    file.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))
    return len(data) + 16


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file. Raises `DatasetError` where it is truncated or a checksum is wrong."""
    try:
        with path.open("rb") as file:
            number = 0
            while header := file.read(12):
                if len(header) == 12:
                    length, check = struct.unpack("<QI", header)
                    if masked_crc(header[:8]) != check or length > _MAX_RECORD:
                        raise DatasetError(f"{path}: the length of record {number} is damaged, or it is no TFRecord file")
                    data, end = file.read(length), file.read(4)
                if len(header) < 12 or len(data) < length or len(end) < 4:
                    raise DatasetError(f"{path} is truncated in record {number}; copy or make it again")
                if masked_crc(data) != struct.unpack("<I", end)[0]:
                    raise DatasetError(f"{path}: record {number} is damaged (its checksum is wrong); copy or make it again")
                yield data
                number += 1
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: the dataset is incomplete; copy or make it again") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error})") from error


# -- messages ----------------------------------------------------------------------------------------------------------
def _varint(value: int) -> bytes:
    parts = bytearray()
    value &= 2**64 - 1  # negative numbers count down from 2^64
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(data)) + data


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """A `tf.train.Example`: Example{1: Features{1: map<name 1, Feature 2>}}, Feature{1 bytes | 2 floats | 3 integers}."""
    entries = []
    for name, value in sorted(features.items()):
        if isinstance(value, list):
            feature = _field(1, b"".join(_field(1, item) for item in value))
        elif value.dtype.kind == "f":
            feature = _field(2, _field(1, value.astype("<f4").tobytes()))
        else:
            feature = _field(3, _field(1, b"".join(_varint(int(number)) for number in value)))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def decode_example(data: bytes) -> dict[str, Feature]:
    """The features of a `tf.train.Example`. Raises `ValueError` for other bytes."""
    features: dict[str, Feature] = {}
    for _, block in _fields(data, wanted=1):
        for _, entry in _fields(block, wanted=1):
            parts = dict(_fields(entry))
            for kind, content in _fields(parts.get(2, b"")):
                features[parts[1].decode()] = _decode_list(kind, content)
    return features


def _decode_list(kind: int, content: bytes) -> Feature:
    if kind == 1:
        return [item for _, item in _fields(content, wanted=1)]
    packed = b"".join(item for _, item in _fields(content, wanted=1))
    if kind == 2:
        return np.frombuffer(packed, "<f4")
    numbers, at = [], 0
    while at < len(packed):
        number, at = _read_varint(packed, at)
        numbers.append(number - 2**64 if number >= 2**63 else number)
    return np.array(numbers, dtype=np.int64)


def _fields(data: bytes, wanted: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the length-delimited fields; unpacked numbers appear as their own bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _LENGTH:
            length, at = _read_varint(data, at)
            end = at + length
        elif kind == _VARINT:
            end = _read_varint(data, at)[1]
        elif kind == 5:  # one unpacked float
            end = at + 4
        else:
            raise ValueError(f"wire type {kind} does not occur in a tf.train.Example")
        if end > len(data):
            raise ValueError("a field ends beyond its message")
        if wanted is None or number == wanted:
            yield number, data[at:end]
        at = end


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7
    raise ValueError("a number does not end")
