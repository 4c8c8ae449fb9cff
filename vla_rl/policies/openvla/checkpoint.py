"""A policy as a folder: config.json, tokenizer.json, action_statistics.json, model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS, ActionStatistics
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.modeling import OpenVLAModel
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.prompts import PromptTokenizer

ARCHITECTURE = "vla_rl.openvla"
CONFIG, TOKENIZER, STATISTICS, WEIGHTS = "config.json", "tokenizer.json", "action_statistics.json", "model.safetensors"
_T = TypeVar("_T")


def save(policy: OpenVLAPolicy, path: Path) -> None:
    """Write the four files into the folder `path`; whoever needs it atomic writes to a new folder and renames that."""
    path.mkdir(parents=True, exist_ok=True)
    record = {"architecture": ARCHITECTURE, "version": policy.version, "config": policy.config.to_dict()}
    (path / CONFIG).write_text(json.dumps(record, indent=1) + "\n")
    policy.prompts.save(path / TOKENIZER)
    policy.statistics.save(path / STATISTICS)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.model.state_dict().items()}
    save_file(weights, str(path / WEIGHTS), metadata={"format": "pt"})


def load(path: Path, device: torch.device | str | None = None) -> OpenVLAPolicy:
    """Read what `save` wrote. Raises `PolicyError`, one line, for files that are missing, broken or of another shape."""
    record = _read(path / CONFIG, lambda file: json.loads(file.read_text()))
    if not isinstance(record, dict) or set(record) != {"architecture", "version", "config"}:
        raise PolicyError(f"{path / CONFIG} is no configuration of {ARCHITECTURE}")
    config = _read(path / CONFIG, lambda file: OpenVLAConfig.from_dict(record["config"]))
    prompts = _read(path / TOKENIZER, PromptTokenizer.load)
    statistics = _read(path / STATISTICS, lambda file: ActionStatistics.from_dict(json.loads(file.read_text())))
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
    weights = read_weights(path / WEIGHTS, model.state_dict())
    model.load_state_dict(weights)
    policy = OpenVLAPolicy(config, prompts, statistics, model, version=int(record["version"]))
    return policy.to(device).eval() if device is not None else policy.eval()


def new_model(config: OpenVLAConfig, seed: int) -> OpenVLAModel:
    """A freshly initialised network; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OpenVLAModel(config)


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
