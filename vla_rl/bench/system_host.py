"""A process that hosts one system of `vla-rl bench sim`: JSON requests on stdin, one JSON reply a line on stdout.

Run as `python -m vla_rl.bench.system_host NAME SETTINGS`. It ends when stdin does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from vla_rl.bench.process_tree import be_first_to_go, cpu_seconds, machine_cpu_seconds
from vla_rl.bench.sim_settings import SimSettings
from vla_rl.bench.systems import SYSTEMS, System
from vla_rl.sim.base import SimError

if __name__ == "__mp_main__" and sys.argv[1:2] == ["rlinf"]:
    # A worker that RLinf has spawned: it imports RLinf before anything of ours could prepare that.
    from vla_rl.bench.peer_systems import stand_in_for_ray

    stand_in_for_ray()


class _Window:
    """What was used while it was open, added up."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.used: dict[str, Any] = {}

    def open(self) -> None:
        self._before = self._count()

    def close(self) -> None:
        for name, amount in self._count().items():
            self.used[name] = self.used.get(name, 0.0) + amount - self._before[name]

    def _count(self) -> dict[str, float]:
        machine = machine_cpu_seconds()
        return {
            "cpu_seconds": cpu_seconds(os.getpid()),
            **({} if machine is None else {"machine_cpu_seconds": machine}),
            **self._system.parts(),
        }


class Server:
    """Makes the system, then answers requests about it."""

    def __init__(self, name: str, settings: SimSettings) -> None:
        module, _, class_name = SYSTEMS[name].partition(":")
        begin = time.perf_counter()
        self._system: System = getattr(importlib.import_module(module), class_name)(settings)
        self._settings = settings
        self._system.restart()
        self.construction_seconds = time.perf_counter() - begin
        self._system.chunk(settings.actions(0))  # what is compiled or uploaded at first use is no part of the rates

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "reset_times":
            return dict(self._system.reset_times())
        return self._run(float(request["seconds"]))

    def _run(self, seconds: float) -> dict[str, Any]:
        """Chunks from the initial states on, at least one and until `seconds` have passed; restarts do not count."""
        steps, spent, number = 0, 0.0, 0
        limit, window = self._settings.episode_chunks, _Window(self._system)
        while number == 0 or spent < seconds:
            if number % limit == 0:
                self._system.restart()
                window.open()
            actions = self._settings.actions(number % limit)
            begin = time.perf_counter()
            steps += self._system.chunk(actions)
            spent += time.perf_counter() - begin
            number += 1
            if number % limit == 0 or spent >= seconds:
                window.close()
        return {"env_steps": steps, "seconds": spent, **window.used}

    def close(self) -> None:
        self._system.close()


def main(name: str, settings: str) -> None:
    be_first_to_go()  # a benchmark that needs too much memory must not cost anyone's work
    # The libraries print; only replies may reach the parent's pipe.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(record: dict[str, Any]) -> None:
        replies.write(json.dumps(record) + "\n")

    try:
        server = Server(name, SimSettings.from_json(settings))
        reply({"construction_seconds": server.construction_seconds})
        for line in sys.stdin:
            reply(server.answer(json.loads(line)))
        server.close()
    except Exception as error:
        text = " ".join(str(error).split())
        reply({"error": text if isinstance(error, SimError) else f"{type(error).__name__}: {text}"})
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # OpenGL libraries of the peers often crash while the interpreter takes itself apart; everything is said by now.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:3])
