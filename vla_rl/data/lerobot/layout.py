"""Names and paths of LeRobotDataset v3.0, and what we add to it: `meta/vla_rl.json`, which other readers ignore."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av

from vla_rl.data.convention import Convention
from vla_rl.data.dataset import read_json
from vla_rl.data.demonstration import DatasetError

VERSION = "v3.0"
INFO, STATS, TASKS, EXTRAS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/vla_rl.json"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_SIZE, DATA_MB, VIDEO_MB = 1000, 100, 200
"""Files of a folder, and the sizes at which a new file begins."""

KEY_OF_CAMERA = {"agentview": "observation.images.image", "robot0_eye_in_hand": "observation.images.image2"}
CAMERA_OF_KEY = {key: camera for camera, key in KEY_OF_CAMERA.items()}
STATE, ACTION, EXPERT_ACTION, JOINTS = "observation.state", "action", "expert_action", "observation.joint_state"
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
USUAL = Convention(frames="rotated_180")
"""What LIBERO sets of others in this format mean."""


def key_of(camera: str) -> str:
    return KEY_OF_CAMERA.get(camera, f"observation.images.{camera}")


def camera_of(key: str) -> str:
    return CAMERA_OF_KEY.get(key, key.removeprefix("observation.images."))


def arrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its Parquet module. Raises `DatasetError` where they are not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DatasetError("LeRobot datasets need pyarrow: pip install 'vla_rl[lerobot]'") from error


def read_info(path: Path) -> dict[str, Any]:
    """`meta/info.json`, of the version that we read."""
    info = read_json(path / INFO, f"the LeRobot dataset {path}")
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version != VERSION:
        raise DatasetError(
            f"{path} is a LeRobot dataset of version {version}, we read {VERSION}; convert it with LeRobot's own script"
        )
    missing = [name for name in ("fps", "features", "data_path", "total_episodes", "total_frames") if name not in info]
    if missing:
        raise DatasetError(f"{path / INFO} lacks {', '.join(missing)}: it is damaged; copy or make the dataset again")
    return info


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is raised over a damaged file, by pyarrow and av as well, becomes one `DatasetError`."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: the dataset is incomplete; copy or make it again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, av.error.FFmpegError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(
            f"{path} cannot be read ({words}): it is truncated, damaged or of another kind; copy or make the dataset again"
        ) from error
