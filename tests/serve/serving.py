"""A policy server in a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.serve.server import PolicyServer
from vla_rl.serve.settings import ServeSettings
from vla_rl.wire import PolicyClient


class RunningServer:
    """Serves in an event loop of its own, in a thread."""

    def __init__(self, policy: OpenVLAPolicy, settings: ServeSettings, token: str | None) -> None:
        self.token = token
        self.server = PolicyServer(policy, settings, token)
        self.url = ""
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        def ready(url: str) -> None:
            self.url = url
            started.set()

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self.server.run(ready)))
        self._thread.start()
        assert started.wait(20)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("ws://").split(":")
        return host, int(port)

    def client(self, **settings: Any) -> PolicyClient:
        return PolicyClient(self.url, **{"token": self.token, "timeout": 20.0, **settings})

    def begin_to_stop(self) -> None:
        self._loop.call_soon_threadsafe(self.server.stop)

    def stop(self) -> None:
        """Drain, and wait for the end."""
        if self._thread.is_alive():
            self.begin_to_stop()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server does not drain"
        self._loop.close()
