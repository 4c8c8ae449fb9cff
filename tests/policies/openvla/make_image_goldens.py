"""Prepare one picture as the published evaluation does, with TensorFlow, and keep the result: `python make_image_goldens.py`.

Needs tensorflow, numpy and pillow; docs/openvla.md has the whole recipe.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

HERE = Path(__file__).parent
SIZE = 96


def main() -> None:
    picture = np.array(Image.open(HERE.parents[1] / "sim/libero/reference/libero_object.png").convert("RGB"))
    frame = picture[: min(picture.shape[:2]), : min(picture.shape[:2])]
    decoded = tf.io.decode_image(tf.image.encode_jpeg(frame), expand_animations=False, dtype=tf.uint8)
    resized = tf.image.resize(decoded, (SIZE, SIZE), method="lanczos3", antialias=True)
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    side = tf.sqrt([0.9])
    start = (1 - side) / 2
    boxes = tf.stack([start, start, start + side, start + side], axis=1)
    image = tf.image.convert_image_dtype(resized, tf.float32)[None]
    cropped = tf.clip_by_value(tf.image.crop_and_resize(image, boxes, [0], (SIZE, SIZE))[0], 0, 1)
    cropped = tf.image.convert_image_dtype(cropped, tf.uint8, saturate=True)
    np.savez_compressed(HERE / "tensorflow_images.npz", frame=frame, resized=resized.numpy(), cropped=cropped.numpy())


if __name__ == "__main__":
    main()
