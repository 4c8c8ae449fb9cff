"""What every format offers: what a dataset is, its episodes, writing one, and checking one.

Legend: H x W image size.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla_rl.data.convention import NATIVE, Convention
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import TaskHeader
from vla_rl.data.resume import remove_leftovers

Episodes = Iterator[tuple[TaskHeader, Demonstration]]


@dataclass(frozen=True)
class DatasetInfo:
    """What `vla-rl data info` prints."""

    format: str
    path: str
    episodes: int
    steps: int
    successes: int | None
    """None where the dataset does not tell."""
    instructions: Mapping[str, int]
    """Episodes of each instruction."""
    cameras: Mapping[str, tuple[int, int]]
    """Height and width of the frames of each camera."""
    convention: Convention
    assumed: tuple[str, ...]
    """Parts of the convention that the dataset does not state; the format's usual ones are taken."""
    size_bytes: int
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ReadOptions:
    """What to read of a dataset, and what the user knows about it."""

    cameras: Sequence[str] | None = None
    """Whose frames to load; None: all there are."""
    limit: int | None = None
    """Episodes (of each file, where a dataset has several)."""
    stated: Mapping[str, Any] = field(default_factory=dict)
    """Parts of the convention that the dataset itself does not state."""


@dataclass(frozen=True)
class WriteOptions:
    """How to write a dataset."""

    convention: Convention | None = None
    """None: the format's usual one. Its rate is ignored: episodes know theirs."""
    frames: str = "video"
    """LeRobot: video (H.264, lossy) or png (lossless)."""
    quality: int | None = None
    """H.264's constant rate factor (default 18), or RLDS's JPEG quality in percent (default 95)."""
    compression: str | None = None
    """HDF5: gzip, lzf or None."""
    name: str = ""
    """RLDS: the dataset's name."""


def settle_convention(
    own: Mapping[str, Any] | None, usual: Convention, stated: Mapping[str, Any]
) -> tuple[Convention, tuple[str, ...]]:
    """A dataset's convention, and the parts that are assumed: its own statement, else the user's, else the usual ones.

    Raises `DatasetError` where the user contradicts the dataset.
    """
    unknown = set(stated) - set(usual.to_dict())
    if unknown:
        raise DatasetError(f"there is no convention {', '.join(sorted(unknown))}; there are: {', '.join(usual.to_dict())}")
    own = dict(own or {})
    for name, value in stated.items():
        if name in own and own[name] != value:
            raise DatasetError(f"the dataset itself states {name} {own[name]}; it cannot be read as {value}")
    assumed = tuple(name for name in usual.to_dict() if name not in own and name not in stated)
    return Convention.from_dict(usual.to_dict() | dict(stated) | own), assumed


def header_to_dict(header: TaskHeader) -> dict[str, Any]:
    return asdict(header)


def plain_header(instruction: str, fps: float = NATIVE.fps) -> TaskHeader:
    """The header of a task of which nothing but the instruction is known."""
    arguments = {"type": 1, "env_name": "unknown", "env_kwargs": {"control_freq": fps}}
    return TaskHeader("unknown", {"language_instruction": instruction}, "", "", arguments)


def folder_size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete, or not at all.

    Raises `DatasetError` where the name is taken, and when the disk is full or the place cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise DatasetError(f"{path} exists already; choose another name, or delete it")
    remove_leftovers(path.parent, f".{path.name}.*.partial")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise DatasetError(
            f"cannot write {path} ({error.strerror or error}): free space or choose another folder; nothing was left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_json(path: Path, what: str) -> Any:
    """A JSON file. Raises `DatasetError` where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{what} lacks {path.name} ({path}): it is incomplete; copy or make it again") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read ({str(error).splitlines()[0]}): copy or make the dataset again") from error
