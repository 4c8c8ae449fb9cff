"""What each task has been seen to cost, so that work can be shared out evenly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vla_rl.sim.episode import Episode
from vla_rl.sim.worker_process import Cost
from vla_rl.types import EpisodeSpec

_MEMORY_STEPS = 2000.0
"""Control steps of a task after which older measurements count half: the machine may be busier now."""


@dataclass
class _Record:
    steps: float = 0.0
    seconds: float = 0.0
    """Simulation and rendering of these steps."""
    shortest_reset: float | None = None
    longest_reset: float = 0.0
    """The first one in a worker, which prepares the scene."""


class TaskCosts:
    """Measured seconds by task, over all workers of a pool."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def add(self, spec: EpisodeSpec, spent: Mapping[str, float]) -> None:
        """Take over what a worker spent on a chunk or a reset."""
        record = self._records.setdefault(_task(spec), _Record())
        if "env_steps" in spent:
            if record.steps > _MEMORY_STEPS:
                record.steps, record.seconds = record.steps / 2, record.seconds / 2
            record.steps += spent["env_steps"]
            record.seconds += spent.get("simulation", 0.0) + spent.get("rendering", 0.0)
        elif "reset" in spent:
            seconds = spent["reset"] + spent.get("rendering", 0.0)
            shortest = record.shortest_reset
            record.shortest_reset = seconds if shortest is None else min(shortest, seconds)
            record.longest_reset = max(record.longest_reset, seconds)

    def of_chunk(self, episode: Episode, length: int) -> Cost:
        """Of the next chunk. A worker that has to prepare the scene first does so for all that is left of the episode."""
        record = self._records.get(_task(episode.spec), _Record())
        left = max(1, episode.max_steps - episode.steps)
        seconds = record.seconds / record.steps * min(length, left) if record.steps else None
        return Cost(_task(episode.spec), seconds, record.longest_reset * min(1.0, length / left))

    def of_reset(self, spec: EpisodeSpec) -> Cost:
        record = self._records.get(_task(spec), _Record())
        return Cost(_task(spec), record.shortest_reset, record.longest_reset)


def _task(spec: EpisodeSpec) -> str:
    return f"{spec.suite} {spec.task_id}"
