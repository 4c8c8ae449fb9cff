"""Records what the sensors of one simulated robot said, as a bag would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_rl.sim.wheeled.simulator import WheeledControl


@dataclass
class Recording:
    path: np.ndarray
    first: tuple[np.ndarray, np.ndarray]
    """Pose and scan before the first decision."""
    odometry: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """(pose, velocity) after each tick."""
    commands: list[np.ndarray] = field(default_factory=list)
    """Of each tick."""
    scans: list[np.ndarray] = field(default_factory=list)
    """After each decision."""
    actions: list[np.ndarray] = field(default_factory=list)
    observations: list[np.ndarray] = field(default_factory=list)
    """That each action was for."""


def record(task: str, seed: int, decisions: int, **options: Any) -> Recording:
    """Drive one robot with smooth random actions."""
    sim = WheeledControl(task, 1, **options)
    observation = sim.reset([seed])
    tape = Recording(sim.scenarios[0].path, (sim.plants.estimates[0].copy(), sim.plants.ranges[0].copy()))
    advance = sim.plants.advance

    def recorded(commands: np.ndarray, rows: np.ndarray) -> None:
        tape.commands.append(commands[0].copy())
        advance(commands, rows)
        tape.odometry.append((sim.plants.estimates[0].copy(), sim.plants.velocities[0].copy()))

    sim.plants.advance = recorded  # type: ignore[method-assign]
    rng = np.random.default_rng(seed)
    action = np.zeros((1, 2), np.float32)
    for _ in range(decisions):
        action = np.clip(0.7 * action + 0.5 * rng.normal((0.4, 0.0), 1.0, (1, 2)), -1, 1).astype(np.float32)
        tape.actions.append(action)
        tape.observations.append(observation)
        outcome = sim.step(action)
        assert not (outcome.terminated | outcome.truncated).any(), "record a shorter piece"
        observation = outcome.observation
        tape.scans.append(sim.plants.ranges[0].copy())
    return tape
