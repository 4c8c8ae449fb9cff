"""Our simulator in the forms that `vla-rl bench sim` measures, behind the interface that its peers share.

Legend: B environments, A actions of a chunk, D action size.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol
from unittest import mock

import numpy as np
from jaxtyping import Float32

from vla_rl.bench.sim_settings import SimSettings
from vla_rl.sim.registry import make_sim

RESETS = 12
"""Resets whose time is taken."""


class System(Protocol):
    """Something that steps the environments of a `SimSettings`; made as `System(settings)`."""

    def restart(self) -> None:
        """Bring every environment to its initial state, or leave them where they are if that would take minutes."""
        ...

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        """Run a chunk and have what a policy would look at ready; returns the control steps that were made."""
        ...

    def reset_times(self) -> dict[str, list[float]]:
        """Seconds that resets of one environment took: "settled" with the settling steps, "unsettled" without them."""
        ...

    def parts(self) -> dict[str, float]:
        """Seconds and counts so far, by part, where the system keeps such a record."""
        ...

    def close(self) -> None: ...


class PoolSystem:
    """`make_sim("libero")` as a user makes it."""

    def __init__(self, settings: SimSettings, render_quality: str, cameras: tuple[str, ...]) -> None:
        self._specs, self._fresh = settings.specs(), settings.fresh_specs()
        self._sim = make_sim(
            "libero",
            num_envs=settings.num_envs,
            num_workers=settings.num_workers,
            cameras=cameras,
            image_size=settings.image_size,
            render_quality=render_quality,
        )

    def restart(self) -> None:
        self._sim.reset(self._specs)

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        return int(self._sim.step_chunk(actions).executed.sum())

    def reset_times(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"settled": [], "repeated": []}
        for number in range(RESETS):
            spec = next(self._fresh)
            for found in times.values():
                begin = time.perf_counter()
                self._sim.reset([spec], [number % len(self._specs)])
                found.append(time.perf_counter() - begin)
        return times

    def parts(self) -> dict[str, float]:
        return dict(self._sim.timings)

    def close(self) -> None:
        self._sim.close()


class FastSystem(PoolSystem):
    def __init__(self, settings: SimSettings) -> None:
        super().__init__(settings, "fast", settings.cameras)


class ExactSystem(PoolSystem):
    def __init__(self, settings: SimSettings) -> None:
        super().__init__(settings, "exact", settings.cameras)


class BlindSystem(PoolSystem):
    def __init__(self, settings: SimSettings) -> None:
        super().__init__(settings, "exact", ())


class PhysicsSystem:
    """One environment without cameras in this process: what a core does with our stepping loop."""

    controller = "exact"

    def __init__(self, settings: SimSettings) -> None:
        from vla_rl.sim.libero.backend import LiberoBackend

        self._backend = LiberoBackend(num_slots=1, cameras=(), controller=self.controller)
        self._specs, self._fresh = settings.specs(), settings.fresh_specs()

    def restart(self) -> None:
        self._backend.reset(0, self._specs[0])

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        for action in actions[0]:
            self._backend.step(0, action)
        return actions.shape[1]

    def reset_times(self) -> dict[str, list[float]]:
        from vla_rl.sim.libero import stepper

        times: dict[str, list[float]] = {"settled": [], "unsettled": []}
        for number in range(2 * RESETS):
            kind, steps = ("settled", stepper.SETTLING_STEPS) if number % 2 else ("unsettled", 0)
            spec = next(self._fresh)
            with mock.patch.object(stepper, "SETTLING_STEPS", steps):
                begin = time.perf_counter()
                self._backend.reset(0, spec)
                times[kind].append(time.perf_counter() - begin)
        return times

    def parts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._backend.close()


class FastPhysicsSystem(PhysicsSystem):
    controller = "fast"


class BareSystem(PhysicsSystem):
    """Nothing but `mj_step` on the same model along the same motion: the torques of our own episode are played back."""

    def __init__(self, settings: SimSettings) -> None:
        import mujoco

        super().__init__(settings)
        super().restart()
        self._step, self._set_state = mujoco.mj_step, mujoco.mj_setState
        self._model, self._data = self._backend.model(0), self._backend.data(0)
        self._kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._start = np.empty(mujoco.mj_stateSize(self._model, self._kind))
        mujoco.mj_getState(self._model, self._data, self._start, self._kind)
        self._controls = [self._record(settings.actions(chunk)) for chunk in range(settings.episode_chunks)]
        self._next = 0

    def _record(self, actions: Float32[np.ndarray, "B A D"]) -> list[np.ndarray]:
        import mujoco

        controls: list[np.ndarray] = []
        advance = mujoco.mj_step2

        def recording(model: Any, data: Any) -> None:
            controls.append(data.ctrl.copy())
            advance(model, data)

        with mock.patch.object(mujoco, "mj_step2", recording):
            super().chunk(actions)
        return controls

    def restart(self) -> None:
        self._set_state(self._model, self._data, self._start, self._kind)
        self._next = 0

    def chunk(self, actions: Float32[np.ndarray, "B A D"]) -> int:
        model, data, step = self._model, self._data, self._step
        for control in self._controls[self._next]:
            data.ctrl[:] = control
            step(model, data)
        self._next = (self._next + 1) % len(self._controls)
        return actions.shape[1]

    def reset_times(self) -> dict[str, list[float]]:
        return {}


SYSTEMS: Mapping[str, str] = {
    "fast": "vla_rl.bench.systems:FastSystem",
    "exact": "vla_rl.bench.systems:ExactSystem",
    "blind": "vla_rl.bench.systems:BlindSystem",
    "libero": "vla_rl.bench.peer_systems:LiberoVectorSystem",
    "rlinf": "vla_rl.bench.peer_systems:RlinfSystem",
    "physics": "vla_rl.bench.systems:PhysicsSystem",
    "fast_physics": "vla_rl.bench.systems:FastPhysicsSystem",
    "robosuite": "vla_rl.bench.peer_systems:RobosuiteSystem",
    "bare": "vla_rl.bench.systems:BareSystem",
}
"""Name -> `module:class`; a string, because only the process that hosts a system imports it."""
TITLES: Mapping[str, str] = {
    "fast": "ours, fast pictures",
    "exact": "ours, exact pictures",
    "blind": "ours, no cameras",
    "libero": "LIBERO SubprocVectorEnv",
    "rlinf": "RLinf LiberoEnv",
    "physics": "ours, no cameras, one core",
    "fast_physics": "ours, no cameras, fast controller, one core",
    "robosuite": "robosuite env.step, no cameras, one core",
    "bare": "bare mj_step, same motion, one core",
}
