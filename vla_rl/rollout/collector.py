"""Policy x environments -> trajectories.

Legend: B environments, A actions of a chunk, D action size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vla_rl.metrics import Stopwatch
from vla_rl.policies.base import ActingPolicy
from vla_rl.sim.base import SimError, VectorSim
from vla_rl.types import ActionChunk, EpisodeSpec, Observation, Trajectory, Turn

ATTEMPTS = 3
"""How often an episode is begun again after its environment failed."""


@dataclass
class _Episode:
    """An episode under way: its turns so far."""

    index: int
    spec: EpisodeSpec
    turns: list[dict[str, Any]] = field(default_factory=list)

    def record(self, row: int, live: int, observation: Observation, chunk: ActionChunk, turn: Turn) -> None:
        self.turns.append(
            {
                "images": {name: frames[row].copy() for name, frames in observation.images.items()},
                "proprio": observation.proprio[row].copy(),
                "action_tokens": chunk.tokens[live],
                "log_probs": chunk.log_probs[live],
                "values": chunk.values[live],
                "policy_version": chunk.policy_version,
                "actions": chunk.actions[live],
                "rewards": turn.rewards[row].copy(),
                "executed": turn.executed[row].copy(),
                "prompt_tokens": chunk.prompt_tokens[live],
            }
        )

    def finish(self, row: int, turn: Turn) -> Trajectory:
        """What ended neither by itself nor by the environment's time limit was cut, which is a time limit as well."""

        def stack(key: str, dtype: Any) -> np.ndarray:
            return np.stack([np.asarray(t[key], dtype=dtype) for t in self.turns])

        final = turn.observation
        return Trajectory(
            spec=self.spec,
            instruction=final.instruction[row],
            images={name: np.stack([t["images"][name] for t in self.turns]) for name in final.images},
            proprio=stack("proprio", np.float32),
            prompt_tokens=self.turns[0]["prompt_tokens"],
            action_tokens=stack("action_tokens", np.int64),
            log_probs=stack("log_probs", np.float32),
            values=stack("values", np.float32),
            policy_version=stack("policy_version", np.int32),
            actions=stack("actions", np.float32),
            rewards=stack("rewards", np.float32),
            executed=stack("executed", np.bool_),
            success=bool(turn.success[row]),
            terminated=bool(turn.terminated[row]),
            truncated=not turn.terminated[row],
            final_images={name: frames[row].copy() for name, frames in final.images.items()},
            final_proprio=final.proprio[row].copy(),
        )


def run_episodes(
    sim: VectorSim,
    policy: ActingPolicy,
    specs: Sequence[EpisodeSpec],
    temperature: float,
    generator: torch.Generator | None = None,
    stopwatch: Stopwatch | None = None,
    max_turns: int | None = None,
) -> Iterator[tuple[int, Trajectory]]:
    """Run every episode of `specs` exactly once; yield (index into `specs`, trajectory) as each one ends.

    A slot takes the next episode as soon as its last one is finished; finished rows are neither inferred nor stepped. An
    episode whose environment fails is begun again, up to `ATTEMPTS` times; after that `SimError` carries the environment's
    traceback. Temperature 0 is greedy. Episodes of `max_turns` turns are cut there, as by a time limit.
    """
    queue = deque(_Episode(i, spec) for i, spec in enumerate(specs))
    attempts = [0] * len(specs)
    slots: dict[int, _Episode] = {}
    watch = stopwatch or Stopwatch()
    observation = _refill(sim, queue, slots, watch)
    while slots and observation is not None:
        rows = sorted(slots)
        with watch.part("inference"):
            chunk = policy.act(observation.select(rows), temperature, generator)
        actions = np.zeros((sim.num_envs, *chunk.actions.shape[1:]), np.float32)
        actions[rows] = chunk.actions
        with watch.part("simulation"):
            turn = sim.step_chunk(actions)
        for live, row in enumerate(rows):
            episode = slots[row]
            if row in turn.errors:
                del slots[row]
                attempts[episode.index] += 1
                if attempts[episode.index] >= ATTEMPTS:
                    raise SimError(f"{episode.spec} failed {ATTEMPTS} times; the last error was:\n{turn.errors[row]}")
                queue.append(_Episode(episode.index, episode.spec))
                continue
            episode.record(row, live, observation, chunk, turn)
            is_cut = len(episode.turns) == max_turns and not turn.finished[row]
            if is_cut:
                sim.release([row])
            if is_cut or turn.finished[row]:
                del slots[row]
                yield episode.index, episode.finish(row, turn)
        observation = _refill(sim, queue, slots, watch) or turn.observation


def _refill(sim: VectorSim, queue: deque[_Episode], slots: dict[int, _Episode], stopwatch: Stopwatch) -> Observation | None:
    """Start waiting episodes in the free slots; None where nothing was started."""
    free = [row for row in range(sim.num_envs) if row not in slots]
    started = {row: queue.popleft() for row in free[: len(queue)]}
    if not started:
        return None
    slots.update(started)
    with stopwatch.part("simulation"):
        return sim.reset([episode.spec for episode in started.values()], env_ids=list(started))


def collect(
    sim: VectorSim,
    policy: ActingPolicy,
    specs: Sequence[EpisodeSpec],
    temperature: float,
    generator: torch.Generator | None = None,
    stopwatch: Stopwatch | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
    max_turns: int | None = None,
) -> list[Trajectory]:
    """All trajectories of `run_episodes`, in the order of `specs`; `on_episode` is called as each episode ends."""
    results: dict[int, Trajectory] = {}
    for index, trajectory in run_episodes(sim, policy, specs, temperature, generator, stopwatch, max_turns):
        results[index] = trajectory
        if on_episode is not None:
            on_episode(trajectory)
    return [results[i] for i in range(len(specs))]
