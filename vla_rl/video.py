"""Videos that browsers play, and frames made ready for them: enlarged, framed in the colour of the outcome, tiled.

Legend: T frames, H x W image size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from jaxtyping import UInt8

GREEN, RED = (22, 163, 74), (220, 38, 38)
# In the order of preference: H.264 plays everywhere; VP9 in most browsers; MPEG-4 in players, but in no browser.
CODECS = ("libx264", "libopenh264", "libvpx-vp9", "mpeg4")

log = logging.getLogger(__name__)


class VideoError(ValueError):
    """Frames that cannot become a video; the message says why."""


def write_video(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> Path:
    """Write an mp4 (H.264, yuv420p, index in front) that appears whole or not at all.

    RGB frames, played at `fps` (Hz). An odd height or width gets one more row or column, which repeats its neighbour,
    because yuv420p halves both. Where av lacks an H.264 encoder the next of `CODECS` is used, with a warning. Raises
    `VideoError` for frames of another form, and OSError where the file cannot be written.
    """
    frames = _checked(frames)
    if not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"a video cannot play at {fps} frames a second")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    height, width = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        _encode(partial, padded, Fraction(fps).limit_denominator(60000), _codec())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _encode(path: Path, frames: UInt8[np.ndarray, "T H W 3"], rate: Fraction, codec: str) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "medium"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))


def _codec() -> str:
    for name in CODECS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # av's "unknown codec" is one
            continue
        if name != CODECS[0]:
            log.warning("av has no %s; videos use %s, which not every browser plays", CODECS[0], name)
        return name
    raise VideoError(
        f"av has none of the encoders {', '.join(CODECS)}; install av from its wheel: pip install --force-reinstall av"
    )


def upscale(
    frames: UInt8[np.ndarray, "T H W 3"], size: int = 256, method: Literal["nearest", "lanczos"] = "lanczos"
) -> UInt8[np.ndarray, "T h w 3"]:
    """Enlarge by a whole factor until the shorter side has at least `size` pixels; larger frames stay as they are."""
    frames = _checked(frames)
    height, width = frames.shape[1:3]
    factor = math.ceil(size / min(height, width))
    if factor <= 1:
        return frames
    if method == "nearest":
        return frames.repeat(factor, axis=1).repeat(factor, axis=2)
    shape = (width * factor, height * factor)
    return np.stack([cv2.resize(image, shape, interpolation=cv2.INTER_LANCZOS4) for image in frames])


def outline(frames: UInt8[np.ndarray, "T H W 3"], success: bool, width: int = 4) -> UInt8[np.ndarray, "T h w 3"]:
    """Add a border, `width` pixels on each side: green for a success, red for a failure."""
    frames = _checked(frames)
    length, height, breadth, _ = frames.shape
    framed = np.empty((length, height + 2 * width, breadth + 2 * width, 3), np.uint8)
    framed[:] = GREEN if success else RED
    framed[:, width : width + height, width : width + breadth] = frames
    return framed


def grid(stacks: Sequence[UInt8[np.ndarray, "T H W 3"]], columns: int | None = None) -> UInt8[np.ndarray, "t h w 3"]:
    """Tile videos, row by row, into as square a grid as possible (or `columns` wide).

    A shorter video holds its last frame; a smaller one stands at the upper left of its black cell.
    """
    if not stacks:
        raise VideoError("a grid needs at least one video")
    stacks = [_checked(stack) for stack in stacks]
    columns = columns or math.ceil(math.sqrt(len(stacks)))
    rows = math.ceil(len(stacks) / columns)
    length, height, width = (max(stack.shape[axis] for stack in stacks) for axis in range(3))
    tiled = np.zeros((length, rows * height, columns * width, 3), np.uint8)
    for index, stack in enumerate(stacks):
        top, left = index // columns * height, index % columns * width
        held = stack[np.minimum(np.arange(length), len(stack) - 1)]
        tiled[:, top : top + stack.shape[1], left : left + stack.shape[2]] = held
    return tiled


def _checked(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise VideoError(f"a video needs uint8 frames [T, H, W, 3] with T, H, W > 0, not {frames.dtype} {list(frames.shape)}")
    return frames
