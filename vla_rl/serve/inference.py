"""Checked requests -> answers of the policy, several at a time.

Legend: B requests, A actions of a chunk, D action size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from vla_rl.policies.base import ActingPolicy, PolicyError
from vla_rl.serve.requests import Request
from vla_rl.types import Observation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What the policy says to one request."""

    actions: Float32[np.ndarray, "A D"]
    policy_version: int
    seconds: float
    """Of the forward pass that it shared."""
    batch_size: int


def infer(policy: ActingPolicy, requests: Sequence[Request]) -> list[Answer | PolicyError]:
    """Answers in the order of `requests`, which share their `batch_key`.

    Each request has a generator of its own, so that its draw does not depend on the others; one that the policy refuses or
    fails at costs the others nothing.
    """
    start = time.perf_counter()
    try:
        chunk = policy.act(_batch(requests), requests[0].temperature, _generators(requests))
        if not np.isfinite(chunk.actions).all():
            raise PolicyError("the policy answered with actions that are not finite")
    except Exception as error:  # a bug or a full GPU must not end the server
        if len(requests) > 1:
            return [infer(policy, [request])[0] for request in requests]
        if isinstance(error, PolicyError):
            return [error]
        log.exception("the policy failed")
        return [PolicyError(f"the policy failed: {type(error).__name__}; the server's log has the rest")]
    seconds = time.perf_counter() - start
    return [Answer(actions, chunk.policy_version, seconds, len(requests)) for actions in chunk.actions]


def _batch(requests: Sequence[Request]) -> Observation:
    return Observation(
        images={name: np.stack([request.images[name] for request in requests]) for name in requests[0].images},
        proprio=np.stack([request.proprio for request in requests]),
        instruction=[request.instruction for request in requests],
    )


def _generators(requests: Sequence[Request]) -> list[torch.Generator] | None:
    if requests[0].temperature == 0:
        return None
    return [torch.Generator().manual_seed(request.seed) for request in requests]
