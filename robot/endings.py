"""How an episode on a robot can end."""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    ESTOP = "e-stop"
    TIMEOUT = "timeout"
    COMMUNICATION_LOSS = "communication loss"
    """An input stayed away for too long."""
    OPERATOR_ABORT = "operator abort"
