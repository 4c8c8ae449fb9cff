"""A child process that takes jobs and gives replies, one line of JSON each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any


class LineProcess:
    """What it writes to its standard error is kept for `last_words`."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """`variables` are added to our environment."""
        self._messages: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            # Ctrl-C goes to the parent alone, which stops its processes in order.
            start_new_session=True,
        )

    def send(self, job: Mapping[str, Any]) -> None:
        """Raises `OSError` where the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def read_line(self) -> str:
        """Waits for the next line; empty where the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def wait(self) -> int:
        return self._process.wait()

    def last_words(self) -> str:
        """The last line of its messages."""
        self._messages.seek(0)
        return "".join(self._messages.read().strip().splitlines()[-1:]) or "no message"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Of a process that has ended, when nobody reads from it any more."""
        for stream in (self._process.stdin, self._process.stdout, self._messages):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
