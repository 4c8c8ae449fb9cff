"""CUDA graphs: what a network launches is recorded once and replayed as one launch.

A forward pass of 7 billion parameters is some thousand small kernels, which Python takes longer to launch than a GPU to run while
the batch is small; a token at a time they are always small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

Held = TypeVar("Held")
Result = TypeVar("Result")
Prepare = Callable[[], tuple[Held, Callable[[], Result]]]

KEPT = 32
"""Recordings; the one that was not used for the longest time goes first."""
KEPT_SHARE = 1 / 6
"""Of a GPU's memory, for what recordings hold; the newest one is kept whatever it holds."""
WARM_UPS = 2


@dataclass(frozen=True)
class Recording(Generic[Held, Result]):
    """A function without arguments: it reads `held` and writes the tensors of its result, which the next replay overwrites."""

    held: Held
    replay: Callable[[], Result]
    size: int
    """Bytes of `held` and of the result."""


class CudaGraphs:
    """The recordings of one network, by what distinguishes them. They are dropped when a parameter's memory is another."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._recordings: OrderedDict[Hashable, Recording[Any, Any]] = OrderedDict()
        self._addresses: tuple[int, ...] = ()
        self._pool: Any = None

    @property
    def _first(self) -> nn.Parameter:
        return next(self._model.parameters())

    def usable(self) -> bool:
        """Only on a GPU, where no gradient is wanted and every rank holds whole weights."""
        return self._first.is_cuda and not torch.is_grad_enabled() and not isinstance(self._first, DTensor)

    def recording(self, key: Hashable, prepare: Prepare[Held, Result]) -> Recording[Held, Result]:
        """What was recorded under `key`: at first what `prepare` returns, tensors to hold and a function that reads them."""
        self._drop_moved()
        found = self._recordings.get(key)
        if found is None:
            found = self._recordings[key] = self._record(prepare)
            while len(self._recordings) > 1 and (len(self._recordings) > KEPT or self._size() > self._largest_size()):
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        return found

    def _size(self) -> int:
        return sum(recording.size for recording in self._recordings.values())

    def _largest_size(self) -> float:
        return KEPT_SHARE * torch.cuda.get_device_properties(self._first.device).total_memory

    def _drop_moved(self) -> None:
        addresses = tuple(parameter.data_ptr() for parameter in self._model.parameters())
        if addresses != self._addresses:
            self._recordings.clear()
            self._addresses, self._pool = addresses, torch.cuda.graph_pool_handle()

    def _record(self, prepare: Prepare[Held, Result]) -> Recording[Held, Result]:
        # Streams and graphs are the current GPU's, which need not be the policy's: of another one nothing would be recorded.
        device = self._first.device
        with torch.cuda.device(device):
            before = torch.cuda.memory_allocated()
            held, run = prepare()
            graph, result = self._graph(run)
            size = torch.cuda.memory_allocated() - before

        def replay() -> Result:
            with torch.cuda.device(device):
                graph.replay()
            return result

        return Recording(held, replay, size)

    def _graph(self, run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        # Libraries allocate their workspaces in the first calls, which a recording must not contain.
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        return graph, result
