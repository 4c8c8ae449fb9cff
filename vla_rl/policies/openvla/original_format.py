"""A policy as a folder that the original OpenVLA and OpenVLA-OFT code reads and writes.

config.json, dataset_statistics.json, model*.safetensors with the original names, tokenizer and preprocessor files; of
OpenVLA-OFT also `proprio_projector--N_checkpoint.pt` and `action_head--N_checkpoint.pt`; of ours `vla_rl_heads.safetensors`,
which the originals do not look at.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla.action_tokens import ActionStatistics
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.heads import ValueHead
from vla_rl.policies.openvla.modeling import OpenVLAModel, empty_model
from vla_rl.policies.openvla.original_config import (
    MODEL_TYPE,
    OURS,
    CheckpointOptions,
    ExtraParts,
    action_statistics,
    choose_statistics,
    original_config,
    saved_config,
)
from vla_rl.policies.openvla.original_names import original_names, to_original
from vla_rl.policies.openvla.prompts import EMPTY, PromptTokenizer
from vla_rl.policies.openvla.shards import SHARD_BYTES, TensorFiles, write_shards

CONFIG, STATISTICS, TOKENIZER, HEADS = "config.json", "dataset_statistics.json", "tokenizer.json", "vla_rl_heads.safetensors"
PREPROCESSOR = "preprocessor_config.json"
ASSETS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "processor_config.json", "generation_config.json",
    "configuration_prismatic.py", "modeling_prismatic.py", "processing_prismatic.py",
)  # fmt: skip
"""Small files that are kept as they are and written back; none is run."""
EXTRA = {"proprio_projector": "proprio_projector", "action_head": "action_head"}
"""Part of the network -> beginning of the name of its .pt file."""
UNREADABLE = {
    "noisy_action_projector": "it acts by diffusion",
    "vision_backbone": "its vision encoders are modulated by language (FiLM)",
}
"""Beginnings of the names of .pt files -> why such a checkpoint cannot be read."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Original:
    """What a checkpoint holds beside the weights and the configuration of the network, to be written back."""

    record: dict[str, Any]
    """config.json as it was."""
    norm_stats: dict[str, Any]
    unnorm_key: str
    libero_gripper: bool
    assets: dict[str, bytes]
    unused: dict[str, Tensor]
    """Tensors that have no influence on actions, such as the encoders' last blocks, by original name."""
    extra_files: dict[str, str]
    """Names of the .pt files, by part of the network."""


@dataclass(frozen=True)
class Loaded:
    config: OpenVLAConfig
    prompts: PromptTokenizer
    statistics: ActionStatistics
    model: OpenVLAModel
    version: int
    original: Original


def is_original(folder: Path) -> bool:
    """Whether the folder's config.json is that of an original checkpoint."""
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("model_type") == MODEL_TYPE


def version_of(folder: Path) -> int:
    """Updates of an original checkpoint that we have written; 0 for others."""
    return int(_section(folder, _json(folder / CONFIG)).get("version", 0))


def _section(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Of config.json, what `write` adds; nothing for a checkpoint of others."""
    ours = record.get(OURS, {})
    kinds = {"version": int, "unnorm_key": str, "libero_gripper": bool, "config": dict}
    if not isinstance(ours, dict) or ours and not all(isinstance(ours.get(key), kind) for key, kind in kinds.items()):
        raise PolicyError(
            f"{folder / CONFIG}: its section {OURS!r} must hold {', '.join(kinds)}; copy the checkpoint again, or take the "
            "section out to read it as an original one"
        )
    return ours


def describe(folder: Path, options: CheckpointOptions) -> tuple[OpenVLAConfig, ActionStatistics, Original, int]:
    """All but the weights. Raises `PolicyError`, one line, for what is missing, broken or cannot be read."""
    record = _json(folder / CONFIG)
    ours = _section(folder, record)
    # The statistics of the run that wrote the checkpoint, rather than those of the checkpoint it began with.
    norm_stats: Any = _json(folder / STATISTICS) if (folder / STATISTICS).is_file() else record.get("norm_stats")
    key, stats = choose_statistics(norm_stats, ours.get("unnorm_key", options.unnorm_key), options.suite)
    assets = {name: (folder / name).read_bytes() for name in ASSETS if (folder / name).is_file()}
    extra_files, extra = _extra_parts(folder, assets)
    if ours:
        config = saved_config(OpenVLAConfig.from_dict(ours["config"]), options, folder, key)
        statistics = action_statistics(stats, CheckpointOptions(libero_gripper=ours["libero_gripper"]), key)
    else:
        preprocessor = _json(folder / PREPROCESSOR) if PREPROCESSOR in assets else {}
        shown = record | {name: preprocessor.get(name) for name in ("means", "stds")}
        config = original_config(shown, stats, key, extra, options)
        statistics = action_statistics(stats, options, key)
    original = Original(record, norm_stats, key, statistics.binary_gripper, assets, {}, extra_files)
    return config, statistics, original, int(ours.get("version", 0))


def read(folder: Path, options: CheckpointOptions, device: torch.device | str, dtype: torch.dtype | None = None) -> Loaded:
    """Every tensor goes straight to `device` and `dtype` (by default the one that config.json names), one at a time.

    Raises `PolicyError`, one line, for what is missing, broken or cannot be read.
    """
    config, statistics, original, version = describe(folder, options)
    record = original.record
    dtype = dtype or DTYPES.get(str(record.get("torch_dtype") or record.get("dtype") or "float32"), torch.float32)
    prompts = _tokenizer(folder, int(record.get("pad_token_id") or 0))
    model = empty_model(config)
    model.value_head = ValueHead(config.language.width, config.value_width)
    files = TensorFiles(folder)
    names = original_names(config)
    shapes = {name: tuple(to_original(names, name, model.state_dict()).shape) for name in names}
    files.check(shapes)
    for name, parts in names.items():
        for part, tensor in zip(parts, files.get(name, device, dtype).chunk(len(parts)), strict=True):
            _set(model, part, tensor.clone() if len(parts) > 1 else tensor)
    for part, file in original.extra_files.items():
        for name, tensor in _read_pt(folder / file).items():
            _set(model, f"{part}.{name}", tensor.to(device=device, dtype=dtype), folder / file)
    _fill_value_head(model, folder, device)
    incomplete = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if incomplete:
        raise PolicyError(f"{folder} has no tensor {incomplete[0]}: a file of the checkpoint is missing or incomplete")
    model.rebuild_buffers(device)
    unused = {name: files.get(name, "cpu", dtype) for name in files.names if name not in names}
    original = Original(**{**vars(original), "unused": unused})
    return Loaded(config, prompts, statistics, model, version, original)


def write(
    folder: Path,
    config: OpenVLAConfig,
    original: Original,
    state: Mapping[str, Tensor],
    version: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a network's state as the originals have it; `state` is `OpenVLAModel.state_dict()`, without adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    names = original_names(config)
    dtype = str(state["language_model.lm_head.weight"].dtype).removeprefix("torch.")
    ours = {
        "version": version,
        "unnorm_key": original.unnorm_key,
        "libero_gripper": original.libero_gripper,
        "config": config.to_dict(),
    }
    record = original.record | {"torch_dtype": dtype, OURS: ours}
    for name, content in original.assets.items():
        (folder / name).write_bytes(content)
    (folder / STATISTICS).write_text(json.dumps(original.norm_stats, indent=2) + "\n", encoding="utf-8")
    sizes = {name: sum(state[part].nbytes for part in parts) for name, parts in names.items()}
    sizes |= {name: tensor.nbytes for name, tensor in original.unused.items()}

    def tensor(name: str) -> Tensor:
        return original.unused[name] if name in original.unused else to_original(names, name, state)

    write_shards(folder, sizes, tensor, shard_bytes)
    for part, file in original.extra_files.items():
        # Into memory first: of a full disk torch says nothing but that a write failed.
        buffer = io.BytesIO()
        torch.save({f"module.{name}": value.cpu() for name, value in _below(state, part).items()}, buffer)
        (folder / file).write_bytes(buffer.getbuffer())
    heads = {f"value_head.{name}": value.cpu().contiguous() for name, value in _below(state, "value_head").items()}
    save_file(heads, str(folder / HEADS), metadata={"format": "pt"})
    # Last, as a folder without it is no policy.
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _below(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(part + "."): tensor for name, tensor in state.items() if name.startswith(part + ".")}


def _extra_parts(folder: Path, assets: dict[str, bytes]) -> tuple[dict[str, str], ExtraParts]:
    for start, why in UNREADABLE.items():
        if any(folder.glob(f"{start}--*_checkpoint.pt")):
            raise PolicyError(f"{folder} holds a {start} checkpoint: {why}, which is not supported")
    files = {}
    for part, start in EXTRA.items():
        # Several training steps may lie side by side; the last one counts.
        found = sorted(folder.glob(f"{start}--*_checkpoint.pt"), key=lambda f: [int(n) for n in re.findall(r"\d+", f.name)])
        if found:
            files[part] = found[-1].name
    dim = 0
    if "proprio_projector" in files:
        weight = _read_pt(folder / files["proprio_projector"]).get("fc1.weight")
        if weight is None or weight.ndim != 2:
            raise PolicyError(
                f"{folder / files['proprio_projector']} has no matrix fc1.weight: it is no proprioception projector"
            )
        dim = weight.shape[1]
    oft_code = b"NUM_ACTIONS_CHUNK" in assets.get("modeling_prismatic.py", b"")
    return files, ExtraParts(dim, "action_head" in files, oft_code)


def _read_pt(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt file, without the prefix that distributed training adds. Nothing else in it is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("module."): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # torch raises several kinds for files that are truncated, foreign or unsafe
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PolicyError(f"{path} is no file of tensors that can be read safely: {reason}") from None


def _set(model: OpenVLAModel, name: str, tensor: Tensor, source: Path | None = None) -> None:
    owner, _, leaf = name.rpartition(".")
    try:
        expected = model.get_parameter(name).shape
    except AttributeError:
        raise PolicyError(f"{source} has a tensor {leaf!r} that a {owner} does not have: it is of another network") from None
    if expected != tensor.shape:
        raise PolicyError(f"{source}: tensor {name} is {list(tensor.shape)} and should be {list(expected)}")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))


def _fill_value_head(model: OpenVLAModel, folder: Path, device: torch.device | str) -> None:
    """The one saved with the checkpoint, or a new one, the same every time; float32, as it is trained at a high rate."""
    if (folder / HEADS).is_file():
        try:
            state = load_file(str(folder / HEADS))
        except Exception as error:  # safetensors raises bare exceptions of its own
            raise PolicyError(f"{folder / HEADS} cannot be read: {error}") from None
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            new = ValueHead(model.config.language.width, model.config.value_width)
        state = {f"value_head.{name}": tensor for name, tensor in new.state_dict().items()}
    for name, tensor in state.items():
        _set(model, name, tensor.to(device), folder / HEADS)


def _tokenizer(folder: Path, pad_id: int) -> PromptTokenizer:
    if not (folder / TOKENIZER).is_file():
        raise PolicyError(
            f"{folder / TOKENIZER} is missing; where there is a tokenizer.model, "
            "transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise PolicyError(f"{folder / TOKENIZER} cannot be read (truncated?): {' '.join(str(error).split())}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return PromptTokenizer(tokenizer, pad_id, last=EMPTY)


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PolicyError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path} cannot be read (truncated?): {error}") from None
    if not isinstance(record, dict):
        raise PolicyError(f"{path} must hold a JSON object")
    return record
