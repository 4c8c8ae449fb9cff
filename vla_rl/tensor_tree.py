"""A tree of plain values, arrays and tensors <-> one JSON file and one safetensors file, exactly and without pickle.

JSON holds the structure and every plain value; what JSON lacks is written as an object with one reserved key:
`{"$tensor": name}`, `{"$array": name}`, `{"$tuple": [...]}`, `{"$mapping": [[key, value], ...]}` (keys that are not text).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

RESERVED = ("$tensor", "$array", "$tuple", "$mapping")


class TensorTreeError(ValueError):
    """A value cannot be written, or a file cannot be read; the message says where."""


def save_tree(folder: Path, name: str, tree: Any) -> None:
    """Write `folder/name.json` and, if the tree holds tensors or arrays, `folder/name.safetensors`.

    Takes None, bool, int, float (nan and inf included), str, list, tuple, dict, numpy scalars and arrays, and dense
    tensors of any device, which are written from the CPU. Raises `TensorTreeError` for anything else, naming its place.
    """
    store = _Store()
    structure = _encode(tree, name, store)
    if store.tensors:
        safetensors.torch.save_file(store.tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(structure, indent=1), encoding="utf-8")


def load_tree(folder: Path, name: str) -> Any:
    """Read what `save_tree` wrote: equal values and types, tensors on the CPU. Raises `TensorTreeError`."""
    tensor_file = folder / f"{name}.safetensors"
    try:
        structure = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(tensor_file) if tensor_file.exists() else {}
        return _decode(structure, tensors)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise TensorTreeError(f"cannot read {name} in {folder}: {error}") from error


def pack_tree(tree: Any) -> bytes:
    """What `save_tree` would write, as bytes: the length of the JSON (little-endian uint64), the JSON, the safetensors."""
    store = _Store()
    structure = json.dumps(_encode(tree, "tree", store)).encode()
    return struct.pack("<Q", len(structure)) + structure + safetensors.torch.save(store.tensors)


def unpack_tree(data: bytes) -> Any:
    """What `pack_tree` packed. Raises `TensorTreeError`."""
    try:
        end = 8 + struct.unpack_from("<Q", data)[0]
        return _decode(json.loads(data[8:end]), safetensors.torch.load(data[end:]))
    except (struct.error, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise TensorTreeError(f"cannot read a packed tree of {len(data)} bytes: {error}") from error


def _encode(value: Any, place: str, store: _Store) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"$tensor": store.add(value, place)}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.kind in "USVmM":
            raise TensorTreeError(f"{place} is an array of {value.dtype}, which cannot be saved; use numbers")
        return {"$array": store.add(torch.from_numpy(value.astype(value.dtype.newbyteorder("="))), place)}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{place}.{i}", store) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{place}.{i}", store) for i, item in enumerate(value)]
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and not any(key in RESERVED for key in value):
            return {key: _encode(item, f"{place}.{key}", store) for key, item in value.items()}
        pairs = [[_encode(key, f"{place} key", store), _encode(item, f"{place}.{key}", store)] for key, item in value.items()]
        return {"$mapping": pairs}
    raise TensorTreeError(f"{place} is a {type(value).__name__}, which cannot be saved; use numbers, text, lists or tensors")


class _Store:
    """Tensors by name, no two of which share memory: safetensors refuses those, as views of one state are."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._memory: set[int] = set()

    def add(self, tensor: Tensor, place: str) -> str:
        if tensor.layout != torch.strided or tensor.is_meta:
            raise TensorTreeError(
                f"{place} is a tensor of layout {tensor.layout} on {tensor.device}; only dense data can be saved"
            )
        name = place
        while name in self.tensors:  # two places can spell the same name, as {"a.b": x, "a": {"b": y}} does
            name += "'"
        data = tensor.detach().to("cpu").contiguous()
        storage = data.untyped_storage()
        if storage.data_ptr() in self._memory or storage.nbytes() != data.nbytes:
            data = data.clone()
        self._memory.add(data.untyped_storage().data_ptr())
        self.tensors[name] = data
        return name


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        (kind, body), *_ = node.items()
        if kind == "$tensor":
            return tensors[body]
        if kind == "$array":
            return tensors[body].numpy()
        if kind == "$tuple":
            return tuple(_decode(item, tensors) for item in body)
        if kind == "$mapping":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in body}
    return {key: _decode(item, tensors) for key, item in node.items()}
