"""How well something drives: success, collisions and cross-track error on episodes that training never sees.

Legend: N environments, O observation size, D action size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.evaluate import wilson_interval
from vla_rl.sim.control import ControlSim, evaluation_seeds
from vla_rl.trainers.control_evaluation import ControlEpisode, run_control_episodes

Act = Callable[[Float32[np.ndarray, "N O"]], Float32[np.ndarray, "N D"]]


def evaluate_driving(sim: ControlSim, act: Act, seeds: Sequence[int] | int) -> dict[str, Any]:
    """Drive the first episode of each seed (of so many `evaluation_seeds`) once; the result is that of `driving_record`."""
    return driving_record(run_control_episodes(sim, act, evaluation_seeds(seeds) if isinstance(seeds, int) else seeds))


def driving_record(episodes: Sequence[ControlEpisode]) -> dict[str, Any]:
    """Rates of success and collision with Wilson's 95% intervals, and means over all episodes; `cross_track` (m), `seconds` and
    `slowed` (share of decisions that the safety layer slowed) over the successful ones, None where there are none."""
    driven = [episode.measures for episode in episodes if episode.measures["success"] > 0.5]
    record: dict[str, Any] = {"episodes": len(episodes)}
    for name in ("success", "collision"):
        count = sum(episode.measures[name] > 0.5 for episode in episodes)
        low, high = wilson_interval(count, len(episodes))
        record[name] = {"count": count, "rate": count / len(episodes), "low": low, "high": high}
    for name in ("cross_track", "seconds", "slowed"):
        record[name] = float(np.mean([measures[name] for measures in driven])) if driven else None
    record["completion"] = float(np.mean([episode.measures["completion"] for episode in episodes]))
    record["return"] = float(np.mean([episode.total_reward for episode in episodes]))
    return record
