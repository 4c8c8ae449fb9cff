"""Checkpoints that are atomic and complete: a run killed at any instant continues from the last one, bit for bit on CPU.

    checkpoints/step_000012/
        manifest.json                        size and SHA-256 of every other file; written last
        policy/...                           whatever the policy saves
        optimizer_NAME.json + .safetensors   moments, step counts and hyperparameters
        random.json + .safetensors           python, numpy, torch and every generator that was passed
        state.json (+ .safetensors)          counters, curriculum, cursors

A checkpoint is written under a hidden name, flushed to the disk and then renamed: under its final name it is whole.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.distributed.sharding import gathered
from vla_rl.policies.digest import file_digest
from vla_rl.policies.sharded import cut_like
from vla_rl.tensor_tree import TensorTreeError, load_tree, save_tree

FORMAT = 1
# A checkpoint that is written again waits under ".replaced" until the new one has its name, so that none is ever missing.
NAME = re.compile(r"step_(\d{6,})(\.replaced)?")
HIDDEN = re.compile(r"\.step_\d{6,}\.(writing|deleting)")

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which, why and how to mend it."""


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    policy_save: Callable[[Path], None],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int,
    numpy_generators: Mapping[str, np.random.Generator] | None = None,
    torch_generators: Mapping[str, torch.Generator] | None = None,
) -> Path:
    """Write `directory/step_000012` and drop all but the `keep` (>= 1) checkpoints that were written last.

    `policy_save` gets an empty folder to fill. `state` holds JSON values, and may hold arrays and tensors. The global
    generators of python, numpy and torch (CPU and CUDA) are always saved; pass those that the run made for itself.
    On any failure nothing is left behind and earlier checkpoints stay; a full disk or a value that cannot be saved
    raises `CheckpointError`. One process at a time may write to a directory.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step is {step} and keep is {keep}; step must be at least 0 and keep at least 1")
    unfit = [name for name in optimizers if not re.fullmatch(r"[\w-]+", name)]
    if unfit:
        raise ValueError(f"optimizer name {unfit[0]!r} becomes a file name; use letters, digits, _ and -")
    directory = Path(directory)
    final = directory / f"step_{step:06d}"
    writing = directory / f".step_{step:06d}.writing"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean(directory)
        (writing / "policy").mkdir(parents=True)
        policy_save(writing / "policy")
        for name, optimizer in optimizers.items():
            save_tree(writing, f"optimizer_{name}", _optimizer_record(optimizer))
        save_tree(writing, "random", _random_state(numpy_generators or {}, torch_generators or {}))
        save_tree(writing, "state", state)
        _write_manifest(writing, step, serial=1 + max((_serial(path) for path in _checkpoints(directory)), default=0))
        _publish(writing, final)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(error, TensorTreeError):
            raise CheckpointError(f"checkpoint {final} was not written: {error}") from error
        if _is_disk_error(error):
            raise CheckpointError(f"checkpoint {final} was not written: {_disk_message(directory, error)}") from error
        raise
    _prune(directory, final, keep)
    return final


def load_checkpoint(
    path: Path,
    *,
    policy_load: Callable[[Path], None] | None = None,
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    numpy_generators: Mapping[str, np.random.Generator] | None = None,
    torch_generators: Mapping[str, torch.Generator] | None = None,
    verify: bool = True,
) -> dict[str, Any]:
    """Put everything back as it was when `path` was saved, in place, and return `state`.

    The objects must be those of the same run: the same optimizers over parameters of the same shapes in the same
    order, and generators of the same names. Raises `CheckpointError`, before anything has changed, when they are not
    or when the files are not whole (`verify=False` skips reading every byte, after `latest_checkpoint` has).
    """
    path, optimizers = Path(path), optimizers or {}
    if verify:
        verify_checkpoint(path)
    try:
        records = {name: load_tree(path, f"optimizer_{name}") for name in optimizers}
        random_state = load_tree(path, "random")
        state = load_tree(path, "state")
    except TensorTreeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit this run: {error}") from error
    for name, optimizer in optimizers.items():
        _check_optimizer(path, name, optimizer, records[name])
    _check_generators(path, random_state, numpy_generators or {}, torch_generators or {})
    if policy_load is not None:
        policy_load(path / "policy")
    for name, optimizer in optimizers.items():
        _restore_optimizer(optimizer, records[name]["state_dict"])
    # Last, because building and loading a policy may draw random numbers.
    _restore_random(random_state, numpy_generators or {}, torch_generators or {})
    return state


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that was written last and is whole, or None. Reads every byte; warns of each that it skips."""
    serials = {path: _serial(path) for path in _checkpoints(Path(directory))}
    # What cannot be read has no place in the order: it comes first, so that it is always warned of.
    for path in sorted(serials, key=lambda path: (serials[path] == 0, serials[path], path.name), reverse=True):
        try:
            verify_checkpoint(path)
            return path
        except CheckpointError as error:
            log.warning("skipped: %s", error)
    return None


def verify_checkpoint(path: Path) -> None:
    """Raise `CheckpointError` unless every file of the manifest has its size and SHA-256."""
    path = Path(path)
    for name, expected in _manifest(path)["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is not whole: {name} is missing; use another checkpoint")
        try:
            same = file.stat().st_size == expected["size"] and file_digest(file) == expected["sha256"]
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {error}; use another checkpoint") from error
        if not same:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} differs from the manifest; use another checkpoint")


def _checkpoints(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found = (int(manifest["format"]), int(manifest["step"]), int(manifest["serial"]))
        sizes = [(int(entry["size"]), str(entry["sha256"])) for entry in manifest["files"].values()]
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} is not whole: it has no manifest.json; use another checkpoint") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: manifest.json is unreadable ({error!r})") from error
    if found[0] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {found[0]}; this version reads format {FORMAT}")
    del sizes
    return manifest


def _serial(path: Path) -> int:
    """The order of writing, which differs from the order of steps once a run was rewound; 0 for what cannot be read."""
    try:
        return int(_manifest(path)["serial"])
    except CheckpointError:
        return 0


def _write_manifest(folder: Path, step: int, serial: int) -> None:
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": file_digest(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = {"format": FORMAT, "step": step, "serial": serial, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _publish(writing: Path, final: Path) -> None:
    """Flush everything to the disk, then give it its name; whoever looks sees the old checkpoint or the new one."""
    for path in [*writing.rglob("*"), writing]:
        _fsync(path)
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        if replaced.exists():
            _discard(replaced)
        final.rename(replaced)
    try:
        writing.rename(final)
    except BaseException:
        if replaced.exists():
            replaced.rename(final)
        raise
    _fsync(final.parent)
    if replaced.exists():
        _discard(replaced)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Delete under a hidden name, so that a kill half-way leaves no half checkpoint under a real name."""
    hidden = path.with_name(f".{path.name.removesuffix('.replaced')}.deleting")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _clean(directory: Path) -> None:
    """Remove what a killed process left half-done."""
    for path in list(directory.iterdir()):
        if HIDDEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in _checkpoints(directory):
        whole = path.with_name(path.name.removesuffix(".replaced"))
        if path != whole and not whole.exists():
            path.rename(whole)
        elif path != whole and _serial(whole) > 0:
            _discard(path)


def _prune(directory: Path, written: Path, keep: int) -> None:
    # One that cannot be read is left to its owner, and does not count as kept.
    order = sorted((path for path in _checkpoints(directory) if _serial(path) > 0 and path != written), key=_serial)
    for path in order[: max(0, len(order) - (keep - 1))]:
        try:
            _discard(path)
        except OSError as error:
            log.warning("old checkpoint %s could not be removed: %s", path, error)


def _optimizer_record(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"class": type(optimizer).__name__, "shapes": _shapes(optimizer), "state_dict": gathered(optimizer.state_dict())}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _check_optimizer(path: Path, name: str, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None:
    if record["class"] != type(optimizer).__name__:
        raise CheckpointError(
            f"checkpoint {path}: optimizer {name!r} was {record['class']} and is {type(optimizer).__name__} now; "
            "resume with the configuration of the run"
        )
    if record["shapes"] != _shapes(optimizer):
        raise CheckpointError(
            f"checkpoint {path}: optimizer {name!r} has other parameters now (number, order or shapes differ); "
            "resume with the configuration of the run"
        )


def _restore_optimizer(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    optimizer.load_state_dict(state_dict)
    # torch casts moments to the dtype of their parameter, which would round float32 moments of bfloat16 weights, and leaves
    # those of sharded weights whole.
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, saved in state_dict["state"].get(index, {}).items():
            if isinstance(saved, torch.Tensor):
                loaded = optimizer.state[parameter][key]
                kept = saved.to(loaded.device) if saved.dtype != loaded.dtype else loaded
                optimizer.state[parameter][key] = cut_like(kept, parameter) if saved.shape == parameter.shape else kept


def _random_state(
    numpy_generators: Mapping[str, np.random.Generator], torch_generators: Mapping[str, torch.Generator]
) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy_generators": {name: generator.bit_generator.state for name, generator in numpy_generators.items()},
        "torch_generators": {name: generator.get_state() for name, generator in torch_generators.items()},
    }


def _check_generators(
    path: Path,
    saved: dict[str, Any],
    numpy_generators: Mapping[str, np.random.Generator],
    torch_generators: Mapping[str, torch.Generator],
) -> None:
    kinds = {name: generator.bit_generator.state["bit_generator"] for name, generator in numpy_generators.items()}
    found = {name: state["bit_generator"] for name, state in saved["numpy_generators"].items()}
    # The size of a torch state tells its device: 5056 bytes on the CPU, 16 on CUDA.
    kinds |= {name: f"torch state of {generator.get_state().numel()} bytes" for name, generator in torch_generators.items()}
    found |= {name: f"torch state of {state.numel()} bytes" for name, state in saved["torch_generators"].items()}
    for name, kind in kinds.items():
        if found.get(name) != kind:
            before = found.get(name, "not saved")
            raise CheckpointError(f"checkpoint {path}: random generator {name!r} is {kind} now, was {before}")


def _restore_random(
    saved: dict[str, Any], numpy_generators: Mapping[str, np.random.Generator], torch_generators: Mapping[str, torch.Generator]
) -> None:
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    for name, generator in numpy_generators.items():
        generator.bit_generator.state = saved["numpy_generators"][name]
    for name, torch_generator in torch_generators.items():
        torch_generator.set_state(saved["torch_generators"][name])


def _is_disk_error(error: BaseException) -> bool:
    # safetensors reports a failed write as an exception of its own, with the system's message inside.
    return isinstance(error, OSError) or (type(error).__name__ == "SafetensorError" and "I/O error" in str(error))


def _disk_message(directory: Path, error: BaseException) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)
    )
    if not full:
        return str(error)
    place = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**20
    return f"the disk is full ({free:.0f} MiB free); free some space or keep fewer checkpoints. Earlier checkpoints are intact"
