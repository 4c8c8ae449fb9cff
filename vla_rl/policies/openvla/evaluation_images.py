"""Frames -> images as OpenVLA's published evaluation prepares them with TensorFlow: JPEG round trip, Lanczos, centre crop.

Resampling is written as two matrices, one for each axis, as both of TensorFlow's filters are separable.

Legend: B observations, H frame side, S image side of the policy.
"""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

JPEG_QUALITY = 95
CROP_AREA = 0.9
"""Part of the image that the centre crop keeps; training drew crops of this area."""


def evaluation_images(
    frames: UInt8[np.ndarray, "B H H 3"], size: int, crop: bool, device: torch.device | str = "cpu"
) -> UInt8[Tensor, "B 3 S S"]:
    """Square frames, the right way up; the result is rounded after each step, as the originals' is."""
    decoded = np.stack([_through_jpeg(np.ascontiguousarray(frame)) for frame in frames]) if len(frames) else frames
    images = torch.from_numpy(decoded).to(device).permute(0, 3, 1, 2).float()
    if images.shape[-1] != size:
        images = _resample(images, lanczos_weights(images.shape[-1], size)).round().clamp(0, 255)
    if crop:
        # TensorFlow rounds by scaling with 255.5 and cutting off.
        images = (_resample(images / 255, crop_weights(size, CROP_AREA)).clamp(0, 1) * 255.5).floor().clamp(0, 255)
    return images.to(torch.uint8).contiguous()


def _through_jpeg(frame: UInt8[np.ndarray, "H H 3"]) -> UInt8[np.ndarray, "H H 3"]:
    """TensorFlow decodes with libjpeg's fast transform, which OpenCV and Pillow do not offer: up to 16 levels apart."""
    from simplejpeg import decode_jpeg

    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return decode_jpeg(encoded.tobytes(), fastdct=True, fastupsample=False)


def _resample(images: Float[Tensor, "B 3 H H"], weights: Float[Tensor, "S H"]) -> Float[Tensor, "B 3 S S"]:
    weights = weights.to(images.device)
    return weights @ images @ weights.mT


@cache
def lanczos_weights(before: int, after: int) -> Float[Tensor, "S H"]:
    """Lanczos filter of radius 3, widened when shrinking (antialias), normalised within the image."""
    scale = before / after
    width = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    distance = (np.arange(before) + 0.5 - centres[:, None]) / width
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


@cache
def crop_weights(size: int, area: float) -> Float[Tensor, "S S"]:
    """Bilinear resampling of the central square of that area to the whole; the first and last pixels lie on its edges."""
    side = math.sqrt(area)
    start = (1 - side) / 2 * (size - 1)
    position = start + np.arange(size) * side
    low = np.floor(position).astype(int)
    weights = np.zeros((size, size), dtype=np.float32)
    rows = np.arange(size)
    weights[rows, low] = 1 - (position - low)
    weights[rows, np.minimum(low + 1, size - 1)] += position - low
    return torch.from_numpy(weights)
