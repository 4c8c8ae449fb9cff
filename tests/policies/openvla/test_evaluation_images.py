"""The published image pipeline against TensorFlow's own result (made by `make_image_goldens.py`), and its filters by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_rl.policies.openvla.evaluation_images import crop_weights, evaluation_images, lanczos_weights


@pytest.mark.parametrize(("step", "crop"), [("resized", False), ("cropped", True)])
def test_it_is_tensorflows_picture(step: str, crop: bool) -> None:
    """At most one level apart, where a sum lies on the edge between two, in fewer than one of a thousand values."""
    goldens = np.load(Path(__file__).with_name("tensorflow_images.npz"))
    expected = goldens[step]
    image = evaluation_images(goldens["frame"][None], len(expected), crop)[0].permute(1, 2, 0).numpy()
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    # Without the JPEG round trip, or with a plain bilinear filter, thousands of values differ.
    assert np.abs(goldens["resized"].astype(int) - goldens["cropped"]).mean() > 1


def test_the_filters_by_hand() -> None:
    # Cropping 3 px to an area of .25 (a side of half): positions .5, 1, 1.5 between the first and the last pixel.
    assert crop_weights(3, 0.25).tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
    # Doubling: the first result lies a quarter of a pixel before the first one. Lanczos at distances .25, 1.25 and 2.25 is
    # sinc(d) sinc(d/3) = .900316 * .988616 = .890067, -.180063 * .737913 = -.132871, .100035 * .300105 = .030021;
    # of two pixels, normalised: .890067 / .757196 = 1.175477 and -.175477.
    assert torch.allclose(lanczos_weights(2, 4)[0], torch.tensor([1.175477, -0.175477]), atol=1e-4)
    for before, after in ((256, 224), (128, 224), (224, 224)):
        weights = lanczos_weights(before, after)
        assert torch.allclose(weights.sum(1), torch.ones(after), atol=1e-5)
        # Widened when shrinking: 6 pixels of support, and 6 times the ratio.
        assert int((weights != 0).sum(1).max()) <= 6 * max(before / after, 1) + 1
    assert torch.allclose(lanczos_weights(224, 224), torch.eye(224), atol=1e-6)
