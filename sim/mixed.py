"""Several simulators as one: each row runs an episode of any of them, so that one policy acts in all.

Legend: B environments, A actions of a chunk, D action size, P proprioception size, H x W image size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from vla_rl.sim.base import SimError
from vla_rl.sim.pool import SimPool
from vla_rl.types import EpisodeSpec, Observation, Turn


class MixedSim:
    """A `VectorSim` over `parts`, each of which has the same number of rows, cameras and pixels.

    A row is played by the part that `part_of(suite)` names; the parts' other rows stay empty, which costs next to nothing.
    Actions and proprioception have the size of the largest part: a smaller one takes the first numbers of an action, and
    its proprioception ends in zeros. Cameras go by their order and bear the first part's names. Raises `SimError` for parts
    that do not fit together. Closing it closes the parts.
    """

    def __init__(self, parts: Mapping[str, SimPool], part_of: Callable[[str], str]) -> None:
        first = next(iter(parts.values()))
        for name, part in parts.items():
            same = (part.num_envs, len(part.cameras), part.image_size) == (first.num_envs, len(first.cameras), first.image_size)
            if not same:
                raise SimError(f"the parts of a mixed simulator need the same rows, number of cameras and pixels; {name} differs")
        self._parts, self._part_of = dict(parts), part_of
        self._home: list[str | None] = [None] * first.num_envs
        self.num_envs, self.cameras, self.image_size = first.num_envs, first.cameras, first.image_size
        self.action_dim = max(part.action_dim for part in parts.values())
        self.proprio_dim = max(part.proprio_dim for part in parts.values())
        self._observation = self._pad(first.observation(), first)

    @property
    def frames_rendered(self) -> int:
        return sum(part.frames_rendered for part in self._parts.values())

    @property
    def timings(self) -> Mapping[str, float]:
        return {
            name: sum(part.timings[name] for part in self._parts.values()) for name in next(iter(self._parts.values())).timings
        }

    def reset(self, specs: Sequence[EpisodeSpec], env_ids: Sequence[int] | None = None) -> Observation:
        """As `VectorSim.reset`. Raises `SimError` also for a suite that no part has; rows of other parts may have changed."""
        rows = list(range(len(specs)) if env_ids is None else env_ids)
        chosen: dict[str, list[tuple[EpisodeSpec, int]]] = {}
        for spec, row in zip(specs, rows, strict=True):
            name = self._part_of(spec.suite)
            if name not in self._parts:
                raise SimError(f"no part of this mixed simulator has the suite {spec.suite!r}; it has: {', '.join(self._parts)}")
            chosen.setdefault(name, []).append((spec, row))
        for name, work in chosen.items():
            part, there = self._parts[name], [row for _, row in work]
            self._take(part, part.reset([spec for spec, _ in work], there), there)
            for row in there:
                home = self._home[row]
                if home not in (None, name):
                    self._parts[home].release([row])
                self._home[row] = name
        return self._copy()

    def step_chunk(self, actions: Float32[np.ndarray, "B A D"]) -> Turn:
        """As `VectorSim.step_chunk`; the parts step one after another."""
        shape = actions.shape[:2]
        rewards, executed = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        flags = {name: np.zeros(self.num_envs, np.bool_) for name in ("success", "terminated", "truncated")}
        errors: dict[int, str] = {}
        work = []
        for name, part in self._parts.items():
            rows = [row for row, home in enumerate(self._home) if home == name]
            if rows:
                work.append((part, rows, np.ascontiguousarray(actions[:, :, : part.action_dim])))
        for part, _, chunks in work:
            part.check_actions(chunks)  # before any of them moves
        for part, rows, chunks in work:
            turn = part.step_chunk(chunks)
            self._take(part, turn.observation, rows)
            rewards[rows], executed[rows] = turn.rewards[rows], turn.executed[rows]
            for flag, values in flags.items():
                values[rows] = getattr(turn, flag)[rows]
            errors |= {row: error for row, error in turn.errors.items() if row in rows}
        return Turn(observation=self._copy(), rewards=rewards, executed=executed, errors=errors, **flags)

    def save_state(self, env_id: int) -> bytes:
        """Raises `SimError` where row `env_id` holds no episode."""
        return self._part_at(env_id).save_state(env_id)

    def branch(self, env_id: int, targets: Sequence[int]) -> Observation:
        """As `VectorSim.branch`."""
        part, name = self._part_at(env_id), self._home[env_id]
        self._take(part, part.branch(env_id, targets), list(targets))
        for row in targets:
            home = self._home[row]
            if home is not None and home != name:
                self._parts[home].release([row])
            self._home[row] = name
        return self._copy()

    def load_state(self, env_id: int, state: bytes) -> Observation:
        """As `VectorSim.load_state`, of a state that any of the parts saved."""
        for name, part in self._parts.items():
            try:
                found = part.load_state(env_id, state)
            except SimError:
                continue
            home = self._home[env_id]
            if home is not None and home != name:
                self._parts[home].release([env_id])
            self._home[env_id] = name
            self._take(part, found, [env_id])
            return self._copy()
        raise SimError("these bytes are a saved state of no part of this mixed simulator")

    def release(self, rows: Sequence[int]) -> None:
        """As `VectorSim.release`."""
        for part in self._parts.values():
            part.release(rows)  # where it holds nothing, nothing happens
        for row in rows:
            self._home[row] = None

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def _part_at(self, row: int) -> SimPool:
        home = self._home[row]
        if home is None:
            raise SimError(f"environment {row} holds no episode; reset it first")
        return self._parts[home]

    def _take(self, part: SimPool, found: Observation, rows: Sequence[int]) -> None:
        """Take over rows of a part's observation."""
        padded, index = self._pad(found, part), list(rows)
        for camera, frames in self._observation.images.items():
            frames[index] = padded.images[camera][index]
        self._observation.proprio[index] = padded.proprio[index]
        for row in index:
            self._observation.instruction[row] = padded.instruction[row]

    def _pad(self, found: Observation, part: SimPool) -> Observation:
        proprio = np.zeros((self.num_envs, self.proprio_dim), np.float32)
        proprio[:, : part.proprio_dim] = found.proprio
        images = {camera: found.images[theirs] for camera, theirs in zip(self.cameras, part.cameras, strict=True)}
        return Observation(images, proprio, found.instruction)

    def _copy(self) -> Observation:
        seen = self._observation
        return Observation({name: f.copy() for name, f in seen.images.items()}, seen.proprio.copy(), list(seen.instruction))
