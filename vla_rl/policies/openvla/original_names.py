"""Names of tensors: those of released OpenVLA checkpoints (timm's, with `scale_factor` for LayerScale) <-> this network's.

timm keeps queries, keys and values of a block in one tensor, which is the concatenation of three of ours along its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from vla_rl.policies.openvla.config import FeaturizerConfig, LanguageConfig, OpenVLAConfig

Names = dict[str, tuple[str, ...]]
"""Original name -> our names, whose tensors it holds one below the other."""

_FEATURIZERS = ("featurizer", "fused_featurizer")
_AFFINE = ("weight", "bias")

_EMBEDDINGS = {
    "patch_embed.proj.weight": "patch_embedding.weight",
    "patch_embed.proj.bias": "patch_embedding.bias",
    "pos_embed": "position_embedding",
}
_DINOV2_EMBEDDINGS = {"cls_token": "class_token", "reg_token": "register_tokens"}
_DINOV2_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_DINOV2_SCALES = {"ls1.scale_factor": "layer_scale1.lambda1", "ls2.scale_factor": "layer_scale2.lambda1"}
_SIGLIP_BLOCK = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_LLAMA_LAYER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def original_names(config: OpenVLAConfig) -> Names:
    """Every tensor of an original checkpoint's safetensors that the network uses, in the order of the files."""
    names: Names = {}
    for name, featurizer in zip(_FEATURIZERS, config.featurizers, strict=False):
        for original, ours in _featurizer_names(featurizer).items():
            prefix = f"vision_backbone.{name}."
            names[prefix + original] = tuple(prefix + part for part in ours)
    for number, suffix in product(range(1, config.projector_layers + 1), _AFFINE):
        names[f"projector.fc{number}.{suffix}"] = (f"projector.fc{number}.{suffix}",)
    return names | {name: (name,) for name in _language_names(config.language)}


def _featurizer_names(config: FeaturizerConfig) -> Names:
    dinov2 = config.kind == "dinov2"
    single = _EMBEDDINGS | (_DINOV2_EMBEDDINGS if dinov2 else {})
    names: Names = {original: (ours,) for original, ours in single.items()}
    for number in range(config.layers):
        theirs, ours = f"blocks.{number}.", f"encoder.{'layer' if dinov2 else 'layers'}.{number}."
        block = _DINOV2_BLOCK if dinov2 else _SIGLIP_BLOCK
        for (original, parts), suffix in product(block.items(), _AFFINE):
            names[f"{theirs}{original}.{suffix}"] = tuple(f"{ours}{part}.{suffix}" for part in parts)
        if dinov2:
            names |= {theirs + original: (ours + part,) for original, part in _DINOV2_SCALES.items()}
    return names


def _language_names(config: LanguageConfig) -> list[str]:
    names = ["language_model.model.embed_tokens.weight"]
    for number, part in product(range(config.layers), _LLAMA_LAYER):
        names.append(f"language_model.model.layers.{number}.{part}.weight")
    return [*names, "language_model.model.norm.weight", "language_model.lm_head.weight"]


def to_original(names: Names, original: str, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor that a checkpoint stores under `original`."""
    parts = [state[name] for name in names[original]]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
