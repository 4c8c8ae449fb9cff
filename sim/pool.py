"""`SimPool`: the environments of any backend, spread over worker processes, behind the `VectorSim` interface.

The pool owns the episodes: after every reset and chunk it holds each row's whole state, so that a worker may die at any
time and its rows go on in another, bit for bit. Workers are replaceable.

Legend: B environments (rows), A actions of a chunk, D action size, P proprioception size, H x W image size.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Float32

import vla_rl
from vla_rl.sim.base import SimError
from vla_rl.sim.channel import Message
from vla_rl.sim.placement import place
from vla_rl.sim.supervisor import Command, Supervisor, WorkerProcess, WorkerSettings
from vla_rl.types import EpisodeSpec, Observation, Turn

_FIRST_CHUNK_LENGTH = 16
_STATE_FORMAT = 1


@dataclass(frozen=True)
class Episode:
    """The running or finished episode of one row."""

    spec: EpisodeSpec
    instruction: str
    max_steps: int
    state: bytes
    """The backend's."""
    steps: int = 0
    success: bool = False
    terminated: bool = False
    truncated: bool = False

    @property
    def is_live(self) -> bool:
        return not (self.terminated or self.truncated)

    def to_bytes(self) -> bytes:
        record = {**vars(self), "spec": self.spec.to_dict()}
        return msgpack.packb({"format": _STATE_FORMAT, **record}, use_bin_type=True)

    @staticmethod
    def from_bytes(data: bytes) -> Episode:
        """Raises `SimError` for bytes that `to_bytes` did not make."""
        try:
            record = msgpack.unpackb(data, raw=False)
            if record.pop("format") != _STATE_FORMAT:
                raise ValueError("it comes from another version")
            return Episode(**{**record, "spec": EpisodeSpec.from_dict(record["spec"])})
        except Exception as error:
            raise SimError(f"these bytes are not a saved state of a simulator ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class PoolOptions:
    """Options of `make_sim` that are the pool's own; all others go to the backend."""

    python: str = sys.executable
    """Interpreter of the workers; another one needs this package (without its dependencies), numpy, msgpack and jaxtyping."""
    hang_timeout: float = 120.0
    """s without a control step or frame until a worker is killed and replaced."""
    reset_timeout: float | None = None
    """s that a worker's start, or one reset or load, may take; default: five hang timeouts, at least 60 s."""
    devices: tuple[int, ...] = ()
    """EGL device ids for rendering, shared out over the workers; default: MuJoCo's choice."""
    pin_cpus: bool = True
    """Give each worker its own CPU cores when there are enough."""
    environment: Mapping[str, str] | None = None
    """Additional environment variables of the workers."""

    @staticmethod
    def split(options: Mapping[str, Any]) -> tuple[PoolOptions, dict[str, Any]]:
        """The pool's options, checked, and the backend's."""
        names = PoolOptions.__dataclass_fields__
        own = PoolOptions(**{name: value for name, value in options.items() if name in names})
        for name in ("hang_timeout", "reset_timeout"):
            value = getattr(own, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise SimError(f"{name} must be a positive number of seconds, not {value!r}")
        return own, {name: value for name, value in options.items() if name not in names}


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
        image_size: int = 128,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        own, backend_options = PoolOptions.split(options or {})
        cores = sorted(os.sched_getaffinity(0))
        self.num_envs = _positive(num_envs, "num_envs")
        self.num_workers = min(_positive(len(cores) if num_workers is None else num_workers, "num_workers"), self.num_envs)
        self.image_size = _positive(image_size, "image_size")
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
        self.env_steps = 0
        """Control steps so far, over all environments."""
        self.timings: Mapping[str, float] = {"simulation": 0.0, "rendering": 0.0, "reset": 0.0}
        """s spent so far in each part, added up over the workers."""
        self._episodes: list[Episode | None] = [None] * self.num_envs
        self._errors: dict[int, str] = {}
        self._is_closed = False
        self._supervisor = Supervisor(settings, _workers(self.num_envs, self.num_workers, own, cores))
        try:
            self._supervisor.start()
        except BaseException:
            self.close()
            raise
        self.action_dim = self._supervisor.sizes["action_dim"]
        self.proprio_dim = self._supervisor.sizes["proprio_dim"]
        self._supervisor.map_chunk(_FIRST_CHUNK_LENGTH)
        shape = (self.num_envs, self.image_size, self.image_size, 3)
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
        rows = self._check_rows(specs, env_ids)
        plain = [_plain_spec(spec, row) for spec, row in zip(specs, rows, strict=True)]
        commands = [Command("reset", row, {"spec": spec.to_dict()}) for spec, row in zip(plain, rows, strict=True)]
        replies = self._run(commands)
        refusals = {row: reply["message"] for row, reply in replies.items() if reply.get("refused")}
        if refusals:
            self._supervisor.forget(rows)
            row, reason = min(refusals.items())
            raise SimError(f"environment {row}: {reason}")
        for spec, row in zip(plain, rows, strict=True):
            if self._keep(row, spec, replies[row]):
                begun = replies[row]
                self._episodes[row] = Episode(spec, begun["instruction"], begun["max_steps"], begun["state"])
        return self._observation()

    def step_chunk(self, actions: Float32[np.ndarray, "B A D"]) -> Turn:
        """Run a chunk in every unfinished row; rows of finished, unstarted or lost environments are ignored.

        Raises `SimError` when an action of an unfinished row is not finite; then no row has moved.
        """
        self._check_open()
        live = {row: episode for row, episode in enumerate(self._episodes) if episode is not None and episode.is_live}
        actions = self._check_actions(actions, list(live))
        length = actions.shape[1]
        self._supervisor.map_chunk(length)
        self._supervisor.arrays.actions[:, :length] = actions
        commands = [
            Command("step", row, {"length": length, "budget": episode.max_steps - episode.steps}, episode.state)
            for row, episode in live.items()
        ]
        replies = self._run(commands)
        rewards = np.zeros((self.num_envs, length), np.float32)
        executed = np.zeros((self.num_envs, length), np.bool_)
        for row, episode in live.items():
            if self._keep(row, episode.spec, replies[row]):
                self._episodes[row] = after = _advance(episode, replies[row])
                rewards[row] = self._supervisor.arrays.rewards[row, :length]
                executed[row, : after.steps - episode.steps] = True
        return self._turn(rewards, executed)

    def save_state(self, env_id: int) -> bytes:
        """The whole state of one environment, episode counters included; costs no simulation."""
        self._check_open()
        episode = self._episodes[self._check_row(env_id)]
        if episode is None:
            raise SimError(f"environment {env_id} has no episode to save; reset it first")
        return episode.to_bytes()

    def load_state(self, env_id: int, state: bytes) -> Observation:
        """Continue from a saved state in any row of any simulator with the same settings.

        Returns the observation of all B rows, with this one rendered anew. Raises `SimError` for bytes that are not a
        saved state of this simulator; then the row goes on with its own episode.
        """
        self._check_open()
        row = self._check_row(env_id)
        episode = Episode.from_bytes(state)
        reply = self._run([Command("load", row, {"state": episode.state})])[row]
        if "error" in reply:
            self._supervisor.forget([row])
            raise SimError(f"environment {row} cannot continue from this state: {reply['message']}")
        self._keep(row, episode.spec, reply)
        self._episodes[row] = episode
        return self._observation()

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._is_closed = True
        self._supervisor.close()

    def __enter__(self) -> SimPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, commands: list[Command]) -> dict[int, Message]:
        """Have the workers do the commands; answer by row."""
        replies: dict[int, Message] = {}

        def on_reply(command: Command, reply: Message) -> None:
            replies[command.row] = reply
            spent = reply["spent"]
            self.frames_rendered += spent.pop("frames", 0)
            self.env_steps += spent.pop("env_steps", 0)
            for part, seconds in spent.items():
                self.timings[part] += seconds

        self._supervisor.run(commands, on_reply)
        return replies

    def _keep(self, row: int, spec: EpisodeSpec, reply: Message) -> bool:
        """Take over what a row's command has left behind; False if that is only an error."""
        self._errors.pop(row, None)
        if "error" in reply:
            self._errors[row] = f"environment {row} ({spec}): {reply['error']}"
            self._episodes[row] = None
            return False
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
        rows = [self._check_row(row) for row in (range(len(specs)) if env_ids is None else env_ids)]
        if len(specs) != len(rows):
            raise SimError(f"{len(specs)} episode specs cannot start in {len(rows)} environments; give one spec per row")
        if len(set(rows)) < len(rows):
            raise SimError(f"each environment can start one episode at a time, not {rows}")
        return rows

    def _check_actions(self, actions: Float32[np.ndarray, "B A D"], live: list[int]) -> Float32[np.ndarray, "B A D"]:
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
        return actions


def _advance(episode: Episode, reply: Message) -> Episode:
    """The episode after a chunk; it is truncated when its time is used up and the task has not ended."""
    steps = episode.steps + reply["executed"]
    return replace(
        episode,
        steps=steps,
        success=reply["success"],
        terminated=reply["terminated"],
        truncated=steps >= episode.max_steps and not reply["terminated"],
        state=reply["state"],
    )


def _positive(value: int, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise SimError(f"{name} must be a whole number of at least 1, not {value!r}")
    return number


def _plain_spec(spec: EpisodeSpec, row: int) -> EpisodeSpec:
    """The spec with plain ints, which numpy's are not."""
    try:
        return EpisodeSpec(
            suite=str(spec.suite),
            task_id=operator.index(spec.task_id),
            init_state_id=None if spec.init_state_id is None else operator.index(spec.init_state_id),
            seed=operator.index(spec.seed),
        )
    except (TypeError, AttributeError):
        raise SimError(f"environment {row}: an episode needs an EpisodeSpec with whole numbers, not {spec!r}") from None


def _workers(num_envs: int, num_workers: int, options: PoolOptions, cores: Sequence[int]) -> list[WorkerProcess]:
    """Rows, device, cores and environment variables of each worker."""
    placement = place(num_envs, num_workers, [1.0] * max(1, len(options.devices)))
    workers = []
    for index in range(num_workers):
        variables = _environment(options)
        if options.devices:
            variables["MUJOCO_EGL_DEVICE_ID"] = str(options.devices[placement.device_of_worker[index]])
        cpus = None
        if options.pin_cpus and len(cores) >= num_workers:
            cpus = frozenset(cores[index * len(cores) // num_workers : (index + 1) * len(cores) // num_workers])
        workers.append(WorkerProcess(index, placement.rows(index), variables, cpus))
    return workers


def _environment(options: PoolOptions) -> dict[str, str]:
    variables = {"MUJOCO_GL": "egl", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    home = str(Path(vla_rl.__file__).parents[1])
    if options.python == sys.executable:
        # As the parent imports, so does the worker: also from folders that were put on the path by hand.
        variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    elif Path(home).name not in ("site-packages", "dist-packages"):
        # From a checkout; a packages folder of this interpreter would hide those of the other one.
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    return {**variables, **(options.environment or {})}
