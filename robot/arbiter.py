"""Who drives: e-stop > faults > human > policy > hold.

The arbiter is asked at every tick and answers in every state. Where nobody may drive, the answer is the declared safe
output: velocity control brakes to zero, position control holds the last command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float64


class Source(StrEnum):
    """Of the command that goes out."""

    ESTOP = "e-stop"
    FAULT = "fault"
    HUMAN = "human"
    POLICY = "policy"
    HOLD = "hold"


@dataclass(frozen=True)
class Proposal:
    """A command that somebody wants."""

    command: Float64[np.ndarray, "D"]
    observed: float
    """Steady time of what it was made from, s: a proposal from before a change of hands is never carried out."""


@dataclass(frozen=True)
class Situation:
    """What is known at a tick."""

    now: float
    """Steady time, s."""
    estop: str | None = None
    """Why the robot must stop for good, such as a pressed button or its lost heartbeat."""
    faults: Sequence[str] = ()
    """Why it must not move just now, such as a stale scan."""
    human: bool = False
    """The operator holds the dead-man switch."""
    human_alive: bool = True
    """The operator's messages come."""
    human_proposal: Proposal | None = None
    policy_proposal: Proposal | None = None
    """The newest; None where there is none that is fresh enough."""


@dataclass(frozen=True)
class Decision:
    source: Source
    wanted: Float64[np.ndarray, "D"] | None
    """What the source wants; None: the declared safe output."""
    reason: str


class Arbiter:
    """Keeps what must outlast a tick: a latched e-stop, a lost operator, and since when proposals count."""

    def __init__(self, recovery: float = 0.5) -> None:
        """`recovery`: so long all inputs must be good before the robot moves again after a fault, s."""
        self.recovery = recovery
        self.running = False
        """Whether the policy may drive."""
        self.estop_reason: str | None = None
        """Why the e-stop is latched; None: it is not."""
        self.operator_lost = False
        """The operator's messages stopped during an intervention; only `resume` gives the policy its turn again."""
        self.intervening = False
        self._not_before = -np.inf
        self._fault_until = -np.inf
        self._now = -np.inf

    def start(self) -> None:
        """Let the policy drive, with what it observes from now on. Raises `RuntimeError` while the e-stop is latched."""
        if self.estop_reason is not None:
            raise RuntimeError(f"the e-stop is latched ({self.estop_reason}); clear it first")
        self.running = True
        self._not_before = self._now

    def stop(self) -> None:
        self.running = False

    def estop(self, reason: str) -> None:
        if self.estop_reason is None:
            self.estop_reason = reason
        self.running = self.intervening = self.operator_lost = False

    def clear_estop(self) -> None:
        """Unlatch; the policy stays stopped until `start`."""
        self.estop_reason = None
        self._not_before = self._now

    def resume(self) -> None:
        """The operator gives control back to the policy after their messages had stopped."""
        self.operator_lost = False
        self._not_before = self._now

    def decide(self, situation: Situation) -> Decision:
        """Who drives at this tick, and why."""
        faults = list(situation.faults)
        if situation.now < self._now:
            faults.append(f"the steady clock went back by {self._now - situation.now:.3f} s")
        self._now = max(self._now, situation.now)
        if situation.estop is not None:
            self.estop(situation.estop)
        self._follow_operator(situation)
        if self.estop_reason is not None:
            self._not_before = self._now
            return Decision(Source.ESTOP, None, self.estop_reason)
        if faults:
            self._fault_until = self._now + self.recovery
            self._not_before = self._now
            return Decision(Source.FAULT, None, "; ".join(faults))
        if self._now < self._fault_until:
            return Decision(Source.FAULT, None, "recovering from a fault")
        if self.intervening and situation.human_proposal is not None:
            return Decision(Source.HUMAN, situation.human_proposal.command, "the operator drives")
        if self.operator_lost:
            return Decision(Source.HOLD, None, "the operator was lost during an intervention; resume to go on")
        if self.intervening:
            return Decision(Source.HOLD, None, "the operator holds the switch and commands nothing")
        return self._policy(situation.policy_proposal)

    def _follow_operator(self, situation: Situation) -> None:
        proposal = situation.human_proposal
        good = situation.human_alive and (proposal is None or bool(np.isfinite(proposal.command).all()))
        if good and situation.human and self.estop_reason is None:
            self.intervening, self.operator_lost = True, False
        elif self.intervening:
            self.intervening = False
            self.operator_lost = not good
            self._not_before = self._now

    def _policy(self, proposal: Proposal | None) -> Decision:
        if not self.running:
            return Decision(Source.HOLD, None, "not started")
        if proposal is None:
            return Decision(Source.HOLD, None, "the policy proposes nothing fresh")
        if proposal.observed <= self._not_before:
            return Decision(Source.HOLD, None, "the policy has not yet seen what happened since the last change of hands")
        if not np.isfinite(proposal.command).all():
            return Decision(Source.HOLD, None, "the policy proposes a command that is not finite")
        return Decision(Source.POLICY, proposal.command, "the policy drives")
