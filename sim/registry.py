"""Simulators by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_rl.sim.base import SimError, VectorSim
from vla_rl.sim.environments import find_environment, needed_environment

BACKENDS: dict[str, str] = {
    "libero": "vla_rl.sim.libero.backend:LiberoBackend",
    "robotwin": "vla_rl.sim.robotwin.backend:RoboTwinBackend",
}
"""Name of a simulator -> `module:class` of its backend; a string, because only the worker imports it."""

MAIN_CAMERA = {"libero": ("agentview",), "robotwin": ("head_camera",)}


def make_sim(
    name: str,
    *,
    num_envs: int,
    num_workers: int | None = None,
    cameras: Sequence[str] | None = None,
    image_size: int | Sequence[int] = 128,
    **options: Any,
) -> VectorSim:
    """Start a simulator by name, with worker processes of its own.

    `num_workers` defaults to the number of CPU cores, at most `num_envs`; `cameras` to the main one. `image_size` is the
    side of square frames, or height and width. `options` are `PoolOptions` (`python` is the interpreter of the workers, by
    default ours or the one that `vla-rl sim install` made) and those of the backend (LIBERO: `render_quality`; RoboTwin:
    `control`, `profile`). Raises `SimError` for an unknown name, options that the backend refuses, and a missing interpreter.
    """
    from vla_rl.sim.pool import SimPool

    if name not in BACKENDS:
        raise SimError(f"there is no simulator {name!r}; choose one of: {', '.join(sorted(BACKENDS))}")
    return SimPool(
        BACKENDS[name],
        num_envs=num_envs,
        num_workers=num_workers,
        cameras=tuple(MAIN_CAMERA[name] if cameras is None else cameras),
        image_size=image_size,
        options=_with_interpreter(name, options),
    )


def _with_interpreter(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the interpreter that the simulator has of its own, and what its processes need to draw."""
    options = {key: value for key, value in options.items() if key != "python" or value is not None}
    found = find_environment(name) if "python" in options else needed_environment(name)
    if found is None or options.get("python", str(found.python)) != str(found.python):
        return options
    return options | {"python": str(found.python), "environment": {**found.variables, **(options.get("environment") or {})}}
