"""A client's message -> what the policy is asked.

Legend: H x W image size, P proprioception size.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.wire import WireError

MAX_SIDE = 4096
"""Of an image, px."""
MAX_INSTRUCTION = 1000
"""Characters."""
MAX_TEMPERATURE = 100.0

OPENPI_IMAGES = ("observation/image", "observation/wrist_image")
OPENPI_STATE, OPENPI_PROMPT = "observation/state", "prompt"
"""Keys of openpi's LIBERO clients; the images are those of the policy's first and second camera."""


@dataclass(frozen=True, eq=False)
class Request:
    """One checked observation."""

    images: Mapping[str, UInt8[np.ndarray, "H W 3"]]
    """By camera, in the policy's order."""
    proprio: Float32[np.ndarray, "P"]
    instruction: str
    temperature: float
    seed: int
    """Of the draw at a temperature above 0."""

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Requests of the same key can be computed together."""
        return (self.temperature, *(frame.shape for frame in self.images.values()))


@dataclass(frozen=True)
class RequestReader:
    """Reads requests for one policy."""

    cameras: tuple[str, ...]
    proprio_dim: int
    turns_frames: bool
    """Whether the policy turns LIBERO's frames, which openpi's clients send turned by 180 degrees already."""
    temperature: float
    """Of requests that name none."""

    def read(self, message: Any) -> Request:
        """Raises `WireError`, in one line, for an observation that does not fit the policy."""
        if not isinstance(message, dict):
            raise WireError(f"an observation is a map, not a {type(message).__name__}")
        names = [key for key in message if isinstance(key, str)]
        if OPENPI_PROMPT in names or any(name.startswith("observation/") for name in names):
            keys = dict(zip(self.cameras, OPENPI_IMAGES, strict=False))
            state, prompt, turned = OPENPI_STATE, OPENPI_PROMPT, self.turns_frames
        else:
            keys = {camera: f"images/{camera}" for camera in self.cameras}
            state, prompt, turned = "proprio", "instruction", False
        if len(keys) < len(self.cameras):
            raise WireError(f"the policy looks through {', '.join(self.cameras)}; send images/CAMERA, proprio and instruction")
        wanted = [*keys.values(), prompt, *([state] if self.proprio_dim else [])]
        missing = [key for key in wanted if key not in message]
        if missing:
            there = ", ".join(sorted(name[:40] for name in names)[:20]) or "nothing"
            raise WireError(f"the observation lacks {', '.join(missing)}; it has {there!r}")
        images = {camera: _image(key, message[key]) for camera, key in keys.items()}
        return Request(
            images={camera: frame[::-1, ::-1] if turned else frame for camera, frame in images.items()},
            proprio=_vector(state, message[state] if self.proprio_dim else (), self.proprio_dim),
            instruction=_text(prompt, message[prompt]),
            temperature=_temperature(message.get("temperature", self.temperature)),
            seed=_seed(message.get("seed")),
        )


def _image(key: str, value: Any) -> UInt8[np.ndarray, "H W 3"]:
    if not isinstance(value, np.ndarray):
        raise WireError(f"{key} must be an array uint8 [H, W, 3], not a {type(value).__name__}")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not all(1 <= n <= MAX_SIDE for n in value.shape):
        raise WireError(
            f"{key} must be uint8 [H, W, 3] with sides of 1 to {MAX_SIDE} px; it is {value.dtype} {list(value.shape)}"
        )
    return value


def _vector(key: str, value: Any, size: int) -> Float32[np.ndarray, "P"]:
    try:
        array = np.asarray(value)
    except ValueError:
        raise WireError(f"{key} must be {size} numbers, not nested lists") from None
    if array.dtype.kind not in "iuf" or array.shape != (size,):
        raise WireError(f"{key} must be {size} numbers; it is {array.dtype} {list(array.shape)}")
    with np.errstate(over="ignore"):
        vector = array.astype(np.float32)
    if not np.isfinite(vector).all():
        raise WireError(f"{key} must be finite; it is {[float(number) for number in vector]}")
    return vector


def _text(key: str, value: Any) -> str:
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        value = "".join(value.flat)
    if not isinstance(value, str):
        raise WireError(f"{key} must be a text, not a {type(value).__name__}")
    if not value.strip() or len(value) > MAX_INSTRUCTION:
        raise WireError(f"{key} must be a text of 1 to {MAX_INSTRUCTION} characters; it has {len(value.strip())}")
    return str(value)


def _temperature(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TEMPERATURE:
        raise WireError(f"temperature must be a number from 0 (greedy) to {MAX_TEMPERATURE:g}, not {str(value)[:40]!r}")
    return float(value)


def _seed(value: Any) -> int:
    if value is None:
        return secrets.randbits(63)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise WireError(f"seed must be an integer from 0 to 2^63 - 1, not {str(value)[:40]!r}")
    return value
