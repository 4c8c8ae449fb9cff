"""Weights for a policy that acts elsewhere than where it is trained: numbered, named by their content, and checked on arrival.

A published update carries plain weights (adapters merged, shares put together), so that whoever follows needs no adapters; a
follower that got anything else, an older update or half of one says so instead of acting on it.

Legend: M observations of a probe, L action tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import safetensors
import torch
from jaxtyping import Float, Int64
from safetensors.torch import load, save
from torch import Tensor

from vla_rl.policies.digest import digest
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.types import Observation

PROBE_TOLERANCE = 1e-3
"""nat. Merging adapters and other batch sizes round; other weights differ by far more."""
_PROBE = "$probe"


class WeightSyncError(RuntimeError):
    """Weights were refused; the message says why. The follower has to get others before it acts."""


@dataclass(frozen=True)
class Probe:
    """Observations and tokens on which publisher and follower compare log-probs."""

    observation: Observation
    tokens: Int64[Tensor, "M L"]

    @torch.no_grad()
    def log_probs(self, policy: OpenVLAPolicy) -> Float[Tensor, "M L"]:
        return policy.evaluate_actions(self.observation, self.tokens, 1.0).log_probs.float().cpu()


@dataclass(frozen=True)
class WeightUpdate:
    """All weights of a policy at one moment."""

    serial: int
    """Counts what a publisher has published."""
    version: int
    """Of the policy; critic warm-up changes weights without a new version."""
    content: str
    """`digest` of the weights."""
    weights: dict[str, Tensor]
    probe: Float[Tensor, "M L"] | None = None
    """Log-probs on the publisher's probe."""

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = self.weights if self.probe is None else self.weights | {_PROBE: self.probe}
        about = {"serial": self.serial, "version": self.version, "content": self.content}
        return save(tensors, metadata={"weight_update": json.dumps(about)})

    @staticmethod
    def from_bytes(data: bytes) -> WeightUpdate:
        """Raises `WeightSyncError` for anything but what `to_bytes` made, a part of it included."""
        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about = json.loads(header["__metadata__"]["weight_update"])
            serial, version, content = int(about["serial"]), int(about["version"]), str(about["content"])
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise WeightSyncError(f"these {len(data)} bytes are no weight update, or a part of one: {error}") from None
        return WeightUpdate(serial, version, content, tensors, tensors.pop(_PROBE, None))


class WeightPublisher:
    """Publishes the weights of a policy that is trained. In a sharded one every rank has to publish together."""

    def __init__(self, policy: OpenVLAPolicy, probe: Probe | None = None) -> None:
        self.policy = policy
        self.probe = probe
        self._serial = 0

    def publish(self) -> WeightUpdate:
        self._serial += 1
        weights = dict(self.policy.weights())
        probe = None if self.probe is None else self.probe.log_probs(self.policy)
        return WeightUpdate(self._serial, self.policy.version, digest(weights.items()), weights, probe)


class WeightFollower:
    """A policy without adapters that takes over what a publisher publishes."""

    def __init__(self, policy: OpenVLAPolicy, probe: Probe | None = None) -> None:
        self.policy = policy
        self.probe = probe
        self.serial = 0
        """Of the update that the policy has."""

    def apply(self, update: WeightUpdate) -> None:
        """Put the weights of an update into the policy, rounded to its types.

        Raises `WeightSyncError`, and leaves the policy as it was, for an update that is not newer than the last one, that
        lacks tensors or has others, or whose content is not what it says; and, with the new weights in place, where
        log-probs on the probe differ from the publisher's.
        """
        if update.serial <= self.serial:
            raise WeightSyncError(f"stale weights were refused: update {update.serial} is not newer than {self.serial}")
        own = self.policy.model.state_dict()
        differ = sorted(own.keys() ^ update.weights.keys())
        differ += [name for name, tensor in update.weights.items() if name in own and own[name].shape != tensor.shape]
        if differ:
            kind = "a part of the weights, or weights of another architecture,"
            raise WeightSyncError(f"{kind} were refused: {len(differ)} of {len(own)} tensors do not fit, such as {differ[0]}")
        if digest(update.weights.items()) != update.content:
            raise WeightSyncError(
                f"damaged weights were refused: update {update.serial} does not hold what it says; publish it again"
            )
        self.policy.model.load_state_dict(update.weights)
        self.policy.version, self.serial = update.version, update.serial
        if self.probe is not None and update.probe is not None:
            distance = float((self.probe.log_probs(self.policy) - update.probe).abs().max())
            if not distance <= PROBE_TOLERANCE:
                raise WeightSyncError(
                    f"after update {update.serial} log-probs on the probe differ by {distance:.3g} nat from the publisher's, "
                    f"and {PROBE_TOLERANCE:g} is rounding: the two policies have other settings or other types of weights"
                )
