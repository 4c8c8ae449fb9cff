"""Which requests are computed together, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from vla_rl.serve.batching import Batcher
from vla_rl.serve.limits import RateLimit


@dataclass(frozen=True)
class Number:
    value: int
    kind: str = "a"

    @property
    def batch_key(self) -> tuple[str]:
        return (self.kind,)


@dataclass
class Doubler:
    """Doubles numbers, keeps the batches, and fails at 13; the first batch can be held up."""

    batches: list[list[int]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, requests: Sequence[Number]) -> list[int | Exception]:
        assert self.go.wait(10)
        self.batches.append([request.value for request in requests])
        return [ValueError("13") if request.value == 13 else 2 * request.value for request in requests]


def run(
    work: Callable[[Batcher[Number, int], Doubler], Awaitable[None]],
    max_batch: int = 4,
    max_wait: float = 30.0,
    companions: int = 100,
) -> list[list[int]]:
    """Batches that the work leads to."""
    doubler = Doubler()
    doubler.go.set()

    async def main() -> None:
        batcher: Batcher[Number, int] = Batcher(doubler, max_batch, max_wait, lambda: companions)
        worker = asyncio.create_task(batcher.run())
        await asyncio.wait_for(work(batcher, doubler), 10)
        worker.cancel()

    asyncio.run(main())
    return doubler.batches


def test_a_full_batch_does_not_wait() -> None:
    async def work(batcher: Batcher[Number, int], _: Doubler) -> None:
        answers = await asyncio.gather(*(batcher.answer(Number(i)) for i in range(8)))
        assert [answer for answer, _ in answers] == [2 * i for i in range(8)]

    assert run(work) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_nobody_waits_for_clients_that_are_not_there() -> None:
    async def work(batcher: Batcher[Number, int], _: Doubler) -> None:
        await asyncio.gather(*(batcher.answer(Number(i)) for i in range(3)))

    assert run(work, companions=3) == [[0, 1, 2]]


def test_a_request_waits_no_longer_than_it_may() -> None:
    async def work(batcher: Batcher[Number, int], _: Doubler) -> None:
        _, waited = await batcher.answer(Number(1))
        assert 0.05 <= waited < 1.0

    assert run(work, max_wait=0.05) == [[1]]


def test_unequal_requests_are_computed_apart() -> None:
    async def work(batcher: Batcher[Number, int], _: Doubler) -> None:
        await asyncio.gather(*(batcher.answer(Number(i, "ab"[i % 2])) for i in range(6)))

    assert run(work, max_wait=0.05, companions=6) == [[0, 2, 4], [1, 3, 5]]


def test_what_arrives_during_a_batch_makes_the_next() -> None:
    async def work(batcher: Batcher[Number, int], doubler: Doubler) -> None:
        doubler.go.clear()
        first = asyncio.create_task(batcher.answer(Number(0)))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(batcher.answer(Number(i))) for i in (1, 2, 3)]
        await asyncio.sleep(0.05)
        doubler.go.set()
        await asyncio.gather(first, *rest)

    assert run(work, companions=1) == [[0], [1, 2, 3]]


def test_an_error_is_its_own_requests_alone_and_who_left_is_not_computed() -> None:
    async def work(batcher: Batcher[Number, int], _: Doubler) -> None:
        gone = asyncio.create_task(batcher.answer(Number(99)))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.wait({gone})
        good, bad = await asyncio.gather(batcher.answer(Number(1)), batcher.answer(Number(13)), return_exceptions=True)
        assert isinstance(good, tuple) and good[0] == 2
        assert isinstance(bad, ValueError)

    assert run(work, companions=2) == [[1, 13]]


def test_the_rate_limit_by_hand() -> None:
    """2 a second: two at once, the third not; .5 s refill one; after a long rest there are two again, not more."""
    limit = RateLimit(2.0, now=10.0)
    assert [limit.admit(10.0) for _ in range(3)] == [True, True, False]
    assert [limit.admit(10.5) for _ in range(2)] == [True, False]
    assert [limit.admit(99.0) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_a_slow_rate_lets_the_first_request_pass(rate: float) -> None:
    limit = RateLimit(rate, now=0.0)
    assert [limit.admit(0.0), limit.admit(0.9 / rate), limit.admit(1.01 / rate)] == [True, False, True]
