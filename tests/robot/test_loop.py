"""A fixed rate on a clock that the tests turn."""

import time

import pytest

from vla_rl.robot.loop import ControlLoop, LoopTimes
from vla_rl.robot.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(durations: list[float], period: float = 0.1) -> tuple[ControlLoop, list[float]]:
    """A loop whose ticks take so long; returns when each began, since the first."""
    clock, begun = Clock(), list[float]()
    waiting = list(durations)

    def tick() -> bool:
        begun.append(round(clock.now - 100.0, 6))
        clock.now += waiting.pop(0)
        return bool(waiting)

    loop = ControlLoop(period, tick, clock, clock.sleep)
    loop.run()
    return loop, begun


def test_the_duration_of_a_tick_does_not_shift_the_next() -> None:
    assert run([0.03, 0.07, 0.0, 0.09])[1] == [0.0, 0.1, 0.2, 0.3]


def test_a_late_tick_is_counted_and_those_after_it_do_not_come_in_a_burst() -> None:
    # The second tick takes 0.35 s: those due at 0.2 and 0.3 are skipped (0.4 is due when it ends at 0.45, 0.05 late).
    loop, begun = run([0.0, 0.35, 0.0, 0.0])
    assert begun == [0.0, 0.1, 0.45, 0.5]
    assert loop.times.skipped == 2 and loop.times.ticks == 4
    assert loop.times.quantile(1.0) == pytest.approx(0.05)


def test_a_quantile_takes_no_tick_s_time_after_hours_either() -> None:
    times = LoopTimes()
    for tick in range(400_000):  # 2.2 hours at 50 Hz
        times.note(1e-4 * (tick % 7))
    assert len(times.lateness) <= 10_000 and times.ticks == 400_000


def test_a_real_clock() -> None:
    count = 0

    def tick() -> bool:
        nonlocal count
        count += 1
        return count < 10

    began = time.monotonic()
    ControlLoop(0.01, tick).run()
    assert time.monotonic() - began >= 0.09


def test_a_stopped_loop_ends() -> None:
    loop = ControlLoop(0.001, lambda: loop.stop() is None)
    loop.run()
    assert loop.times.ticks == 1


def test_a_watchdog_knows_age_reason_and_future() -> None:
    dog = Watchdog("scan", 0.2)
    assert dog.problem(5.0) == "no scan has come"
    dog.feed(5.0, 5.1)
    assert dog.problem(5.15) is None and dog.age(5.15) == pytest.approx(0.15)
    assert dog.problem(5.3) == "the last scan is 0.30 s old"
    dog.feed(5.3, 5.3, "it is blind")
    assert dog.problem(5.3) == "it is blind"
    dog.feed(5.4, 5.4)
    assert dog.problem(5.4) is None
    dog.feed(9.4, 5.5)
    assert dog.problem(5.5) == "scan comes from 3.90 s in the future; synchronise the clocks"


def test_a_message_that_was_overtaken_makes_nothing_younger() -> None:
    dog = Watchdog("scan", 0.2)
    dog.feed(5.0, 5.0)
    dog.feed(4.0, 5.1)
    assert dog.age(5.1) == pytest.approx(0.1)
