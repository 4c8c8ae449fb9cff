"""Our end of the expert's process: jobs go in, replies come back within a time limit."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from types import TracebackType
from typing import Any

from vla_rl.sim.base import SimError
from vla_rl.sim.environments import find_environment, needed_environment, package_path
from vla_rl.sim.line_process import LineProcess

JOB_SECONDS = 300.0
"""That one episode of the expert may take, start of the process included."""
MAX_FAULTS = 5
"""Seeds in a row over which the expert may crash, hang or refuse before the fault is no longer taken for the seeds'."""


class ExpertProcess:
    """RoboTwin's expert in a process of RoboTwin's interpreter. Close it, or use it as a context manager.

    Raises `SimError` where the interpreter cannot be started.
    """

    def __init__(self, python: str | None = None) -> None:
        environment = needed_environment("robotwin") if python is None else find_environment("robotwin")
        own = environment is not None and (python is None or python == str(environment.python))
        variables = environment.variables if environment is not None and own else {}
        command = python or str(environment.python if environment else "")
        self._python = command
        self._variables = {**variables, "PYTHONPATH": package_path(), "PYTHONSAFEPATH": "1"}
        self._changing, self._is_closed = threading.Lock(), False
        self._start()

    def ask(self, job: dict[str, Any], seconds: float = JOB_SECONDS) -> dict[str, Any]:
        """The reply to a job. Raises `SimError` where it is refused, fails, or takes longer than `seconds`.

        A process that has ended, or was ended for its slowness, is replaced by another one before the next job.
        """
        with self._changing:
            if self._is_closed:
                raise SimError("RoboTwin's expert process is closed; make another one")
            if not self._thread.is_alive():
                self._process.close()
                self._start()
        with contextlib.suppress(OSError):  # a process that has ended says why below
            self._process.send(job)
        try:
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            words = self._process.last_words()
            self._process.kill()
            self._thread.join()
            raise SimError(f"RoboTwin's expert gave no answer within {seconds:g} s: {words}") from None
        if not line:
            self._thread.join()
            raise SimError(f"RoboTwin's expert process ended with status {self._process.wait()}: {self._process.last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise SimError(reply["error"])
        if "crash" in reply:
            error = SimError(f"RoboTwin's expert failed: {reply['crash'].strip().splitlines()[-1]}")
            error.add_note(reply["crash"])
            raise error
        return reply

    def close(self) -> None:
        """End the process; an episode under way is lost."""
        with self._changing:
            self._is_closed = True
            self._process.kill()
            self._thread.join()
            self._process.close()

    def __enter__(self) -> ExpertProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        try:
            self._process = LineProcess([self._python, "-m", "vla_rl.sim.robotwin.expert"], self._variables)
        except OSError as error:
            raise SimError(f"cannot start RoboTwin's expert with python={self._python!r}: {error.strerror}") from None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while line := self._process.read_line():
            self._replies.put(line)
        self._replies.put("")
