"""Environments on workers and devices: balanced whatever the numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.sim.placement import place, rebalance, share_out

costs_of = st.lists(st.floats(0.1, 100), min_size=1, max_size=40)
weights_of = st.lists(st.floats(0.1, 100), min_size=1, max_size=8)


def test_by_hand() -> None:
    """5 equal environments on 2 equal devices: 3 and 2. Device 0 gets the first worker, device 1 the second; then the
    load per worker is 3 and 2, so the third worker goes to device 0, which has environments 0, 2, 4."""
    placement = place(5, 3, (1.0, 1.0))
    assert placement.device_of_worker == (0, 1, 0)
    assert placement.worker_of_env == (0, 1, 2, 1, 0)
    assert placement.rows(0) == (0, 4) and placement.device_of_env(3) == 1


def test_a_device_three_times_as_fast_gets_three_quarters() -> None:
    placement = place(8, 4, (3.0, 1.0))
    assert [placement.device_of_env(env) for env in range(8)].count(0) == 6


@given(costs_of, weights_of, st.data())
def test_no_device_exceeds_its_share_by_more_than_one_environment(
    costs: list[float], weights: list[float], data: st.DataObject
) -> None:
    num_workers = data.draw(st.integers(1, len(costs)))
    placement = place(len(costs), num_workers, weights, costs)
    load = [0.0] * len(weights)
    for env, cost in enumerate(costs):
        load[placement.device_of_env(env)] += cost
    usable = sorted(range(len(weights)), key=lambda device: -weights[device])[:num_workers]
    whole = math.fsum(weights[device] for device in usable)
    for device, weight in enumerate(weights):
        share = math.fsum(costs) * weight / whole if device in usable else 0.0
        assert load[device] <= share + max(costs) * (1 + 1e-9)


@given(costs_of, weights_of, st.data())
def test_every_worker_has_work_and_one_device(costs: list[float], weights: list[float], data: st.DataObject) -> None:
    num_workers = data.draw(st.integers(1, len(costs)))
    placement = place(len(costs), num_workers, weights, costs)
    assert sorted(row for worker in range(num_workers) for row in placement.rows(worker)) == list(range(len(costs)))
    assert all(placement.rows(worker) for worker in range(num_workers))
    assert len(placement.device_of_worker) == num_workers
    assert set(placement.device_of_worker) <= set(range(len(weights)))


@given(st.integers(1, 60), st.data())
def test_equal_environments_differ_by_at_most_one_between_workers(num_envs: int, data: st.DataObject) -> None:
    num_workers = data.draw(st.integers(1, num_envs))
    placement = place(num_envs, num_workers)
    counts = [len(placement.rows(worker)) for worker in range(num_workers)]
    assert max(counts) - min(counts) <= 1


@given(costs_of, weights_of)
def test_share_out_keeps_its_bound(costs: list[float], weights: list[float]) -> None:
    bins = share_out(costs, weights)
    for i, weight in enumerate(weights):
        load = math.fsum(cost for cost, chosen in zip(costs, bins, strict=True) if chosen == i)
        assert load <= math.fsum(costs) * weight / math.fsum(weights) + max(costs) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((2, 3), "needs at least one"),
        ((2, 0), "needs at least one"),
        ((2, 1, (0.0,)), "weights"),
        ((2, 1, (1.0,), (1.0,)), "2 positive"),
    ],
)
def test_what_cannot_be_placed(arguments: tuple, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        place(*arguments)


def test_rebalance_by_hand() -> None:
    """Loads 3 + 2 + 1 = 6 and 0.5: moving the 3 leaves 3 and 3.5, moving the 2 would leave 4."""
    assert rebalance([0, 0, 0, 1], [[3.0] * 2, [2.0] * 2, [1.0] * 2, [0.5] * 2]) == [1, 0, 0, 1]
    # 10 and 9 differ by less than what a move is worth.
    assert rebalance([0, 1], [[10.0] * 2, [9.0] * 2]) == [0, 1]
    # Worker 1 would have to compile for 5 s what worker 0 runs in 1 s; worker 2 is ready.
    assert rebalance([0, 0], [[1.0, 6.0, 1.0], [1.0, 6.0, 1.0]]) in ([2, 0], [0, 2])
    assert rebalance([0, 0], [[1.0, 6.0], [1.0, 6.0]]) == [0, 0]
    assert rebalance([], []) == []


@given(st.data(), costs_of, st.integers(1, 6))
def test_rebalancing_never_lengthens_the_longest_worker(data: st.DataObject, costs: list[float], workers: int) -> None:
    """With equal workers it ends within one row and the gain of the best there is, and a second call has nothing to do."""
    start = data.draw(st.lists(st.integers(0, workers - 1), min_size=len(costs), max_size=len(costs)))

    def longest(worker_of: list[int]) -> float:
        return max(
            math.fsum(cost for cost, own in zip(costs, worker_of, strict=True) if own == worker) for worker in range(workers)
        )

    seconds = [[cost] * workers for cost in costs]
    found = rebalance(start, seconds)
    assert longest(found) <= longest(start) + 1e-9
    assert longest(found) <= (math.fsum(costs) / workers + max(costs)) / 0.9 + 1e-6
    assert rebalance(found, seconds) == found
