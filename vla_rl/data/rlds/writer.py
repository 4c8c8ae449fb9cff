"""Writes an RLDS dataset: one record an episode, as OpenVLA's LIBERO sets are laid out.

Legend: T control steps, H x W image size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from vla_rl.data.convention import Convention, actions_to, state_to, turn_frames
from vla_rl.data.dataset import WriteOptions, header_to_dict, new_folder
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import TaskHeader
from vla_rl.data.quality import quality_of
from vla_rl.data.rlds import layout
from vla_rl.data.rlds.records import Feature, encode_example, write_record

SHARD_BYTES = 128 * 2**20
JPEG_QUALITY = 95


def write_rlds(path: Path, episodes: Iterable[tuple[TaskHeader, Demonstration]], options: WriteOptions) -> Path:
    """Write `path/1.0.0`, there whole or not at all; TFDS knows it by the folder's name, or by `options.name`.

    Every episode must have a frame a step and hold what the first one holds. Raises `DatasetError` otherwise, and when
    the disk is full.
    """
    name = options.name or path.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DatasetError(f"TFDS takes names of small letters, digits and _, not {name!r}; choose another folder or name")
    with new_folder(path) as folder:
        writer = _Writer(folder / layout.VERSION, name, options)
        try:
            for header, demonstration in episodes:
                writer.add(header, demonstration)
            writer.finish()
        finally:
            writer.close()
    return path


class _Writer:
    def __init__(self, folder: Path, name: str, options: WriteOptions) -> None:
        self._folder, self._name, self._options = folder, name, options
        self._features: dict[str, Any] = {}
        self._shard: IO[bytes] | None = None
        self._lengths: list[int] = []
        self._sizes: list[int] = []
        folder.mkdir(parents=True)

    def add(self, header: TaskHeader, demo: Demonstration) -> None:
        demo.validate()
        number = sum(self._lengths)
        if demo.images and len(demo.frame_index) != len(demo):
            raise DatasetError(
                f"episode {number} has {len(demo.frame_index)} frames of {len(demo)} steps; RLDS needs one a step: "
                "collect with frame_stride 1, or convert without cameras"
            )
        convention = Convention.from_dict((self._options.convention or layout.USUAL).to_dict() | {"fps": demo.fps})
        features = _features(demo, convention)
        self._features = self._features or features
        if features != self._features:
            raise DatasetError(
                f"episode {number} holds other cameras, sizes or columns than the first; an RLDS dataset needs the same in "
                "all: choose cameras, or convert the files one by one"
            )
        quality = JPEG_QUALITY if self._options.quality is None else self._options.quality
        data = encode_example(_example(header, demo, convention, quality))
        if self._shard is None or self._sizes[-1] + len(data) > SHARD_BYTES:
            self.close()
            self._shard = self._shard_path(len(self._lengths)).open("wb")
            self._lengths.append(0)
            self._sizes.append(0)
        self._sizes[-1] += write_record(self._shard, data)
        self._lengths[-1] += 1

    def _shard_path(self, number: int) -> Path:
        return self._folder / f"shard-{number}"

    def finish(self) -> None:
        if not self._lengths:
            raise DatasetError("there is no episode to write")
        self.close()
        count = len(self._lengths)
        for number in range(count):
            name = f"{self._name}-train.tfrecord-{number:05d}-of-{count:05d}"
            self._shard_path(number).rename(self._folder / name)
        info = {
            "name": self._name,
            "version": layout.VERSION,
            "description": "Demonstrations of LIBERO tasks, written by vla_rl.",
            "fileFormat": "tfrecord",
            "moduleName": f"{self._name}.{self._name}_dataset_builder",
            "releaseNotes": {layout.VERSION: "First version."},
            "splits": [
                {
                    "name": "train",
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "numBytes": str(sum(self._sizes)),
                    "shardLengths": [str(length) for length in self._lengths],
                }
            ],
        }
        for name, content in ((layout.DATASET_INFO, info), (layout.FEATURES, self._features)):
            (self._folder / name).write_text(json.dumps(content, indent=4), encoding="utf-8")

    def close(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.close()


def _features(demo: Demonstration, convention: Convention) -> dict[str, Any]:
    observation = {
        layout.KEY_OF_CAMERA.get(camera, camera): layout.image(*frames.shape[1:3]) for camera, frames in demo.images.items()
    }
    observation["state"] = layout.tensor("float32", 8 if convention.orientation == "axis_angle" else 9)
    if demo.joint_states is not None:
        observation["joint_state"] = layout.tensor("float32", 7)
    steps = {
        "observation": layout.features_dict(observation),
        "action": layout.tensor("float32", 7),
        "discount": layout.tensor("float32"),
        "reward": layout.tensor("float32"),
        "is_first": layout.tensor("bool"),
        "is_last": layout.tensor("bool"),
        "is_terminal": layout.tensor("bool"),
        "language_instruction": layout.text(),
    }
    metadata = layout.features_dict({"file_path": layout.text(), "vla_rl": layout.text()})
    return layout.features_dict({"steps": layout.sequence(layout.features_dict(steps)), "episode_metadata": metadata})


def _example(header: TaskHeader, demo: Demonstration, convention: Convention, quality: int) -> dict[str, Feature]:
    steps, time = len(demo), np.arange(len(demo))
    ours = {
        "convention": convention.to_dict(),
        "header": header_to_dict(header),
        "success": demo.success,
        "spec": demo.spec.to_dict() if demo.spec else None,
        "provenance": dict(demo.provenance),
        "quality": quality_of(demo).to_dict(),
    }
    features: dict[str, Feature] = {
        "steps/observation/state": state_to(convention, demo.proprio).ravel(),
        "steps/action": actions_to(convention, demo.actions).ravel(),
        "steps/discount": np.ones(steps, np.float32),
        "steps/reward": demo.rewards,
        "steps/is_first": time == 0,
        "steps/is_last": time == steps - 1,
        "steps/is_terminal": (time == steps - 1) & demo.success,
        "steps/language_instruction": [demo.instruction.encode()] * steps,
        "episode_metadata/file_path": [(header.bddl_file_name or demo.instruction).encode()],
        layout.OURS: [json.dumps(ours).encode()],
    }
    if demo.joint_states is not None:
        features["steps/observation/joint_state"] = demo.joint_states.astype(np.float32).ravel()
    for camera, frames in demo.images.items():
        name = f"steps/observation/{layout.KEY_OF_CAMERA.get(camera, camera)}"
        features[name] = [_jpeg(image, quality) for image in turn_frames(frames, "opengl", convention.frames)]
    return features


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DatasetError(f"a frame of shape {image.shape} cannot become a jpeg")
    return data.tobytes()
