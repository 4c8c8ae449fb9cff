"""Simulators by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_rl.sim.base import SimError, VectorSim

BACKENDS: dict[str, str] = {"libero": "vla_rl.sim.libero.backend:LiberoBackend"}
"""Name of a simulator -> `module:class` of its backend; a string, because only the worker imports it."""


def make_sim(
    name: str,
    *,
    num_envs: int,
    num_workers: int | None = None,
    cameras: Sequence[str] = ("agentview",),
    image_size: int = 128,
    **options: Any,
) -> VectorSim:
    """Start a simulator by name, with worker processes of its own.

    `num_workers` defaults to the number of CPU cores, at most `num_envs`. `options` go to the backend (LIBERO:
    `render_quality`). Raises `SimError` for an unknown name or options that the backend refuses.
    """
    from vla_rl.sim.pool import SimPool

    if name not in BACKENDS:
        raise SimError(f"there is no simulator {name!r}; choose one of: {', '.join(sorted(BACKENDS))}")
    return SimPool(
        BACKENDS[name], num_envs=num_envs, num_workers=num_workers, cameras=tuple(cameras), image_size=image_size, options=options
    )
