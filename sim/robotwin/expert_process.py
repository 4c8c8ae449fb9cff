"""Our end of the expert's process: jobs go in, replies come back within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from types import TracebackType
from typing import IO, Any

from vla_rl.sim.base import SimError
from vla_rl.sim.environments import find_environment, needed_environment, package_path

JOB_SECONDS = 300.0
"""That one episode of the expert may take, start of the process included."""


class ExpertProcess:
    """RoboTwin's expert in a process of RoboTwin's interpreter. Close it, or use it as a context manager."""

    def __init__(self, python: str | None = None) -> None:
        environment = needed_environment("robotwin") if python is None else find_environment("robotwin")
        own = environment is not None and (python is None or python == str(environment.python))
        variables = environment.variables if environment is not None and own else {}
        command = python or str(environment.python if environment else "")
        self._messages: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [command, "-m", "vla_rl.sim.robotwin.expert"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables, "PYTHONPATH": package_path(), "PYTHONSAFEPATH": "1"},
            # Ctrl-C goes to the parent alone, which stops its processes in order.
            start_new_session=True,
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def ask(self, job: dict[str, Any], seconds: float = JOB_SECONDS) -> dict[str, Any]:
        """The reply to a job. Raises `SimError` where it is refused, fails, or takes longer than `seconds`."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a process that has ended says why below
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        try:
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise SimError(f"RoboTwin's expert gave no answer within {seconds:g} s: {self._last_words()}") from None
        if not line:
            raise SimError(f"RoboTwin's expert process ended with status {self._process.wait()}: {self._last_words()}")
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
        self._process.wait()
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._messages):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> ExpertProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            self._replies.put(line)
        self._replies.put("")

    def _last_words(self) -> str:
        self._messages.seek(0)
        return "".join(self._messages.read().strip().splitlines()[-1:]) or "no message"
