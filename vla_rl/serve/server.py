"""The server: openpi's websocket protocol in front of a policy.

A client gets the metadata when it connects, then an answer to each observation that it sends: a map, or where the observation
is at fault, a text of one line, after which it may go on. `GET /healthz` answers 200.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import http
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from vla_rl.config import ConfigError
from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.run import choose_device, set_threads
from vla_rl.serve.batching import Batcher
from vla_rl.serve.inference import Answer, infer
from vla_rl.serve.limits import RateLimit
from vla_rl.serve.requests import Request, RequestReader
from vla_rl.serve.settings import ServeSettings, read_token
from vla_rl.types import Observation
from vla_rl.wire import WireError, decode, encode

log = logging.getLogger(__name__)
SHUTTING_DOWN = "the server is shutting down"


class PolicyServer:
    """Serves one policy until `stop` is called, then finishes the requests in flight."""

    def __init__(self, policy: OpenVLAPolicy, settings: ServeSettings, token: str | None = None) -> None:
        self._policy = policy
        self._settings = settings
        self._token = token.encode() if token else None
        self._reader = RequestReader(
            cameras=policy.cameras,
            proprio_dim=policy.config.proprio_dim,
            turns_frames=policy.config.image_orientation != "as_is",
            temperature=settings.temperature,
        )
        self._connections: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._stopping = asyncio.Event()
        self._batcher: Batcher[Request, Answer] = Batcher(
            functools.partial(infer, policy), settings.max_batch, settings.max_wait_ms / 1000, lambda: len(self._connections)
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What each client is told first."""
        policy = self._policy
        return {
            "server": "vla_rl",
            "policy_version": policy.version,
            "cameras": list(policy.cameras),
            "proprio_dim": self._reader.proprio_dim,
            "chunk_length": policy.chunk_length,
            "action_dim": policy.action_dim,
            "temperature": self._settings.temperature,
        }

    def stop(self) -> None:
        """Begin to drain; to be called in the event loop's thread."""
        self._stopping.set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serve; `ready` is told the address. Raises `ConfigError` where it cannot be listened at."""
        warm_up(self._policy)
        settings = self._settings
        worker = asyncio.create_task(self._batcher.run())
        try:
            server = await serve(
                self._converse,
                settings.host,
                settings.port,
                compression=None,
                # A browser names the page that connects: no page may reach a server on its visitor's machine.
                origins=[None],
                process_request=self._admit,
                max_size=int(settings.max_message_mib * 2**20),
                max_queue=1,
                ping_interval=settings.ping_interval_s,
                ping_timeout=settings.ping_interval_s,
                logger=_quiet_logger(),
            )
        except OSError as error:
            worker.cancel()
            reason = error.strerror or error
            raise ConfigError(f"cannot listen at host={settings.host} port={settings.port}: {reason}") from None
        host, port = server.sockets[0].getsockname()[:2]
        ready(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stopping, worker}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        await self._drain(server)
        worker.cancel()

    async def _drain(self, server: Server) -> None:
        server.close(close_connections=False)
        idle = [connection.close(CloseCode.GOING_AWAY, SHUTTING_DOWN) for connection in self._connections - self._busy]
        await asyncio.gather(*idle)
        await server.wait_closed()

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """An HTTP answer, or None to go on with the websocket."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None:
            scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
            if scheme not in ("Bearer", "Api-Key") or not hmac.compare_digest(
                shown.strip().encode(errors="surrogateescape"), self._token
            ):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a valid token is needed: Authorization: Bearer TOKEN\n")
        if len(self._connections) >= self._settings.max_connections:
            full = f"all {self._settings.max_connections} connections are in use; try again later\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, full)
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        peer = ":".join(str(part) for part in (connection.remote_address or ("?",))[:2])
        self._connections.add(connection)
        log.info("%s connected", peer)
        answered = refused = 0
        try:
            await connection.send(encode(self.metadata))
            limit = RateLimit(self._settings.max_requests_per_s, asyncio.get_running_loop().time())
            timing: dict[str, float] = {}
            while not self._stopping.is_set():
                message = await self._receive(connection)
                if message is None:
                    return
                self._busy.add(connection)
                start = asyncio.get_running_loop().time()
                try:
                    reply: bytes | str = await self._reply(message, limit, timing)
                    answered += 1
                except (WireError, PolicyError) as error:
                    reply = " ".join(str(error).split())
                    refused += 1
                await connection.send(reply)
                timing = {"prev_total_ms": 1000 * (asyncio.get_running_loop().time() - start)}
                self._busy.discard(connection)
            await connection.close(CloseCode.GOING_AWAY, SHUTTING_DOWN)
        except ConnectionClosed as closed:
            log.debug("%s: %s", peer, closed)
        finally:
            self._connections.discard(connection)
            self._busy.discard(connection)
            log.info("%s gone after %d answers and %d refusals", peer, answered, refused)

    async def _receive(self, connection: ServerConnection) -> bytes | str | None:
        """The next message; None for a client that was idle for too long, and is disconnected."""
        try:
            async with asyncio.timeout(self._settings.idle_timeout_s):
                return await connection.recv()
        except TimeoutError:
            reason = f"no request for {self._settings.idle_timeout_s:g} s"
            await connection.close(CloseCode.POLICY_VIOLATION, reason)
            return None

    async def _reply(self, message: bytes | str, limit: RateLimit, timing: dict[str, float]) -> bytes:
        """The answer to one message. Raises `WireError` or `PolicyError` for what the client is told in words."""
        if not limit.admit(asyncio.get_running_loop().time()):
            raise WireError(f"more than {self._settings.max_requests_per_s:g} requests a second; ask more slowly")
        if isinstance(message, str):
            raise WireError("a text was sent; observations are binary messages, msgpack maps")
        record = decode(message)
        if isinstance(record, dict) and "__ctrl__" in record:
            # openpi's newer clients announce where episodes begin and end, and wait for a word.
            word = record["__ctrl__"]
            known = isinstance(word, str) and word in ("episode_start", "episode_end")
            return encode({"__ack__": word if known else "ignored"})
        answer, waited = await self._batcher.answer(self._reader.read(record))
        timing = {"infer_ms": 1000 * answer.seconds, "queue_ms": 1000 * waited, **timing}
        return encode(
            {
                "actions": answer.actions,
                "policy_version": answer.policy_version,
                "server_timing": {**timing, "batch_size": answer.batch_size},
            }
        )


def warm_up(policy: OpenVLAPolicy) -> None:
    """Act once, so that the first client need not wait for what is compiled or allocated then."""
    size = policy.config.image_size
    observation = Observation(
        images={camera: np.zeros((1, size, size, 3), np.uint8) for camera in policy.cameras},
        proprio=np.zeros((1, policy.config.proprio_dim), np.float32),
        instruction=["wait"],
    )
    policy.act(observation, temperature=0.0)


def serve_policy(path: Path, settings: ServeSettings) -> None:
    """Serve the policy of a run, checkpoint or policy folder until SIGTERM or SIGINT, then finish what is in flight.

    Raises `ConfigError` and `PolicyError` for what the user can mend.
    """
    token = read_token(settings)
    set_threads(settings.threads)
    policy = load_policy(path, choose_device(settings.device))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    async def main() -> None:
        server = PolicyServer(policy, settings, token)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.run(lambda url: Console().print(f"serving {path}, version {policy.version}, at {url}", soft_wrap=True))
        log.info("drained")

    asyncio.run(main())


def _quiet_logger() -> logging.Logger:
    """For websockets, which writes a traceback for each client that is none."""
    logger = logging.getLogger(f"{__name__}.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
