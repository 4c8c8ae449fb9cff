"""Rows change their worker, for balance or because a device has failed, and nothing else changes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from test_pool_faults import HEALTHY, actions, assert_same, make, play

from vla_rl.sim import EpisodeSpec, SimError
from vla_rl.sim.pool import SimPool

LONG = [EpisodeSpec("pendulum", 500, None, seed) for seed in range(8)]


def rows_of(sim: SimPool) -> list[int]:
    return [len(worker.slots) for worker in sim._supervisor.workers]


def test_rows_leave_a_worker_that_has_all_the_live_ones() -> None:
    """Eight rows in two workers; the four of one worker end. Two of the other four move there and go on, bit for bit."""
    with make(8, 1) as sim:
        sim.reset(LONG)
        expected = [sim.step_chunk(actions(turn, 8)) for turn in range(6)]
    with make(8, 2) as sim:
        sim.reset(LONG)
        first = sim.step_chunk(actions(0, 8))
        (ended,) = (list(worker.slots) for worker in sim._supervisor.workers[:1])
        kept = [row for row in range(8) if row not in ended]
        sim.reset([EpisodeSpec("pendulum", 1)] * 4, ended)
        turns = [first, *(sim.step_chunk(actions(turn, 8)) for turn in range(1, 6))]
        assert_same(turns[1:], expected[1:], rows=tuple(kept))
        homes = {worker.index for worker in sim._supervisor.workers for row in kept if row in worker.slots}
        assert homes == {0, 1}
        assert sorted(row for worker in sim._supervisor.workers for row in worker.slots) == list(range(8))


def test_balanced_rows_stay() -> None:
    with make(8, 2) as sim:
        sim.reset(LONG)
        before = [dict(worker.slots) for worker in sim._supervisor.workers]
        for turn in range(3):
            sim.step_chunk(actions(turn, 8))
        assert [len(slots) for slots in before] == [4, 4] and min(rows_of(sim)) >= 3


def test_a_device_that_never_works_is_left_out() -> None:
    with make() as sim:
        expected = play(sim, HEALTHY)
    with pytest.warns(RuntimeWarning, match="device 1 is broken.; device 1 seems to have failed, its 2 environments go on"):
        sim = make(devices=(0, 1), broken_devices=["1"])
    with sim:
        assert rows_of(sim) == [4, 0]
        assert_same(play(sim, HEALTHY), expected)


def test_a_device_that_fails_later_is_drained(tmp_path: Path) -> None:
    """Its worker dies and cannot start again: its rows go on where they stood, in the worker of the other device."""
    with make() as sim:
        expected = play(sim, HEALTHY)
    fault = tmp_path / "broken"
    with make(devices=(0, 1), broken_devices=["1"], fault_file=str(fault)) as sim:

        def fail(turn: int) -> None:
            if turn == 1:
                fault.touch()
                os.kill(sim.worker_pids[1] or 0, signal.SIGKILL)

        with pytest.warns(RuntimeWarning, match="device 1 seems to have failed, its 2 environments go on elsewhere"):
            turns = play(sim, HEALTHY, fail)
        assert_same(turns, expected)
        assert not turns[-1].errors and rows_of(sim) == [4, 0]
        assert np.array_equal(sim.step_chunk(actions(3)).executed.all(axis=1), [True] * 4)


@pytest.mark.filterwarnings("ignore:worker")
def test_no_device_is_one_error() -> None:
    with pytest.raises(SimError, match="did not start: .*device [01] is broken"):
        make(devices=(0, 1), broken_devices=["0", "1"])
