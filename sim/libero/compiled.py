"""Functions that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from vla_rl.sim.libero.engine import give_numba_a_folder

give_numba_a_folder()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, and kept on disk where there is a folder to write to."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:
        return numba.njit(function)
