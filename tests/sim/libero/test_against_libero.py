"""Ours against LIBERO's own environment and robosuite's own loop."""

import numpy as np
import pytest
from libero_cases import CAMERAS, DRAWER, OBJECT, SIZE, STOVE, frame, random_actions, shared_backend

from vla_rl.bench.published_env import PublishedEnv
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.scene import Scene
from vla_rl.sim.libero.tasks import find_task
from vla_rl.types import EpisodeSpec


def robosuite_steps(backend, slot: int, actions: np.ndarray) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    """qpos after each action, from robosuite's `env.step` on the slot's data."""
    problem, controller = backend.problem(slot), backend._at(slot)[1].controller
    robot = problem.robots[0]
    robot.controller.goal_pos, robot.controller.goal_ori = controller.goal_position.copy(), controller.goal_rotation.copy()
    robot.controller.initial_joint, robot.gripper.current_action = controller.rest_joints.copy(), controller.fingers.copy()
    robot.controller.new_update = True
    problem.timestep, problem.done = 0, False
    trace = []
    for action in actions:
        problem.step(action.astype(np.float64))
        trace.append(problem.sim.data.qpos.copy())
    return trace


@pytest.mark.parametrize("spec", [OBJECT, DRAWER, STOVE], ids=str)
def test_stepping_equals_robosuite_bit_for_bit(spec: EpisodeSpec) -> None:
    """Not only within 1e-10: contacts amplify the last bit."""
    backend, actions = shared_backend(), random_actions(1, 25)
    actions[:8, 2] = -1  # down to the table or the floor
    backend.reset(0, spec)
    start = backend.save_state(0)
    ours = []
    for action in actions:
        backend.step(0, action)
        ours.append(backend._at(0)[0].scene.data.qpos.copy())
    backend.load_state(0, start)
    theirs = robosuite_steps(backend, 0, actions)
    assert np.abs(ours[-1] - ours[0]).max() > 0.05  # it moved
    assert max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) <= 1e-10


def test_the_fast_controller_moves_the_arm_alike() -> None:
    """Up in the air, where no contact amplifies the last bit."""
    actions = random_actions(1, 25)
    actions[:, 2] = np.abs(actions[:, 2])
    traces = []
    fast = LiberoBackend(num_slots=1, cameras=(), controller="fast")
    for backend in (shared_backend(), fast):
        backend.reset(0, OBJECT)
        for action in actions:
            backend.step(0, action)
        traces.append(backend.data(0).qpos[:9].copy())
    fast.close()
    difference = float(np.abs(traces[0] - traces[1]).max())
    assert 0 < difference < 1e-9


@pytest.mark.slow
def test_the_published_protocol_frame_by_frame() -> None:
    """`env.seed(0)`, reset, `set_init_state`, ten no-ops, actions: images, proprioception and success of every step."""
    from robosuite.utils.transform_utils import quat2axisangle

    backend, task = shared_backend(), find_task(OBJECT.suite, OBJECT.task_id)
    env = PublishedEnv(task, SIZE, CAMERAS)
    try:
        observation = env.start(OBJECT.init_state_id or 0, look=True)
        backend.reset(0, OBJECT)
        for action in [None, *random_actions(2, 3)]:
            if action is not None:
                observation, success = env.step(action, look=True)
                assert backend.step(0, action).success == success
            for camera in CAMERAS:
                assert np.array_equal(frame(backend, 0, camera), observation[f"{camera}_image"]), camera
            rotation = quat2axisangle(observation["robot0_eef_quat"].copy())
            expected = np.concatenate([observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]])
            assert np.array_equal(backend.proprio(0), expected.astype(np.float32))
    finally:
        env.close()


@pytest.mark.parametrize("spec", [DRAWER, STOVE], ids=str)
def test_contact_predicate_equals_robosuites(spec: EpisodeSpec) -> None:
    """For every pair of things, while the hand presses on them at random; the kitchen of STOVE has geoms without names."""
    backend = shared_backend()
    backend.reset(0, spec)
    for action in random_actions(3, 8):
        backend.step(0, action)
    problem = backend.problem(0)
    original = super(type(problem).__mro__[1], problem).check_contact
    things = [*problem.objects_dict.values(), *problem.fixtures_dict.values(), None]
    answers = {(a, b): problem.check_contact(a, b) for a in things[:-1] for b in things}
    assert answers == {(a, b): original(a, b) for a, b in answers}
    assert len(set(answers.values())) == 2


def test_the_scene_keeps_liberos_own_goal() -> None:
    """Lifted into the basket by hand, the soup is judged as LIBERO judges it."""
    backend = shared_backend()
    backend.reset(0, OBJECT)
    assert backend.goal(0) == [["in", "alphabet_soup_1", "basket_1_contain_region"]]
    assert not backend.step(0, np.zeros(7, np.float32)).success
    scene: Scene = backend._at(0)[0].scene
    target, _ = backend.site_pose(0, "basket_1_contain_region")
    joint = scene.problem.objects_dict["alphabet_soup_1"].joints[-1]
    scene.data.joint(joint).qpos[:3] = target
    result = backend.step(0, np.zeros(7, np.float32))
    assert result.success and result.terminated and result.reward == 1.0 and backend.success(0)
