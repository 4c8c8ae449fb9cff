"""The formats that we read and write, and conversion between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vla_rl.data.convention import NATIVE, Convention
from vla_rl.data.dataset import DatasetInfo, Episodes, ReadOptions, WriteOptions
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.hdf5_format import check_hdf5, hdf5_info, is_hdf5, read_hdf5, write_hdf5
from vla_rl.data.lerobot import layout as lerobot_layout
from vla_rl.data.lerobot.check import check_lerobot
from vla_rl.data.lerobot.reader import is_lerobot, lerobot_info, read_lerobot
from vla_rl.data.lerobot.writer import write_lerobot
from vla_rl.data.libero_hdf5 import TaskHeader
from vla_rl.data.rlds import layout as rlds_layout
from vla_rl.data.rlds.check import check_rlds
from vla_rl.data.rlds.reader import is_rlds, read_rlds, rlds_info
from vla_rl.data.rlds.writer import write_rlds


@dataclass(frozen=True)
class Format:
    """What one format can do."""

    recognises: Callable[[Path], bool]
    info: Callable[[Path, ReadOptions], DatasetInfo]
    read: Callable[[Path, ReadOptions], Episodes]
    write: Callable[[Path, Iterable[tuple[TaskHeader, Demonstration]], WriteOptions], Path]
    check: Callable[[Path], list[str]]
    """What consumers would stumble on, beyond what reading finds."""
    usual: Convention
    """What is written where nothing else is asked for."""
    loses: tuple[str, ...]
    """What of a demonstration it has no place for."""


FORMATS = {
    "hdf5": Format(is_hdf5, hdf5_info, read_hdf5, write_hdf5, check_hdf5, NATIVE, ()),
    "lerobot": Format(
        is_lerobot, lerobot_info, read_lerobot, write_lerobot, check_lerobot, lerobot_layout.USUAL, ("states", "model_xml")
    ),
    "rlds": Format(
        is_rlds,
        rlds_info,
        read_rlds,
        write_rlds,
        check_rlds,
        rlds_layout.USUAL,
        ("states", "model_xml", "expert_actions", "skills"),
    ),
}


def format_of(path: Path) -> str:
    """The name of a dataset's format. Raises `DatasetError` where it is none of ours."""
    path = Path(path)
    if not path.exists() and not path.with_name(path.name + ".parts").is_dir():
        raise DatasetError(f"there is no dataset {path}")
    for name, kind in FORMATS.items():
        if kind.recognises(path):
            return name
    raise DatasetError(
        f"{path} is none of the formats that we read: LIBERO HDF5 (a .hdf5 file or a folder of them), LeRobot (a folder with "
        "meta/info.json), RLDS (a folder with features.json)"
    )


def dataset_info(path: Path, options: ReadOptions | None = None) -> DatasetInfo:
    """Describe a dataset of any of the formats. Raises `DatasetError`."""
    return FORMATS[format_of(path)].info(Path(path), options or ReadOptions())


def read_episodes(path: Path, options: ReadOptions | None = None) -> Episodes:
    """Episodes of a dataset of any of the formats, in native convention. Raises `DatasetError`."""
    return FORMATS[format_of(path)].read(Path(path), options or ReadOptions())


def usual_convention(name: str) -> Convention:
    """What datasets of a format usually mean. Raises `DatasetError` for an unknown format."""
    if name not in FORMATS:
        raise DatasetError(f"there is no format {name!r}; choose one of: {', '.join(FORMATS)}")
    return FORMATS[name].usual


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    target: Path
    episodes: int
    steps: int
    assumed: tuple[str, ...]
    """What was taken for granted, because the source does not state it, as `gripper -1_opens_+1_closes`."""
    left_out: tuple[str, ...]
    """What some episodes held and the target has no place for."""
    rounded: str
    """What rounding changed in the actions, in words; empty where every bit was kept."""


def _holds(demonstration: Demonstration, name: str) -> bool:
    value = getattr(demonstration, name)
    return value is not None and len(value) > 0


def convert(
    source: Path, target: Path, to: str, read: ReadOptions | None = None, write: WriteOptions | None = None
) -> Conversion:
    """Write a dataset in another format. Raises `DatasetError`; the target is then not there."""
    usual_convention(to)
    read, write, kind = read or ReadOptions(), write or WriteOptions(), FORMATS[to]
    info = dataset_info(source, read)
    counts = {"episodes": 0, "steps": 0}
    left_out: set[str] = set()
    rounded: set[str] = set()

    def passing() -> Episodes:
        for header, demonstration in read_episodes(source, read):
            if demonstration.is_bimanual and to != "hdf5":
                raise DatasetError(f"episodes of two arms are kept as HDF5; our {to} writer has no place for their 14 numbers")
            counts["episodes"] += 1
            counts["steps"] += len(demonstration)
            left_out.update(name for name in kind.loses if _holds(demonstration, name))
            rounded.update([demonstration.provenance["rounded_actions"]] if "rounded_actions" in demonstration.provenance else [])
            yield header, demonstration

    kind.write(Path(target), passing(), write)
    return Conversion(
        target=Path(target),
        episodes=counts["episodes"],
        steps=counts["steps"],
        assumed=tuple(f"{name} {getattr(info.convention, name)}" for name in info.assumed),
        left_out=tuple(sorted(left_out)),
        rounded="; ".join(sorted(rounded)),
    )
