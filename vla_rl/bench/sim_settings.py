"""What all systems of `vla-rl bench sim` are given alike: task, initial states, cameras and actions.

Legend: B environments, A actions of a chunk, D action size.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Float32

from vla_rl.config import Config, ConfigError
from vla_rl.config_files import load_config
from vla_rl.sim.base import SimError
from vla_rl.types import EpisodeSpec

DEFAULTS = (
    "task.suite=libero_spatial",
    "task.task_ids=[0]",
    "sim.num_envs=8",
    "sim.num_workers=2",
    "sim.cameras=[agentview, robot0_eye_in_hand]",
    "sim.image_size=128",
    "policy.chunk_length=8",
)
"""Overrides of the configuration's own defaults, so that two benchmarks without arguments can be compared."""
ACTION_DIM = 7


@dataclass(frozen=True)
class SimSettings:
    """One task, B environments, and the same actions for whoever steps them."""

    suite: str
    task_id: int
    num_envs: int
    num_workers: int
    cameras: tuple[str, ...]
    image_size: int
    chunk_length: int
    seed: int = 0

    @staticmethod
    def from_overrides(overrides: Sequence[str]) -> SimSettings:
        """From `section.key=value` words on top of `DEFAULTS`. Raises `ConfigError`, and `SimError` for an unknown task."""
        return SimSettings.of(load_config(None, [*DEFAULTS, *overrides]))

    @staticmethod
    def of(config: Config) -> SimSettings:
        from vla_rl.sim.libero.tasks import find_task

        if config.sim.name != "libero" or len(config.task.task_ids) != 1:
            raise ConfigError("bench sim compares simulators of one LIBERO task: task.suite=libero_spatial task.task_ids=[0]")
        if not isinstance(config.sim.image_size, int):
            raise ConfigError("LIBERO's frames are square: sim.image_size=128")
        if not config.sim.cameras:
            raise ConfigError("bench sim needs at least one camera; physics without cameras is measured in any case")
        (task_id,), suite = config.task.task_ids, config.task.suite
        shipped, num_envs = len(find_task(suite, task_id).initial_states()), config.sim.num_envs
        if shipped == 0:
            raise SimError(f"{suite} task {task_id} ships no initial states, from which all systems could start alike")
        return SimSettings(
            suite=suite,
            task_id=task_id,
            num_envs=num_envs,
            num_workers=min(config.sim.num_workers or 2, num_envs),
            cameras=tuple(config.sim.cameras),
            image_size=config.sim.image_size,
            chunk_length=config.policy.chunk_length,
            seed=config.run.seed,
        )

    def with_envs(self, num_envs: int) -> SimSettings:
        return replace(self, num_envs=num_envs, num_workers=min(self.num_workers, num_envs))

    @property
    def episode_chunks(self) -> int:
        """Whole chunks that fit into the task's time limit; then an episode begins anew."""
        from vla_rl.sim.libero.tasks import MAX_STEPS

        return max(1, MAX_STEPS[self.suite] // self.chunk_length)

    def specs(self) -> list[EpisodeSpec]:
        """Row i starts in the shipped initial state i; beyond their number they come again."""
        from vla_rl.sim.libero.tasks import find_task

        count = len(find_task(self.suite, self.task_id).initial_states())
        return [EpisodeSpec(self.suite, self.task_id, init_state_id=row % count) for row in range(self.num_envs)]

    def fresh_specs(self) -> Iterator[EpisodeSpec]:
        """Beginnings, each another one and none that a row has: nothing about them can be remembered."""
        return (EpisodeSpec(self.suite, self.task_id, seed=seed) for seed in itertools.count(1))

    def actions(self, chunk: int) -> Float32[np.ndarray, "B A D"]:
        """Uniform in [-1, 1]; those of a row depend on nothing but the seed, the row and the number of the chunk."""
        rows = [np.random.default_rng([self.seed, chunk, row]) for row in range(self.num_envs)]
        return np.stack([rng.uniform(-1, 1, (self.chunk_length, ACTION_DIM)).astype(np.float32) for rng in rows])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> SimSettings:
        record = json.loads(text)
        return SimSettings(**record | {"cameras": tuple(record["cameras"])})
