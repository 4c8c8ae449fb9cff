"""How a policy is served, and the token that clients must show."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vla_rl.config import ConfigError, Count, Positive, Rate, Section
from vla_rl.wire import TOKEN_VARIABLE

SHORTEST_TOKEN = 16


class ServeSettings(Section):
    host: str = "127.0.0.1"
    """Address to listen at; one that other machines reach needs a token."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one."""
    token_file: Path | None = None
    """File with the token that clients must show; without it, the environment variable VLA_RL_TOKEN counts."""
    device: str = "auto"
    """Where the policy computes: auto, cpu, cuda, cuda:1."""
    threads: Count = 0
    """CPU threads; 0: one a core."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Of requests that name none; 0: greedy."""
    max_batch: Positive = 8
    """Requests that are computed together."""
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 5.0
    """How long a request may wait for others to join it, ms; with one client connected none waits."""
    max_connections: Positive = 64
    """Clients at a time."""
    max_message_mib: Rate = 8.0
    """Largest message, MiB."""
    max_requests_per_s: Rate = 100.0
    """Of each client, on average over a second."""
    idle_timeout_s: Rate = 600.0
    """A client that sends no whole request for so long is disconnected, s."""
    ping_interval_s: Rate = 20.0
    """Time between two pings, and time that a client has to answer one or to take what is sent to it, s."""


def read_token(settings: ServeSettings) -> str | None:
    """The token that clients must show, if any.

    Raises `ConfigError` where its file cannot be read, where it is short, and where other machines could connect without one.
    """
    source, token = f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
    if settings.token_file is not None:
        source = str(settings.token_file)
        try:
            token = settings.token_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read token_file={source}: {error}") from None
    if token is not None:
        token = token.strip()
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"the token in {source} must be {SHORTEST_TOKEN} or more ASCII characters without spaces; "
                "`openssl rand -hex 32` makes one"
            )
    elif not _is_loopback(settings.host):
        raise ConfigError(
            f"host={settings.host} lets other machines drive the policy; set {TOKEN_VARIABLE} or token_file=FILE, "
            "or listen at 127.0.0.1"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
