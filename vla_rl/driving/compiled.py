"""Loops over rows that numba compiles: their result for a row does not depend on how many rows there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function`, compiled at its first call and kept for the next process where there is a folder for it.

    What it calls must be in the same file, because the kept code is thrown away only when that file changes.
    """
    try:
        made: Function = numba.njit(cache=True)(function)
    except RuntimeError:  # neither the source's folder nor the user's cache can be written
        made = numba.njit(function)
    return made
