"""Continuous actions <-> action tokens, as OpenVLA does it, with an exact zero.

Legend: * any leading shape, A actions of a chunk, D action size, L = A*D action tokens, M samples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from vla_rl.policies.base import PolicyError

BIN_EDGES = np.linspace(-1.0, 1.0, 256)
NUM_ACTION_TOKENS = len(BIN_EDGES)
BIN_CENTRES = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2


@dataclass(frozen=True)
class ActionStatistics:
    """The range of commands that the bins of each action dimension span.

    Example: `low=(-.3,), high=(.3,)` lets the 255 bins cover commands from -.3 to .3; `normalised=(False,)` leaves the
    dimension in [-1, 1], as OpenVLA does with the gripper. With `exact_zero`, a bin that contains the command 0 decodes
    to exactly 0.0 instead of to its centre; that matters where a controller treats 0 specially (robosuite's OSC holds
    its orientation only while the rotation command is exactly 0). Released OpenVLA checkpoints use `exact_zero=False`.
    With `binary_gripper`, the last dimension is the gripper as OpenVLA's data sets have it, 1 for open and 0 for closed, and
    its command is LIBERO's, -1 or 1.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    normalised: tuple[bool, ...]
    exact_zero: bool = True
    binary_gripper: bool = False

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.normalised) > 0:
            raise PolicyError("action statistics: low, high and normalised must have one entry per action dimension")
        bounds = np.array([self.low, self.high], dtype=np.float64)
        used = np.array(self.normalised, dtype=bool)
        if not np.isfinite(bounds[:, used]).all() or (bounds[0] >= bounds[1])[used].any():
            raise PolicyError(f"action statistics: every range must be finite with low < high, not {self.low} to {self.high}")

    @property
    def action_dim(self) -> int:
        return len(self.low)

    @staticmethod
    def unit(action_dim: int) -> ActionStatistics:
        """Commands in [-1, 1], taken as they are."""
        return ActionStatistics((-1.0,) * action_dim, (1.0,) * action_dim, (False,) * action_dim)

    @staticmethod
    def symmetric(
        actions: Float[np.ndarray, "M D"],
        quantile: float = 1.0,
        minimum_scale: float = 0.02,
        normalised: tuple[bool, ...] | None = None,
    ) -> ActionStatistics:
        """The bins of a dimension span +-scale, with scale the `quantile` of |command| over the samples.

        The middle bin is then centred on the command 0. `minimum_scale` is the scale of a dimension that (nearly) never
        moves. Raises `PolicyError` for samples that are empty or not finite.
        """
        magnitudes = np.abs(_samples(actions))
        scale = np.maximum(np.quantile(magnitudes, quantile, axis=0), minimum_scale)
        keep = normalised if normalised is not None else (True,) * len(scale)
        return ActionStatistics(tuple((-scale).tolist()), tuple(scale.tolist()), tuple(bool(n) for n in keep))

    @staticmethod
    def bounds(actions: Float[np.ndarray, "M D"], margin: float = 0.02, minimum_range: float = 0.02) -> ActionStatistics:
        """The bins of a dimension span all its samples, and `margin` of their range beyond either end: for commands that are
        positions, of which 0 is one like any other.

        A dimension whose samples lie closer together than `minimum_range` gets a range of that width around their middle, on
        which a bin is centred: one that never moves decodes to its constant. Raises `PolicyError` as `symmetric` does.
        """
        samples = _samples(actions)
        low, high = samples.min(axis=0), samples.max(axis=0)
        half = np.maximum((0.5 + margin) * (high - low), 0.5 * minimum_range)
        centre = (low + high) / 2
        low, high = centre - half, centre + half
        return ActionStatistics(tuple(low.tolist()), tuple(high.tolist()), (True,) * len(low), exact_zero=False)

    @staticmethod
    def quantiles(
        actions: Float[np.ndarray, "M D"],
        normalised: tuple[bool, ...] | None = None,
        exact_zero: bool = True,
        minimum_range: float = 0.02,
    ) -> ActionStatistics:
        """OpenVLA's statistics: the bins span the 1st to the 99th percentile (`q01`, `q99`) of each dimension.

        Such a range is not symmetrical, so that no bin is centred on 0: keep `exact_zero`. A dimension whose percentiles
        are closer than `minimum_range` gets a range of that width around them.
        """
        low, high = np.quantile(_samples(actions), [0.01, 0.99], axis=0)
        narrow = high - low < minimum_range
        centre = (low + high) / 2
        low = np.where(narrow, centre - minimum_range / 2, low)
        high = np.where(narrow, centre + minimum_range / 2, high)
        keep = normalised if normalised is not None else (True,) * len(low)
        return ActionStatistics(tuple(low.tolist()), tuple(high.tolist()), tuple(bool(n) for n in keep), exact_zero)

    def save(self, path: Path) -> None:
        """For policies whose gripper is commanded as it is."""
        record = {"low": self.low, "high": self.high, "normalised": self.normalised, "exact_zero": self.exact_zero}
        path.write_text(json.dumps(record, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> ActionStatistics:
        record = json.loads(path.read_text())
        return ActionStatistics(
            low=tuple(float(x) for x in record["low"]),
            high=tuple(float(x) for x in record["high"]),
            normalised=tuple(bool(x) for x in record["normalised"]),
            exact_zero=bool(record["exact_zero"]),
        )


def _samples(actions: np.ndarray) -> np.ndarray:
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or not actions.size or not np.isfinite(actions).all():
        raise PolicyError(f"action statistics need finite actions of shape [samples, action size], not {actions.shape}")
    return actions


@dataclass(frozen=True)
class ActionTokenizer:
    """OpenVLA's action tokens: the 256 ids below `vocab_size`.

    id = vocab_size - digitize(x, 256 edges on [-1, 1]), decoded by 255 bin centres: the two lowest ids decode alike.
    """

    vocab_size: int
    statistics: ActionStatistics

    @property
    def first_token(self) -> int:
        return self.vocab_size - NUM_ACTION_TOKENS

    @cached_property
    def _commands(self) -> Float32[np.ndarray, "256 D"]:
        """The command that each action token stands for, by `token - first_token`."""
        bins = np.clip(self.vocab_size - np.arange(self.first_token, self.vocab_size) - 1, 0, len(BIN_CENTRES) - 1)
        low, high, normalised = self._bounds
        commands = self.to_commands(np.repeat(BIN_CENTRES[bins][:, None], self.statistics.action_dim, axis=1))
        if self.statistics.exact_zero:
            zero = np.zeros(self.statistics.action_dim)
            reachable = ~normalised | ((low <= 0) & (high >= 0))
            zero_bin = np.clip(np.digitize(self._normalise(zero), BIN_EDGES) - 1, 0, len(BIN_CENTRES) - 1)
            commands[(bins[:, None] == zero_bin) & reachable] = 0.0
        return commands.astype(np.float32)

    def to_commands(self, normalised_actions: Float[np.ndarray, "*batch D"]) -> Float[np.ndarray, "*batch D"]:
        """Actions in units of their range -> commands."""
        low, high, normalised = self._bounds
        commands = np.where(normalised, 0.5 * (normalised_actions + 1.0) * (high - low) + low, normalised_actions)
        if self.statistics.binary_gripper:
            commands[..., -1] = -np.sign(2 * commands[..., -1] - 1)
        return commands

    @property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        statistics = self.statistics
        return np.array(statistics.low), np.array(statistics.high), np.array(statistics.normalised, dtype=bool)

    def _normalise(self, actions: np.ndarray) -> np.ndarray:
        low, high, normalised = self._bounds
        width = np.where(normalised, high - low, 1.0)
        return np.clip(np.where(normalised, 2 * (actions - low) / width - 1, actions), -1.0, 1.0)

    def encode(self, actions: Float[np.ndarray, "*batch A D"]) -> Int64[np.ndarray, "*batch L"]:
        """Tokens of chunks, the D tokens of an action side by side. Commands beyond the range count as its end.

        Raises `PolicyError` when the last axis is not D or an action is not finite.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim < 2 or actions.shape[-1] != self.statistics.action_dim:
            raise PolicyError(f"actions must end in [A, {self.statistics.action_dim}], not {actions.shape}")
        if not np.isfinite(actions).all():
            raise PolicyError("an action to encode is not finite")
        if self.statistics.binary_gripper:
            actions = np.concatenate([actions[..., :-1], (1 - actions[..., -1:]) / 2], axis=-1)
        tokens = self.vocab_size - np.digitize(self._normalise(actions), BIN_EDGES)
        return tokens.astype(np.int64).reshape(*actions.shape[:-2], -1)

    def decode(self, tokens: Int64[np.ndarray, "*batch L"]) -> Float32[np.ndarray, "*batch A D"]:
        """The commands of action tokens. Raises `PolicyError` for an id that is no action token."""
        index = np.asarray(tokens, dtype=np.int64) - self.first_token
        if index.shape[-1] % self.statistics.action_dim:
            raise PolicyError(f"{index.shape[-1]} tokens are not whole actions of {self.statistics.action_dim} tokens")
        if index.size and (index.min() < 0 or index.max() >= NUM_ACTION_TOKENS):
            raise PolicyError(f"action tokens are the ids {self.first_token} to {self.vocab_size - 1}; got {np.asarray(tokens)}")
        index = index.reshape(*index.shape[:-1], -1, self.statistics.action_dim)
        return np.take_along_axis(self._commands, index.reshape(-1, index.shape[-1]), axis=0).reshape(index.shape)
