"""A worker process: one backend, its chunk loop and its heartbeat. Run as `python -m vla_rl.sim.worker SOCKET MEMORY PARENT`.

It imports neither torch nor the parent's side, because a simulator may live in an interpreter of its own.

Legend: A actions of a chunk, D action size.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.sim.base import Backend, SimError, StepResult
from vla_rl.sim.channel import BlockingChannel, Message, SharedArrays
from vla_rl.types import EpisodeSpec

_WATCH_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


class Heartbeat:
    """Tells the parent that this worker makes progress, and how long it may take until the next sign.

    Control steps and frames beat one by one. A start, reset or load can compile a scene for many seconds inside one call,
    which no thread of this process could interrupt to beat in its place: so the worker asks for more patience beforehand.
    """

    def __init__(self, arrays: SharedArrays, index: int, hang_timeout: float, reset_timeout: float) -> None:
        self.arrays, self._index = arrays, index
        self._hang_timeout, self._reset_timeout = hang_timeout, reset_timeout

    def beat(self) -> None:
        self.arrays.heartbeats[self._index] += 1

    @contextlib.contextmanager
    def long_phase(self) -> Iterator[None]:
        self.arrays.patience[self._index] = self._reset_timeout
        self.beat()
        try:
            yield
        finally:
            # The beat comes first: the parent must not see old silence together with new impatience.
            self.beat()
            self.arrays.patience[self._index] = self._hang_timeout


class Worker:
    """Answers the parent's messages, in order, one reply each."""

    def __init__(self, channel: BlockingChannel, memory_fd: int) -> None:
        self._channel, self._memory_fd = channel, memory_fd
        self._backend: Backend | None = None
        self._spent: dict[str, float] = {}

    def serve(self) -> None:
        """Answer until the parent closes its end."""
        handlers = {
            "start": self._start,
            "map": self._map,
            "reset": self._reset,
            "load": self._load,
            "step": self._step,
            "vacate": self._vacate,
        }
        while (message := self._channel.receive()) is not None:
            self._spent = {}
            try:
                reply = handlers[message["op"]](message)
            except Exception as error:
                reply = {
                    "error": traceback.format_exc(),
                    "message": _one_line(error),
                    "refused": isinstance(error, SimError),
                }
            try:
                self._channel.send({**reply, "spent": self._spent})
            except ConnectionError:
                break
        if self._backend is not None:
            self._backend.close()

    def _start(self, message: Message) -> Message:
        self._shape = message["shape"]
        self._arrays = SharedArrays(self._memory_fd, **self._shape)
        self._heartbeat = Heartbeat(self._arrays, message["index"], message["hang_timeout"], message["reset_timeout"])
        with self._heartbeat.long_phase():
            module_name, _, class_name = message["backend"].partition(":")
            backend_class = getattr(importlib.import_module(module_name), class_name)
            self._backend = backend_class(
                num_slots=message["num_slots"],
                cameras=tuple(self._shape["cameras"]),
                image_size=self._shape["image_size"],
                **message["options"],
            )
        return {
            "action_dim": int(self._backend.action_dim),
            "proprio_dim": int(self._backend.proprio_dim),
            "loads_by_replay": bool(getattr(self._backend, "loads_by_replay", False)),
        }

    def _map(self, message: Message) -> Message:
        self._arrays = SharedArrays(self._memory_fd, **self._shape, **message["sizes"])
        self._heartbeat.arrays = self._arrays
        return {}

    def _reset(self, message: Message) -> Message:
        backend, slot = self._of(message)
        with self._heartbeat.long_phase():
            with self._timed("reset"):
                backend.reset(slot, EpisodeSpec.from_dict(message["spec"]))
            self._observe(message["row"], slot)
        return self._begun(slot)

    def _load(self, message: Message) -> Message:
        backend, slot = self._of(message)
        with self._heartbeat.long_phase():
            with self._timed("reset"):
                backend.load_state(slot, message["state"])
            self._observe(message["row"], slot)
        return self._begun(slot)

    def _vacate(self, message: Message) -> Message:
        backend, slot = self._of(message)
        backend.vacate(slot)
        return {}

    def _begun(self, slot: int) -> Message:
        assert self._backend is not None
        limit = int(self._backend.max_steps(slot))
        if limit < 1:
            raise ValueError(f"the time limit of an episode must be at least 1 control step, not {limit}")
        return {
            "instruction": str(self._backend.instruction(slot)),
            "max_steps": limit,
            "state": bytes(self._backend.save_state(slot)),
        }

    def _step(self, message: Message) -> Message:
        """Run one row's chunk until its end, the end of the task, or the time limit; then look once."""
        backend, slot = self._of(message)
        row, length = message["row"], message["length"]
        if message["state"] is not None:
            with self._heartbeat.long_phase(), self._timed("reset"):
                backend.load_state(slot, message["state"])
        rewards = self._arrays.rewards[row]
        rewards[:] = 0
        executed, success, terminated = 0, False, False
        with self._timed("simulation"):
            for result in self._outcomes(backend, slot, self._arrays.actions[row, : min(length, message["budget"])].copy()):
                self._heartbeat.beat()
                rewards[executed] = result.reward
                executed += 1
                success = bool(result.success)
                terminated = success or bool(result.terminated)
                if terminated:
                    break
        self._add("env_steps", executed)
        self._add("turns", 1)
        # After a load the first frame prepares the scene for drawing, which can take long.
        with self._heartbeat.long_phase() if message["state"] is not None else contextlib.nullcontext():
            self._observe(row, slot)
        return {
            "executed": executed,
            "success": success,
            "terminated": terminated,
            "state": bytes(backend.save_state(slot)),
        }

    @staticmethod
    def _outcomes(backend: Backend, slot: int, actions: Float32[np.ndarray, "A D"]) -> Iterable[StepResult]:
        run_chunk = getattr(backend, "step_chunk", None)
        return (backend.step(slot, action) for action in actions) if run_chunk is None else run_chunk(slot, actions)

    def _of(self, message: Message) -> tuple[Backend, int]:
        assert self._backend is not None
        return self._backend, message["slot"]

    def _observe(self, row: int, slot: int) -> None:
        assert self._backend is not None
        proprio = np.asarray(self._backend.proprio(slot))
        if proprio.shape != self._arrays.proprio[row].shape:
            raise ValueError(
                f"proprioception of shape {list(proprio.shape)} where {list(self._arrays.proprio[row].shape)} was promised"
            )
        self._arrays.proprio[row] = proprio
        for camera, images in self._arrays.images.items():
            with self._timed("rendering"):
                self._backend.render(slot, camera, images[row])
            self._add("frames", 1)
            self._heartbeat.beat()

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(part, time.perf_counter() - start)

    def _add(self, part: str, amount: float) -> None:
        self._spent[part] = self._spent.get(part, 0) + amount


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SimError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent's first thread: that helps even when it is stopped."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_with(parent: int) -> None:
    """For a parent whose first thread did not start us: its end shows in the process table, even while a step hangs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> None:
    socket_fd, memory_fd, parent, spawned_by_main_thread = (int(argument) for argument in arguments)
    for fd in (socket_fd, memory_fd):
        os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # The signal follows the thread that started this process, not the parent itself: a helper thread's end must not kill us.
    if spawned_by_main_thread:
        _die_with_parent()
    if os.getppid() != parent:
        sys.exit(
            "the process that asked for this worker is not its parent: it has ended, or its `python` is a wrapper without exec"
        )
    _end_with(parent)
    worker = Worker(BlockingChannel(socket.socket(fileno=socket_fd)), memory_fd)
    status: Any = 1
    try:
        worker.serve()
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Libraries that draw often crash or complain while the interpreter takes itself apart; the backend is closed already.
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
