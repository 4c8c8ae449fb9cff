"""The conformance suite on the pendulum, and on simulators that each break one promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_rl.sim import conformance
from vla_rl.sim.base import VectorSim
from vla_rl.sim.conformance import Case, check_simulator
from vla_rl.sim.pool import SimPool
from vla_rl.types import EpisodeSpec, Observation, Turn

SPECS = [EpisodeSpec("pendulum", 40, None, seed) for seed in range(3)]
ENDING = EpisodeSpec("pendulum", 16, init_state_id=0)
IMPOSSIBLE = EpisodeSpec("pendulum", 0)


def make(num_envs: int, num_workers: int) -> SimPool:
    return SimPool(
        "pendulum_backend:PendulumBackend", num_envs=num_envs, num_workers=num_workers, cameras=("front", "side"), image_size=32
    )


def gentle(generator: np.random.Generator, length: int, action_dim: int) -> np.ndarray:
    return generator.uniform(-0.2, 0.2, (length, action_dim)).astype(np.float32)


def case_of(maker: Callable[[int, int], VectorSim]) -> Case:
    return Case(maker, SPECS, ENDING, max_steps=16, impossible_spec=IMPOSSIBLE, actions=gentle)


def test_the_pendulum_conforms() -> None:
    check_simulator(make, SPECS, ENDING, 16, impossible_spec=IMPOSSIBLE, actions=gentle)


class Wrapped:
    """A simulator with one thing changed."""

    def __init__(self, num_envs: int, num_workers: int) -> None:
        self.inner = make(num_envs, num_workers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Float64Rewards(Wrapped):
    def step_chunk(self, actions: np.ndarray) -> Turn:
        turn = self.inner.step_chunk(actions)
        return replace(turn, rewards=turn.rewards.astype(np.float64))


class RendersEveryStep(Wrapped):
    def step_chunk(self, actions: np.ndarray) -> Turn:
        turn = self.inner.step_chunk(actions)
        self.inner.frames_rendered += int(turn.executed.sum()) - int(turn.executed.any(axis=1).sum())
        return turn


class CleansNaN(Wrapped):
    def step_chunk(self, actions: np.ndarray) -> Turn:
        return self.inner.step_chunk(np.nan_to_num(actions))


class TerminatesAtTheTimeLimit(Wrapped):
    def step_chunk(self, actions: np.ndarray) -> Turn:
        turn = self.inner.step_chunk(actions)
        return replace(turn, terminated=turn.terminated | turn.truncated)


class ResetsByItself(Wrapped):
    def step_chunk(self, actions: np.ndarray) -> Turn:
        turn = self.inner.step_chunk(actions)
        if turn.finished[0] and turn.executed[0].any():
            self.inner.reset([ENDING], [0])
        return turn


class DependsOnItsNeighbours(Wrapped):
    def step_chunk(self, actions: np.ndarray) -> Turn:
        turn = self.inner.step_chunk(actions)
        proprio = turn.observation.proprio + turn.observation.proprio.sum() * np.float32(1e-3)
        return replace(turn, observation=replace(turn.observation, proprio=proprio))


class ShiftsWhatItLoads(Wrapped):
    def load_state(self, env_id: int, state: bytes) -> Observation:
        observation = self.inner.load_state(env_id, state)
        return replace(observation, proprio=observation.proprio + np.float32(1e-6))


class BranchesIntoOneRow(Wrapped):
    def branch(self, env_id: int, targets: list[int]) -> Observation:
        return self.inner.branch(env_id, targets[:1])


class ResetsEverything(Wrapped):
    def reset(self, specs: list[EpisodeSpec], env_ids: list[int] | None = None) -> Observation:
        if env_ids == [1] and specs != [IMPOSSIBLE]:
            self.inner.reset([SPECS[0]] * self.inner.num_envs)
        return self.inner.reset(specs, env_ids)


class ReleasesNothing(Wrapped):
    def release(self, rows: list[int]) -> None:
        if rows != [1]:
            self.inner.release(rows)


@pytest.mark.parametrize(
    ("broken", "check", "complaint"),
    [
        (Float64Rewards, conformance.check_shapes_and_frames, "dtype of rewards"),
        (RendersEveryStep, conformance.check_shapes_and_frames, "frames_rendered"),
        (CleansNaN, conformance.check_refusals, "nan was not refused"),
        (TerminatesAtTheTimeLimit, conformance.check_end_of_episode, "both terminated and truncated"),
        (ResetsByItself, conformance.check_end_of_episode, "finished row"),
        (DependsOnItsNeighbours, conformance.check_determinism, "proprio of row"),
        (ShiftsWhatItLoads, conformance.check_save_and_load, "loaded state"),
        (BranchesIntoOneRow, conformance.check_branches, "branch"),
        (ResetsEverything, conformance.check_partial_reset, "not reset"),
        (ReleasesNothing, conformance.check_release, "released was not refused"),
    ],
)
def test_a_broken_promise_is_found(broken: type[Wrapped], check: Callable[[Case], None], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint) as caught:
        check(case_of(broken))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
