"""Textures of a size that frames can show: LIBERO ships 4096 x 4096 pixels for a bowl, and a scene fills 400 MB of OpenGL."""

from __future__ import annotations

import cv2
import mujoco
import numpy as np

TEXELS_PER_PIXEL = 8
"""Longest side of a texture, in sides of a frame: a texture wraps a whole object, of which a close-up shows a part."""


def linearize(spec: mujoco.MjSpec) -> None:
    """Have every texture of `spec` read in linear colour space, whatever its file says."""
    for texture in spec.textures:
        texture.colorspace = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR


def shrink_textures(spec: mujoco.MjSpec, model: mujoco.MjModel, image_size: int) -> None:
    """Replace the pictures in `spec` that are larger than frames of `image_size` pixels need, by area averages.

    `model` is the compiled `spec`; physics reads no texture, so it stays as it was.
    """
    limit = TEXELS_PER_PIXEL * image_size
    for index, texture in enumerate(spec.textures):
        width, height, channels = (int(size[index]) for size in (model.tex_width, model.tex_height, model.tex_nchannel))
        faces = 6 if texture.type != mujoco.mjtTexture.mjTEXTURE_2D and height == 6 * width else 1
        longest = max(width, height // faces)
        if not texture.file or longest <= limit:
            continue
        start = int(model.tex_adr[index])
        pictures = model.tex_data[start : start + width * height * channels].reshape(faces, height // faces, width, channels)
        size = max(1, round(width * limit / longest)), max(1, round(height // faces * limit / longest))
        small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
        texture.file, texture.hflip, texture.vflip = "", False, False
        texture.width, texture.height, texture.nchannel = size[0], size[1] * faces, channels
        texture.data = np.ascontiguousarray(small).tobytes()
