"""The processes of one training run, as `torchrun` starts them.

Every rank holds the whole round (all trajectories of all ranks) and decides alike; it runs its own share of the episodes, and
of each mini-batch its own share of the turns. Losses are sums over denominators of the WHOLE mini-batch, so gradients of ranks
are added, never averaged, and the result does not depend on their number.

Legend: N rows of a batch, n = ceil(N / ranks) rows of one rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributed.tensor import DTensor

from vla_rl.config import ConfigError
from vla_rl.tensor_tree import pack_tree, unpack_tree

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others: for all demonstrations and the supervised start, which rank 0 makes alone."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; `Ranks()` is a run of one process, in which every method is cheap or does nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the ranks of this machine: which GPU is this one's."""
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this rank writes the run directory."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every `size`-th item from the one at `rank` on."""
        return list(items[self.rank :: self.size])

    def together(self, items: Sequence[Any]) -> list[Any]:
        """All items in their order, from what every rank made of its `share`."""
        parts = self.gather(list(items))
        result: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            result[rank :: self.size] = part
        return result

    def rows(self, count: int) -> tuple[Int64[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """This rank's rows of `count` (>= 1), and which of them are real.

        All ranks get equally many, as they must make equally many forward passes when weights are sharded: where the rows
        run out, row 0 is repeated.
        """
        rows = np.arange(self.rank, count, self.size)
        missing = -(-count // self.size) - len(rows)
        return np.pad(rows, (0, missing)), np.arange(len(rows) + missing) < len(rows)

    def whole(self, part: Tensor, count: int) -> Tensor:
        """The results [count, ...] of all rows, from every rank's results [n, ...] of its `rows(count)`."""
        if self.size == 1:
            return part
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    def sum(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum over all ranks, the same bits on each."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks; sharded ones have been added in the backward pass."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()

    def gather(self, tree: Any) -> list[Any]:
        """What every rank gives, in the order of the ranks: plain values, arrays and tensors (`tensor_tree`)."""
        if self.size == 1:
            return [tree]
        data = torch.frombuffer(bytearray(pack_tree(tree)), dtype=torch.uint8)
        lengths = [int(length) for length in self.whole(torch.tensor([len(data)]), self.size)]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [unpack_tree(part[:length].numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]

    def first(self, value: Any) -> Any:
        """What rank 0 gives: for decisions that look at a clock or at the disk, which others may see differently."""
        return self.gather(value if self.leads else None)[0]

    def leader_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on every rank; the others call it only once rank 0 is done, and find what it has written."""
        if not self.leads:
            self.wait()
        made = make()
        if self.leads:
            self.wait()
        return made

    def wait(self) -> None:
        """Until every rank is here."""
        # Not `dist.barrier`, which takes a GPU for each rank wherever there is one.
        self.sum(torch.zeros(1))

    def device(self, chosen: torch.device) -> torch.device:
        """This rank's GPU, where GPUs are chosen without saying which; it becomes the current one.

        Raises `ConfigError` where the machine has fewer than ranks.
        """
        if self.local_size == 1 or chosen.type != "cuda" or chosen.index not in (None, 0):
            return chosen
        gpus = torch.cuda.device_count()
        if self.local_size > gpus:
            raise ConfigError(
                f"{self.local_size} ranks on a machine with {gpus} GPUs: start torchrun with --nproc-per-node {gpus}, "
                "or set run.device=cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """The ranks that `torchrun` tells of in the environment; one where it was not used. The group is closed at the end.

    What is printed is printed by rank 0 alone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), size, local_rank, local_size)
    with open(os.devnull, "w") as nowhere, nullcontext() if ranks.leads else redirect_stdout(nowhere):
        yield ranks
    # Not after an error: the other ranks are still waiting, until whoever started them ends them.
    dist.destroy_process_group()
