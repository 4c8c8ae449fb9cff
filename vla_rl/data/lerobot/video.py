"""The mp4 files of a LeRobot dataset: many episodes one after another, each frame found by its time.

Legend: F frames, H x W image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from vla_rl.data.demonstration import DatasetError
from vla_rl.data.lerobot.layout import reading

CODECS = ("libx264", "libopenh264", "mpeg4")
KEYFRAME_EVERY = 2
"""As LeRobot writes: a frame is found by decoding at most one other."""


class VideoWriter:
    """One mp4 file; frames go in, episode after episode."""

    def __init__(self, path: Path, fps: float, height: int, width: int, quality: int) -> None:
        if height % 2 or width % 2:
            raise DatasetError(f"H.264 needs frames of even height and width, not {height} x {width}; write frames as png")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames = path, 0
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._rate = Fraction(fps).limit_denominator(60000)
        stream: Any = self._container.add_stream(_codec(), rate=self._rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = KEYFRAME_EVERY
        # Without frames that wait for later ones, time and order of frames are the same.
        stream.codec_context.max_b_frames = 0
        stream.options = {"crf": str(quality), "preset": "fast"}
        self._stream, self.codec = stream, stream.codec_context.name

    def add(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        for image in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            picture.pts, picture.time_base = self.frames, 1 / self._rate
            self._container.mux(self._stream.encode(picture))
            self.frames += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Close a file that will not be used."""
        self._container.close()


def _codec() -> str:
    for name in CODECS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise DatasetError(f"av has none of the encoders {', '.join(CODECS)}; install av from its wheel, or write frames as png")


class VideoReader:
    """Frames of a dataset's videos, fast where episodes are read in order."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._path: Path | None = None
        self._frames: Iterator[tuple[int, np.ndarray]] = iter(())
        self._next = 0

    def read(self, path: Path, start: int, count: int) -> UInt8[np.ndarray, "F H W 3"]:
        """`count` frames from number `start` on. Raises `DatasetError` for a missing, damaged or too short file."""
        if path != self._path or start < self._next:
            self._path, self._frames, self._next = path, self._decode(path), 0
        found: list[np.ndarray] = []
        with reading(path):
            while len(found) < count:
                number, image = next(self._frames, (None, None))
                if number is None or image is None:
                    raise DatasetError(
                        f"{path} ends at frame {self._next} and should have {start + count}: it is truncated; copy it again"
                    )
                self._next = number + 1
                if number >= start:
                    if number != start + len(found):
                        raise DatasetError(f"{path} lacks frame {start + len(found)} (the next is {number}): it is damaged")
                    found.append(image)
        return np.stack(found)

    def _decode(self, path: Path) -> Iterator[tuple[int, np.ndarray]]:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield round(float(frame.time or 0.0) * self._fps), frame.to_ndarray(format="rgb24")
