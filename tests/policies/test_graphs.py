"""Which recordings are kept; what needs a GPU is in test_gpu.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vla_rl.policies.openvla.graphs import KEPT, CudaGraphs, Recording


def graphs(patch: pytest.MonkeyPatch, size: int) -> CudaGraphs:
    """Recordings that hold what their preparation says, bytes, on a GPU of which they may take `size`."""
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    made = CudaGraphs(torch.nn.Linear(1, 1))
    patch.setattr(made, "_record", lambda prepare: Recording(None, lambda: None, prepare()))
    patch.setattr(made, "_largest_size", lambda: size)
    return made


def kept(made: CudaGraphs, *sizes: int) -> list[Any]:
    for key, size in enumerate(sizes):
        made.recording(key, lambda size=size: size)  # type: ignore[misc, arg-type]
    return list(made._recordings)


def test_the_oldest_recordings_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 10 bytes: 4 + 4 fit; 3 more are 11, so the first goes; 2 are 4 + 3 + 2 = 9, which fits; 6 are 15, 11, and 8 at last.
    assert kept(graphs(monkeypatch, 10), 4, 4, 3) == [1, 2]
    assert kept(graphs(monkeypatch, 10), 4, 4, 3, 2) == [1, 2, 3]
    assert kept(graphs(monkeypatch, 10), 4, 4, 3, 2, 6) == [3, 4]
    # One that is larger than all that is allowed still has to be used.
    assert kept(graphs(monkeypatch, 10), 1, 11) == [1]


def test_what_was_used_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graphs(monkeypatch, 10)
    kept(made, 4, 4)
    made.recording(0, lambda: 99)  # type: ignore[arg-type, return-value]
    made.recording(2, lambda: 3)  # type: ignore[arg-type, return-value]
    assert list(made._recordings) == [0, 2]


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(graphs(monkeypatch, 10), *[0] * (KEPT + 3)) == list(range(3, KEPT + 3))
