"""How far one picture is from another: PSNR and SSIM.

Legend: H x W image size, C colour channels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
"""Side (px) and standard deviation (px) of SSIM's Gaussian window."""
K1, K2 = 0.01, 0.03


def psnr(a: UInt8[np.ndarray, "H W C"], b: UInt8[np.ndarray, "H W C"]) -> float:
    """Peak signal-to-noise ratio, dB, of the squared error's mean over pixels and channels; infinite for equal pictures."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(a: UInt8[np.ndarray, "H W C"], b: UInt8[np.ndarray, "H W C"]) -> float:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13), from -1 to 1, 1 for equal pictures.

    The Gaussian window of 11 x 11 px with sigma 1.5, at the places where it lies inside the picture; mean over places
    and channels. Raises `ValueError` for pictures of different shapes, or smaller than the window.
    """
    if a.shape != b.shape or min(a.shape[:2]) < WINDOW:
        raise ValueError(f"SSIM compares pictures of one shape and at least {WINDOW} px a side, not {a.shape} and {b.shape}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float(np.mean(luminance * structure))


def _window(picture: Float64[np.ndarray, "H W C"]) -> Float64[np.ndarray, "h w C"]:
    """Weighted mean around each place where the window fits."""
    half = WINDOW // 2
    blurred = cv2.GaussianBlur(picture, (WINDOW, WINDOW), SIGMA)
    return blurred[half:-half, half:-half].reshape(picture.shape[0] - 2 * half, picture.shape[1] - 2 * half, -1)
