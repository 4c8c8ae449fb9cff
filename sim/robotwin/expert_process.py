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


class ExpertProcess:
    """RoboTwin's expert in a process of RoboTwin's interpreter. Close it, or use it as a context manager."""

    def __init__(self, python: str | None = None) -> None:
        environment = needed_environment("robotwin") if python is None else find_environment("robotwin")
        own = environment is not None and (python is None or python == str(environment.python))
        variables = environment.variables if environment is not None and own else {}
        command = python or str(environment.python if environment else "")
        variables = {**variables, "PYTHONPATH": package_path(), "PYTHONSAFEPATH": "1"}
        self._process = LineProcess([command, "-m", "vla_rl.sim.robotwin.expert"], variables)
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def ask(self, job: dict[str, Any], seconds: float = JOB_SECONDS) -> dict[str, Any]:
        """The reply to a job. Raises `SimError` where it is refused, fails, or takes longer than `seconds`."""
        with contextlib.suppress(OSError):  # a process that has ended says why below
            self._process.send(job)
        try:
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise SimError(f"RoboTwin's expert gave no answer within {seconds:g} s: {self._process.last_words()}") from None
        if not line:
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
        self._process.kill()
        self._thread.join()
        self._process.close()

    def __enter__(self) -> ExpertProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> None:
        while line := self._process.read_line():
            self._replies.put(line)
        self._replies.put("")
