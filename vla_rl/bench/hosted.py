"""The parent's side of `system_host`: start a system in a process of its own, ask it, watch its memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from vla_rl.bench.process_tree import memory_mib, tree
from vla_rl.bench.sim_settings import SimSettings
from vla_rl.sim.base import SimError

_END_SECONDS = 20.0


class HostedSystem:
    """One system in its own process. Raises `SimError` when it cannot start; then nothing of it is left."""

    def __init__(self, name: str, settings: SimSettings) -> None:
        self._name = name
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vla_rl.bench.system_host", name, settings.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
            # A core is a core for everyone: numpy's own threads would blur what a process costs.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            self.construction_seconds = float(self._reply()["construction_seconds"])
        except BaseException:
            self.close()
            raise

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Raises `SimError` when the system failed; it has ended then."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words tell more
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._reply()

    def memory_mib(self) -> float | None:
        """MiB of the host and all its processes; pages shared among processes count once."""
        return memory_mib(self._process.pid)

    def close(self) -> None:
        """End the process and its children."""
        assert self._process.stdin is not None and self._process.stdout is not None
        members = tree(self._process.pid)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in reversed(members):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._process.wait()
        self._process.stdout.close()
        self._messages.close()

    def __enter__(self) -> HostedSystem:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._messages.seek(0)
            last = "".join(self._messages.read().strip().splitlines()[-1:]) or "no message"
            raise SimError(f"the process of {self._name} ended with code {self._process.wait()} ({last})")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise SimError(f"{self._name}: {reply['error']}")
        return reply
