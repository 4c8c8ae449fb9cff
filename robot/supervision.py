"""How long what may be silent, and what ends an episode."""

from __future__ import annotations

import signal
from typing import Annotated

from pydantic import Field

from vla_rl.config import Rate, Section


class SupervisionSettings(Section):
    """What ends an episode, and how long what may be silent."""

    arrival: Rate = 0.15
    """The path is done when so little of it remains, and its end is so near, m."""
    time_limit: Rate = 300.0
    """Of an episode, s."""
    teleop_timeout: Rate = 0.17
    """Silence of the operator during an intervention after which the robot stops, s; with a control period, within 0.2."""
    estop_timeout: Annotated[float, Field(gt=0)] | None = None
    """Silence of the e-stop's heartbeat that counts as pressed, s; null: there is no heartbeat."""
    recovery: Rate = 0.5
    """So long all inputs must be good before the robot moves on after a fault, s."""
    fault_limit: Rate = 5.0
    """A fault that lasts longer ends the episode, s."""


def stop_signals() -> list[signal.Signals]:
    """Signals that end a robot's process in order: also that of a terminal which closes, unless `nohup` has it ignored."""
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]
