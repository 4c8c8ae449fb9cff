"""What a policy server and its clients exchange: openpi's websocket messages, and a client. Loads no deep-learning library."""

from vla_rl.wire.client import TOKEN_VARIABLE, PolicyClient, RequestRefused
from vla_rl.wire.messages import WireError, decode, encode

__all__ = ["TOKEN_VARIABLE", "PolicyClient", "RequestRefused", "WireError", "decode", "encode"]
