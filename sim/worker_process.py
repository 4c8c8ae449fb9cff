"""One worker process as its parent sees it: how it is started, what it was told, how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from vla_rl.sim.base import SimError
from vla_rl.sim.channel import Message, PollingChannel

CLOSE_SECONDS = 5.0
"""Time that a worker has to end by itself before it is killed."""
_LOG_BYTES = 1 << 15
_LOG_LINES = 20
KILLED = "was killed by SIGKILL (out of memory?)"
"""An end that a process does not bring about by an error of its own: somebody killed it, or the kernel for its memory."""


@dataclass(frozen=True)
class Cost:
    """What a command is expected to take."""

    task: str = ""
    """What a worker must have prepared (a compiled scene) before it can do this fast."""
    seconds: float | None = None
    """In a worker that is prepared; None where nothing like it has been measured."""
    preparation: float = 0.0
    """Further seconds in one that is not; the share of the preparation that falls to this command."""

    def in_worker(self, worker: WorkerProcess, usual: float) -> float:
        """Seconds in `worker`, with `usual` for what has not been measured."""
        seconds = usual if self.seconds is None else self.seconds
        return seconds if self.task in worker.prepared else seconds + self.preparation


@dataclass(eq=False)
class Command:
    """One row's part of a request."""

    op: Literal["reset", "load", "step"]
    row: int
    body: Message
    state: bytes | None = None
    """Where a step continues; it travels only to a worker that does not hold this row's episode."""
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a pool is started with."""

    backend: str
    cameras: tuple[str, ...]
    image_size: int | tuple[int, int]
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
            "image_size": self.image_size if isinstance(self.image_size, int) else list(self.image_size),
        }


@dataclass
class WorkerProcess:
    """One worker as its parent sees it; the process behind it may change."""

    index: int
    slots: dict[int, int]
    """Row -> slot of the backend, of the rows that live here."""
    num_slots: int
    device: int
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
    prepared: set[str] = field(default_factory=set)
    """Tasks that the process has run."""
    is_drained: bool = False
    """Whether it has been given up; its rows live elsewhere."""
    deaths: Counter[int | None] = field(default_factory=Counter)
    """Deaths within the request, by the row at work; None: before any row."""
    faults: Counter[int | None] = field(default_factory=Counter)
    """Those among the deaths that nobody else caused."""
    last_beat: tuple[int, float] = (-1, 0.0)
    """Heartbeat and the time (s, monotonic) when it changed."""

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def take(self, row: int) -> None:
        """Give a row a slot here."""
        taken = set(self.slots.values())
        self.slots[row] = next(slot for slot in range(self.num_slots) if slot not in taken)

    def give_away(self, row: int) -> None:
        """Free the slot of a row, also in the process."""
        slot = self.slots.pop(row)
        self.resident.discard(row)
        if self.channel is not None:
            self.channel.queue({"op": "vacate", "slot": slot})
            self.waiting.append("vacate")

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

    def last_lines(self) -> list[str]:
        return self.log.decode(errors="replace").strip().splitlines()[-_LOG_LINES:]

    def ends(self) -> list[socket.socket | IO[bytes]]:
        """What to wait on: answers, and what the worker prints."""
        if self.process is None or self.channel is None:
            return []
        assert self.process.stdout is not None
        return [self.channel.sock, self.process.stdout]

    def spawn(self, settings: WorkerSettings, memory_fd: int) -> None:
        """Start the process and tell it what to simulate; raises `SimError` if there is no such interpreter."""
        ours, theirs = socket.socketpair()
        is_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (theirs.fileno(), memory_fd, os.getpid(), int(is_main_thread))
        try:
            self.process = subprocess.Popen(
                [settings.python, "-m", "vla_rl.sim.worker", *map(str, numbers)],
                pass_fds=(theirs.fileno(), memory_fd),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Ctrl-C goes to the terminal's whole process group; it is the parent's to handle.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SimError(f"cannot start a worker with python={settings.python!r}: {error.strerror}") from None
        finally:
            theirs.close()
        self.channel = PollingChannel(ours)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        if self.cpus is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.process.pid, self.cpus)
        self.log.clear()
        start = {
            "op": "start",
            "index": self.index,
            "num_slots": self.num_slots,
            "shape": settings.shape,
            "backend": settings.backend,
            "options": dict(settings.options),
            "hang_timeout": settings.hang_timeout,
            "reset_timeout": settings.reset_timeout,
        }
        self.channel.queue(start)
        self.waiting.append("start")

    def kill(self) -> str:
        """End the process if it still runs, take over its last words, and say how it ended."""
        process, channel = self.process, self.channel
        self.process = self.channel = None
        self.waiting.clear()
        self.resident.clear()
        self.prepared.clear()
        self.chunk_length = 0
        if channel is not None:
            channel.sock.close()
        if process is None:
            return "was not running"
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLOSE_SECONDS)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.read_log(process.stdout.fileno())
        process.stdout.close()
        return _describe_end(process.returncode)


def _describe_end(returncode: int | None) -> str:
    if returncode is None:
        return "could not be killed"
    if returncode >= 0:
        return f"exited with status {returncode}"
    if returncode == -signal.SIGKILL:
        return KILLED
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
