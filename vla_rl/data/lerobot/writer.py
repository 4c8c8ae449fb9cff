"""Writes a LeRobotDataset v3.0: parquet for numbers, mp4 (or png inside the parquet) for frames, statistics, episodes.

Legend: T control steps, H x W image size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from vla_rl.data.convention import Convention, actions_to, state_to, turn_frames
from vla_rl.data.dataset import WriteOptions, header_to_dict, new_folder
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.lerobot import layout
from vla_rl.data.lerobot.statistics import FrameHistogram, vector_statistics
from vla_rl.data.lerobot.video import VideoWriter
from vla_rl.data.libero_hdf5 import TaskHeader
from vla_rl.data.quality import quality_of

ROBOT_TYPE = "panda"
VIDEO_QUALITY = 18
AXES = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"]
STATE_NAMES = {
    8: ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "finger1", "finger2"],
    9: ["x", "y", "z", "quaternion1", "quaternion2", "quaternion3", "quaternion4", "finger1", "finger2"],
}


def write_lerobot(path: Path, episodes: Iterable[tuple[TaskHeader, Demonstration]], options: WriteOptions) -> Path:
    """Write a dataset that is there whole or not at all.

    Every episode must have a frame a step, one rate, and hold what the first one holds. Raises `DatasetError` otherwise,
    and when the disk is full.
    """
    layout.arrow()
    if options.frames not in ("video", "png"):
        raise DatasetError(f"frames cannot be stored as {options.frames!r}; choose video or png")
    with new_folder(path) as folder:
        writer: _Writer | None = None
        try:
            for header, demonstration in episodes:
                writer = writer or _Writer(folder, demonstration, options)
                writer.add(header, demonstration)
            if writer is None:
                raise DatasetError(f"there is no episode to write to {path}")
            writer.finish()
        except av.error.FFmpegError as error:
            raise OSError(str(error).splitlines()[0]) from error
        finally:
            if writer is not None:
                writer.abandon()
    return path


class _Writer:
    """The files of one dataset; the first episode decides what all must hold."""

    def __init__(self, folder: Path, first: Demonstration, options: WriteOptions) -> None:
        self._pa, self._parquet = layout.arrow()
        self._folder, self._options, self._fps = folder, options, first.fps
        self._convention = Convention.from_dict((options.convention or layout.USUAL).to_dict() | {"fps": first.fps})
        self._cameras = {layout.key_of(camera): camera for camera in first.images}
        self._extra = {
            name: kind
            for name, kind, there in (
                (layout.EXPERT_ACTION, "float32", first.expert_actions is not None),
                (layout.JOINTS, "float64", first.joint_states is not None),
            )
            if there
        }
        self._features = self._list_features(first)
        self._tasks: dict[str, int] = {}
        self._headers: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._extras: list[dict[str, Any]] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._histograms = {key: FrameHistogram() for key in self._cameras}
        self._data: Any = None
        self._data_file, self._data_bytes = -1, 0
        self._videos: dict[str, VideoWriter] = {}
        self._video_file = dict.fromkeys(self._cameras, -1)
        self._steps = 0

    def _list_features(self, first: Demonstration) -> dict[str, dict[str, Any]]:
        width = 8 if self._convention.orientation == "axis_angle" else 9
        features: dict[str, dict[str, Any]] = {}
        for key, camera in self._cameras.items():
            height, breadth = first.images[camera].shape[1:3]
            kind = "video" if self._options.frames == "video" else "image"
            features[key] = {"dtype": kind, "shape": [height, breadth, 3], "names": ["height", "width", "channels"]}
        features[layout.STATE] = {"dtype": "float32", "shape": [width], "names": STATE_NAMES[width]}
        features[layout.ACTION] = {"dtype": "float32", "shape": [7], "names": AXES}
        for name, kind in self._extra.items():
            features[name] = {"dtype": kind, "shape": [7], "names": AXES if name == layout.EXPERT_ACTION else None}
        for name, kind in (
            (layout.REWARD, "float32"), (layout.DONE, "bool"), (layout.SUCCESS, "bool"), ("timestamp", "float32"),
            ("frame_index", "int64"), ("episode_index", "int64"), ("index", "int64"), ("task_index", "int64"),
        ):  # fmt: skip
            features[name] = {"dtype": kind, "shape": [1], "names": None}
        return features

    # -- an episode ----------------------------------------------------------------------------------------------------
    def add(self, header: TaskHeader, demo: Demonstration) -> None:
        number, steps = len(self._rows), len(demo)
        self._check(demo, number)
        columns = self._numbers(demo, number)
        frames = {
            key: turn_frames(demo.images[camera], "opengl", self._convention.frames) for key, camera in self._cameras.items()
        }
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [demo.instruction],
            "length": steps,
            **self._add_table(columns, frames),
            "dataset_from_index": self._steps,
            "dataset_to_index": self._steps + steps,
        }
        for key, images in frames.items():
            if self._options.frames == "video":
                row |= self._add_video(key, images)
            histogram = FrameHistogram()
            histogram.add(images)
            self._histograms[key].merge(histogram)
            row |= {f"stats/{key}/{name}": value for name, value in histogram.statistics().items()}
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)
            row |= {f"stats/{name}/{what}": value for what, value in vector_statistics(values.reshape(steps, -1)).items()}
        self._rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._extras.append(self._extras_of(header, demo))
        self._steps += steps

    def _check(self, demo: Demonstration, number: int) -> None:
        demo.validate()
        if demo.images and len(demo.frame_index) != len(demo):
            raise DatasetError(
                f"episode {number} has {len(demo.frame_index)} frames of {len(demo)} steps; LeRobot datasets need one a step: "
                "collect with frame_stride 1, or convert without cameras"
            )
        if demo.fps != self._fps:
            raise DatasetError(f"episode {number} runs at {demo.fps:g} Hz, those before at {self._fps:g}; a dataset has one rate")
        there = {layout.key_of(camera): list(frames.shape[1:]) for camera, frames in demo.images.items()}
        wanted = {key: self._features[key]["shape"] for key in self._cameras}
        extra = {layout.EXPERT_ACTION: demo.expert_actions, layout.JOINTS: demo.joint_states}
        if there != wanted or any((extra[name] is not None) != (name in self._extra) for name in extra):
            raise DatasetError(
                f"episode {number} holds other cameras, sizes or columns than the first ({there} instead of {wanted}); "
                "a LeRobot dataset needs the same in all: choose cameras, or convert the files one by one"
            )

    def _numbers(self, demo: Demonstration, number: int) -> dict[str, np.ndarray]:
        steps, time = len(demo), np.arange(len(demo))
        last = time == steps - 1
        columns = {
            layout.STATE: state_to(self._convention, demo.proprio),
            layout.ACTION: actions_to(self._convention, demo.actions),
            layout.REWARD: demo.rewards,
            layout.DONE: last,
            layout.SUCCESS: last & demo.success,
            "timestamp": (time / self._fps).astype(np.float32),
            "frame_index": time,
            "episode_index": np.full(steps, number),
            "index": self._steps + time,
            "task_index": np.full(steps, self._tasks.setdefault(demo.instruction, len(self._tasks))),
        }
        if demo.expert_actions is not None:
            columns[layout.EXPERT_ACTION] = actions_to(self._convention, demo.expert_actions)
        if demo.joint_states is not None:
            columns[layout.JOINTS] = demo.joint_states
        return columns

    def _add_table(self, columns: dict[str, np.ndarray], frames: dict[str, np.ndarray]) -> dict[str, Any]:
        """Append an episode to the parquet file, as a row group of its own; returns where it is."""
        pa = self._pa
        arrays = {}
        for name, feature in self._features.items():
            if name in frames:
                if feature["dtype"] == "image":
                    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                    pictures = [{"bytes": _png(image), "path": f"frame-{t:06d}.png"} for t, image in enumerate(frames[name])]
                    arrays[name] = pa.array(pictures, kind)
                continue
            values = np.ascontiguousarray(columns[name], dtype=feature["dtype"])
            flat = pa.array(values.ravel())
            arrays[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        table = pa.table(arrays)
        if self._data is None or self._data_bytes + table.nbytes > layout.DATA_MB * 2**20:
            if self._data is not None:
                self._data.close()
            self._data_file, self._data_bytes = self._data_file + 1, 0
            place = self._folder / layout.DATA_PATH.format(**_numbered(self._data_file))
            place.parent.mkdir(parents=True, exist_ok=True)
            self._data = self._parquet.ParquetWriter(place, table.schema)
        self._data.write_table(table)
        self._data_bytes += table.nbytes
        return {f"data/{name}": value for name, value in _numbered(self._data_file).items()}

    def _add_video(self, key: str, images: np.ndarray) -> dict[str, Any]:
        """Append an episode to a camera's mp4 file; returns where it is."""
        video = self._videos.get(key)
        if video is None or video.path.stat().st_size > layout.VIDEO_MB * 2**20:
            if video is not None:
                video.close()
            self._video_file[key] += 1
            place = self._folder / layout.VIDEO_PATH.format(video_key=key, **_numbered(self._video_file[key]))
            quality = VIDEO_QUALITY if self._options.quality is None else self._options.quality
            video = self._videos[key] = VideoWriter(place, self._fps, images.shape[1], images.shape[2], quality)
        start = video.frames
        video.add(images)
        where = {
            **_numbered(self._video_file[key]),
            "from_timestamp": start / self._fps,
            "to_timestamp": video.frames / self._fps,
        }
        return {f"videos/{key}/{name}": value for name, value in where.items()}

    def _extras_of(self, header: TaskHeader, demo: Demonstration) -> dict[str, Any]:
        described = header_to_dict(header)
        if described not in self._headers:
            self._headers.append(described)
        return {
            "header": self._headers.index(described),
            "success": demo.success,
            "spec": demo.spec.to_dict() if demo.spec else None,
            "provenance": dict(demo.provenance),
            "quality": quality_of(demo).to_dict(),
            "skills": [[name, len(list(run))] for name, run in groupby(demo.skills)] if demo.skills else None,
        }

    # -- the end -------------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        self._data.close()
        self._data = None
        for key, video in self._videos.items():
            video.close()
            self._features[key]["info"] = {
                "video.height": self._features[key]["shape"][0],
                "video.width": self._features[key]["shape"][1],
                "video.codec": {"libx264": "h264", "libopenh264": "h264"}.get(video.codec, video.codec),
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": _whole(self._fps),
                "video.channels": 3,
                "has_audio": False,
            }
        self._videos = {}
        statistics = {key: histogram.statistics() for key, histogram in self._histograms.items()}
        for name, parts in self._columns.items():
            rows = np.concatenate(parts)
            statistics[name] = vector_statistics(rows.reshape(len(rows), -1))
        place = self._folder / layout.EPISODES_PATH.format(**_numbered(0))
        place.parent.mkdir(parents=True, exist_ok=True)
        self._parquet.write_table(self._pa.Table.from_pylist(self._rows), place)
        self._parquet.write_table(self._task_table(), self._folder / layout.TASKS)
        for name, content in (
            (layout.INFO, self._info()),
            (layout.STATS, statistics),
            (layout.EXTRAS, {"convention": self._convention.to_dict(), "headers": self._headers, "episodes": self._extras}),
        ):
            (self._folder / name).write_text(json.dumps(content, indent=None if name == layout.EXTRAS else 2), encoding="utf-8")

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": layout.VERSION,
            "robot_type": ROBOT_TYPE,
            "total_episodes": len(self._rows),
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.CHUNK_SIZE,
            "data_files_size_in_mb": layout.DATA_MB,
            "video_files_size_in_mb": layout.VIDEO_MB,
            "fps": _whole(self._fps),
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._options.frames == "video" and self._cameras else None,
            "features": self._features,
        }

    def _task_table(self) -> Any:
        """Instructions with their numbers; the metadata tells pandas that `task` is the index."""
        table = self._pa.table(
            {"task_index": self._pa.array(list(self._tasks.values()), self._pa.int64()), "task": list(self._tasks)}
        )
        column = {"metadata": None}
        described = {
            "index_columns": ["task"],
            "column_indexes": [
                {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
            ],
            "columns": [
                column | {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
                column | {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
            ],
            "pandas_version": "2.2.0",
        }
        return table.replace_schema_metadata({"pandas": json.dumps(described)})

    def abandon(self) -> None:
        """Close what an error left open."""
        for thing in ([self._data] if self._data is not None else []) + list(self._videos.values()):
            try:
                thing.abandon() if isinstance(thing, VideoWriter) else thing.close()
            except (OSError, ValueError, av.error.FFmpegError):  # the disk is still full
                continue


def _numbered(file: int) -> dict[str, int]:
    return {"chunk_index": file // layout.CHUNK_SIZE, "file_index": file % layout.CHUNK_SIZE}


def _whole(fps: float) -> int | float:
    return int(fps) if fps == int(fps) else fps


def _png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise DatasetError(f"a frame of shape {image.shape} cannot become a png")
    return data.tobytes()
