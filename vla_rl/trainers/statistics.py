"""What a round of rollouts and learning did, and where its time went."""

from __future__ import annotations

import numpy as np

from vla_rl.metrics import Stopwatch
from vla_rl.rollout.groups import Gathered
from vla_rl.sim.base import VectorSim


class RoundClock:
    """Wall-clock seconds of one round by part, and the speeds that follow."""

    def __init__(self, sim: VectorSim) -> None:
        self.stopwatch = Stopwatch()
        self._sim = sim
        self._before = dict(sim.timings)

    def statistics(self) -> dict[str, float]:
        """Seconds of simulation, rendering, inference, learning and the rest, and steps and turns a second of acting.

        The simulator's workers run side by side: the wall time spent waiting for them is split in the ratio of their own
        simulation and rendering seconds.
        """
        done = {name: value - self._before.get(name, 0.0) for name, value in self._sim.timings.items()}
        seconds = self.stopwatch.seconds
        acting = max(seconds["simulation"] + seconds["inference"], 1e-9)
        busy = max(done["simulation"] + done["rendering"], 1e-9)
        self.stopwatch.transfer("simulation", "rendering", seconds["simulation"] * done["rendering"] / busy)
        return self.stopwatch.lap() | {
            "speed/env_steps_per_s": done["env_steps"] / acting,
            "speed/turns_per_s": done["turns"] / acting,
            "speed/frames": done["frames"],
        }


def rollout_statistics(gathered: Gathered) -> dict[str, float]:
    """Success, length and age of the episodes that a round has run, and what became of their groups."""
    sampled = gathered.sampled
    stats: dict[str, float] = {
        "rollout/episodes": len(sampled),
        "rollout/successes": sum(t.success for t in sampled),
        "rollout/attempts": gathered.attempts,
        "rollout/groups": len(gathered.groups),
        "rollout/surplus_groups": len(gathered.surplus),
    }
    if not sampled:
        return stats
    if len(sampled) > len(gathered.drawn):
        stats["rollout/mixed_groups"] = gathered.mixed
    return stats | {
        "rollout/success": stats["rollout/successes"] / len(sampled),
        "rollout/steps_mean": float(np.mean([t.num_actions for t in sampled])),
        "rollout/turns": sum(t.num_turns for t in sampled),
        "rollout/policy_version": float(max(t.policy_version.max() for t in sampled)),
    }
