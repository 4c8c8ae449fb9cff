"""LIBERO's HDF5 demonstrations: `<TASK>_demo.hdf5`, readable by LIBERO, robomimic and OpenVLA's converters.

Layout: `data` carries the task's description as attributes, `data/demo_i` one episode. Beyond the format we store
`expert_actions`, `skill`, the episode spec and provenance, which foreign readers ignore; with thinned-out frames
`obs/frame_index` says which steps the images show (such a file is for our reader only).

The writer puts each finished episode into a part file of its own (the same layout, one episode), renamed into place when
complete, and merges the parts at the end: a kill or a full disk at any instant costs at most the unfinished episode.

Legend: T control steps, F frames, H x W image size.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32

from vla_rl.data.convention import NATIVE, actions_from, quaternion
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.quality import quality_of
from vla_rl.types import EpisodeSpec

TAG = "libero-v1"
IMAGE_CONVENTION = "opengl"
"""robosuite's name for frames as OpenGL returns them, bottom row first."""
DATASET_OF_CAMERA = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
CAMERA_OF_DATASET = {dataset: camera for camera, dataset in DATASET_OF_CAMERA.items()}
JOINT_TARGETS = "joint_targets"
"""Proprioception of RoboTwin's two arms; files with it have frames as the simulator renders them, top row first."""
OBJECT_POSES = "object_poses"
"""What privileged proprioception has behind it."""
READ_ERRORS = (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError)
"""What h5py and numpy raise on damaged files."""


@dataclass(frozen=True)
class TaskHeader:
    """The description of the task, the same for all episodes of a file."""

    env_name: str
    """robosuite's name of the environment class, such as Libero_Floor_Manipulation."""
    problem_info: Mapping[str, Any]
    """Holds at least `language_instruction`."""
    bddl_file_name: str
    bddl_file_content: str
    env_args: Mapping[str, Any]
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further attributes of ours."""
    image_convention: str = IMAGE_CONVENTION
    """opengl: bottom row first; opencv: top row first."""


def add_episode(path: Path, header: TaskHeader, key: int, demonstration: Demonstration, compression: str | None = None) -> Path:
    """Write a finished episode of the file `path` as a part; when this returns, it survives a kill.

    `key` orders the episodes. `compression` of the frames is "gzip", "lzf" or None. Raises `DatasetError` for an
    episode that is not whole, and when the disk is full or the place cannot be written; finished episodes stay.
    """
    if compression not in (None, "gzip", "lzf"):
        raise DatasetError(f"compression {compression!r} is unknown; choose gzip, lzf or none")
    demonstration.validate()
    target = _part(path, key)
    with _writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _atomic(target) as file:
            data = file.create_group("data")
            _write_header(data, header)
            _write_episode(data.create_group("demo_0"), key, demonstration, compression)
            _write_totals(data)
    return target


def merge_parts(path: Path) -> Path:
    """Merge the parts of a file, ordered by key, and remove them. Raises `DatasetError` when there are none."""
    parts = [_part(path, key) for key in finished_parts(path)]
    if not parts:
        raise DatasetError(f"{path}: there is no finished episode to write")
    with _writing(path), _atomic(path, sum(part.stat().st_size for part in parts)) as file:
        data = file.create_group("data")
        for index, part in enumerate(parts):
            with open_dataset(part) as source:
                source.copy("data/demo_0", data, name=f"demo_{index}")
                if index == 0:
                    for name, value in source["data"].attrs.items():
                        data.attrs[name] = value
        _write_totals(data)
    shutil.rmtree(parts_folder(path), ignore_errors=True)
    return path


def split_into_parts(path: Path) -> None:
    """Make parts of a finished file's episodes again, where there are none, so that others can be added."""
    with _writing(path), open_dataset(path) as source:
        parts_folder(path).mkdir(exist_ok=True)
        for name in episode_names(source):
            target = _part(path, int(source[f"data/{name}"].attrs["episode_key"]))
            if not target.exists():
                with _atomic(target) as file:
                    data = file.create_group("data")
                    source.copy(f"data/{name}", data, name="demo_0")
                    for key, value in source["data"].attrs.items():
                        data.attrs[key] = value
                    _write_totals(data)


def finished_parts(path: Path) -> list[int]:
    """Keys of the finished episodes of an unfinished file, in order."""
    return sorted(int(part.stem.split("_")[1]) for part in parts_folder(path).glob("episode_*.hdf5"))


def write_demonstrations(
    path: Path, header: TaskHeader, demonstrations: Iterable[Demonstration], compression: str | None = None
) -> Path:
    """Write a whole file."""
    for key, demonstration in enumerate(demonstrations):
        add_episode(path, header, key, demonstration, compression)
    return merge_parts(path)


def parts_folder(path: Path) -> Path:
    """Where the finished episodes of an unfinished file lie."""
    return path.with_name(path.name + ".parts")


def dataset_files(path: Path) -> list[Path]:
    """The HDF5 files of a path: itself, or those of a folder (finished episodes of unfinished files included).

    Each episode is in one of them: while a file grows, and after a kill, some lie in it and beside it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(path.glob("*.hdf5"))
        for whole in [folder.with_suffix("") for folder in sorted(path.glob("*.hdf5.parts"))]:
            merged = _keys(whole) if whole in files else set()
            files += [_part(whole, key) for key in finished_parts(whole) if key not in merged]
        if files:
            return files
        raise DatasetError(f"{path} holds no .hdf5 file; name a LIBERO demonstration file or a folder of them")
    if parts_folder(path).is_dir():
        return dataset_files(parts_folder(path))
    raise DatasetError(f"there is no demonstration file or folder {path}")


def _keys(path: Path) -> set[int]:
    with open_dataset(path) as source:
        return {int(source[f"data/{name}"].attrs.get("episode_key", -1)) for name in episode_names(source)}


def read_demonstrations(path: Path, cameras: Sequence[str] | None = None, limit: int | None = None) -> Iterator[Demonstration]:
    """The episodes of a file or folder, one in memory at a time, in file order and then by number.

    `cameras` selects the frames to load (default: all there are; an empty list: none), `limit` the number of episodes
    of each file. Raises `DatasetError` for a missing, damaged or foreign file, and for a camera that it lacks.
    """
    for file in dataset_files(path):
        with open_dataset(file) as source:
            for name in episode_names(source)[:limit]:
                yield _read_episode(source, name, file, cameras)


@contextlib.contextmanager
def open_dataset(path: Path) -> Iterator[h5py.File]:
    """Open for reading and check that it is a demonstration file; any damage becomes one `DatasetError`."""
    try:
        source = h5py.File(path, "r")
    except FileNotFoundError:
        raise DatasetError(f"there is no demonstration file {path}") from None
    except READ_ERRORS as error:
        raise DatasetError(
            f"{path} is not a readable HDF5 file ({_first_line(error)}): it is truncated, damaged or of another kind; "
            "delete it and download or collect it again"
        ) from error
    with source:
        if not episode_names(source):
            raise DatasetError(f"{path} is HDF5 but holds no demonstrations (no group data/demo_0): it is not LIBERO's format")
        yield source


def episode_names(source: h5py.File) -> list[str]:
    """Groups of the episodes in a file, by number."""
    data = source.get("data")
    if not isinstance(data, h5py.Group):
        return []
    return sorted((name for name in data if name.startswith("demo_") and name[5:].isdigit()), key=lambda name: int(name[5:]))


# -- writing -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"cannot write {path} ({_first_line(error)}); {len(finished_parts(path))} finished episodes are kept beside it: "
            "free space or choose another folder, and run it again to go on"
        ) from error


def _part(path: Path, key: int) -> Path:
    return parts_folder(path) / f"episode_{key:06d}.hdf5"


@contextlib.contextmanager
def _atomic(target: Path, large: int | None = None) -> Iterator[h5py.File]:
    """A new HDF5 file that appears under its name only when it is complete and on the disk.

    It grows in memory, because HDF5 crashes the process when a disk fills up under it; `large` is the size (bytes) of one
    that is too big for that, whose place is tried out before.
    """
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        if large is not None:
            with temporary.open("wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, large)
        in_memory = {"driver": "core", "backing_store": False} if large is None else {}
        file = h5py.File(temporary, "w", **in_memory)
        try:
            yield file
            file.flush()
            image = file.id.get_file_image() if in_memory else None
        finally:
            file.close()
        if image is not None:
            temporary.write_bytes(image)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_header(data: h5py.Group, header: TaskHeader) -> None:
    data.attrs["tag"] = TAG
    data.attrs["macros_image_convention"] = header.image_convention
    if header.image_convention == IMAGE_CONVENTION:
        data.attrs["convention"] = json.dumps(NATIVE.to_dict())
    data.attrs["env_name"] = header.env_name
    data.attrs["problem_info"] = json.dumps(dict(header.problem_info))
    data.attrs["bddl_file_name"] = header.bddl_file_name
    data.attrs["bddl_file_content"] = header.bddl_file_content
    data.attrs["env_args"] = json.dumps(dict(header.env_args))
    for name, value in header.extra.items():
        data.attrs[name] = value


def _write_totals(data: h5py.Group) -> None:
    data.attrs["num_demos"] = len(data)
    data.attrs["total"] = sum(int(episode.attrs["num_samples"]) for episode in data.values())


def _write_episode(group: h5py.Group, key: int, demo: Demonstration, compression: str | None) -> None:
    steps = len(demo)
    dones = np.zeros(steps, dtype=np.uint8)
    dones[-1] = 1
    group.attrs["num_samples"] = steps
    group.attrs["model_file"] = demo.model_xml
    group.attrs["success"] = demo.success
    group.attrs["instruction"] = demo.instruction
    group.attrs["episode_key"] = key
    group.attrs["control_freq"] = demo.fps
    group.attrs["provenance"] = json.dumps(dict(demo.provenance))
    if not demo.is_bimanual:
        group.attrs["quality"] = json.dumps(quality_of(demo).to_dict())
    if demo.spec is not None:
        group.attrs["spec"] = json.dumps(demo.spec.to_dict())
    group["actions"] = demo.actions.astype(np.float64)
    group["rewards"] = demo.rewards.astype(np.float64)
    group["dones"] = dones
    if demo.states is not None:
        group["states"] = demo.states
        group.attrs["init_state"] = demo.states[0]
    if demo.expert_actions is not None:
        group["expert_actions"] = demo.expert_actions.astype(np.float64)
    if demo.skills is not None:
        group["skill"] = np.array(demo.skills, dtype="S16")
    obs = group.create_group("obs")
    if demo.is_bimanual:
        obs[JOINT_TARGETS] = demo.proprio[:, : demo.actions.shape[1]]
        if demo.proprio.shape[1] > demo.actions.shape[1]:
            obs[OBJECT_POSES] = demo.proprio[:, demo.actions.shape[1] :]
    else:
        position, orientation, fingers = np.split(demo.proprio.astype(np.float64), (3, 6), axis=1)
        group["robot_states"] = np.concatenate([fingers, position, quaternion(orientation)], axis=1)
        obs["gripper_states"] = fingers
        obs["ee_pos"] = position
        obs["ee_ori"] = orientation
        obs["ee_states"] = np.concatenate([position, orientation], axis=1)
    if demo.joint_states is not None:
        obs["joint_states"] = demo.joint_states
    if len(demo.frame_index) != steps:
        obs["frame_index"] = demo.frame_index
    for camera, frames in demo.images.items():
        name = DATASET_OF_CAMERA.get(camera, f"{camera}_rgb")
        obs.create_dataset(name, data=frames, chunks=(1, *frames.shape[1:]) if compression else None, compression=compression)


# -- reading -----------------------------------------------------------------------------------------------------------
def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read_episode(source: h5py.File, name: str, path: Path, cameras: Sequence[str] | None) -> Demonstration:
    try:
        demonstration = _parse_episode(source["data"].attrs, source[f"data/{name}"], cameras)
        demonstration.validate()
    except DatasetError as error:
        raise DatasetError(f"{path}, {name}: {error}") from None
    except READ_ERRORS as error:
        raise DatasetError(
            f"{path}, {name}: cannot be read ({_first_line(error)}); the file is damaged or not LIBERO's format, "
            "download or collect it again"
        ) from error
    return demonstration


def _parse_episode(header: Mapping[str, Any], group: h5py.Group, cameras: Sequence[str] | None) -> Demonstration:
    obs = group["obs"]
    actions, provenance = _read_actions(group)
    dones = np.asarray(group["dones"]) if "dones" in group else np.ones(1)
    is_bimanual = JOINT_TARGETS in obs
    flip = not is_bimanual and header.get("macros_image_convention", IMAGE_CONVENTION) == "opencv"
    spec = json.loads(group.attrs["spec"]) if "spec" in group.attrs else None
    return Demonstration(
        instruction=instruction_of(header, group.attrs),
        images=_read_images(obs, cameras, flip),
        frame_index=np.asarray(obs["frame_index"] if "frame_index" in obs else np.arange(len(actions)), dtype=np.int64),
        proprio=np.asarray(_two_arms(obs) if is_bimanual else _one_arm(obs), dtype=np.float32),
        actions=actions,
        rewards=np.asarray(group["rewards"], dtype=np.float32) if "rewards" in group else np.zeros(len(actions), np.float32),
        success=bool(group.attrs.get("success", dones[-1] == 1)),
        expert_actions=np.asarray(group["expert_actions"], dtype=np.float32) if "expert_actions" in group else None,
        spec=EpisodeSpec.from_dict(spec) if spec else None,
        skills=tuple(label.decode() for label in group["skill"][:]) if "skill" in group else None,
        joint_states=np.asarray(obs["joint_states"], dtype=np.float64) if "joint_states" in obs else None,
        states=np.asarray(group["states"], dtype=np.float64) if "states" in group else None,
        model_xml=str(group.attrs.get("model_file", "")),
        provenance=provenance,
        fps=control_rate(header, group.attrs),
    )


def _one_arm(obs: h5py.Group) -> np.ndarray:
    pose = np.concatenate([obs["ee_pos"], obs["ee_ori"]], axis=1) if "ee_pos" in obs else np.asarray(obs["ee_states"])
    return np.concatenate([pose, obs["gripper_states"]], axis=1)


def _two_arms(obs: h5py.Group) -> np.ndarray:
    return np.concatenate([obs[name] for name in (JOINT_TARGETS, OBJECT_POSES) if name in obs], axis=1)


def instruction_of(header: Mapping[str, Any], episode: Mapping[str, Any]) -> str:
    """The episode's instruction, else the file's."""
    instruction = episode.get("instruction") or json.loads(header["problem_info"])["language_instruction"]
    if not isinstance(instruction, str):  # some of LIBERO's own files hold a list of letters or words
        instruction = "".join(instruction) if all(len(part) == 1 for part in instruction) else " ".join(instruction)
    return instruction.strip().strip('"')


def _read_actions(group: h5py.Group) -> tuple[Float32[np.ndarray, "T 7"], dict[str, Any]]:
    """Actions and provenance; human demonstrations hold 64-bit actions, and what rounding them changes is noted."""
    provenance = json.loads(group.attrs.get("provenance", "{}"))
    stored = np.asarray(group["actions"])
    actions = stored.astype(np.float32)
    error = float(np.abs(actions - stored).max(initial=0.0))
    if error > 0:
        provenance["rounded_actions"] = f"from {stored.dtype}, by at most {error:.2g}"
    return actions_from(NATIVE, actions) if actions.ndim == 2 and actions.shape[1] == 7 else actions, provenance


def control_rate(header: Mapping[str, Any], episode: Mapping[str, Any]) -> float:
    """Control steps a second: the episode's, else that of the environment's arguments, else LIBERO's 20 Hz."""
    if "control_freq" in episode:
        return float(episode["control_freq"])
    arguments = json.loads(header.get("env_args", "{}")).get("env_kwargs", {})
    return float(arguments.get("control_freq", NATIVE.fps))


def _read_images(obs: h5py.Group, cameras: Sequence[str] | None, flip: bool) -> dict[str, np.ndarray]:
    there = {CAMERA_OF_DATASET.get(name, name.removesuffix("_rgb")): name for name in obs if name.endswith("_rgb")}
    missing = [camera for camera in cameras or () if camera not in there]
    if missing:
        raise DatasetError(f"there are no frames of camera {missing[0]!r}; the file has: {', '.join(sorted(there)) or 'none'}")
    wanted = there if cameras is None else {camera: there[camera] for camera in cameras}
    return {camera: obs[name][:][:, ::-1] if flip else obs[name][:] for camera, name in wanted.items()}
