"""Requests of several clients, gathered for a bounded time and computed together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class Batchable(Protocol):
    @property
    def batch_key(self) -> tuple[Any, ...]: ...


R = TypeVar("R", bound=Batchable)
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[R, A]):
    request: R
    answer: asyncio.Future[tuple[A, float]]
    arrived: float
    """s, of the event loop's clock."""


class Batcher(Generic[R, A]):
    """Gathers requests of the same `batch_key`; one batch is computed at a time, in a thread of its own.

    A batch begins when it is full, when everyone who could still ask has asked (`companions`), or when its first request has
    waited for `max_wait` seconds.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[R]], Sequence[A | Exception]],
        max_batch: int,
        max_wait: float,
        companions: Callable[[], int],
    ) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._companions = companions
        self._waiting: list[_Waiting[R, A]] = []
        self._arrival = asyncio.Event()

    async def answer(self, request: R) -> tuple[A, float]:
        """The answer, and the time (s) that the request waited for its batch. Raises what `compute` gives as its error."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting[R, A](request, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self._arrival.set()
        return await waiting.answer

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy") as thread:
            while True:
                batch = await self._gather()
                start = loop.time()
                answers = await loop.run_in_executor(thread, self._compute, [waiting.request for waiting in batch])
                for waiting, answer in zip(batch, answers, strict=True):
                    if waiting.answer.done():
                        continue
                    if isinstance(answer, Exception):
                        waiting.answer.set_exception(answer)
                    else:
                        waiting.answer.set_result((answer, start - waiting.arrived))

    async def _gather(self) -> list[_Waiting[R, A]]:
        loop = asyncio.get_running_loop()
        while True:
            self._arrival.clear()
            self._waiting = [waiting for waiting in self._waiting if not waiting.answer.done()]
            remaining = None
            if self._waiting:
                first = self._waiting[0]
                same = [waiting for waiting in self._waiting if waiting.request.batch_key == first.request.batch_key]
                remaining = first.arrived + self._max_wait - loop.time()
                if len(same) >= self._max_batch or len(self._waiting) >= self._companions() or remaining <= 0:
                    batch = same[: self._max_batch]
                    self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
                    return batch
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._arrival.wait()
