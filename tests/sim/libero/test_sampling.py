"""New initial states: drawn by LIBERO's own samplers, from the seed alone."""

import numpy as np
import pytest
from libero_cases import DRAWER, OBJECT, STOVE, shared_backend

from vla_rl.sim.base import SimError
from vla_rl.sim.libero.sampling import JOINT_NOISE, InitialState, _sample, initial_state
from vla_rl.sim.libero.scene import Scene, isolated_random
from vla_rl.sim.libero.tasks import find_task
from vla_rl.types import EpisodeSpec


def scene_of(spec: EpisodeSpec) -> Scene:
    backend = shared_backend()
    backend.reset(0, spec)
    return backend._at(0)[0].scene


def sample(scene: Scene, seed: int) -> InitialState:
    return initial_state(scene, EpisodeSpec(scene.task.suite, scene.task.task_id, seed=seed))


def same(a: InitialState, b: InitialState) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("time", "qpos", "qvel", "fixture_poses"))


@pytest.mark.parametrize("spec", [OBJECT, DRAWER, STOVE], ids=str)
def test_the_seed_decides_and_nothing_else(spec: EpisodeSpec) -> None:
    scene = scene_of(spec)
    first = sample(scene, 3)
    np.random.seed(99)
    np.random.rand(5)
    initial_state(scene, spec)
    sample(scene, 8)
    assert same(sample(scene, 3), first)
    assert len({sample(scene, seed).qpos.tobytes() for seed in (3, 4, 2**32 + 3, 2**70)}) == 4


def test_global_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    scene = scene_of(OBJECT)
    np.random.seed(1)
    expected = np.random.rand(3)
    np.random.seed(1)
    sample(scene, 5)
    assert np.array_equal(np.random.rand(3), expected)


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(SimError, match="must not be negative"), isolated_random(-1):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("spec", [DRAWER], ids=str)
def test_placements_are_those_of_liberos_reset(spec: EpisodeSpec) -> None:
    """A bowl in a drawer that is open at the start, on furniture that is placed at random: every kind of sampler."""
    from libero.libero.envs.env_wrapper import ControlEnv

    scene, task = scene_of(spec), find_task(spec.suite, spec.task_id)
    env = ControlEnv(bddl_file_name=str(task.bddl_path), use_camera_obs=False, has_offscreen_renderer=False)
    env.seed(21)
    env.reset()
    ours = _sample(scene, 21, joint_noise=0.0)
    assert np.array_equal(ours.qpos, env.sim.data.qpos)
    scene.fixture_poses = ours.fixture_poses
    assert np.array_equal(scene.model.body_pos, env.sim.model.body_pos)
    assert np.array_equal(scene.model.body_quat, env.sim.model.body_quat)
    env.close()


@pytest.mark.parametrize("spec", [OBJECT, DRAWER, STOVE], ids=str)
def test_things_stand_in_their_bddl_regions(spec: EpisodeSpec) -> None:
    """Every `(On thing region)` of the BDDL file whose region is a rectangle of the workspace, over 20 seeds.

    LIBERO's samplers keep a thing's radius r off the edges: in a region narrower than 2 r, that leaves it up to r outside.
    """
    scene = scene_of(spec)
    problem = scene.problem
    regions, offset = problem.parsed_problem["regions"], np.array(problem.workspace_offset)
    fixtures, checked = list(problem.fixtures_dict), 0
    for seed in range(20):
        state = sample(scene, seed)
        for predicate, thing, *where in problem.parsed_problem["initial_state"]:
            if predicate != "on" or where[0] not in regions or not regions[where[0]]["ranges"]:
                continue
            if thing in fixtures:
                position = state.fixture_poses[fixtures.index(thing), :2]
            else:
                joint = scene.model.joint(problem.objects_dict[thing].joints[-1])
                position = state.qpos[joint.qposadr[0] :][:2]
            (low_x, low_y, high_x, high_y), *more = regions[where[0]]["ranges"]
            radius = 0.0 if thing in fixtures else problem.objects_dict[thing].horizontal_radius
            for value, low, high in zip(position - offset[:2], (low_x, low_y), (high_x, high_y), strict=True):
                assert not more and min(low, high - radius) - 1e-9 <= value <= max(high, low + radius) + 1e-9, (thing, seed)
            checked += 1
    assert checked >= 60


def test_joint_noise_is_that_of_the_shipped_states() -> None:
    """.02 rad a joint around the nominal pose: over 60 seeds the deviation is within 3 standard errors (.02 / sqrt(840))."""
    scene = scene_of(OBJECT)
    noise = np.array([sample(scene, seed).qpos[scene.robot.qpos] for seed in range(60)]) - scene.nominal_joints
    shipped = find_task("libero_object", 0).initial_states()[:, 1:][:, scene.robot.qpos] - scene.nominal_joints
    assert np.sqrt((noise**2).mean()) == pytest.approx(JOINT_NOISE, abs=3 * JOINT_NOISE / np.sqrt(840))
    assert np.sqrt((shipped**2).mean()) == pytest.approx(JOINT_NOISE, rel=0.15)


def test_sampled_episodes_start_as_their_bddl_says_and_unsolved() -> None:
    """After settling, the bowl is in the open drawer, and the stove is on."""
    backend = shared_backend()
    for seed in range(6):
        backend.reset(0, EpisodeSpec(DRAWER.suite, DRAWER.task_id, seed=seed))
        backend.data(0)
        holds = backend.problem(0)._eval_predicate
        assert holds(["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"]), seed
        assert holds(["open", "wooden_cabinet_1_top_region"]) and not backend.success(0), seed
        backend.reset(1, EpisodeSpec(STOVE.suite, STOVE.task_id, seed=seed))
        assert backend.problem(1)._eval_predicate(["turnon", "flat_stove_1"]) and not backend.success(1), seed
