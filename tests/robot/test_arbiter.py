"""Who drives: hand-made cases, and random sequences of faults against the rules written down a second time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.robot.arbiter import Arbiter, Decision, Proposal, Situation, Source

TICK = 0.02


def proposal(value: float, observed: float) -> Proposal:
    return Proposal(np.array([value, 0.0]), observed)


class Drive:
    """An arbiter at its ticks."""

    def __init__(self) -> None:
        self.arbiter, self.now = Arbiter(recovery=0.1), 0.0

    def tick(self, **what: object) -> Source:
        """One tick; the policy proposes what it saw just now unless told otherwise."""
        self.now += TICK
        situation = Situation(now=self.now, policy_proposal=proposal(0.3, self.now))
        decision = self.arbiter.decide(replace(situation, **what))  # type: ignore[arg-type]
        assert (decision.wanted is None) == (decision.source not in (Source.HUMAN, Source.POLICY))
        assert decision.reason
        return decision.source


@pytest.fixture
def drive() -> Drive:
    made = Drive()
    assert made.tick() == Source.HOLD, "nothing drives before the start"
    made.arbiter.start()
    assert made.tick() == Source.POLICY
    return made


def test_the_order_of_sources(drive: Drive) -> None:
    human = {"human": True, "human_proposal": proposal(0.1, drive.now)}
    assert drive.tick(**human) == Source.HUMAN
    assert drive.tick(**human, faults=["the scan is old"]) == Source.FAULT
    assert drive.tick(**human, faults=["the scan is old"], estop="pressed") == Source.ESTOP


def test_a_lost_operator_never_gives_way_to_the_policy(drive: Drive) -> None:
    drive.tick(human=True, human_proposal=proposal(0.1, drive.now))
    assert drive.tick(human=True, human_alive=False) == Source.HOLD
    assert all(drive.tick(human=False, human_alive=False) == Source.HOLD for _ in range(200))
    assert drive.tick(human=False, human_alive=True) == Source.HOLD, "a message that comes again is no consent"
    drive.arbiter.resume()
    assert drive.tick() == Source.POLICY


def test_an_operator_who_comes_back_drives_again_and_may_hand_over(drive: Drive) -> None:
    drive.tick(human=True, human_proposal=proposal(0.1, drive.now))
    drive.tick(human=True, human_alive=False)
    assert drive.tick(human=True, human_proposal=proposal(0.1, drive.now)) == Source.HUMAN
    assert drive.tick(human=False, policy_proposal=proposal(0.3, drive.now)) == Source.HOLD, "seen before the hand-over"
    assert drive.tick() == Source.POLICY


def test_proposals_in_flight_at_a_take_over_are_never_carried_out(drive: Drive) -> None:
    old = proposal(0.3, drive.now)
    drive.tick(human=True, human_proposal=proposal(0.1, drive.now))
    drive.tick(human=False)
    assert drive.tick(policy_proposal=old) == Source.HOLD


def test_the_estop_latches_until_it_is_cleared_and_then_needs_a_start(drive: Drive) -> None:
    assert drive.tick(estop="pressed") == Source.ESTOP
    assert drive.tick() == Source.ESTOP
    with pytest.raises(RuntimeError, match=r"latched \(pressed\); clear it first"):
        drive.arbiter.start()
    drive.arbiter.clear_estop()
    assert drive.tick() == Source.HOLD
    drive.arbiter.start()
    assert drive.tick() == Source.POLICY


def test_a_fault_ends_only_after_the_inputs_were_good_for_a_while(drive: Drive) -> None:
    assert drive.tick(faults=["NaN"]) == Source.FAULT
    assert [drive.tick() for _ in range(4)] == [Source.FAULT] * 4
    drive.tick()
    assert drive.tick() == Source.POLICY


def test_a_clock_that_goes_back_is_a_fault(drive: Drive) -> None:
    drive.now -= 5.0
    assert drive.tick() == Source.FAULT


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_proposal_that_is_not_finite_is_not_carried_out(drive: Drive, value: float) -> None:
    assert drive.tick(policy_proposal=proposal(value, drive.now + TICK)) == Source.HOLD
    drive.tick(human=True, human_proposal=proposal(0.1, drive.now))
    assert drive.tick(human=True, human_proposal=proposal(value, drive.now)) == Source.HOLD
    assert drive.arbiter.operator_lost


EVENTS = st.sampled_from(
    ["nothing"] * 6
    + ["start", "stop", "clear_estop", "resume", "estop"]
    + ["button", "fault", "human", "release", "silence", "human_nan", "policy_gone", "policy_old", "policy_nan", "clock_back"]
)


class Rules:
    """The rules, written down a second time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen = self.trouble = self.changed = -math.inf
        """Latest time that the arbiter was told; of the last fault; of the last change of hands."""
        self.held = self.lost = self.latched = False
        """The operator drove at the last tick; was lost while driving; the e-stop is latched."""

    def ask(self, arbiter: Arbiter, event: str) -> None:
        """What an operator asks for between two ticks."""
        if event == "start" and not self.latched:
            arbiter.start()
        elif event == "stop":
            arbiter.stop()
        elif event == "clear_estop":
            arbiter.clear_estop()
            self.latched = False
        elif event == "resume":
            arbiter.resume()
            self.lost = False
        elif event == "estop":
            arbiter.estop("asked for")
            self.latch()

    def latch(self) -> None:
        self.latched, self.lost, self.held = True, False, False

    def situation(self, event: str, first: bool) -> Situation:
        """What the next tick is told, and what follows from it."""
        self.now += TICK
        at = self.now - 1.0 if event == "clock_back" and first else self.now
        self.seen = max(self.seen, at)
        holds, alive = event in ("human", "human_nan", "silence"), event != "silence"
        observed = self.changed - 0.001 if event == "policy_old" else self.now
        wanted = proposal(math.nan if event == "policy_nan" else 0.3, observed)
        situation = Situation(
            now=at,
            estop="pressed" if event == "button" else None,
            faults=["scan stopped"] if event == "fault" else [],
            human=holds,
            human_alive=alive,
            human_proposal=proposal(math.nan if event == "human_nan" else 0.1, self.now),
            policy_proposal=None if event == "policy_gone" else wanted,
        )
        if event == "button":
            self.latch()
        good = alive and event != "human_nan"
        if holds and good and not self.latched:
            self.held, self.lost = True, False
        elif self.held:
            self.held, self.lost, self.changed = False, not good, self.now
        if event == "fault" or at < self.seen:
            self.trouble = self.seen
        return situation

    def check(self, decision: Decision) -> None:
        assert (decision.wanted is None) == (decision.source not in (Source.HUMAN, Source.POLICY))
        assert decision.wanted is None or np.isfinite(decision.wanted).all()
        if self.latched:
            assert decision.source == Source.ESTOP
            self.changed = self.now
        elif self.now - self.trouble < 0.06 - TICK:
            assert decision.source == Source.FAULT
            self.changed = max(self.changed, self.trouble)
        elif decision.source != Source.FAULT:
            allowed = {Source.HUMAN} if self.held else {Source.HOLD} if self.lost else {Source.HOLD, Source.POLICY}
            assert decision.source in allowed


@settings(max_examples=400)
@given(st.lists(st.tuples(EVENTS, st.integers(1, 8)), min_size=5, max_size=40))
def test_random_faults(sequence: list[tuple[str, int]]) -> None:
    """400 random sequences. In every state there is a declared output, the order of the sources holds, and after the operator
    was lost during an intervention the policy never drives before `resume` (or `start` after an e-stop)."""
    arbiter, rules = Arbiter(recovery=0.06), Rules()
    for event, ticks in sequence:
        rules.ask(arbiter, event)
        for k in range(ticks):
            situation = rules.situation(event, first=k == 0)
            decision = arbiter.decide(situation)
            rules.check(decision)
            if decision.source == Source.POLICY:
                proposed = situation.policy_proposal
                assert proposed is not None and proposed.observed > rules.changed and event != "policy_nan"
                assert arbiter.running and not rules.lost and not rules.latched
