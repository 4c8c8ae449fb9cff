"""Going on with a collection that was stopped: which episodes of a file are there, and whether they belong to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from vla_rl.data.demonstration import DatasetError
from vla_rl.data.libero_hdf5 import episode_names, finished_parts, open_dataset, parts_folder, split_into_parts


def finished_episodes(path: Path, collection: str, count: int) -> set[int]:
    """Numbers of the episodes that are there already; checks that they were made with the same settings."""
    folder = parts_folder(path)
    remove_leftovers(folder, "*.tmp")
    remove_leftovers(path.parent, f"{path.name}.*.tmp")
    if path.exists():
        there = _check(path, path, collection)
        if there >= count:
            shutil.rmtree(folder, ignore_errors=True)
            return set(range(count))
        split_into_parts(path)
    for key in finished_parts(path):
        _check(folder / f"episode_{key:06d}.hdf5", path, collection)
    return set(finished_parts(path))


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete the half-written files and folders `*.PID.*` whose process has ended."""
    for leftover in folder.glob(pattern):
        writer = leftover.name.split(".")[-2]
        # In a container a process can have the number of the one before it.
        if writer.isdigit() and (int(writer) == os.getpid() or not Path(f"/proc/{writer}").exists()):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _check(file: Path, path: Path, collection: str) -> int:
    with open_dataset(file) as source:
        stored = source["data"].attrs.get("collection")
        if stored is None:
            raise DatasetError(f"{path} was not made by this collector; choose another folder, or move the file away")
        if stored != collection:
            before, now = json.loads(stored), json.loads(collection)
            changed = ", ".join(
                f"{name} was {before.get(name)}, is now {now[name]}" for name in now if before.get(name) != now[name]
            )
            raise DatasetError(f"{path} holds demonstrations of other settings ({changed}); choose another folder, or delete it")
        return len(episode_names(source))
