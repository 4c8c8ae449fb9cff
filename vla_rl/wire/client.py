"""A client of policy servers that speak openpi's websocket protocol: `vla-rl serve`, and openpi's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect

from vla_rl.wire.messages import WireError, decode, encode

TOKEN_VARIABLE = "VLA_RL_TOKEN"
"""Environment variable with the token of a server, and of the commands that connect to one."""
_MAX_ANSWER = 64 << 20


class RequestRefused(WireError):
    """The server answered with an error text. The connection goes on: the next request may be in order."""


class PolicyClient:
    """One connection, for one request at a time. Use as a context manager, or close it.

    Example: `PolicyClient(url).infer({"images/front": frame, "proprio": state, "instruction": "lift"})["actions"]`.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0) -> None:
        """Connect, within `timeout` seconds, which later is what an answer may take.

        Raises `WireError` where there is no server, or it refuses the connection.
        """
        self.url = url
        self._timeout = timeout
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            self._connection = connect(
                url, compression=None, max_size=_MAX_ANSWER, additional_headers=headers, open_timeout=timeout, proxy=None
            ).__enter__()
        except InvalidURI:
            raise WireError(f"{url!r} is no address of a policy server; write ws://HOST:PORT") from None
        except InvalidStatus as error:
            body = (error.response.body or b"").decode("utf-8", "replace")
            reason = " ".join(body.split()) or error.response.reason_phrase
            raise WireError(f"the server at {url} refuses: {error.response.status_code} {reason}") from None
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
            raise WireError(f"there is no policy server at {url}: {error}") from None
        try:
            metadata = self.receive()
        except WireError:
            self.close()
            raise
        self.metadata: dict[str, Any] = metadata

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one observation. Raises as `send` and `receive` do."""
        self.send(observation)
        return self.receive()

    def send(self, observation: Mapping[str, Any]) -> None:
        """Ask without waiting for the answer. Raises `WireError` where the connection is lost."""
        data = encode(observation)
        try:
            self._connection.send(data)
        except ConnectionClosed as error:
            raise self._lost(error) from None

    def receive(self) -> dict[str, Any]:
        """The answer to what was sent.

        Raises `RequestRefused` for an error text. Raises `WireError` where the connection is lost or the answer is late; the
        connection is then closed, since a late answer would be taken for that to the next request.
        """
        try:
            data = self._connection.recv(self._timeout)
        except TimeoutError:
            self.close()
            raise WireError(f"the server at {self.url} did not answer within {self._timeout:g} s") from None
        except ConnectionClosed as error:
            raise self._lost(error) from None
        if isinstance(data, str):
            raise RequestRefused(f"the server at {self.url} answers: {data.strip()}")
        answer = decode(data)
        if not isinstance(answer, dict):
            raise WireError(f"the server at {self.url} answers with a {type(answer).__name__} in place of a map")
        return answer

    def _lost(self, error: ConnectionClosed) -> WireError:
        frame = error.rcvd or error.sent
        reason = f"{frame.code} {frame.reason}".strip() if frame else "without a word"
        return WireError(f"the server at {self.url} closed the connection: {reason}")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
