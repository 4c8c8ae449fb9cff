"""Trees of values survive a file exactly."""

import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from vla_rl.tensor_tree import TensorTreeError, load_tree, save_tree

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers() | st.sampled_from(["$tensor", "$array", "$tuple", "$mapping"])
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(trees)
def test_plain_values_come_back_with_their_types(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("tree")
    save_tree(folder, "tree", tree)
    assert repr(load_tree(folder, "tree")) == repr(tree)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8], ids=str)
def test_tensors_come_back_with_their_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.arange(12).reshape(3, 4) % 3).to(dtype)
    tree = {"a.b": tensor, "a": {"b": tensor[1]}, "column": tensor[:, 1], "scalar": tensor[0, 0], "empty": tensor[:0]}
    save_tree(tmp_path, "tree", tree)
    loaded = load_tree(tmp_path, "tree")
    assert torch.equal(loaded["a.b"], tensor) and torch.equal(loaded["a"]["b"], tensor[1])
    assert torch.equal(loaded["column"], tensor[:, 1]) and loaded["scalar"].shape == () and loaded["empty"].shape == (0, 4)
    assert loaded["a.b"].dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "uint64", "uint32", "int8", "bool", ">f8"])
def test_arrays_come_back(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    save_tree(tmp_path, "tree", [array, array.T, np.float32(0.5)])
    loaded = load_tree(tmp_path, "tree")
    np.testing.assert_array_equal(loaded[0], array)
    np.testing.assert_array_equal(loaded[1], array.T)
    assert loaded[2] == 0.5


def test_values_beyond_json_survive(tmp_path: Path) -> None:
    save_tree(tmp_path, "tree", {"inf": -math.inf, "nan": math.nan, "big": 2**127})
    loaded = load_tree(tmp_path, "tree")
    assert loaded["inf"] == -math.inf and math.isnan(loaded["nan"]) and loaded["big"] == 2**127


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.array(["a"]), np.array([None]), torch.ones(2).to_sparse()])
def test_other_values_are_named_with_their_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TensorTreeError, match=r"tree\.x\.1"):
        save_tree(tmp_path, "tree", {"x": [0, value]})


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(TensorTreeError, match="tree"):
        load_tree(tmp_path, "tree")
    (tmp_path / "tree.json").write_text(json.dumps({"$tensor": "gone"}))
    with pytest.raises(TensorTreeError, match="gone"):
        load_tree(tmp_path, "tree")
