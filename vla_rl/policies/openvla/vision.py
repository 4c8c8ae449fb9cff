"""Vision encoders: images -> one feature vector per patch.

Legend: M images, S image size, G = S / patch size, K = G*G patches, V feature size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEncoder
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from vla_rl.policies.openvla.config import FeaturizerConfig
from vla_rl.policies.openvla.images import normalise_pixels


class ConvFeaturizer(nn.Module):
    """Strided convolutions with normalisation and a position embedding: learns to localise from few images on a CPU."""

    def __init__(self, config: FeaturizerConfig, image_size: int) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        widths = [3, *(config.width >> max(halvings - 1 - i, 0) for i in range(halvings))]
        blocks: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        for _ in range(config.layers):
            blocks.append(_ResidualBlock(config.width))
        self.blocks = nn.Sequential(*blocks)
        self.position_embedding = nn.Parameter(torch.randn((image_size // config.patch_size) ** 2, config.width) * 0.02)
        self.norm = nn.LayerNorm(config.width) if config.final_norm else nn.Identity()

    def forward(self, pixels: Float[Tensor, "M 3 S S"]) -> Float[Tensor, "M K V"]:
        features = self.blocks(pixels).flatten(2).mT
        return self.norm(features + self.position_embedding)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(nn.functional.gelu(self.conv1(self.norm(x))))


def _siglip_config(config: FeaturizerConfig, image_size: int, activation: str) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=image_size,
        patch_size=config.patch_size,
        hidden_act=activation,
        vision_use_head=False,
        attn_implementation="sdpa",
    )


def _dinov2_config(config: FeaturizerConfig, image_size: int) -> Dinov2WithRegistersConfig:
    return Dinov2WithRegistersConfig(
        hidden_size=config.width,
        mlp_ratio=config.mlp_width // config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=image_size,
        patch_size=config.patch_size,
        num_register_tokens=config.registers,
        attn_implementation="sdpa",
    )


class SiglipFeaturizer(nn.Module):
    """SigLIP's vision tower without its pooling head."""

    def __init__(self, config: FeaturizerConfig, image_size: int) -> None:
        super().__init__()
        self.final_norm = config.final_norm
        self.encoder = SiglipVisionModel(_siglip_config(config, image_size, "gelu_pytorch_tanh"))

    def forward(self, pixels: Float[Tensor, "M 3 S S"]) -> Float[Tensor, "M K V"]:
        hidden = self.encoder.encoder(inputs_embeds=self.encoder.embeddings(pixels)).last_hidden_state
        return self.encoder.post_layernorm(hidden) if self.final_norm else hidden


class Dinov2Featurizer(nn.Module):
    """DINOv2 with register tokens; class and register tokens are left out of the features."""

    def __init__(self, config: FeaturizerConfig, image_size: int) -> None:
        super().__init__()
        self.final_norm = config.final_norm
        self.special_tokens = 1 + config.registers
        self.encoder = Dinov2WithRegistersModel(_dinov2_config(config, image_size))

    def forward(self, pixels: Float[Tensor, "M 3 S S"]) -> Float[Tensor, "M K V"]:
        hidden = self.encoder.encoder(self.encoder.embeddings(pixels)).last_hidden_state
        hidden = self.encoder.layernorm(hidden) if self.final_norm else hidden
        return hidden[:, self.special_tokens :]


class TimmFeaturizer(nn.Module):
    """The blocks of transformers' DINOv2 or SigLIP behind timm's embeddings, as in released OpenVLA checkpoints.

    timm 0.9, which those were trained with, gives positions to patches only, puts class and register tokens before them, and
    has the exact GELU in SigLIP, too. No final norm. `original_names` maps every parameter to timm's.
    """

    def __init__(self, config: FeaturizerConfig, image_size: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, (image_size // config.patch_size) ** 2, config.width) * 0.02)
        self.special_tokens = 0
        self.encoder: Dinov2WithRegistersEncoder | SiglipEncoder
        if config.kind == "dinov2":
            self.special_tokens = 1 + config.registers
            self.class_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
            self.register_tokens = nn.Parameter(torch.randn(1, config.registers, config.width) * 0.02)
            self.encoder = Dinov2WithRegistersEncoder(_dinov2_config(config, image_size))
        else:
            self.encoder = SiglipEncoder(_siglip_config(config, image_size, "gelu"))

    def forward(self, pixels: Float[Tensor, "M 3 S S"]) -> Float[Tensor, "M K V"]:
        hidden = self.patch_embedding(pixels).flatten(2).mT + self.position_embedding
        if self.special_tokens:
            batch = len(hidden)
            hidden = torch.cat([self.class_token.expand(batch, -1, -1), self.register_tokens.expand(batch, -1, -1), hidden], 1)
        return self.encoder(hidden).last_hidden_state[:, self.special_tokens :]


FEATURIZERS: dict[str, type[ConvFeaturizer | SiglipFeaturizer | Dinov2Featurizer]] = {
    "conv": ConvFeaturizer,
    "siglip": SiglipFeaturizer,
    "dinov2": Dinov2Featurizer,
}


class VisionBackbone(nn.Module):
    """One or two encoders side by side: `featurizer` and, as in OpenVLA, `fused_featurizer`."""

    def __init__(self, configs: tuple[FeaturizerConfig, ...], image_size: int) -> None:
        super().__init__()
        self.configs = configs
        for name, config in zip(("featurizer", "fused_featurizer"), configs, strict=False):
            kind = TimmFeaturizer if config.layout == "timm" else FEATURIZERS[config.kind]
            self.add_module(name, kind(config, image_size))

    @property
    def width(self) -> int:
        return sum(config.width for config in self.configs)

    def forward(self, images: UInt8[Tensor, "M 3 S S"]) -> Float[Tensor, "M K V"]:
        dtype = next(self.parameters()).dtype
        features = [
            featurizer(normalise_pixels(images, config.mean, config.std).to(dtype))
            for featurizer, config in zip(self.children(), self.configs, strict=True)
        ]
        return torch.cat(features, dim=-1)
