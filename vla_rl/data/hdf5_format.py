"""LIBERO's HDF5 files as one of the formats that convert into each other: a folder with one file a task.

Legend: H x W image size.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from vla_rl.data.convention import NATIVE
from vla_rl.data.dataset import DatasetInfo, Episodes, ReadOptions, WriteOptions, new_folder, settle_convention
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import (
    CAMERA_OF_DATASET,
    IMAGE_CONVENTION,
    JOINT_TARGETS,
    READ_ERRORS,
    TAG,
    TaskHeader,
    add_episode,
    control_rate,
    dataset_files,
    episode_names,
    instruction_of,
    merge_parts,
    open_dataset,
    parts_folder,
    read_demonstrations,
)


def is_hdf5(path: Path) -> bool:
    if path.is_file():
        return path.suffix in (".hdf5", ".h5")
    if parts_folder(path).is_dir():  # an unfinished file: only its episodes are there
        return True
    return any(path.glob("*.hdf5")) or any(path.glob("*.hdf5.parts")) or path.name.endswith(".hdf5.parts")


def hdf5_info(path: Path, options: ReadOptions) -> DatasetInfo:
    """Describe a file or folder, without loading frames. Raises `DatasetError` for damaged or foreign files."""
    files = dataset_files(path)
    convention, assumed = _convention(files[0], options)
    counts: Counter[str] = Counter()
    cameras: dict[str, tuple[int, int]] = {}
    steps = successes = 0
    thinned = bimanual = False
    for file in files:
        with open_dataset(file) as source:
            for name in episode_names(source):
                try:
                    group = source[f"data/{name}"]
                    counts[instruction_of(source["data"].attrs, group.attrs)] += 1
                    steps += len(group["actions"])
                    successes += bool(group.attrs.get("success", "dones" not in group or group["dones"][-1] == 1))
                    thinned |= "frame_index" in group["obs"]
                    bimanual |= JOINT_TARGETS in group["obs"]
                    for key in (key for key in group["obs"] if key.endswith("_rgb")):
                        shape = group["obs"][key].shape
                        cameras[CAMERA_OF_DATASET.get(key, key.removesuffix("_rgb"))] = (shape[1], shape[2])
                except READ_ERRORS as error:
                    raise DatasetError(f"{file}, {name}: cannot be read ({error}); the file is damaged") from error
    remarks = ["frames are not stored at every step"] if thinned else []
    if bimanual:
        remarks.append("two arms: joint angles (rad) and openings (0 to 1) instead of orientation and gripper as above")
    if any(file.parent.name.endswith(".parts") for file in files):
        remarks.append("some files are unfinished: their finished episodes are counted")
    return DatasetInfo(
        format="hdf5",
        path=str(path),
        episodes=sum(counts.values()),
        steps=steps,
        successes=successes,
        instructions=dict(counts),
        cameras=cameras,
        convention=convention,
        assumed=assumed,
        size_bytes=sum(file.stat().st_size for file in files),
        remarks=tuple(remarks),
    )


def _convention(file: Path, options: ReadOptions) -> tuple[Any, tuple[str, ...]]:
    with open_dataset(file) as source:
        header = source["data"].attrs
        try:
            own = json.loads(header["convention"]) if "convention" in header else {}
            if header.get("tag") == TAG:  # LIBERO's own format has no other orientation and gripper
                own |= {"orientation": NATIVE.orientation, "gripper": NATIVE.gripper}
            if "macros_image_convention" in header:
                own["frames"] = "upright" if header["macros_image_convention"] == "opencv" else "opengl"
            first = source[f"data/{episode_names(source)[0]}"].attrs
            if "control_freq" in first or "env_args" in header:
                own["fps"] = control_rate(header, first)
        except READ_ERRORS as error:
            raise DatasetError(f"{file}: its description cannot be read ({error}); the file is damaged") from error
    for name, value in options.stated.items():
        if name != "fps" and value != getattr(NATIVE, name, value) and name not in own:
            raise DatasetError(f"LIBERO's HDF5 files have {name} {getattr(NATIVE, name)}; {value} cannot be read from them")
    return settle_convention(own, NATIVE, options.stated)


def read_hdf5(path: Path, options: ReadOptions) -> Episodes:
    """Episodes with their file's header, one in memory at a time."""
    convention, _ = _convention(dataset_files(path)[0], options)
    for file in dataset_files(path):
        header = read_header(file)
        for demonstration in read_demonstrations(file, options.cameras, options.limit):
            if "fps" in options.stated:
                demonstration = replace(demonstration, fps=convention.fps)
            yield header, demonstration


def read_header(file: Path) -> TaskHeader:
    """The description of a file's task; a foreign file may lack parts of it."""
    with open_dataset(file) as source:
        attributes: Mapping[str, Any] = source["data"].attrs
        try:
            return TaskHeader(
                env_name=str(attributes.get("env_name", "unknown")),
                problem_info=json.loads(attributes["problem_info"]) if "problem_info" in attributes else {},
                bddl_file_name=str(attributes.get("bddl_file_name", "")),
                bddl_file_content=str(attributes.get("bddl_file_content", "")),
                env_args=json.loads(attributes.get("env_args", "{}")),
                extra={"collection": str(attributes["collection"])} if "collection" in attributes else {},
                image_convention=str(attributes.get("macros_image_convention", IMAGE_CONVENTION)),
            )
        except READ_ERRORS as error:
            raise DatasetError(f"{file}: its description cannot be read ({error}); the file is damaged") from error


def write_hdf5(path: Path, episodes: Iterable[tuple[TaskHeader, Demonstration]], options: WriteOptions) -> Path:
    """Write a folder with one file a task, which is there whole or not at all.

    Raises `DatasetError` for a convention that is not LIBERO's, and when the disk is full.
    """
    for name, value in (options.convention or NATIVE).to_dict().items():
        if name != "fps" and value != getattr(NATIVE, name):
            raise DatasetError(f"LIBERO's HDF5 files have {name} {getattr(NATIVE, name)}, not {value}; choose another format")
    if path.suffix in (".hdf5", ".h5"):
        raise DatasetError(f"{path} names a file; name the folder that will hold one file a task")
    with new_folder(path) as folder:
        counts: Counter[str] = Counter()
        try:
            for header, demonstration in episodes:
                name = f"{_file_stem(header, demonstration)}_demo.hdf5"
                add_episode(folder / name, header, counts[name], demonstration, options.compression)
                counts[name] += 1
            for name in counts:
                merge_parts(folder / name)
        except DatasetError as error:
            # What the episode writer says about finished parts is not so here: the folder goes.
            if isinstance(error.__cause__, OSError | RuntimeError) and not isinstance(error.__cause__, DatasetError):
                raise OSError(str(error.__cause__).splitlines()[0]) from error
            raise
        if not counts:
            raise DatasetError(f"there is no episode to write to {path}")
    return path


def _file_stem(header: TaskHeader, demonstration: Demonstration) -> str:
    if header.bddl_file_name:
        return Path(header.bddl_file_name).stem
    return re.sub(r"[^a-z0-9]+", "_", demonstration.instruction.lower()).strip("_") or "unnamed"


def check_hdf5(path: Path) -> list[str]:
    """Findings that LIBERO's and robomimic's readers would stumble on; reading alone finds damage."""
    findings = []
    for file in dataset_files(path):
        with open_dataset(file) as source:
            findings += [f"{file.name}: {finding}" for finding in _check_file(source)]
    return findings


def _check_file(source: h5py.File) -> list[str]:
    findings = []
    attributes, names = source["data"].attrs, episode_names(source)
    for name in ("env_args", "problem_info", "total"):
        if name not in attributes:
            findings.append(f"data lacks the attribute {name}")
    if int(attributes.get("num_demos", len(names))) != len(names):
        findings.append(f"num_demos is {attributes['num_demos']}, but there are {len(names)} episodes")
    steps = 0
    for name in names:
        group = source[f"data/{name}"]
        length = len(group["actions"])
        steps += length
        if int(group.attrs.get("num_samples", -1)) != length:
            findings.append(f"{name}: num_samples is {group.attrs.get('num_samples')}, but it has {length} actions")
        for key in ("states", "rewards", "dones", "obs"):
            if key not in group:
                findings.append(f"{name} lacks {key}")
        uneven = [key for key in group.get("obs", {}) if len(group["obs"][key]) != length]
        if uneven:
            findings.append(f"{name}: {', '.join(uneven)} do not have a row a step; only readers of ours can use them")
    if int(attributes.get("total", steps)) != steps:
        findings.append(f"total is {attributes['total']}, but there are {steps} steps")
    return findings
