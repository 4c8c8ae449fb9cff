"""Opens a dataset with the library that others will use: robomimic, LeRobot, TensorFlow Datasets.

Runs as a program of its own, under any interpreter that has the library (`python consumers.py FORMAT PATH`), and therefore
imports nothing of ours. It prints one JSON object: what was read, that the library is missing, or why it failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

CONSUMERS = {"hdf5": "robomimic", "lerobot": "lerobot", "rlds": "tensorflow_datasets"}


def open_with_robomimic(path: str) -> dict[str, Any]:
    """Every file through `SequenceDataset`, every sample loaded."""
    module = importlib.import_module("robomimic.utils.dataset")
    importlib.import_module("robomimic.utils.obs_utils").initialize_obs_utils_with_obs_specs(
        {"obs": {"low_dim": ["ee_states", "gripper_states"], "rgb": ["agentview_rgb", "eye_in_hand_rgb"]}}
    )
    import h5py
    import numpy as np

    files = [path] if os.path.isfile(path) else sorted(str(file) for file in Path(path).glob("*.hdf5"))
    episodes, steps, digest, shapes = 0, 0, hashlib.sha256(), {}
    for file in files:
        with h5py.File(file, "r") as source:
            keys = [
                key
                for key in ("ee_states", "gripper_states", "agentview_rgb", "eye_in_hand_rgb")
                if key in source["data/demo_0/obs"]
            ]
        dataset = module.SequenceDataset(
            hdf5_path=file,
            obs_keys=keys,
            dataset_keys=("actions", "rewards", "dones"),
            frame_stack=1,
            seq_length=1,
            pad_frame_stack=True,
            pad_seq_length=True,
            hdf5_cache_mode=None,
            hdf5_use_swmr=False,
            load_next_obs=False,
        )
        episodes += dataset.n_demos
        for index in range(len(dataset)):
            sample = dataset[index]
            digest.update(np.asarray(sample["actions"][0], dtype="<f4").tobytes())
            steps += 1
        shapes = {key: list(sample["obs"][key].shape) for key in keys}
    return {"episodes": episodes, "steps": steps, "actions": digest.hexdigest(), "shapes": shapes}


def open_with_lerobot(path: str) -> dict[str, Any]:
    """The whole table, and a decoded frame of every camera at the start, middle and end of every episode."""
    module = importlib.import_module("lerobot.datasets.lerobot_dataset")
    import numpy as np

    dataset = module.LeRobotDataset(f"local/{os.path.basename(path)}", root=path)
    digest, shapes = hashlib.sha256(), {}
    actions = np.asarray(dataset.hf_dataset.with_format("numpy")["action"][:], dtype="<f4")
    digest.update(np.ascontiguousarray(actions).tobytes())
    for row in dataset.meta.episodes:
        first, last = row["dataset_from_index"], row["dataset_to_index"] - 1
        for index in (first, (first + last) // 2, last):
            sample = dataset[index]
            assert sample["index"] == index and isinstance(sample["task"], str)
            shapes = {key: list(sample[key].shape) for key in dataset.meta.camera_keys}
    return {"episodes": dataset.num_episodes, "steps": dataset.num_frames, "actions": digest.hexdigest(), "shapes": shapes}


def open_with_tfds(path: str) -> dict[str, Any]:
    """Every step of every episode, frames decoded."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    module = importlib.import_module("tensorflow_datasets")
    import numpy as np

    folder = (
        path
        if os.path.isfile(os.path.join(path, "features.json"))
        else str(sorted(Path(path).glob("*/features.json"))[-1].parent)
    )
    builder = module.builder_from_directory(folder)
    episodes, steps, digest, shapes = 0, 0, hashlib.sha256(), {}
    for episode in builder.as_dataset(split="train", shuffle_files=False):
        episodes += 1
        for step in module.as_numpy(episode["steps"]):
            steps += 1
            digest.update(np.asarray(step["action"], dtype="<f4").tobytes())
            shapes = {key: list(np.shape(value)) for key, value in step["observation"].items()}
    return {"episodes": episodes, "steps": steps, "actions": digest.hexdigest(), "shapes": shapes}


OPENERS = {"hdf5": open_with_robomimic, "lerobot": open_with_lerobot, "rlds": open_with_tfds}


def main(kind: str, path: str) -> dict[str, Any]:
    """What the consumer read; `missing` or `error` where it could not."""
    try:
        library = importlib.import_module(CONSUMERS[kind])
    except ImportError as error:
        return {"missing": f"{CONSUMERS[kind]} ({error})"}
    try:
        version = getattr(library, "__version__", "of unknown version")
        return {"consumer": f"{CONSUMERS[kind]} {version}"} | OPENERS[kind](path)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}


if __name__ == "__main__":
    # A program's folder comes first on the path, and ours has a `lerobot` of its own.
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; only the answer may reach stdout
        answer = main(*sys.argv[1:])
    print(json.dumps(answer))
