"""config.json, statistics and options of an original OpenVLA checkpoint -> the configuration of our network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS, ActionStatistics
from vla_rl.policies.openvla.config import FeaturizerConfig, LanguageConfig, OpenVLAConfig

MODEL_TYPE = "openvla"
OURS = "vla_rl"
"""Key of config.json under which we keep what the original format has no place for."""

_DINOV2 = FeaturizerConfig(
    kind="dinov2", patch_size=14, width=1024, layers=23, heads=16, mlp_width=4096, registers=4, final_norm=False,
    mean=(0.484375, 0.455078125, 0.40625), std=(0.228515625, 0.2236328125, 0.224609375), layout="timm",
)  # fmt: skip
_SIGLIP = FeaturizerConfig(
    kind="siglip", patch_size=14, width=1152, layers=26, heads=16, mlp_width=4304, final_norm=False, layout="timm"
)
BACKBONES: dict[str, tuple[int, tuple[FeaturizerConfig, ...]]] = {
    "dinosiglip-vit-so-224px": (224, (_DINOV2, _SIGLIP)),
    "siglip-vit-so400m": (224, (_SIGLIP,)),
    "dinov2-vit-l": (224, (_DINOV2,)),
}
"""Image size and encoders by `vision_backbone_id`; of the published encoders' blocks, the last is not used."""

_LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
}
"""What a `text_config` means that does not say otherwise: defaults of transformers 4.40."""


DEFAULT_CHUNK = 8
UNSET: dict[str, tuple[Any, ...]] = {"chunk_length": (DEFAULT_CHUNK,), "centre_crop": (True,)}
"""What options are that nobody has set, where that is not None alone."""


@dataclass(frozen=True)
class CheckpointOptions:
    """What an original checkpoint does not say about itself. What is None is found out, as `original_config` tells.

    A policy that we saved says it all: there `saved_config` refuses what differs.
    """

    cameras: tuple[str, ...] | None = None
    """Cameras whose images the checkpoint was trained on, in their order; by default agentview alone."""
    unnorm_key: str | None = None
    """Data set whose statistics actions are scaled by; by default the only one, or that of `suite`."""
    suite: str | None = None
    """Task suite that the policy will act in."""
    decoding: Literal["parallel", "autoregressive"] | None = None
    """By default parallel where OpenVLA-OFT's extra files or its modeling file lie in the folder."""
    attention: Literal["full", "causal"] | None = None
    """Of parallel decoding; by default full, as OpenVLA-OFT's fork of transformers has it over the whole sequence. Checkpoints
    that were trained with stock transformers or FlashAttention-2 are causal."""
    chunk_length: int | None = None
    """Actions that parallel decoding gives; by default 8, or 25 for 14-dimensional actions (ALOHA)."""
    centre_crop: bool = True
    """Whether images are cropped, as for all checkpoints that were trained with image augmentation."""
    libero_gripper: bool | None = None
    """Whether the last action is a gripper that opens at 1, to be commanded as LIBERO's; by default where the data set's name
    has `libero` in it."""
    value_gradient: bool | None = None
    """As in `OpenVLAConfig`; by default as it was saved, or else false."""


@dataclass(frozen=True)
class ExtraParts:
    """What lies beside the safetensors files of an OpenVLA-OFT checkpoint."""

    proprio_dim: int = 0
    l1: bool = False
    oft_code: bool = False
    """Whether the folder's own modeling file, which is never run, is OpenVLA-OFT's."""


def choose_statistics(norm_stats: Any, key: str | None, suite: str | None = None) -> tuple[str, dict[str, Any]]:
    """The statistics of a data set and its name. Raises `PolicyError` that lists the names where there is none of that name."""
    if not isinstance(norm_stats, dict) or not norm_stats:
        raise PolicyError("the checkpoint has no norm_stats: add the dataset_statistics.json of its training run to the folder")
    if key is None and len(norm_stats) == 1:
        key = next(iter(norm_stats))
    wanted = key or suite
    for name in (wanted, f"{wanted}_no_noops"):
        if name is not None and name in norm_stats:
            return name, norm_stats[name]
    what = "the checkpoint has statistics of several data sets" if key is None else f"there are no norm_stats of {key!r}"
    raise PolicyError(f"{what}; set policy.unnorm_key to one of: {', '.join(sorted(norm_stats))}")


def action_statistics(stats: dict[str, Any], options: CheckpointOptions, key: str) -> ActionStatistics:
    """Raises `PolicyError` where entries are missing."""
    low, high, mask = _bounds(stats, "action", key)
    libero = options.libero_gripper if options.libero_gripper is not None else "libero" in key
    return ActionStatistics(low, high, mask, exact_zero=False, binary_gripper=libero)


def _bounds(stats: dict[str, Any], part: str, key: str) -> tuple[tuple[float, ...], tuple[float, ...], tuple[bool, ...]]:
    """OpenVLA scales by the 1st and 99th percentile; OpenVLA-OFT on ALOHA (14 dimensions) by the extremes."""
    try:
        entry = stats[part]
        low, high = ("min", "max") if len(entry["min" if "q01" not in entry else "q01"]) == 14 else ("q01", "q99")
        mask = entry.get("mask") or [True] * len(entry[low])
        found = tuple(map(float, entry[low])), tuple(map(float, entry[high])), tuple(map(bool, mask))
    except (KeyError, TypeError, ValueError):
        raise PolicyError(f"norm_stats of {key!r} have no usable {part} percentiles (q01, q99)") from None
    return found


def original_config(
    record: dict[str, Any], stats: dict[str, Any], key: str, extra: ExtraParts, options: CheckpointOptions
) -> OpenVLAConfig:
    """Raises `PolicyError` for a checkpoint of a kind that cannot be read."""
    image_size, featurizers = _vision(record)
    language, rows = _language(record)
    low, _, _ = _bounds(stats, "action", key)
    oft = bool(extra.proprio_dim) or extra.l1 or extra.oft_code
    parallel = options.decoding == "parallel" if options.decoding else oft
    centre, scale = _proprio_scaling(stats, key, extra.proprio_dim)
    return OpenVLAConfig(
        cameras=options.cameras or ("agentview",),
        chunk_length=(options.chunk_length or (25 if len(low) == 14 else DEFAULT_CHUNK)) if parallel else 1,
        action_dim=len(low),
        proprio_dim=extra.proprio_dim,
        vocab_size=rows - int(record.get("pad_to_multiple_of", 64)),
        embedding_rows=rows,
        image_size=image_size,
        featurizers=featurizers,
        language=language,
        proprio_centre=centre,
        proprio_scale=scale,
        proprio_clip=True,
        proprio_noise=0.0,
        proprio_dropout=0.0,
        image_pipeline="published" if options.centre_crop else "published_uncropped",
        projector_layers=3 if len(featurizers) == 2 else 2,
        projector_width=4 * sum(f.width for f in featurizers) if len(featurizers) == 2 else 0,
        attention=(options.attention or "full") if parallel else "causal",
        decoding="parallel" if parallel else "autoregressive",
        read_before=True,
        stop_slot=parallel,
        head="l1" if extra.l1 else "tokens",
        value_width=min(1024, language.width),
        value_gradient=bool(options.value_gradient),
    )


def saved_config(config: OpenVLAConfig, options: CheckpointOptions, folder: Path, key: str | None = None) -> OpenVLAConfig:
    """The configuration of a policy that we saved, of which `options` may change what the value loss trains.

    `key` names the statistics that it was saved with, if they have a name. Raises `PolicyError` where another option was set
    and differs: the weights were trained for what was saved. One that is as nobody sets it counts as not set.
    """
    saved: dict[str, Any] = {"decoding": config.decoding, "centre_crop": config.image_pipeline == "published"}
    if config.decoding == "parallel":
        saved |= {"attention": config.attention, "chunk_length": config.chunk_length}
    wanted = {name: getattr(options, name) for name in saved if getattr(options, name) not in (None, *UNSET.get(name, ()))}
    if options.unnorm_key is not None and f"{options.unnorm_key}_no_noops" != key:
        saved, wanted = saved | {"unnorm_key": key}, wanted | {"unnorm_key": options.unnorm_key}
    if options.cameras is not None and not set(config.cameras) <= set(options.cameras):
        saved, wanted = saved | {"cameras": list(config.cameras)}, wanted | {"cameras": list(options.cameras)}
    for name, value in wanted.items():
        if saved[name] != value:
            raise PolicyError(f"{folder} was saved with {name} {saved[name]}, not {value}: leave that setting as it was saved")
    return config if options.value_gradient is None else replace(config, value_gradient=options.value_gradient)


def _vision(record: dict[str, Any]) -> tuple[int, tuple[FeaturizerConfig, ...]]:
    name = record.get("vision_backbone_id")
    if name not in BACKBONES:
        raise PolicyError(f"vision_backbone_id {name!r} cannot be read; only {', '.join(BACKBONES)} can")
    image_size, featurizers = BACKBONES[name]
    if record.get("image_sizes", [image_size])[0] != image_size:
        raise PolicyError(f"image_sizes is {record['image_sizes']}, and {name} has images of {image_size} px")
    means, stds = record.get("means"), record.get("stds")
    if means and stds and len(means) == len(stds) == len(featurizers):
        pairs = zip(featurizers, means, stds, strict=True)
        featurizers = tuple(replace(f, mean=tuple(mean), std=tuple(std)) for f, mean, std in pairs)
    return image_size, featurizers


def _language(record: dict[str, Any]) -> tuple[LanguageConfig, int]:
    """The decoder and the rows of its embedding tables."""
    text = record.get("text_config") or {}
    if text.get("model_type", "llama") != "llama" or text.get("rope_scaling"):
        raise PolicyError(
            f"the language model is {text.get('model_type')!r} (llm_backbone_id {record.get('llm_backbone_id')!r}); "
            "only Llama without rope_scaling can be read"
        )
    if record.get("n_action_bins", NUM_ACTION_TOKENS) != NUM_ACTION_TOKENS:
        raise PolicyError(f"n_action_bins is {record['n_action_bins']}; only {NUM_ACTION_TOKENS} can be read")
    value = _LLAMA | text
    heads = int(value["num_attention_heads"])
    language = LanguageConfig(
        width=int(value["hidden_size"]),
        layers=int(value["num_hidden_layers"]),
        heads=heads,
        mlp_width=int(value["intermediate_size"]),
        rope_theta=float(value["rope_theta"]),
        norm_eps=float(value["rms_norm_eps"]),
        max_positions=int(value["max_position_embeddings"]),
        kv_heads=int(value.get("num_key_value_heads") or heads),
    )
    return language, int(value["vocab_size"])


def _proprio_scaling(stats: dict[str, Any], key: str, dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not dim:
        return (), ()
    low, high, mask = _bounds(stats, "proprio", key)
    if len(low) != dim:
        raise PolicyError(f"norm_stats of {key!r} describe {len(low)}-dimensional proprioception, the projector takes {dim}")
    centre = tuple((a + b) / 2 if used else 0.0 for a, b, used in zip(low, high, mask, strict=True))
    # The small constant is OpenVLA-OFT's.
    scale = tuple((b - a + 1e-8) / 2 if used else 1.0 for a, b, used in zip(low, high, mask, strict=True))
    return centre, scale
