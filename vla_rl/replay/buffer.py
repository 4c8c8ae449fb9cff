"""A ring of the newest transitions.

Legend: N transitions that are added together, B samples, O observation size, D action size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32

from vla_rl.algorithms.dsac_t import Batch


class ReplayBuffer:
    """The newest `capacity` transitions, each one row of float32 numbers, so that a batch is drawn by one gather.

    A row is observation, action, reward, terminated, next observation. Memory is claimed as it fills.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        self._inputs = observation_dim + action_dim
        self._rows = np.empty((capacity, 2 * observation_dim + action_dim + 2), np.float32)
        self._cursor = self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(
        self,
        observation: Float32[np.ndarray, "N O"],
        action: Float32[np.ndarray, "N D"],
        reward: Float32[np.ndarray, "N"],
        terminated: Bool[np.ndarray, "N"],
        next_observation: Float32[np.ndarray, "N O"],
    ) -> None:
        """Remember N transitions, over the oldest where it is full. `next_observation` is what the action led to, not the
        first observation of an episode that began after it."""
        new = np.concatenate((observation, action, reward[:, None], terminated[:, None], next_observation), 1, dtype=np.float32)
        capacity = len(self._rows)
        self._rows[(self._cursor + np.arange(len(new))) % capacity] = new
        self._cursor = (self._cursor + len(new)) % capacity
        self._size = min(self._size + len(new), capacity)

    def sample(self, count: int, rng: np.random.Generator, device: torch.device | str = "cpu") -> Batch:
        """`count` transitions, drawn uniformly with replacement. Raises `ValueError` while there are none."""
        if not self._size:
            raise ValueError("the replay buffer is empty; add transitions before sampling")
        rows = torch.from_numpy(self._rows[rng.integers(self._size, size=count)]).to(device)
        end = self._inputs
        return Batch(rows[:, :end], rows[:, end], rows[:, end + 1], rows[:, end + 2 :])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows[: self._size], "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` where the rows are of another size, or more than fit."""
        rows = state["rows"]
        if rows.shape[1] != self._rows.shape[1] or len(rows) > len(self._rows):
            raise ValueError(f"the replay rows have shape {rows.shape}; the buffer holds {self._rows.shape}")
        self._size = len(rows)
        self._rows[: self._size] = rows
        self._cursor = int(state["cursor"])
