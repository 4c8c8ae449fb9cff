"""The episode of one environment as its pool keeps it: counters, flags and the whole state as bytes."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import msgpack

from vla_rl.sim.base import SimError
from vla_rl.sim.channel import Message
from vla_rl.types import EpisodeSpec

_STATE_FORMAT = 1
_FIELD_TYPES = {
    "instruction": str,
    "max_steps": int,
    "state": bytes,
    "steps": int,
    "success": bool,
    "terminated": bool,
    "truncated": bool,
}


@dataclass(frozen=True)
class Episode:
    """The running or finished episode of one row."""

    spec: EpisodeSpec
    instruction: str
    max_steps: int
    state: bytes
    """The backend's."""
    steps: int = 0
    success: bool = False
    terminated: bool = False
    truncated: bool = False

    @property
    def is_live(self) -> bool:
        return not (self.terminated or self.truncated)

    def after(self, reply: Message) -> Episode:
        """After a worker's chunk; truncated when the time is used up and the task has not ended."""
        steps = self.steps + reply["executed"]
        return replace(
            self,
            steps=steps,
            success=reply["success"],
            terminated=reply["terminated"],
            truncated=steps >= self.max_steps and not reply["terminated"],
            state=reply["state"],
        )

    def to_bytes(self, backend: str) -> bytes:
        record = {**vars(self), "spec": self.spec.to_dict(), "format": _STATE_FORMAT, "backend": backend}
        return msgpack.packb(record, use_bin_type=True)

    @staticmethod
    def from_bytes(data: bytes, backend: str) -> Episode:
        """Raises `SimError` for bytes that `to_bytes` did not make, or made for another backend."""
        try:
            record = msgpack.unpackb(data, raw=False)
            origin = record.pop("format"), record.pop("backend")
            episode = Episode(**{**record, "spec": plain_spec(EpisodeSpec.from_dict(record["spec"]))})
            if not all(type(getattr(episode, name)) is kind for name, kind in _FIELD_TYPES.items()):
                raise TypeError("it holds values of the wrong type")
        except Exception as error:
            raise SimError(f"these bytes are not a saved state of a simulator ({type(error).__name__}: {error})") from None
        if origin != (_STATE_FORMAT, backend):
            raise SimError(f"this state was saved by {origin[1]} (format {origin[0]}), not by {backend} (format {_STATE_FORMAT})")
        return episode


def plain_spec(spec: EpisodeSpec) -> EpisodeSpec:
    """The spec with plain ints, which numpy's are not; raises `SimError` where it has none."""
    try:
        return EpisodeSpec(
            suite=str(spec.suite),
            task_id=operator.index(spec.task_id),
            init_state_id=None if spec.init_state_id is None else operator.index(spec.init_state_id),
            seed=operator.index(spec.seed),
        )
    except (TypeError, AttributeError):
        raise SimError(f"an episode needs an EpisodeSpec with whole numbers, not {spec!r}") from None
