"""Workers that die, hang or fail: no episode is lost, and what survives is bit-identical to a run without the fault."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.sim import EpisodeSpec, SimError, Turn
from vla_rl.sim.pool import SimPool

LENGTH, TURNS = 4, 3
HEALTHY = [EpisodeSpec("pendulum", 50, None, seed) for seed in range(4)]


def make(num_envs: int = 4, num_workers: int = 2, **options: Any) -> SimPool:
    backend = "pendulum_backend:PendulumBackend"
    return SimPool(backend, num_envs=num_envs, num_workers=num_workers, cameras=("front",), image_size=32, options=options)


def actions(turn: int, num_envs: int = 4, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(turn).uniform(-0.2, 0.2, (num_envs, length, 1)).astype(np.float32)


def play(sim: SimPool, specs: list[EpisodeSpec], before_turn: Callable[[int], None] = lambda turn: None) -> list[Turn]:
    sim.reset(specs)
    turns = []
    for turn in range(TURNS):
        before_turn(turn)
        turns.append(sim.step_chunk(actions(turn)))
    return turns


def with_fault(fault: str, row: int = 2) -> list[EpisodeSpec]:
    specs = list(HEALTHY)
    specs[row] = EpisodeSpec(fault, 50, None, row)
    return specs


def assert_same(found: list[Turn], expected: list[Turn], rows: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    index = list(rows)
    for one, other in zip(found, expected, strict=True):
        for name in ("rewards", "success", "terminated", "truncated", "executed"):
            np.testing.assert_array_equal(getattr(one, name)[index], getattr(other, name)[index], name)
        np.testing.assert_array_equal(one.observation.proprio[index], other.observation.proprio[index])
        np.testing.assert_array_equal(one.observation.images["front"][index], other.observation.images["front"][index])


@pytest.fixture(scope="module")
def reference() -> list[Turn]:
    """The suite's name does not enter the physics: faulty episodes run like healthy ones until their fault strikes."""
    with make() as sim:
        return play(sim, HEALTHY)


@pytest.mark.parametrize(
    "fault",
    ["kill in step 6", "segfault in step 4", "exit in step 9", "kill in reset", "segfault in render", "hang in step 6"],
)
def test_a_death_costs_no_episode(fault: str, reference: list[Turn], tmp_path: Path) -> None:
    with make(fault_file=str(tmp_path / "struck"), hang_timeout=2.0) as sim:
        pids = sim.worker_pids
        turns = play(sim, with_fault(fault))
        assert (tmp_path / "struck").exists()
        assert_same(turns, reference)
        assert not any(turn.errors for turn in turns)
        # Row 2 lives in worker 0 with row 0; worker 1 never noticed.
        assert sim.worker_pids[1] == pids[1] and sim.worker_pids[0] != pids[0]


@pytest.mark.parametrize("place", ["reset", "step 6"])
def test_nine_kills_within_one_request_cost_no_episode(place: str, reference: list[Turn], tmp_path: Path) -> None:
    """Whoever kills workers does not mean the episode that was at work; three crashes of its own would end it."""
    struck = tmp_path / "struck"
    with make(fault_file=str(struck), fault_times=9) as sim:
        turns = play(sim, with_fault(f"kill in {place}"))
        assert struck.stat().st_size == 9
        assert_same(turns, reference)
        assert not any(turn.errors for turn in turns)


@pytest.mark.parametrize("victims", [(0,), (0, 1)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_workers_killed_or_stopped_between_chunks(victims: tuple[int, ...], how: signal.Signals, reference: list[Turn]) -> None:
    with make(hang_timeout=2.0) as sim:

        def attack(turn: int) -> None:
            if turn == 1:
                for victim in victims:
                    os.kill(sim.worker_pids[victim], how)  # type: ignore[arg-type]

        turns = play(sim, HEALTHY, attack)
        assert_same(turns, reference)
        assert not any(turn.errors for turn in turns)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.02])
def test_workers_killed_at_some_moment_of_a_long_chunk(delay: float) -> None:
    """600 control steps of 5 x 10 ms take some tens of milliseconds: the delays hit its start, middle and end."""
    specs = [EpisodeSpec("pendulum", 900, init_state_id=0, seed=seed) for seed in range(4)]
    chunk = actions(0, length=600) * np.float32(0.1)
    with make() as sim:
        sim.reset(specs)
        expected = sim.step_chunk(chunk)
    with make() as sim:
        sim.reset(specs)

        def attack() -> None:
            time.sleep(delay)
            for pid in sim.worker_pids:
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=attack)
        thread.start()
        turn = sim.step_chunk(chunk)
        thread.join()
        assert_same([turn], [expected])
        assert turn.executed.sum() == expected.executed.sum() > 0 and not turn.errors


@pytest.mark.parametrize(
    ("fault", "deaths", "reason"),
    [
        ("segfault in step 6", 3, "SIGSEGV"),
        ("exit in step 6", 3, "status 7.*\nthe pendulum says goodbye"),
        ("hang in step 6", 3, "2 s.*hang"),
        ("kill in step 6", 10, "SIGKILL .out of memory"),
    ],
)
def test_an_episode_that_always_kills_its_worker_is_given_up(fault: str, deaths: int, reason: str, reference: list[Turn]) -> None:
    with make(hang_timeout=2.0) as sim:
        turns = play(sim, with_fault(fault))
        # Chunks have 4 actions: step 6 lies in turn 1.
        assert_same(turns[:1], reference[:1])
        assert_same(turns, reference, rows=(0, 1, 3))
        for turn in turns[1:]:
            assert list(turn.errors) == [2]
            assert not turn.executed[2].any() and not turn.rewards[2].any() and not turn.finished[2]
        assert f"{deaths} deaths" in turns[1].errors[2]
        assert re.search(reason, turns[1].errors[2], re.DOTALL), turns[1].errors[2]
        with pytest.raises(SimError, match="no episode"):
            sim.save_state(2)
        sim.reset([HEALTHY[2]], [2])
        again = sim.step_chunk(actions(0))
        assert_same([again], reference[:1], rows=(2,))
        assert not again.errors


@pytest.mark.parametrize("place", ["step 6", "reset", "render"])
def test_an_exception_costs_only_its_own_row(place: str, reference: list[Turn]) -> None:
    with make() as sim:
        pids = sim.worker_pids
        turns = play(sim, with_fault(f"raise in {place}"))
        assert_same(turns, reference, rows=(0, 1, 3))
        error = turns[-1].errors[2]
        assert list(turns[-1].errors) == [2]
        assert f"ValueError: the pendulum broke in {place}" in error and "Traceback" in error and "_strike" in error
        assert f"raise in {place}" in error.splitlines()[0], "the first line names the episode"
        assert not turns[-1].executed[2].any()
        assert sim.worker_pids == pids


def test_a_long_reset_is_no_hang() -> None:
    with make(1, 1, hang_timeout=1.0) as sim:
        pids = sim.worker_pids
        sim.reset([EpisodeSpec("slow in reset", 50)])  # 2.5 s
        assert sim.step_chunk(actions(0, 1)).executed.all()
        assert sim.worker_pids == pids


def test_an_endless_reset_is_given_up_and_its_neighbours_are_not() -> None:
    with make(2, 1, hang_timeout=0.5, reset_timeout=3.0) as sim:
        sim.reset([HEALTHY[0], EpisodeSpec("hang in reset", 50)])
        turn = sim.step_chunk(actions(0, 2))
        assert turn.executed.all(axis=1).tolist() == [True, False]
        assert "hang" in turn.errors[1] and list(turn.errors) == [1]


def test_a_refused_reset_changes_nothing(reference: list[Turn]) -> None:
    with make() as sim:

        def disturb(turn: int) -> None:
            if turn == 1:
                with pytest.raises(SimError, match="environment 2: a pendulum's time limit must be at least 1 step, not 0$"):
                    sim.reset([HEALTHY[3], EpisodeSpec("pendulum", 0)], [1, 2])

        assert_same(play(sim, HEALTHY, disturb), reference)


def test_an_interrupted_chunk_can_be_repeated(reference: list[Turn], tmp_path: Path) -> None:
    """Ctrl-C in a chunk that hangs: afterwards every row stands where it stood before the chunk."""
    with make(fault_file=str(tmp_path / "struck")) as sim:
        sim.reset(with_fault("hang in step 6"))
        turns = [sim.step_chunk(actions(0))]

        def interrupt() -> None:
            while not (tmp_path / "struck").exists():
                time.sleep(0.05)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            sim.step_chunk(actions(1))
        turns += [sim.step_chunk(actions(turn)) for turn in (1, 2)]
        assert_same(turns, reference)


def test_a_state_that_cannot_be_loaded_leaves_the_row(reference: list[Turn], tmp_path: Path) -> None:
    with make() as sim:
        sim.reset([EpisodeSpec("raise in load", 50)])
        poison = sim.save_state(0)
        sim.reset([EpisodeSpec("kill in load", 50)])
        deadly = sim.save_state(0)

        def disturb(turn: int) -> None:
            for state, reason in ((poison, "the pendulum broke in load"), (deadly, "SIGKILL"), (b"", "not a saved state")):
                with pytest.raises(SimError, match=reason) as caught:
                    sim.load_state(turn, state)
                assert "\n" not in str(caught.value)

        assert_same(play(sim, HEALTHY, disturb), reference)
