"""The parent's side of the worker processes: starts, watches, kills and restarts them, and repeats what a death interrupted."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_rl.sim.base import SimError
from vla_rl.sim.channel import Message, PollingChannel, SharedArrays

MAX_DEATHS = 3
"""Deaths over the same environment within one request before that environment's episode is given up."""
_LOG_BYTES = 1 << 15
_LOG_LINES = 20
_CLOSE_SECONDS = 5.0


@dataclass
class Command:
    """One row's part of a request."""

    op: Literal["reset", "load", "step"]
    row: int
    body: Message
    state: bytes | None = None
    """Where a step continues; it travels only to a worker that does not hold this row's episode."""


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a pool is started with."""

    backend: str
    cameras: tuple[str, ...]
    image_size: int
    num_envs: int
    num_workers: int
    options: Mapping[str, Any]
    python: str
    hang_timeout: float
    """s without a heartbeat until a worker counts as dead."""
    reset_timeout: float
    """s that the start of a worker, or the reset or load of one environment, may take."""

    @property
    def shape(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "num_envs": self.num_envs,
            "cameras": list(self.cameras),
            "image_size": self.image_size,
        }


@dataclass
class WorkerProcess:
    """One worker as its parent sees it; the process behind it may change."""

    index: int
    rows: tuple[int, ...]
    environment: Mapping[str, str]
    cpus: frozenset[int] | None
    process: subprocess.Popen[bytes] | None = None
    channel: PollingChannel | None = None
    log: bytearray = field(default_factory=bytearray)
    """The end of what the worker printed."""
    chunk_length: int = 0
    """The longest chunk that its shared memory is mapped for."""
    waiting: deque[Command | str] = field(default_factory=deque)
    """Sent and not answered, oldest first; a string is an errand of the supervisor itself."""
    goals: list[Command] = field(default_factory=list)
    """What the request still wants from this worker."""
    resident: set[int] = field(default_factory=set)
    """Rows whose present state the process holds."""
    deaths: Counter[int | None] = field(default_factory=Counter)
    """Deaths within the request, by the row at work; None: before any row."""
    last_beat: tuple[int, float] = (-1, 0.0)
    """Heartbeat and the time (s, monotonic) when it changed."""

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def read_log(self, fd: int) -> bool:
        """Take over what the worker printed; False at its end."""
        while True:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.log += data
            del self.log[:-_LOG_BYTES]

    def last_lines(self) -> str:
        return "\n".join(self.log.decode(errors="replace").strip().splitlines()[-_LOG_LINES:])


class Supervisor:
    """Runs requests on a set of workers, all in parallel, so that a death costs time but no episode.

    `sizes` (action_dim, proprio_dim) are known once a worker has started; from then on `map_chunk` can be called.
    """

    def __init__(self, settings: WorkerSettings, workers: list[WorkerProcess]) -> None:
        self.settings, self.workers = settings, workers
        self.sizes: dict[str, int] = {}
        self._has_started = False
        self._on_reply: Callable[[Command, Message], None] | None = None
        self._memory_fd = os.memfd_create("vla_rl_sim", os.MFD_CLOEXEC)
        self.arrays = SharedArrays(self._memory_fd, **settings.shape)
        self._selector = selectors.DefaultSelector()
        self._finalizer = weakref.finalize(self, _close, os.getpid(), workers, self._selector, self._memory_fd)

    def close(self) -> None:
        """Let the workers end by themselves, then make them."""
        self._finalizer()

    def start(self) -> None:
        """Start all workers; raises `SimError` when one of them cannot."""
        self.run([], lambda command, message: None)
        self._has_started = True

    def map_chunk(self, chunk_length: int) -> None:
        """Make room for chunks of this length; the workers follow with their next request."""
        if chunk_length > self.arrays.chunk_length:
            self.arrays = SharedArrays(self._memory_fd, **self.settings.shape, **self.sizes, chunk_length=chunk_length)

    def forget(self, rows: Iterable[int]) -> None:
        """Take what the workers hold of these rows for void; their next step starts from the state it names."""
        for worker in self.workers:
            worker.resident.difference_update(rows)

    def run(self, commands: Iterable[Command], on_reply: Callable[[Command, Message], None]) -> None:
        """Do all commands, at most one a row, and call `on_reply` as answers come; returns when all are answered.

        An answer with "error" means that the row lost its episode: an exception in its environment (its traceback), or
        it was at work in each of `MAX_DEATHS` deaths of its worker (the reason and the last lines that were printed).
        """
        self._on_reply = on_reply
        worker_of = {row: worker for worker in self.workers for row in worker.rows}
        for command in commands:
            worker_of[command.row].goals.append(command)
        try:
            for worker in self.workers:
                worker.deaths.clear()
                if worker.process is not None and worker.process.poll() is not None:
                    self._bury(worker)
                if worker.goals or not self._has_started:
                    self._send_goals(worker)
            while any(worker.waiting for worker in self.workers):
                self._advance()
        except BaseException:
            # The request is half done: what the workers hold is no longer what the caller knows.
            for worker in self.workers:
                if worker.waiting or worker.goals:
                    self._bury(worker)
                worker.goals.clear()
                worker.resident.clear()
            raise
        finally:
            self._on_reply = None

    def _advance(self) -> None:
        """Wait for the workers and handle whatever came."""
        tick = min(1.0, self.settings.hang_timeout / 4)
        for key, events in self._selector.select(tick):
            worker: WorkerProcess = key.data
            # A worker that died over an earlier event of this round has other ends by now.
            if worker.channel is not None and key.fileobj is worker.channel.sock:
                self._exchange(worker, events)
            elif worker.process is not None and key.fileobj is worker.process.stdout and not worker.read_log(key.fd):
                self._selector.unregister(key.fileobj)
        now = time.monotonic()
        for worker in self.workers:
            if not worker.waiting:
                continue
            beat = int(self.arrays.heartbeats[worker.index])
            if beat != worker.last_beat[0]:
                worker.last_beat = (beat, now)
            # Until its first answer a worker may still be starting Python, which beats nothing.
            patience = self.settings.reset_timeout if worker.waiting[0] == "start" and beat == 0 else self.settings.hang_timeout
            if now - worker.last_beat[1] > patience:
                self._survive_death(worker, f"gave no sign of life for {patience:g} s (hang)")
            elif worker.process is not None and worker.process.poll() is not None and not self._has_input(worker):
                self._survive_death(worker)

    def _has_input(self, worker: WorkerProcess) -> bool:
        """Whether answers of a dead worker are still unread; the end of its stream counts, and leads to its burial."""
        assert worker.channel is not None
        with selectors.PollSelector() as selector:
            selector.register(worker.channel.sock, selectors.EVENT_READ)
            return bool(selector.select(0))

    def _exchange(self, worker: WorkerProcess, events: int) -> None:
        """Send and receive what is possible now."""
        channel = worker.channel
        assert channel is not None
        is_open = True
        if events & selectors.EVENT_READ:
            messages, is_open = channel.receive()
            for message in messages:
                self._handle(worker, message)
                if worker.channel is not channel:
                    return
        if is_open:
            is_open = self._flush(worker)
        if not is_open:
            self._survive_death(worker)

    def _flush(self, worker: WorkerProcess) -> bool:
        channel = worker.channel
        assert channel is not None
        try:
            channel.flush()
        except ConnectionError:
            return False
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_output else 0)
        self._selector.modify(channel.sock, events, worker)
        return True

    def _handle(self, worker: WorkerProcess, message: Message) -> None:
        """Take the answer to the oldest command."""
        done = worker.waiting.popleft()
        worker.last_beat = (worker.last_beat[0], time.monotonic())
        if isinstance(done, Command):
            worker.goals.remove(done)
            (worker.resident.discard if "error" in message else worker.resident.add)(done.row)
            self._answer(done, message)
        elif "error" in message:
            if not self._has_started:
                error = SimError(f"the simulator {self.settings.backend} did not start: {message['message']}")
                error.add_note(message["error"])
                raise error
            worker.waiting.appendleft(done)
            self._survive_death(worker, f"did not start again:\n{message['error']}")
        elif done == "start":
            self.sizes = {"action_dim": message["action_dim"], "proprio_dim": message["proprio_dim"]}

    def _answer(self, command: Command, message: Message) -> None:
        assert self._on_reply is not None
        self._on_reply(command, message)

    def _survive_death(self, worker: WorkerProcess, reason: str = "") -> None:
        """Bury a worker and go on with its goals in a new process, except those it has died over too often."""
        head = worker.waiting[0] if worker.waiting else None
        row = head.row if isinstance(head, Command) else None
        status = self._bury(worker)
        reason = reason or status
        worker.deaths[row] += 1
        is_broken = not self._has_started and status.startswith("exited")
        if worker.deaths[row] >= MAX_DEATHS or is_broken:
            printed = f"; the last lines it printed:\n{worker.last_lines()}" if worker.log.strip() else ""
            text = f"worker {worker.index} of {self.settings.backend} {reason}{printed}"
            if not self._has_started:
                raise SimError(f"the simulator did not start: {text}")
            text = f"given up after {worker.deaths[row]} deaths in one request: {text}"
            for goal in [goal for goal in worker.goals if row is None or goal.row == row]:
                worker.goals.remove(goal)
                self._answer(goal, {"error": text, "message": text.splitlines()[0], "refused": False, "spent": {}})
        if worker.goals or not self._has_started:
            self._send_goals(worker)

    def _bury(self, worker: WorkerProcess) -> str:
        """Kill a worker's process if it still runs, and say how it ended; its rows live on in their saved states."""
        process, channel = worker.process, worker.channel
        worker.waiting.clear()
        worker.resident.clear()
        worker.process = worker.channel = None
        worker.chunk_length = 0
        if process is None:
            return "was not running"
        assert process.stdout is not None
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_CLOSE_SECONDS)
        if channel is not None:
            self._selector.unregister(channel.sock)
            channel.sock.close()
            worker.read_log(process.stdout.fileno())
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.stdout)
        process.stdout.close()
        return _describe_end(process.returncode)

    def _send_goals(self, worker: WorkerProcess) -> None:
        """Queue everything that leads to the worker's goals, from the start of its process if need be."""
        if worker.process is None:
            self._spawn(worker)
        channel = worker.channel
        assert channel is not None
        if self.sizes and worker.chunk_length != self.arrays.chunk_length:
            sizes = {**self.sizes, "chunk_length": self.arrays.chunk_length}
            channel.queue({"op": "map", "sizes": sizes})
            worker.waiting.append("map")
            worker.chunk_length = self.arrays.chunk_length
        for goal in worker.goals:
            body = {"op": goal.op, "row": goal.row, **goal.body}
            if goal.op == "step":
                body["state"] = None if goal.row in worker.resident else goal.state
            channel.queue(body)
            worker.waiting.append(goal)
        worker.last_beat = (int(self.arrays.heartbeats[worker.index]), time.monotonic())
        if not self._flush(worker):
            self._survive_death(worker)

    def _spawn(self, worker: WorkerProcess) -> None:
        """Start the process and tell it what to simulate."""
        ours, theirs = socket.socketpair()
        is_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (theirs.fileno(), self._memory_fd, os.getpid(), int(is_main_thread))
        self.arrays.heartbeats[worker.index] = 0
        try:
            worker.process = subprocess.Popen(
                [self.settings.python, "-m", "vla_rl.sim.worker", *map(str, numbers)],
                pass_fds=(theirs.fileno(), self._memory_fd),
                env=dict(worker.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Ctrl-C goes to the terminal's whole process group; it is the parent's to handle.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SimError(f"cannot start a worker with python={self.settings.python!r}: {error.strerror}") from None
        finally:
            theirs.close()
        with contextlib.suppress(OSError):
            if worker.cpus is not None:
                os.sched_setaffinity(worker.process.pid, worker.cpus)
        assert worker.process.stdout is not None
        os.set_blocking(worker.process.stdout.fileno(), False)
        worker.log.clear()
        worker.channel = PollingChannel(ours)
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        worker.channel.queue(
            {
                "op": "start",
                "index": worker.index,
                "rows": list(worker.rows),
                "shape": self.settings.shape,
                "backend": self.settings.backend,
                "options": dict(self.settings.options),
                "patience": self.settings.reset_timeout,
            }
        )
        worker.waiting.append("start")


def _describe_end(returncode: int | None) -> str:
    if returncode is None:
        return "could not be killed"
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def _close(owner: int, workers: Iterable[WorkerProcess], selector: selectors.BaseSelector, memory_fd: int) -> None:
    # A forked child inherits the pool but not its workers; its exit must not take them from the parent.
    if os.getpid() != owner:
        return
    running = [worker for worker in workers if worker.process is not None]
    for worker in running:
        if worker.channel is not None:
            worker.channel.sock.close()
    deadline = time.monotonic() + _CLOSE_SECONDS
    for worker in running:
        process = worker.process
        assert process is not None and process.stdout is not None
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_CLOSE_SECONDS)
        process.stdout.close()
        worker.process = worker.channel = None
    selector.close()
    os.close(memory_fd)
