"""When a policy decides, tick by tick."""

from vla_rl.robot.schedule import DecisionSchedule

TICK = 0.02


def decided(scans: set[int], ticks: int = 40) -> list[int]:
    """Ticks at which a policy with 5 ticks a decision is asked, where scans come just before the ticks named."""
    schedule, found = DecisionSchedule(5, 5 * TICK), []
    for tick in range(ticks):
        if tick in scans:
            schedule.scan(tick * TICK)
        if schedule.tick():
            found.append(tick)
    return found


def test_a_scanner_of_the_same_rate_is_answered_at_once() -> None:
    # The first decision waits for nothing. Scans come at 3, 8, 13, ...; at 8 their distance is known.
    assert decided(set(range(3, 40, 5))) == [0, 5, 8, 13, 18, 23, 28, 33, 38]


def test_a_scan_that_fails_to_come_is_waited_for_two_ticks() -> None:
    # The one of tick 18 is missing: 13 + 5 + 2 = 20; the next scan, at 23, is answered at once again.
    assert decided(set(range(3, 40, 5)) - {18}) == [0, 5, 8, 13, 20, 23, 28, 33, 38]


def test_a_fast_scanner_leaves_the_policy_its_own_time() -> None:
    assert decided(set(range(0, 40, 2))) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert decided(set()) == [0, 5, 10, 15, 20, 25, 30, 35], "nor does a policy without a scanner wait"


def test_a_somewhat_slower_scanner_sets_the_pace() -> None:
    assert decided(set(range(0, 40, 6))) == [0, 5, 6, 12, 18, 24, 30, 36]


def test_a_restart_decides_at_the_next_tick() -> None:
    schedule = DecisionSchedule(5, 0.1)
    assert schedule.tick() and not schedule.tick()
    schedule.restart()
    assert schedule.tick()
