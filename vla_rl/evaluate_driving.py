"""How well something drives: success, collisions and cross-track error on episodes that training never sees.

Legend: N environments, O observation size, D action size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.evaluate import wilson_interval
from vla_rl.sim.control import ControlSim, evaluation_seeds

Act = Callable[[Float32[np.ndarray, "N O"]], Float32[np.ndarray, "N D"]]


@dataclass(frozen=True)
class DrivingEvaluation:
    """Of episodes that were each driven once, in the order of their seeds."""

    seeds: list[int]
    returns: list[float]
    measures: dict[str, list[float]]
    """By name: `success`, `collision`, `cross_track` (mean over the episode, m), `completion`, `seconds`, `slowed`."""

    def to_dict(self) -> dict[str, Any]:
        """Rates with Wilson's 95% intervals, and means over episodes; cross-track error over the successful ones."""
        arrays = {name: np.array(values) for name, values in self.measures.items()}
        succeeded = arrays["success"] > 0
        return {
            "episodes": len(self.seeds),
            "success": _rate(arrays["success"]),
            "collision": _rate(arrays["collision"]),
            "cross_track": float(arrays["cross_track"][succeeded].mean()) if succeeded.any() else None,
            "seconds": float(arrays["seconds"][succeeded].mean()) if succeeded.any() else None,
            "completion": float(arrays["completion"].mean()),
            "slowed": float(arrays["slowed"].mean()),
            "return": float(np.mean(self.returns)),
        }


def evaluate_driving(sim: ControlSim, act: Act, seeds: Sequence[int] | int) -> DrivingEvaluation:
    """Drive the first episode of each seed (of so many `evaluation_seeds`), `sim.num_envs` side by side."""
    chosen = evaluation_seeds(seeds) if isinstance(seeds, int) else list(seeds)
    returns: list[float] = []
    measures: dict[str, list[float]] = {}
    for start in range(0, len(chosen), sim.num_envs):
        batch = chosen[start : start + sim.num_envs]
        observation = sim.reset(batch + [batch[-1]] * (sim.num_envs - len(batch)))
        total, found = np.zeros(sim.num_envs), dict[int, dict[str, float]]()
        while len(found) < len(batch):
            outcome = sim.step(act(observation))
            observation = outcome.observation
            total += np.where([row in found for row in range(sim.num_envs)], 0, outcome.reward)
            for row in np.flatnonzero(outcome.terminated | outcome.truncated):
                if row < len(batch) and row not in found:
                    found[int(row)] = {name: float(values[row]) for name, values in outcome.measures.items()}
        returns += [float(value) for value in total[: len(batch)]]
        for row in range(len(batch)):
            for name, value in found[row].items():
                measures.setdefault(name, []).append(value)
    return DrivingEvaluation(chosen, returns, measures)


def _rate(flags: np.ndarray) -> dict[str, float]:
    count = int((flags > 0).sum())
    low, high = wilson_interval(count, len(flags))
    return {"count": count, "rate": count / len(flags), "low": low, "high": high}
