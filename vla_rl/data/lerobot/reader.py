"""Reads LeRobotDataset v3.0: ours to the bit (frames as the codec left them), others' with an end-effector state.

Legend: T control steps, H x W image size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vla_rl.data.convention import Convention, actions_from, state_from, turn_frames
from vla_rl.data.dataset import DatasetInfo, Episodes, ReadOptions, folder_size, plain_header, read_json, settle_convention
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.lerobot import layout
from vla_rl.data.lerobot.video import VideoReader
from vla_rl.data.libero_hdf5 import TaskHeader
from vla_rl.types import EpisodeSpec


def is_lerobot(path: Path) -> bool:
    return (path / layout.INFO).is_file() or (path / "meta" / "tasks.jsonl").is_file()


def lerobot_info(path: Path, options: ReadOptions) -> DatasetInfo:
    """Describe a dataset from its metadata. Raises `DatasetError` for a damaged or foreign one."""
    source = _Source(path, options)
    counts: Counter[str] = Counter()
    for row in source.rows:
        counts[", ".join(row["tasks"])] += 1
    with layout.reading(path / layout.EXTRAS):
        successes = sum(record["success"] for record in source.extras) if source.extras else None
    with layout.reading(path / layout.INFO):
        cameras = {layout.camera_of(key): tuple(source.features[key]["shape"][:2]) for key in source.keys}
    remarks = ["frames are H.264 or another lossy codec"] if any(source.kind(key) == "video" for key in source.keys) else []
    return DatasetInfo(
        format="lerobot",
        path=str(path),
        episodes=len(source.rows),
        steps=int(sum(row["length"] for row in source.rows)),
        successes=successes,
        instructions=dict(counts),
        cameras=cameras,
        convention=source.convention,
        assumed=source.assumed,
        size_bytes=folder_size(path),
        remarks=tuple(remarks),
    )


def read_lerobot(path: Path, options: ReadOptions) -> Episodes:
    """Episodes in order, one in memory at a time. Raises `DatasetError` for damage, foreign shapes, missing cameras."""
    source = _Source(path, options)
    keys = source.choose(options.cameras)
    videos = {key: VideoReader(source.convention.fps) for key in keys if source.kind(key) == "video"}
    for number, row in enumerate(source.rows[: options.limit]):
        demonstration = source.episode(number, row, keys, videos)
        try:
            demonstration.validate()
        except DatasetError as error:
            raise DatasetError(f"{path}, episode {number}: {error}") from None
        yield source.header(number, demonstration), demonstration


class _Source:
    """Metadata of a dataset, and the parquet file that was read last."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        _, self._parquet = layout.arrow()
        self.info = layout.read_info(path)
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        with layout.reading(path / layout.INFO):
            self.keys = [key for key, feature in self.features.items() if feature.get("dtype") in ("video", "image")]
        self.rows = self._read_rows()
        record = read_json(path / layout.EXTRAS, str(path)) if (path / layout.EXTRAS).is_file() else {}
        with layout.reading(path / layout.EXTRAS):
            self.extras: list[dict[str, Any]] = record.get("episodes", [])
            self.headers = [TaskHeader(**header) for header in record.get("headers", [])]
            own = record.get("convention") or {"fps": float(self.info["fps"])}
            self.convention, self.assumed = settle_convention(own, layout.USUAL, options.stated)
        if self.extras and len(self.extras) != len(self.rows):
            raise DatasetError(f"{path / layout.EXTRAS} describes {len(self.extras)} episodes, the dataset has {len(self.rows)}")
        if self.convention.fps != self.info["fps"]:
            raise DatasetError(f"{path} states {self.info['fps']} and {self.convention.fps} frames a second")
        for name, sizes in ((layout.ACTION, (7,)), (layout.STATE, (8, 9))):
            shape = self.features.get(name, {}).get("shape")
            if shape is None or len(shape) != 1 or shape[0] not in sizes:
                raise DatasetError(
                    f"{path} has {name} of shape {shape}; we read end-effector data: {' or '.join(map(str, sizes))} numbers"
                )
        self._tasks = self._read_tasks()
        self._file: Path | None = None
        self._table: Any = None

    def kind(self, key: str) -> str:
        return str(self.features[key]["dtype"])

    def choose(self, cameras: Sequence[str] | None) -> list[str]:
        wanted = self.keys if cameras is None else [layout.key_of(camera) for camera in cameras]
        missing = [key for key in wanted if key not in self.keys]
        if missing:
            there = ", ".join(sorted(layout.camera_of(key) for key in self.keys)) or "none"
            raise DatasetError(f"{self.path}: there are no frames of camera {layout.camera_of(missing[0])!r}; it has: {there}")
        return list(wanted)

    def header(self, number: int, demonstration: Demonstration) -> TaskHeader:
        if self.extras:
            with layout.reading(self.path / layout.EXTRAS):
                return self.headers[self.extras[number]["header"]]
        return plain_header(demonstration.instruction, demonstration.fps)

    def _read_rows(self) -> list[dict[str, Any]]:
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise DatasetError(f"{self.path} lacks meta/episodes: it is incomplete; copy or make it again")
        rows = []
        for file in files:
            with layout.reading(file):
                columns = [name for name in self._parquet.read_schema(file).names if not name.startswith("stats/")]
                rows += self._parquet.read_table(file, columns=columns).to_pylist()
                rows[0]["tasks"], rows[0]["length"], rows[0]["dataset_from_index"]
        if len(rows) != self.info["total_episodes"]:
            raise DatasetError(f"{self.path} lists {len(rows)} of its {self.info['total_episodes']} episodes: it is incomplete")
        return rows

    def _read_tasks(self) -> dict[int, str]:
        file = self.path / layout.TASKS
        with layout.reading(file):
            table = self._parquet.read_table(file)
            name = "task" if "task" in table.column_names else "__index_level_0__"
            return dict(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))

    def episode(self, number: int, row: dict[str, Any], keys: Sequence[str], videos: dict[str, VideoReader]) -> Demonstration:
        place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        file = self.path / self.info["data_path"].format(**place)
        with layout.reading(file):
            if file != self._file:
                self._file, self._table = file, self._parquet.read_table(file)
            inside = np.flatnonzero(self._table["episode_index"].to_numpy() == number)
            if len(inside) != row["length"] or (np.diff(inside) != 1).any():
                raise DatasetError(f"{file} holds {len(inside)} of the {row['length']} steps of episode {number}")
            part = self._table.slice(int(inside[0]), len(inside))
            extra = self.extras[number] if self.extras else {}
            return self._demonstration(part, extra, self._frames(part, row, keys, videos))

    def _frames(self, part: Any, row: dict[str, Any], keys: Sequence[str], videos: dict[str, VideoReader]) -> dict[str, Any]:
        images = {}
        for key in keys:
            if key in videos:
                place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
                start = round(row[f"videos/{key}/from_timestamp"] * self.convention.fps)
                path = self.path / self.info["video_path"].format(video_key=key, **place)
                frames = videos[key].read(path, start, row["length"])
            else:
                frames = np.stack([_picture(record["bytes"]) for record in part[key].to_pylist()])
            images[layout.camera_of(key)] = np.ascontiguousarray(turn_frames(frames, self.convention.frames, "opengl"))
        return images

    def _demonstration(self, part: Any, extra: dict[str, Any], images: dict[str, np.ndarray]) -> Demonstration:
        def column(name: str, kind: type = np.float32) -> np.ndarray | None:
            return np.array(part[name].to_pylist(), dtype=kind) if name in part.column_names else None

        def needed(name: str) -> np.ndarray:
            values = column(name)
            if values is None:
                raise DatasetError(f"{self._file} lacks the column {name}")
            return values

        def clean(values: np.ndarray | None, convention: Convention) -> np.ndarray | None:
            return None if values is None else actions_from(convention, values)

        ends = column(layout.SUCCESS, bool)
        provenance = dict(extra.get("provenance") or {"source": f"LeRobot dataset {self.path.name}"})
        if ends is None:
            provenance["success"] = "assumed: the dataset does not tell"
        spec, skills = extra.get("spec"), extra.get("skills")
        rewards = column(layout.REWARD)
        steps = part.num_rows
        return Demonstration(
            instruction=self._tasks[part["task_index"][0].as_py()],
            images=images,
            frame_index=np.arange(steps),
            proprio=state_from(self.convention, needed(layout.STATE)),
            actions=actions_from(self.convention, needed(layout.ACTION)),
            rewards=np.zeros(steps, np.float32) if rewards is None else rewards,
            success=bool(ends[-1]) if ends is not None else True,
            expert_actions=clean(column(layout.EXPERT_ACTION), self.convention),
            spec=EpisodeSpec.from_dict(spec) if spec else None,
            skills=tuple(name for name, count in skills for _ in range(count)) if skills else None,
            joint_states=column(layout.JOINTS, np.float64),
            fps=self.convention.fps,
            provenance=provenance,
        )


def _picture(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError("a stored frame is not a picture")
    return image[..., ::-1]
