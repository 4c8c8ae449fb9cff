"""A policy as a folder: config.json, tokenizer.json, action_statistics.json, model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla import original_format
from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS, ActionStatistics
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.modeling import OpenVLAModel, new_model
from vla_rl.policies.openvla.original_config import CheckpointOptions, saved_config
from vla_rl.policies.openvla.prompts import PromptTokenizer

ARCHITECTURE = "vla_rl.openvla"
CONFIG, TOKENIZER, STATISTICS, WEIGHTS = "config.json", "tokenizer.json", "action_statistics.json", "model.safetensors"
_T = TypeVar("_T")


def write(
    path: Path,
    config: OpenVLAConfig,
    prompts: PromptTokenizer,
    statistics: ActionStatistics,
    weights: dict[str, Tensor],
    version: int,
) -> None:
    """Write the four files into the folder `path`; whoever needs it atomic writes to a new folder and renames that."""
    path.mkdir(parents=True, exist_ok=True)
    record = {"architecture": ARCHITECTURE, "version": version, "config": config.to_dict()}
    (path / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    prompts.save(path / TOKENIZER)
    statistics.save(path / STATISTICS)
    save_file(weights, str(path / WEIGHTS), metadata={"format": "pt"})


def read(path: Path, options: CheckpointOptions) -> tuple[OpenVLAConfig, PromptTokenizer, ActionStatistics, OpenVLAModel, int]:
    """What `write` wrote. Raises `PolicyError`, one line, for files that are missing, broken or of another shape, and for
    `options` that differ from what was saved."""
    config, version = describe(path, options)
    prompts = _read(path / TOKENIZER, PromptTokenizer.load)
    statistics = _read(path / STATISTICS, ActionStatistics.load)
    if prompts.vocab_size + NUM_ACTION_TOKENS > config.vocab_size:
        raise PolicyError(
            f"{path / TOKENIZER} has {prompts.vocab_size} text tokens, but {CONFIG} leaves room for "
            f"{config.vocab_size - NUM_ACTION_TOKENS}: the two files are of different checkpoints"
        )
    if statistics.action_dim != config.action_dim:
        raise PolicyError(
            f"{path / STATISTICS} has {statistics.action_dim} action dimensions and {CONFIG} {config.action_dim}: "
            "the two files are of different checkpoints"
        )
    model = new_model(config, seed=0)
    model.load_state_dict(read_weights(path / WEIGHTS, model.state_dict()))
    return config, prompts, statistics, model, version


def describe(path: Path, options: CheckpointOptions) -> tuple[OpenVLAConfig, int]:
    """Configuration and version of what `write` wrote. Raises `PolicyError` as `read` does."""
    record = _read(path / CONFIG, _architecture_record)
    config = _read(path / CONFIG, lambda file: OpenVLAConfig.from_dict(record["config"]))
    return saved_config(config, options, path), int(record["version"])


def find(path: Path) -> Path:
    """The folder of the policy in `path`: itself, `policy/` of a checkpoint, or the newest checkpoint of a run.

    Raises `PolicyError` where there is none.
    """
    for folder in (path, path / "policy"):
        if (folder / CONFIG).is_file():
            return folder
    patterns = ("step_*", "*/step_*", "checkpoints/*/step_*")
    saved = [file for pattern in patterns for file in path.glob(f"{pattern}/policy/{CONFIG}")]
    if not saved:
        raise PolicyError(f"there is no policy in {path}: neither a {CONFIG} nor a checkpoint of a run")
    # The version counts updates; among equals (supervised training does not count) the one written last.
    return max(saved, key=lambda file: (_version(file), file.stat().st_mtime_ns)).parent


def _version(file: Path) -> int:
    if original_format.is_original(file.parent):
        return original_format.version_of(file.parent)
    return int(_read(file, _architecture_record)["version"])


def _architecture_record(file: Path) -> dict[str, Any]:
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("architecture") != ARCHITECTURE:
        kind = record.get("architecture", record.get("model_type", "unknown")) if isinstance(record, dict) else "unknown"
        raise PolicyError(f"this is a policy of architecture {kind!r}; only {ARCHITECTURE!r} and openvla can be loaded")
    if set(record) != {"architecture", "version", "config"} or not isinstance(record["version"], int):
        raise PolicyError("expected the keys architecture, version (an integer) and config")
    return record


def read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `PolicyError` names the first that is missing, unknown or of another shape."""

    def shapes(file: Path) -> dict[str, tuple[int, ...]]:
        with safe_open(str(file), framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118

    found = _read(path, shapes)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise PolicyError(
                f"{path} does not fit its config.json: tensor {name} should be {_shape(wanted.get(name))} and is "
                f"{_shape(found.get(name))}; the weights are of another architecture"
            )
    return _read(path, lambda file: load_file(str(file)))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _read(path: Path, read: Callable[[Path], _T]) -> _T:
    """`read(path)`, with every way in which a foreign file can be broken told in one line."""
    if not path.is_file():
        raise PolicyError(f"{path} is missing; a policy is a folder with {CONFIG}, {TOKENIZER}, {STATISTICS} and {WEIGHTS}")
    try:
        return read(path)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    except Exception as error:  # tokenizers and safetensors raise bare Exceptions of their own
        reason = " ".join(str(error).split())
        raise PolicyError(f"{path} cannot be read (truncated or overwritten?): {type(error).__name__}: {reason}") from error
