"""What a user may set about the worker processes of a simulator, and how the workers are laid out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.sim.base import SimError
from vla_rl.sim.environments import package_path
from vla_rl.sim.placement import place
from vla_rl.sim.worker_process import WorkerProcess


@dataclass(frozen=True)
class PoolOptions:
    """Options of `make_sim` that are the pool's own; all others go to the backend."""

    python: str = sys.executable
    """Interpreter of the workers; another one needs numpy, msgpack, jaxtyping and what the simulator needs."""
    hang_timeout: float = 120.0
    """s without a control step or frame until a worker is killed and replaced."""
    reset_timeout: float | None = None
    """s that a worker's start, or one reset or load, may take; default: five hang timeouts, at least 60 s."""
    devices: tuple[int, ...] = ()
    """EGL device ids for rendering, shared out over the workers; default: MuJoCo's choice."""
    pin_cpus: bool = True
    """Give each worker its own CPU cores when there are enough."""
    environment: Mapping[str, str] | None = None
    """Additional environment variables of the workers."""

    @staticmethod
    def split(options: Mapping[str, Any]) -> tuple[PoolOptions, dict[str, Any]]:
        """The pool's options, checked, and the backend's."""
        names = PoolOptions.__dataclass_fields__
        own = PoolOptions(**{name: value for name, value in options.items() if name in names})
        for name in ("hang_timeout", "reset_timeout"):
            value = getattr(own, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise SimError(f"{name} must be a positive number of seconds, not {value!r}")
        return own, {name: value for name, value in options.items() if name not in names}


def lay_out_workers(num_envs: int, num_workers: int, options: PoolOptions, cores: Sequence[int]) -> list[WorkerProcess]:
    """Rows, device, cores and environment variables of each worker."""
    placement = place(num_envs, num_workers, [1.0] * max(1, len(options.devices)))
    workers = []
    for index in range(num_workers):
        variables = _environment(options)
        device = placement.device_of_worker[index]
        if options.devices:
            variables["MUJOCO_EGL_DEVICE_ID"] = str(options.devices[device])
        cpus = None
        if options.pin_cpus and len(cores) >= num_workers:
            cpus = frozenset(cores[index * len(cores) // num_workers : (index + 1) * len(cores) // num_workers])
        slots = {row: slot for slot, row in enumerate(placement.rows(index))}
        workers.append(WorkerProcess(index, slots, num_envs, device, variables, cpus))
    return workers


def _environment(options: PoolOptions) -> dict[str, str]:
    variables = {"MUJOCO_GL": "egl", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    if options.python == sys.executable:
        # As the parent imports, so does the worker: also from folders that were put on the path by hand.
        variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    else:
        # Not what is on our path: a packages folder of this interpreter would hide those of the other one.
        variables["PYTHONPATH"] = package_path()
    return {**variables, **(options.environment or {})}
