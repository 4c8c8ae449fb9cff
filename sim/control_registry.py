"""Simulators for control from a state, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vla_rl.sim.base import SimError
from vla_rl.sim.control import ControlSim

CONTROL_SIMS: dict[str, str] = {
    "gymnasium": "vla_rl.sim.gymnasium:GymnasiumControl",
    "irsim": "vla_rl.sim.wheeled.foreign:IrSimControl",
    "wheeled": "vla_rl.sim.wheeled.simulator:WheeledControl",
}
"""Name of a simulator -> `module:class`, constructed as `Class(id, num_envs, **options)`; imported only where it is used."""


ONE_ROW = frozenset({"irsim"})
"""Simulators with one environment a process."""


def make_control(name: str, id: str, num_envs: int, **options: Any) -> ControlSim:
    """Start a simulator by name. Raises `SimError` for an unknown name, and for an `id` or options that it refuses."""
    if name not in CONTROL_SIMS:
        raise SimError(f"there is no simulator {name!r} for control; choose one of: {', '.join(sorted(CONTROL_SIMS))}")
    module, _, attribute = CONTROL_SIMS[name].partition(":")
    sim: ControlSim = getattr(import_module(module), attribute)(id, num_envs, **options)
    return sim
