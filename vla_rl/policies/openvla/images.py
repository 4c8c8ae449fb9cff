"""Frames as rendered -> uint8 images as the vision encoders take them, and their augmentation.

Legend: B observations, C cameras, H x W frame size, S image size of the policy, M = B*C images.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vla_rl.policies.openvla.config import AugmentationConfig

_FLIPPED_AXES = {"as_is": (), "flip_vertical": (-2,), "rotate_180": (-2, -1)}


def to_model_images(frames: UInt8[Tensor, "B H W 3"], size: int, orientation: str) -> UInt8[Tensor, "B 3 S S"]:
    """Turn and scale frames; antialiased bilinear, rounded."""
    images = frames.permute(0, 3, 1, 2)
    if _FLIPPED_AXES[orientation]:
        images = images.flip(_FLIPPED_AXES[orientation])
    if images.shape[-2:] != (size, size):
        scaled = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        images = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return images.contiguous()


def turn(frames: UInt8[np.ndarray, "B H W 3"], orientation: str) -> UInt8[np.ndarray, "B H W 3"]:
    """As `to_model_images` turns them."""
    return np.flip(frames, axis=tuple(axis - 1 for axis in _FLIPPED_AXES[orientation]))


def augment(
    images: UInt8[Tensor, "M 3 S S"], config: AugmentationConfig, generator: torch.Generator | None = None
) -> UInt8[Tensor, "M 3 S S"]:
    """Each image cropped and scaled back, shifted (edges are repeated), and changed in brightness and contrast."""

    def draw(*shape: int) -> Tensor:
        """Uniform in [-1, 1), on the generator's device, so that one seed gives one result on any device."""
        device = generator.device if generator is not None else "cpu"
        return (torch.rand(len(images), *shape, generator=generator, device=device) * 2 - 1).to(images.device)

    zoom = 1 - config.crop * (draw(1, 1) + 1) / 2
    # A crop of side `zoom` can lie anywhere in the image, and the shift moves it beyond. The grid spans [-1, 1].
    centre = draw(1, 2) * (1 - zoom) + 2 * config.shift * draw(1, 2)
    theta = torch.cat([zoom * torch.eye(2, device=images.device), centre.mT], dim=-1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + config.contrast * draw(1, 1, 1)
    brightness = 255 * config.brightness * draw(1, 1, 1)
    return ((moved - mean) * contrast + mean + brightness).round_().clamp_(0, 255).to(torch.uint8)


def normalise_pixels(
    images: UInt8[Tensor, "M 3 S S"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "M 3 S S"]:
    """To float, minus `mean`, over `std` (both in units of full scale)."""
    return (images.float() / 255 - _of_channels(mean, images.device)) / _of_channels(std, images.device)


@cache
def _of_channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    """Kept, as a CUDA graph must not contain a copy from the CPU."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
