"""Picks the OpenGL platform before MuJoCo and robosuite read it: both decide once, at import."""

from __future__ import annotations

import ctypes.util
import os

from vla_rl.sim.base import SimError

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_HINT = "install libegl1 and libgl1-mesa-dri (Debian; MUJOCO_GL=egl), or libosmesa6 (MUJOCO_GL=osmesa)"


def choose_platform() -> str:
    """The offscreen platform, "egl" or "osmesa", also put into MUJOCO_GL for MuJoCo and robosuite.

    MUJOCO_GL decides where it names one of the two; otherwise EGL, then OSMesa, whichever is installed.
    Raises `SimError` where neither is.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    candidates = [wanted] if wanted in _LIBRARIES else list(_LIBRARIES)
    for platform in candidates:
        if ctypes.util.find_library(_LIBRARIES[platform]):
            os.environ["MUJOCO_GL"] = platform
            return platform
    raise SimError(f"no library for offscreen rendering with {' or '.join(candidates)}: {_HINT}")


def import_failure(error: Exception) -> SimError:
    """What to tell when the platform's library is there and yet does not work."""
    return SimError(f"offscreen rendering with MUJOCO_GL={os.environ.get('MUJOCO_GL')} does not work ({error}): {_HINT}")
