"""What a checkpoint is, told from its files alone, and whether it works: `vla-rl model info` and `verify`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla import checkpoint, original_format
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.hub import local_folder
from vla_rl.policies.openvla.modeling import empty_model
from vla_rl.policies.openvla.original_config import CheckpointOptions
from vla_rl.policies.openvla.original_names import original_names
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.shards import TensorFiles
from vla_rl.types import Observation


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint, without its weights."""

    folder: Path
    original: bool
    """Whether it has OpenVLA's own format."""
    version: int
    config: OpenVLAConfig
    parameters: dict[str, int]
    """Parameters that act, by part of the network."""
    stored: dict[str, int]
    """Bytes in files, by type of number."""
    norm_stats: tuple[str, ...]
    """Data sets whose statistics it has."""
    unnorm_key: str | None
    learns_by_tokens: bool

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"folder": str(self.folder), "config": self.config.to_dict()}


def describe(path: str | Path, options: CheckpointOptions) -> ModelInfo:
    """Raises `PolicyError`, one line, as loading it would, but for what only the weights' values can show."""
    folder = checkpoint.find(local_folder(path))
    files = TensorFiles(folder)
    stored: dict[str, int] = {}
    for name in files.names:
        kind = files.dtype(name)
        stored[kind] = stored.get(kind, 0) + prod(files.shape(name)) * (4 if kind == "F32" else 2)
    keys: tuple[str, ...] = ()
    unnorm_key = None
    is_original = original_format.is_original(folder)
    if is_original:
        config, _, original, version = original_format.describe(folder, options)
        keys, unnorm_key = tuple(original.norm_stats), original.unnorm_key
    else:
        config, version = checkpoint.describe(folder, options)
    model = empty_model(config)
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return ModelInfo(folder, is_original, version, config, parts, stored, keys, unnorm_key, config.head == "tokens")


def verify(path: str | Path, options: CheckpointOptions) -> list[str]:
    """What is wrong with a checkpoint; nothing where it loads, its numbers are finite, and it acts on a picture."""
    try:
        folder = checkpoint.find(local_folder(path))
        findings = [f"tensor {name} has values that are not finite" for name in _not_finite(TensorFiles(folder))]
        policy = OpenVLAPolicy.load(folder, "cpu", options)
        chunk = policy.act(_picture(policy.config), 0.0)
    except PolicyError as error:
        return [str(error)]
    if not (np.isfinite(chunk.actions).all() and np.isfinite(chunk.values).all()):
        findings.append("the actions or the value of a random picture are not finite")
    if original_format.is_original(folder):
        findings += _surprises(folder, policy.config)
    return findings


def _not_finite(files: TensorFiles) -> list[str]:
    return [name for name in files.names if not torch.isfinite(files.get(name, "cpu")).all()]


def _picture(config: OpenVLAConfig) -> Observation:
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (1, config.image_size, config.image_size, 3), dtype=np.uint8)
    proprio = np.array([config.proprio_centre], dtype=np.float32)
    return Observation(dict.fromkeys(config.cameras, frames), proprio, ["pick up the bowl"])


def _surprises(folder: Path, config: OpenVLAConfig) -> list[str]:
    """Tensors beside the network that are none of those which the original code stores without using them."""
    unused = ("attn_pool.", "norm.", *(f"blocks.{featurizer.layers}." for featurizer in config.featurizers))
    known = original_names(config)
    found = []
    for name in TensorFiles(folder).names:
        inner = name.removeprefix("vision_backbone.").partition(".")[2]
        if name not in known and not (name.startswith("vision_backbone.") and inner.startswith(unused)):
            found.append(f"tensor {name} belongs to no part of the network that config.json describes")
    return found
