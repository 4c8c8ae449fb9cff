"""Demonstrations as training samples: what was seen at one step, and the chunk of actions that follows.

Legend: S samples (one a frame), B a batch of them, A actions of a chunk, D action size, P proprioception size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import read_demonstrations
from vla_rl.types import Observation


@dataclass(frozen=True)
class ChunkDataset:
    """Every frame of every demonstration is a sample. Frames and actions are stored once and indexed."""

    images: dict[str, UInt8[np.ndarray, "S H W 3"]]
    proprio: Float32[np.ndarray, "S P"]
    instruction: list[str]
    """Of each sample."""
    actions: Float32[np.ndarray, "N D"]
    """Labels of all steps of all demonstrations, one after another."""
    start: Int64[np.ndarray, "S"]
    """Row of `actions` where a sample's chunk begins."""
    end: Int64[np.ndarray, "S"]
    """Row of `actions` after the last of the sample's demonstration."""
    chunk_length: int
    stride: int = 1
    """Steps from one action of a chunk to the next: each is the last of its `stride` steps, a position to be reached."""

    @staticmethod
    def load(paths: Sequence[Path], cameras: Sequence[str], chunk_length: int, stride: int = 1) -> ChunkDataset:
        """Read all successful demonstrations of some LIBERO HDF5 files.

        Raises `DatasetError` for files that cannot be read, that lack a camera, or that hold no demonstration at all.
        """
        demonstrations = [d for path in paths for d in read_demonstrations(Path(path), cameras) if d.success]
        if not demonstrations:
            where = ", ".join(str(path) for path in paths) or "no file at all"
            raise DatasetError(f"there is no successful demonstration in {where}; collect some or set demonstrations.path")
        return ChunkDataset.from_demonstrations(demonstrations, cameras, chunk_length, stride)

    @staticmethod
    def from_demonstrations(
        demonstrations: Sequence[Demonstration], cameras: Sequence[str], chunk_length: int, stride: int = 1
    ) -> ChunkDataset:
        """Frames of all demonstrations must have one size; raises `DatasetError` otherwise."""
        sizes = {d.images[camera].shape[1:] for d in demonstrations for camera in cameras}
        if len(sizes) > 1:
            raise DatasetError(f"the demonstrations have frames of several sizes: {sorted(sizes)}; train on files of one size")
        offsets = np.cumsum([0, *(len(d) for d in demonstrations)])
        samples = [(d, offset) for d, offset in zip(demonstrations, offsets, strict=False)]
        return ChunkDataset(
            images={camera: np.concatenate([d.images[camera] for d in demonstrations]) for camera in cameras},
            proprio=np.concatenate([d.proprio[d.frame_index] for d in demonstrations]),
            instruction=[d.instruction for d in demonstrations for _ in d.frame_index],
            actions=np.concatenate([d.labels for d in demonstrations]),
            start=np.concatenate([d.frame_index + offset for d, offset in samples]),
            end=np.concatenate([np.full(len(d.frame_index), offset + len(d)) for d, offset in samples]),
            chunk_length=chunk_length,
            stride=stride,
        )

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: np.ndarray) -> tuple[Observation, Float32[np.ndarray, "B A D"], Bool[np.ndarray, "B A"]]:
        """Observations, labels, and which labels are real: a chunk that runs over the end repeats the last one, masked.

        Where the last stride is cut short, its action is the demonstration's last.
        """
        first, end = self.start[index][:, None], self.end[index][:, None]
        begins = first + self.stride * np.arange(self.chunk_length)
        mask = begins < end
        observation = Observation(
            images={camera: frames[index] for camera, frames in self.images.items()},
            proprio=self.proprio[index],
            instruction=[self.instruction[i] for i in index],
        )
        return observation, self.actions[np.minimum(begins + self.stride - 1, end - 1)], mask
