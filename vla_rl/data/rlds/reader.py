"""Reads RLDS datasets of one arm with end-effector states: ours, and those made for OpenVLA.

Legend: T control steps, H x W image size.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vla_rl.data.convention import actions_from, state_from, turn_frames
from vla_rl.data.dataset import DatasetInfo, Episodes, ReadOptions, folder_size, plain_header, settle_convention
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import TaskHeader
from vla_rl.data.rlds import layout
from vla_rl.data.rlds.records import Feature, decode_example, read_records
from vla_rl.types import EpisodeSpec

OBSERVATION = "steps/observation/"


def is_rlds(path: Path) -> bool:
    return layout.version_folder(path) is not None


def rlds_info(path: Path, options: ReadOptions) -> DatasetInfo:
    """Describe a dataset; reads all records, but decodes no frames."""
    source = _Source(path, options)
    counts: Counter[str] = Counter()
    steps = successes = episodes = 0
    told = True
    convention, assumed = source.convention({})
    for example in source.examples():
        with _understood(path, episodes):
            ours = _ours(example)
            convention, assumed = source.convention(ours)
            counts[_instruction(example)] += 1
        episodes += 1
        steps += len(example["steps/is_last"])
        told &= "success" in ours
        successes += bool(ours.get("success"))
    return DatasetInfo(
        format="rlds",
        path=str(path),
        episodes=episodes,
        steps=steps,
        successes=successes if told else None,
        instructions=dict(counts),
        cameras={camera: layout.shape_of(source.leaves[key])[:2] for camera, key in source.cameras.items()},  # type: ignore[misc]
        convention=convention,
        assumed=assumed,
        size_bytes=folder_size(source.folder),
        remarks=("frames are JPEG: lossy",) if source.cameras else (),
    )


def read_rlds(path: Path, options: ReadOptions) -> Episodes:
    """Episodes in order, one in memory at a time. Raises `DatasetError` for damage, foreign shapes, missing cameras."""
    source = _Source(path, options)
    cameras = source.choose(options.cameras)
    for number, example in enumerate(source.examples(options.limit)):
        with _understood(path, number):
            ours = _ours(example)
            demonstration = source.demonstration(example, ours, cameras)
            demonstration.validate()
            header = TaskHeader(**ours["header"]) if "header" in ours else plain_header(demonstration.instruction)
        yield header, demonstration


@contextlib.contextmanager
def _understood(path: Path, number: int) -> Iterator[None]:
    """Whatever is raised over an episode of another kind becomes one `DatasetError`."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path}, episode {number}: {error}") from None
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise DatasetError(f"{path}, episode {number} cannot be understood ({error!r}); it is damaged or foreign") from error


class _Source:
    def __init__(self, path: Path, options: ReadOptions) -> None:
        folder = layout.version_folder(path)
        if folder is None:
            raise DatasetError(f"{path} holds no RLDS dataset (no features.json)")
        self.path, self.folder, self._options = path, folder, options
        self.info, self.leaves = layout.read_description(folder)
        names = [name for name, leaf in self.leaves.items() if "image" in leaf and name.startswith(OBSERVATION)]
        self.cameras = {layout.CAMERA_OF_KEY.get(name[len(OBSERVATION) :], name[len(OBSERVATION) :]): name for name in names}
        for name, sizes in (("steps/action", (7,)), (f"{OBSERVATION}state", (8, 9))):
            shape = layout.shape_of(self.leaves.get(name, {}))
            if len(shape) != 1 or shape[0] not in sizes:
                raise DatasetError(
                    f"{path} has {name} of shape {shape or None}; we read end-effector data: "
                    f"{' or '.join(map(str, sizes))} numbers"
                )

    def choose(self, cameras: Sequence[str] | None) -> list[str]:
        missing = [camera for camera in cameras or () if camera not in self.cameras]
        if missing:
            there = ", ".join(sorted(self.cameras)) or "none"
            raise DatasetError(f"{self.path}: there are no frames of camera {missing[0]!r}; it has: {there}")
        return list(self.cameras if cameras is None else cameras)

    def examples(self, limit: int | None = None) -> Iterator[dict[str, Feature]]:
        count = 0
        for file, length in layout.shards(self.folder, self.info):
            found = 0
            for data in read_records(file):
                if limit is not None and count >= limit:
                    return
                try:
                    example = decode_example(data)
                    example["steps/is_last"], example["steps/action"]
                except (ValueError, KeyError, UnicodeDecodeError) as error:
                    raise DatasetError(f"{file}: record {found} is no RLDS episode ({error!r})") from error
                yield example
                found, count = found + 1, count + 1
            if found != length:
                raise DatasetError(f"{file} holds {found} of its {length} episodes: it is incomplete; copy or make it again")

    def convention(self, ours: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
        return settle_convention(ours.get("convention"), layout.USUAL, self._options.stated)

    def demonstration(self, example: dict[str, Feature], ours: dict[str, Any], cameras: Sequence[str]) -> Demonstration:
        convention, _ = self.convention(ours)
        steps = len(example["steps/is_last"])

        def numbers(name: str, width: int) -> np.ndarray:
            return np.array(example[name], dtype=np.float32).reshape(steps, width)

        images = {}
        for camera in cameras:
            frames = np.stack([_picture(data) for data in example[self.cameras[camera]]])  # type: ignore[arg-type]
            images[camera] = np.ascontiguousarray(turn_frames(frames, convention.frames, "opengl"))
        joints = f"{OBSERVATION}joint_state"
        provenance = dict(ours.get("provenance") or {"source": f"RLDS dataset {self.info.get('name')}"})
        if "success" not in ours:
            provenance["success"] = "assumed: the dataset does not tell"
        spec = ours.get("spec")
        return Demonstration(
            instruction=_instruction(example),
            images=images,
            frame_index=np.arange(steps),
            proprio=state_from(
                convention, numbers(f"{OBSERVATION}state", layout.shape_of(self.leaves[f"{OBSERVATION}state"])[0])
            ),
            actions=actions_from(convention, numbers("steps/action", 7)),
            rewards=numbers("steps/reward", 1)[:, 0] if "steps/reward" in example else np.zeros(steps, np.float32),
            success=bool(ours.get("success", True)),
            spec=EpisodeSpec.from_dict(spec) if spec else None,
            joint_states=numbers(joints, 7).astype(np.float64) if joints in example else None,
            fps=convention.fps,
            provenance=provenance,
        )


def _ours(example: dict[str, Feature]) -> dict[str, Any]:
    texts = example.get(layout.OURS)
    return json.loads(texts[0]) if isinstance(texts, list) and texts else {}


def _instruction(example: dict[str, Feature]) -> str:
    texts = example["steps/language_instruction"]
    return texts[0].decode() if isinstance(texts, list) else ""


def _picture(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError("a stored frame is not a picture")
    return image[..., ::-1]
