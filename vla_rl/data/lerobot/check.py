"""Checks what LeRobotDataset's own reader relies on, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from vla_rl.data.dataset import read_json
from vla_rl.data.demonstration import DatasetError
from vla_rl.data.lerobot import layout

INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
TOLERANCE = 1e-4
"""s; LeRobot refuses a frame that lies farther from its time."""


def check_lerobot(path: Path) -> list[str]:
    """Findings in words; none where everything is as LeRobot's reader expects it."""
    info = layout.read_info(path)
    findings = [f"features lack {name}" for name in INDEX_COLUMNS if name not in info["features"]]
    if not isinstance(info["fps"], int):
        findings.append(f"fps is {info['fps']}; LeRobot's tools expect a whole number")
    findings += _check_statistics(path, info) + _check_tasks(path)
    rows, more = _read_rows(path)
    findings += more
    findings += _check_data(path, info, rows)
    if info.get("video_path"):
        findings += _check_videos(path, info, rows)
    return findings


def _check_statistics(path: Path, info: dict[str, Any]) -> list[str]:
    statistics = read_json(path / layout.STATS, str(path))
    findings = []
    for name in info["features"]:
        missing = STATISTICS - set(statistics.get(name, {}))
        if missing:
            findings.append(f"stats.json lacks {', '.join(sorted(missing))} of {name}")
    return findings


def _check_tasks(path: Path) -> list[str]:
    _, parquet = layout.arrow()
    with layout.reading(path / layout.TASKS):
        schema = parquet.read_schema(path / layout.TASKS)
    columns = (schema.pandas_metadata or {}).get("index_columns")
    return [] if columns in (["task"], ["__index_level_0__"]) else [f"tasks.parquet has the index {columns}, not the instruction"]


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    _, parquet = layout.arrow()
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        with layout.reading(file):
            names = [name for name in parquet.read_schema(file).names if not name.startswith("stats/")]
            rows += parquet.read_table(file, columns=names).to_pylist()
    findings, at = [], 0
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            findings.append(f"row {number} of meta/episodes is episode {row['episode_index']}")
        if (row["dataset_from_index"], row["dataset_to_index"]) != (at, at + row["length"]):
            findings.append(
                f"episode {number} claims rows {row['dataset_from_index']} to {row['dataset_to_index']}, not from {at}"
            )
        at += row["length"]
    return rows, findings


def _check_data(path: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    _, parquet = layout.arrow()
    findings, index, episode = [], 0, 0
    wanted = {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    for file in sorted((path / "data").glob("*/*.parquet")):
        with layout.reading(file):
            there = set(parquet.read_schema(file).names)
            if there != wanted:
                findings.append(f"{file.name} has other columns than info.json: {', '.join(sorted(there ^ wanted))}")
            table = parquet.read_table(file, columns=[name for name in INDEX_COLUMNS if name in there])
            column = {name: table[name].to_numpy() for name in table.column_names}
        if not np.array_equal(column["index"], index + np.arange(len(table))):
            findings.append(f"{file.name}: index does not count up from {index}")
        if (np.abs(column["timestamp"] - column["frame_index"] / info["fps"]) > TOLERANCE).any():
            findings.append(f"{file.name}: timestamps are not frame_index / fps")
        lengths = np.bincount(column["episode_index"] - episode) if len(table) else np.zeros(0, int)
        claimed = [row["length"] for row in rows[episode : episode + len(lengths)]]
        if lengths.tolist() != claimed:
            findings.append(f"{file.name}: episodes have {lengths.tolist()} steps, meta/episodes says {claimed}")
        index, episode = index + len(table), episode + len(lengths)
    if index != info["total_frames"]:
        findings.append(f"there are {index} steps, info.json says {info['total_frames']}")
    return findings


def _check_videos(path: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Counts packets, and decodes the first frame: a truncated file shows, a damaged picture in the middle does not."""
    findings = []
    for key in (name for name, feature in info["features"].items() if feature["dtype"] == "video"):
        needed: dict[Path, float] = {}
        for row in rows:
            place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            file = path / info["video_path"].format(video_key=key, **place)
            needed[file] = max(needed.get(file, 0.0), row[f"videos/{key}/to_timestamp"])
        for file, seconds in needed.items():
            with layout.reading(file), av.open(str(file)) as container:
                stream = container.streams.video[0]
                if container.format.name.find("mp4") < 0:
                    raise DatasetError(f"{file} is {container.format.long_name}, not mp4")
                shape = [stream.height, stream.width]
                packets = sum(packet.size > 0 for packet in container.demux(stream))
            if shape != info["features"][key]["shape"][:2]:
                findings.append(
                    f"{file}: frames are {shape[0]} x {shape[1]}, info.json says {info['features'][key]['shape'][:2]}"
                )
            if packets < round(seconds * info["fps"]):
                findings.append(f"{file} holds {packets} frames, its episodes need {round(seconds * info['fps'])}")
    return findings
