"""`SimPool`: the environments of any backend, spread over worker processes, behind the `VectorSim` interface.

The pool owns the episodes: after every reset and chunk it holds each row's whole state, so that a worker may die at any
time and its rows go on in another, bit for bit. Workers are replaceable.

Legend: B environments (rows), A actions of a chunk, D action size, P proprioception size, H x W image size.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Float32

from vla_rl.sim.base import SimError
from vla_rl.sim.channel import Message, frame_size
from vla_rl.sim.episode import Episode, plain_spec
from vla_rl.sim.pool_options import PoolOptions, lay_out_workers
from vla_rl.sim.supervisor import Supervisor
from vla_rl.sim.task_costs import TaskCosts
from vla_rl.sim.worker_process import Command, WorkerSettings
from vla_rl.types import EpisodeSpec, Observation, Turn

_FIRST_CHUNK_LENGTH = 16


class SimPool:
    """`num_envs` environments of a backend in `num_workers` processes.

    Raises `SimError` when the workers cannot start. `options` are `PoolOptions` and the backend's. Close it (or use it
    as a context manager); its workers also end with the process that made it.
    """

    def __init__(
        self,
        backend: str,
        *,
        num_envs: int,
        num_workers: int | None = None,
        cameras: tuple[str, ...] = ("agentview",),
        image_size: int | Sequence[int] = 128,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        own, backend_options = PoolOptions.split(options or {})
        cores = sorted(os.sched_getaffinity(0))
        self.num_envs = _positive(num_envs, "num_envs")
        self.num_workers = min(_positive(len(cores) if num_workers is None else num_workers, "num_workers"), self.num_envs)
        self.image_size = _image_size(image_size)
        self.cameras = tuple(cameras)
        if len(set(self.cameras)) < len(self.cameras):
            raise SimError(f"each camera may be named once, not {list(self.cameras)}")
        try:
            msgpack.packb(backend_options)
        except (TypeError, ValueError, OverflowError) as error:
            raise SimError(f"options of a simulator must be plain values (numbers, strings, lists, maps): {error}") from None
        settings = WorkerSettings(
            backend=backend,
            cameras=self.cameras,
            image_size=self.image_size,
            num_envs=self.num_envs,
            num_workers=self.num_workers,
            options=backend_options,
            python=str(own.python),
            hang_timeout=own.hang_timeout,
            reset_timeout=own.reset_timeout or max(60.0, 5 * own.hang_timeout),
        )
        self.frames_rendered = 0
        self._spent: dict[str, float] = dict.fromkeys(("simulation", "rendering", "reset", "env_steps", "turns", "frames"), 0)
        self.timings: Mapping[str, float] = MappingProxyType(self._spent)
        self._backend = backend
        self._costs = TaskCosts()
        self._episodes: list[Episode | None] = [None] * self.num_envs
        self._errors: dict[int, str] = {}
        self._is_closed = False
        self._supervisor = Supervisor(settings, lay_out_workers(self.num_envs, self.num_workers, own, cores))
        try:
            self._supervisor.start()
        except BaseException:
            self.close()
            raise
        self.action_dim = self._supervisor.sizes["action_dim"]
        self.proprio_dim = self._supervisor.sizes["proprio_dim"]
        self._supervisor.map_chunk(_FIRST_CHUNK_LENGTH)
        shape = (self.num_envs, *frame_size(self.image_size), 3)
        self._images = {camera: np.zeros(shape, np.uint8) for camera in self.cameras}
        self._proprio = np.zeros((self.num_envs, self.proprio_dim), np.float32)

    @property
    def worker_pids(self) -> tuple[int | None, ...]:
        """Process id of each worker; None for one that has died and was not needed since."""
        return tuple(worker.pid for worker in self._supervisor.workers)

    def reset(self, specs: Sequence[EpisodeSpec], env_ids: Sequence[int] | None = None) -> Observation:
        """Start the episodes `specs` in rows `env_ids` (default: the first rows); other rows are left as they are.

        Returns the observation of all B rows. Raises `SimError` for a suite, task or initial state that does not exist;
        then no row has changed. A row whose environment fails in another way is reported in the `errors` of the turns.
        """
        self._check_open()
        if isinstance(specs, EpisodeSpec):
            raise SimError("reset takes a list of episode specs, one per environment, not a single one")
        rows = self._check_rows(specs, env_ids)
        plain = [plain_spec(spec) for spec in specs]
        commands = [
            Command("reset", row, {"spec": spec.to_dict()}, cost=self._costs.of_reset(spec))
            for spec, row in zip(plain, rows, strict=True)
        ]
        with self._void_on_error(rows):
            replies = self._run(commands)
            for row in rows:
                if replies[row].get("refused"):
                    raise SimError(f"environment {row}: {replies[row]['message']}")
            for spec, row in zip(plain, rows, strict=True):
                if self._keep(row, spec, replies[row]):
                    begun = replies[row]
                    self._episodes[row] = Episode(spec, begun["instruction"], begun["max_steps"], begun["state"])
        return self._observation()

    def step_chunk(self, actions: Float32[np.ndarray, "B A D"]) -> Turn:
        """Run a chunk in every unfinished row; rows of finished, unstarted or lost environments are ignored.

        Raises `SimError` when an action of an unfinished row is not finite; then no row has moved.
        """
        live = self._live()
        self.check_actions(actions)
        length = actions.shape[1]
        self._supervisor.map_chunk(length)
        self._supervisor.arrays.actions[:, :length] = actions
        commands = [
            Command(
                "step",
                row,
                {"length": length, "budget": episode.max_steps - episode.steps},
                episode.state,
                self._costs.of_chunk(episode, length),
            )
            for row, episode in live.items()
        ]
        rewards = np.zeros((self.num_envs, length), np.float32)
        executed = np.zeros((self.num_envs, length), np.bool_)
        with self._void_on_error(live):
            replies = self._run(commands)
            for row, episode in live.items():
                if self._keep(row, episode.spec, replies[row]):
                    self._episodes[row] = after = episode.after(replies[row])
                    rewards[row] = self._supervisor.arrays.rewards[row, :length]
                    executed[row, : after.steps - episode.steps] = True
        return self._turn(rewards, executed)

    def check_actions(self, actions: Float32[np.ndarray, "B A D"]) -> None:
        """Raises `SimError` for actions that `step_chunk` would not take; no row moves."""
        self._check_open()
        self._check_actions(actions, list(self._live()))

    def save_state(self, env_id: int) -> bytes:
        """The whole state of one environment, episode counters included; costs no simulation."""
        self._check_open()
        episode = self._episodes[self._check_row(env_id)]
        if episode is None:
            raise SimError(f"environment {env_id} has no episode to save; reset it first")
        return episode.to_bytes(self._backend)

    def load_state(self, env_id: int, state: bytes) -> Observation:
        """Continue from a saved state in any row of any simulator with the same settings.

        Returns the observation of all B rows, with this one rendered anew. Raises `SimError` for bytes that are not a
        saved state of this simulator; then the row goes on with its own episode.
        """
        self._check_open()
        row = self._check_row(env_id)
        episode = Episode.from_bytes(state, self._backend)
        with self._void_on_error([row]):
            reply = self._run([Command("load", row, {"state": episode.state})])[row]
            if "error" in reply:
                raise SimError(f"environment {row} cannot continue from this state: {reply['message']}")
            self._keep(row, episode.spec, reply)
            self._episodes[row] = episode
        return self._observation()

    def branch(self, env_id: int, targets: Sequence[int]) -> Observation:
        """Have rows `targets` go on from the present state of row `env_id`, whatever they held; costs no simulation.

        Returns the observation of all B rows. Raises `SimError` where row `env_id` holds no episode.
        """
        self._check_open()
        source, rows = self._check_row(env_id), [self._check_row(row) for row in targets]
        episode = self._episodes[source]
        if episode is None:
            raise SimError(f"environment {source} has no episode to branch from; reset it first")
        rows = [row for row in rows if row != source]
        for row in rows:
            self._episodes[row] = episode
            self._errors.pop(row, None)
            for frames in self._images.values():
                frames[row] = frames[source]
            self._proprio[row] = self._proprio[source]
        self._supervisor.forget(rows)
        return self._observation()

    def release(self, rows: Sequence[int]) -> None:
        """As `VectorSim.release`."""
        released = [self._check_row(row) for row in rows]
        for row in released:
            self._episodes[row] = None
        self._supervisor.forget(released)

    def observation(self) -> Observation:
        """What was last seen in all B rows; zeros where nothing was."""
        return self._observation()

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._is_closed = True
        self._supervisor.close()

    def __enter__(self) -> SimPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _void_on_error(self, rows: Iterable[int]) -> Iterator[None]:
        """Around a request and the taking over of its results: cut short, also by Ctrl-C, rows go on from what is kept here."""
        try:
            yield
        except BaseException:
            self._supervisor.forget(rows)
            raise

    def _run(self, commands: list[Command]) -> dict[int, Message]:
        """Have the workers do the commands; answer by row."""
        replies: dict[int, Message] = {}

        def on_reply(command: Command, reply: Message) -> None:
            replies[command.row] = reply
            for part, amount in reply["spent"].items():
                self._spent[part] += amount
            self.frames_rendered = int(self._spent["frames"])

        self._supervisor.run(commands, on_reply)
        return replies

    def _keep(self, row: int, spec: EpisodeSpec, reply: Message) -> bool:
        """Take over what a row's command has left behind; False if that is only an error."""
        self._errors.pop(row, None)
        if "error" in reply:
            self._errors[row] = f"environment {row} ({spec}): {reply['error']}"
            self._episodes[row] = None
            return False
        self._costs.add(spec, reply["spent"])
        for camera, frames in self._images.items():
            frames[row] = self._supervisor.arrays.images[camera][row]
        self._proprio[row] = self._supervisor.arrays.proprio[row]
        return True

    def _observation(self) -> Observation:
        return Observation(
            images={camera: frames.copy() for camera, frames in self._images.items()},
            proprio=self._proprio.copy(),
            instruction=[episode.instruction if episode else "" for episode in self._episodes],
        )

    def _turn(self, rewards: np.ndarray, executed: np.ndarray) -> Turn:
        def flags(name: str) -> np.ndarray:
            return np.array([episode is not None and getattr(episode, name) for episode in self._episodes], np.bool_)

        return Turn(
            observation=self._observation(),
            rewards=rewards,
            success=flags("success"),
            terminated=flags("terminated"),
            truncated=flags("truncated"),
            executed=executed,
            errors=dict(sorted(self._errors.items())),
        )

    def _live(self) -> dict[int, Episode]:
        """Unfinished episodes by row."""
        return {row: episode for row, episode in enumerate(self._episodes) if episode is not None and episode.is_live}

    def _check_open(self) -> None:
        if self._is_closed:
            raise SimError("this simulator is closed; make another one")

    def _check_row(self, env_id: int) -> int:
        try:
            row = operator.index(env_id)
        except TypeError:
            raise SimError(f"an environment is named by its row, a whole number, not {env_id!r}") from None
        if not 0 <= row < self.num_envs:
            raise SimError(f"there is no environment {row}; this simulator has rows 0 to {self.num_envs - 1}")
        return row

    def _check_rows(self, specs: Sequence[EpisodeSpec], env_ids: Sequence[int] | None) -> list[int]:
        if env_ids is None and len(specs) > self.num_envs:
            raise SimError(f"{len(specs)} episode specs are too many for {self.num_envs} environments")
        rows = [self._check_row(row) for row in (range(len(specs)) if env_ids is None else env_ids)]
        if len(specs) != len(rows):
            raise SimError(f"{len(specs)} episode specs cannot start in {len(rows)} environments; give one spec per row")
        if len(set(rows)) < len(rows):
            raise SimError(f"each environment can start one episode at a time, not {rows}")
        return rows

    def _check_actions(self, actions: Float32[np.ndarray, "B A D"], live: list[int]) -> None:
        wanted = f"actions must be a float32 array of shape [{self.num_envs}, A, {self.action_dim}]"
        if not isinstance(actions, np.ndarray):
            raise SimError(f"{wanted}, not a {type(actions).__name__}")
        shape = actions.shape
        if len(shape) != 3 or shape[0] != self.num_envs or shape[1] < 1 or shape[2] != self.action_dim:
            raise SimError(f"{wanted} with A at least 1, not of shape {list(shape)}")
        if actions.dtype != np.float32:
            raise SimError(f"{wanted}, not {actions.dtype}; convert them with .astype(np.float32)")
        finite = np.isfinite(actions[live])
        if not finite.all():
            i, step, dim = (int(k) for k in np.argwhere(~finite)[0])
            value = actions[live[i], step, dim]
            raise SimError(f"environment {live[i]}: action {step} of the chunk is {value} in dimension {dim}; no row has moved")


def _image_size(value: int | Sequence[int]) -> int | tuple[int, int]:
    """A side, or a height and a width."""
    if not isinstance(value, Sequence):
        return _positive(value, "image_size")
    if len(value) != 2:
        raise SimError(f"image_size is the side of a square or a height and a width, not {list(value)!r}")
    return _positive(value[0], "image_size"), _positive(value[1], "image_size")


def _positive(value: int, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise SimError(f"{name} must be a whole number of at least 1, not {value!r}")
    return number
