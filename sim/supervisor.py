"""Watches the worker processes of a simulator, restarts them, and repeats what a death interrupted."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from vla_rl.sim.base import SimError
from vla_rl.sim.channel import Message, SharedArrays
from vla_rl.sim.placement import rebalance
from vla_rl.sim.worker_process import CLOSE_SECONDS, KILLED, Command, WorkerProcess, WorkerSettings

MAX_FAULTS = 3
"""Crashes and hangs over the same environment within one request before that environment's episode is given up."""
MAX_DEATHS = 10
"""The same for deaths of any kind. Being killed says little about the episode that happened to be at work."""


class Supervisor:
    """Runs requests on a set of workers, all in parallel, so that a death costs time but no episode.

    `sizes` (action_dim, proprio_dim) are known once a worker has started; from then on `map_chunk` can be called.
    """

    def __init__(self, settings: WorkerSettings, workers: list[WorkerProcess]) -> None:
        self.settings, self.workers = settings, workers
        self.sizes: dict[str, Any] = {}
        self._has_started = False
        self._loads_by_replay = False
        self._on_reply: Callable[[Command, Message], None] | None = None
        self._memory_fd = os.memfd_create("vla_rl_sim", os.MFD_CLOEXEC)
        self.arrays = SharedArrays(self._memory_fd, **settings.shape)
        self._selector = selectors.DefaultSelector()
        self._finalizer = weakref.finalize(self, _close, os.getpid(), workers, self._selector, self._memory_fd)

    def close(self) -> None:
        """Let the workers end by themselves, then make them."""
        if self._finalizer.alive:
            self._finalizer()
            del self.arrays  # their mapping holds the memory

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
        it was at work when its worker died, `MAX_FAULTS` times by itself or `MAX_DEATHS` times in all (the reason and the last
        lines that were printed).
        """
        self._on_reply = on_reply
        try:
            self._share_out(list(commands))
            for worker in self._active:
                worker.deaths.clear()
                worker.faults.clear()
                if worker.process is not None and worker.process.poll() is not None:
                    self._bury(worker)
                if worker.goals or worker.waiting or not self._has_started:
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

    @property
    def _active(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if not worker.is_drained]

    def _share_out(self, commands: list[Command]) -> None:
        """Give each command to the worker where its row lives, after moving rows from overloaded workers to others."""
        workers = self._active
        home = {row: number for number, worker in enumerate(workers) for row in worker.slots}
        places = [home[command.row] for command in commands]
        times = [command.cost.seconds for command in commands if command.cost.seconds is not None]
        may_move = not self._loads_by_replay or all(command.op == "reset" for command in commands)
        if times and may_move:
            usual = sum(times) / len(times)
            places = rebalance(places, [[c.cost.in_worker(worker, usual) for worker in workers] for c in commands])
        for command, place in zip(commands, places, strict=True):
            if place != home[command.row]:
                workers[home[command.row]].give_away(command.row)
                workers[place].take(command.row)
            workers[place].goals.append(command)

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
            # Patience is read before the beat, as the worker writes them the other way round.
            patience = float(self.arrays.patience[worker.index])
            beat = int(self.arrays.heartbeats[worker.index])
            if beat != worker.last_beat[0]:
                worker.last_beat = (beat, now)
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
            try:
                messages, is_open = channel.receive()
            except ValueError as error:
                return self._survive_death(worker, f"sent something that is no message ({error})")
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
            worker.prepared.add(done.cost.task)
            self._answer(done, message)
        elif "error" in message:
            if not self._has_started and not self._has_other_device(worker):
                reason = message["message"] if message["refused"] else f"{self.settings.backend}: {message['message']}"
                raise _start_error(reason, message["error"])
            worker.waiting.appendleft(done)
            self._survive_death(worker, f"cannot {done} ({message['message']}):\n{message['error']}")
        elif done == "start":
            self.sizes = {"action_dim": message["action_dim"], "proprio_dim": message["proprio_dim"]}
            self._loads_by_replay = message["loads_by_replay"]

    def _answer(self, command: Command, message: Message) -> None:
        assert self._on_reply is not None
        self._on_reply(command, message)

    def _survive_death(self, worker: WorkerProcess, reason: str = "") -> None:
        """Bury a worker and go on with its goals in a new process, except those it has died over too often."""
        head = worker.waiting[0] if worker.waiting else None
        row = head.row if isinstance(head, Command) else None
        status = self._bury(worker)
        worker.deaths[row] += 1
        # A simulator that is killed in its start will be killed again: for want of memory, or by whoever does not want it.
        worker.faults[row] += bool(reason) or status != KILLED or not self._has_started
        reason = reason or status
        is_broken = not self._has_started and (status.startswith("exited") or "\n" in reason)
        if worker.faults[row] >= MAX_FAULTS or worker.deaths[row] >= MAX_DEATHS or is_broken:
            printed = worker.last_lines()
            text = f"worker {worker.index} of {self.settings.backend} {reason}"
            if row is None and self._has_other_device(worker):
                return self._drain(worker, text)
            if not self._has_started:
                raise _start_error(f"{text}: {printed[-1]}" if printed else text, "\n".join(printed))
            text = f"given up after {worker.deaths[row]} deaths in one request: {text}"
            error = "\n".join([f"{text}; the last lines it printed:", *printed] if printed else [text])
            for goal in [goal for goal in worker.goals if row is None or goal.row == row]:
                worker.goals.remove(goal)
                self._answer(goal, {"error": error, "message": text, "refused": False, "spent": {}})
        if worker.goals or not self._has_started:
            self._send_goals(worker)

    def _has_other_device(self, worker: WorkerProcess) -> bool:
        return any(other.device != worker.device for other in self._active)

    def _drain(self, worker: WorkerProcess, reason: str) -> None:
        """Give up a worker that cannot start: its rows and what was wanted of them go to workers on other devices."""
        worker.is_drained = True
        others = [other for other in self._active if other.device != worker.device]
        summary = reason.splitlines()[0].rstrip(":")
        warnings.warn(
            f"{summary}; device {worker.device} seems to have failed, its {len(worker.slots)} environments go on elsewhere",
            RuntimeWarning,
            stacklevel=2,
        )
        goal_of = {goal.row: goal for goal in worker.goals}
        worker.goals.clear()
        for row in list(worker.slots):
            worker.give_away(row)
            other = min(others, key=lambda other: len(other.slots))
            other.take(row)
            if row in goal_of:
                other.goals.append(goal_of[row])
        for other in others:
            if other.goals or not self._has_started:
                self._send_goals(other)

    def _bury(self, worker: WorkerProcess) -> str:
        """Kill a worker and say how it ended; its rows live on in their saved states."""
        for end in worker.ends():
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
        return worker.kill()

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
            if goal in worker.waiting:
                continue
            body = {"op": goal.op, "row": goal.row, "slot": worker.slots[goal.row], **goal.body}
            if goal.op == "step":
                body["state"] = None if goal.row in worker.resident else goal.state
            channel.queue(body)
            worker.waiting.append(goal)
        worker.last_beat = (int(self.arrays.heartbeats[worker.index]), time.monotonic())
        if not self._flush(worker):
            self._survive_death(worker)

    def _spawn(self, worker: WorkerProcess) -> None:
        # Python itself starts before the worker can say anything.
        self.arrays.heartbeats[worker.index], self.arrays.patience[worker.index] = 0, self.settings.reset_timeout
        worker.spawn(self.settings, self._memory_fd)
        for end in worker.ends():
            self._selector.register(end, selectors.EVENT_READ, worker)


def _start_error(reason: str, details: str) -> SimError:
    """One line for a person, and what lies behind it for a developer."""
    error = SimError(f"the simulator did not start: {reason}")
    error.add_note(details)
    return error


def _close(owner: int, workers: Iterable[WorkerProcess], selector: selectors.BaseSelector, memory_fd: int) -> None:
    # A forked child inherits the pool but not its workers; its exit must not take them from the parent.
    if os.getpid() != owner:
        return
    running = [worker for worker in workers if worker.process is not None]
    for worker in running:
        if worker.channel is not None:
            # A child that was forked from this process may hold a copy of the socket; closing ours would not end theirs.
            with contextlib.suppress(OSError):
                worker.channel.sock.shutdown(socket.SHUT_RDWR)
            worker.channel.sock.close()
    deadline = time.monotonic() + CLOSE_SECONDS
    for worker in running:
        process = worker.process
        assert process is not None and process.stdout is not None
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(CLOSE_SECONDS)
        process.stdout.close()
        worker.process = worker.channel = None
    selector.close()
    os.close(memory_fd)
