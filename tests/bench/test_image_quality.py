"""PSNR and SSIM against values worked out by hand."""

import math

import numpy as np
import pytest

from vla_rl.bench.image_quality import psnr, ssim

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def picture(value: int, side: int = 11) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_psnr() -> None:
    """Every pixel off by 5: 10 log10(255^2 / 25) = 20 log10(51) = 34.151 dB; off by 255: 0 dB."""
    assert psnr(picture(100), picture(105)) == pytest.approx(20 * math.log10(51))
    assert psnr(picture(105), picture(100)) == pytest.approx(34.1514, abs=1e-4)
    assert psnr(picture(0), picture(255)) == 0
    assert psnr(picture(7), picture(7)) == math.inf


def test_psnr_averages_squares_over_channels() -> None:
    """One channel of three off by 30: mean square 300."""
    other = picture(100)
    other[..., 1] += 30
    assert psnr(picture(100), other) == pytest.approx(10 * math.log10(255**2 / 300))


def test_ssim_of_plain_pictures_is_the_luminance_term() -> None:
    """No variance: (2 * 100 * 150 + C1) / (100^2 + 150^2 + C1) = 30006.5025 / 32506.5025."""
    assert ssim(picture(100, 16), picture(150, 16)) == pytest.approx(30006.5025 / 32506.5025, abs=1e-9)


def test_ssim_of_one_bright_pixel() -> None:
    """A picture of one window. The weight of its middle is w = g0^2 with g0 = 1 / sum(exp(-k^2 / (2 * 1.5^2)), k = -5..5).

    Against black: means 200 w and 0, variances 200^2 w (1 - w) and 0, covariance 0.
    """
    w = (1 / sum(math.exp(-(k**2) / 4.5) for k in range(-5, 6))) ** 2
    assert w == pytest.approx(0.0708, abs=1e-4)
    bright = picture(0)
    bright[5, 5] = 200
    expected = C1 / ((200 * w) ** 2 + C1) * C2 / (200**2 * w * (1 - w) + C2)
    assert ssim(bright, picture(0)) == pytest.approx(expected, rel=1e-6)


def test_ssim_of_a_negative_is_negative() -> None:
    """Equal variances v, covariance -v, and means that are nearly equal: about (C2 - 2v) / (C2 + 2v), v = 64^2 / 3."""
    noise = np.random.default_rng(0).integers(64, 193, (64, 64, 3)).astype(np.uint8)
    assert ssim(noise, noise) == pytest.approx(1)
    v = 64**2 / 3
    assert ssim(noise, (256 - noise.astype(int)).astype(np.uint8)) == pytest.approx((C2 - 2 * v) / (C2 + 2 * v), abs=0.03)


def test_ssim_refuses_what_it_cannot_compare() -> None:
    for a, b in ((picture(0), picture(0, 12)), (picture(0, 10), picture(0, 10))):
        with pytest.raises(ValueError, match="at least 11 px"):
            ssim(a, b)
