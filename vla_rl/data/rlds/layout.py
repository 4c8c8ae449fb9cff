"""What TFDS writes beside the records, so that `tfds.builder_from_directory` opens a dataset without its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.data.convention import Convention
from vla_rl.data.dataset import read_json
from vla_rl.data.demonstration import DatasetError

VERSION = "1.0.0"
FEATURES, DATASET_INFO = "features.json", "dataset_info.json"
KEY_OF_CAMERA = {"agentview": "image", "robot0_eye_in_hand": "wrist_image"}
CAMERA_OF_KEY = {key: camera for camera, key in KEY_OF_CAMERA.items()}
OURS = "episode_metadata/vla_rl"
"""A text feature with JSON of ours; other readers ignore it."""
USUAL = Convention(frames="rotated_180")
"""What OpenVLA's LIBERO sets mean."""
_CORE = "tensorflow_datasets.core.features"


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    if not shape:
        return {"pythonClassName": f"{_CORE}.scalar.Scalar", "tensor": {"shape": {}, "dtype": dtype, "encoding": "none"}}
    sizes = {"dimensions": [str(size) for size in shape]}
    return {
        "pythonClassName": f"{_CORE}.tensor_feature.Tensor",
        "tensor": {"shape": sizes, "dtype": dtype, "encoding": "none"},
    }


def text() -> dict[str, Any]:
    return {"pythonClassName": f"{_CORE}.text_feature.Text", "text": {}}


def image(height: int, width: int) -> dict[str, Any]:
    shape = {"dimensions": [str(height), str(width), "3"]}
    return {
        "pythonClassName": f"{_CORE}.image_feature.Image",
        "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"},
    }


def features_dict(features: dict[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{_CORE}.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def sequence(feature: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_CORE}.dataset_feature.Dataset",
        "sequence": {"feature": feature, "length": "-1"},
    }


def flatten(feature: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Leaves of `features.json` by their name in an Example, such as `steps/observation/image`."""
    if "featuresDict" in feature:
        leaves = {}
        for name, inner in feature["featuresDict"]["features"].items():
            leaves.update(flatten(inner, f"{prefix}/{name}" if prefix else name))
        return leaves
    if "sequence" in feature:
        return flatten(feature["sequence"]["feature"], prefix)
    return {prefix: feature}


def shape_of(leaf: dict[str, Any]) -> tuple[int, ...]:
    kind = leaf.get("tensor") or leaf.get("image") or {}
    return tuple(int(size) for size in kind.get("shape", {}).get("dimensions", ()))


def version_folder(path: Path) -> Path | None:
    """The folder of a dataset that holds `features.json`: itself, or that of its newest version."""
    if (path / FEATURES).is_file():
        return path
    found = sorted(path.glob(f"*/{FEATURES}")) if path.is_dir() else []
    return found[-1].parent if found else None


def shards(folder: Path, info: dict[str, Any]) -> list[tuple[Path, int]]:
    """The record files of all splits with their numbers of episodes. Raises `DatasetError` for other file formats."""
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DatasetError(f"{folder} stores {info['fileFormat']} files; we read tfrecord")
    found = []
    try:
        for split in info["splits"]:
            count = len(split["shardLengths"])
            template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            for number, length in enumerate(split["shardLengths"]):
                name = template.format(
                    DATASET=info["name"], SPLIT=split["name"], FILEFORMAT="tfrecord", SHARD_X_OF_Y=f"{number:05d}-of-{count:05d}"
                )
                found.append((folder / name, int(length)))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder / DATASET_INFO} cannot be understood ({error!r}); make the dataset again") from error
    return found


def read_description(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`dataset_info.json`, and the leaves of `features.json`."""
    info = read_json(folder / DATASET_INFO, f"the RLDS dataset {folder}")
    try:
        return info, flatten(read_json(folder / FEATURES, f"the RLDS dataset {folder}"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{folder / FEATURES} cannot be understood ({error!r}); make the dataset again") from error
