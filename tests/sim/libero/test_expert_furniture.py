"""Drawers, doors and knobs, the order of subgoals, and variation of style."""

import mujoco
import numpy as np
import pytest
from robot_xml import ROBOT

from vla_rl.sim import EpisodeSpec
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.expert import ExpertError, SceneView, Skill, Style, Subgoal, TaskExpert, parse_goals
from vla_rl.sim.libero.expert.goals import order_subgoals
from vla_rl.sim.libero.expert.hand import boxes_overlap, is_free, lowest_point
from vla_rl.sim.libero.expert.handles import plan_pull, plan_push
from vla_rl.sim.libero.expert.joints import moving_part
from vla_rl.sim.libero.expert.motion import DOWN, funnel, straight

CABINET = """
<body name="cabinet_main" pos="0 -0.3 0.2">
  <geom type="box" size="0.12 0.1 0.1"/>
  <body name="cabinet_drawer">
    <joint name="drawer" type="slide" axis="0 -1 0" range="-0.16 0.01"/>
    <geom type="box" size="0.1 0.003 0.03" pos="0 0.104 0"/>
    <geom type="box" size="0.04 0.008 0.008" pos="0 0.135 0"/>
    <site name="cabinet_region" type="box" size="0.1 0.08 0.03"/>
  </body>
</body>
"""
STOVE = """
<body name="stove_main" pos="-0.1 0.2 0"><geom type="box" size="0.05 0.05 0.01" pos="0 0 0.01"/>
  <body name="stove_knob" pos="0 0 0.02">
    <joint name="knob" type="hinge" axis="0 0 1" range="-0.005 2.1"/><geom type="box" size="0.008 0.03 0.02" pos="0 0 0.02"/>
  </body>
</body>
"""


def make_scene(bodies: str, joints: dict[str, float] | None = None) -> SceneView:
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><compiler angle="radian"/><worldbody>'
        f'<geom name="floor" type="plane" size="2 2 0.1"/>{ROBOT}{bodies}</worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    for name, value in (joints or {}).items():
        data.joint(name).qpos[0] = value
    mujoco.mj_forward(model, data)
    return SceneView(model, data)


# -- geometry ----------------------------------------------------------------------------------------------------------
def test_boxes_overlap_by_their_edges_too() -> None:
    # Two cubes of side 2: centres 2.1 apart do not touch; with one turned by 45 degrees about z its edge reaches 1.414.
    turned = np.array([[0.7071, -0.7071, 0], [0.7071, 0.7071, 0], [0, 0, 1.0]])
    one, far = np.zeros((1, 3)), np.array([[2.1, 0, 0], [0, 0, 2.1], [0, 0, 1.9]])
    cubes = np.repeat(np.eye(3)[None], 3, 0), np.ones((3, 3))
    assert boxes_overlap(one, np.eye(3)[None], np.ones(3), far, *cubes).tolist() == [[False, False, True]]
    assert boxes_overlap(one, turned[None], np.ones(3), far, *cubes).tolist() == [[True, False, True]]


def test_the_hand_fits_over_a_post_and_not_into_a_wall() -> None:
    # A post 4 cm wide fits between fingers 7.7 cm apart; a wall 2 cm beside the centre is where a finger would be.
    post = '<body name="post_main" pos="0 0 0.05"><geom type="box" size="0.02 0.02 0.05"/></body>'
    wall = '<body name="wall_main" pos="0 0.05 0.05"><geom type="box" size="0.1 0.003 0.05"/></body>'
    pose = np.array([[0.0, 0.0, 0.09]]), DOWN[None]
    assert is_free(make_scene(post), *pose)[0]
    assert not is_free(make_scene(post + wall), *pose)[0]
    # The fingertips are 9 mm below the grip centre of an upright hand.
    assert lowest_point(DOWN, 0.04) == pytest.approx(0.0092)
    assert not is_free(make_scene(""), np.array([[0.0, 0.0, 0.009]]), DOWN[None])[0]


def test_where_points_of_a_drawer_and_of_a_knob_go() -> None:
    drawer = moving_part(scene := make_scene(CABINET), "cabinet_region")
    # Open is the end of the range that is further from 0: -0.16 along -y, which is 0.16 towards +y.
    assert (drawer.closed, drawer.opened, drawer.is_slide) == (0.01, -0.16, True)
    np.testing.assert_allclose(drawer.moved(scene, np.zeros(3), -0.1)[0], [0, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(drawer.opening_direction(scene, np.zeros(3)), [0, 1, 0], atol=1e-9)
    assert drawer.openness(scene) == pytest.approx(0.01 / 0.17)
    knob = moving_part(scene := make_scene(STOVE), "stove")
    assert knob.is_knob(scene) and knob.closed == -0.005
    # A quarter turn about (-0.1, 0.2) takes the point 3 cm in x of it to 3 cm in y of it.
    np.testing.assert_allclose(knob.moved(scene, np.array([-0.07, 0.2, 0]), np.pi / 2)[0], [-0.1, 0.23, 0], atol=1e-9)
    with pytest.raises(ExpertError, match="no drawer, door or knob"):
        moving_part(make_scene('<body name="stone_main"><geom size="0.1"/></body>'), "stone")


def test_a_drawer_is_pulled_at_its_handle_and_pushed_from_outside() -> None:
    scene = make_scene(CABINET)
    pull = plan_pull(scene, moving_part(scene, "cabinet_region"))
    # The bar is at y = -0.3 + 0.135; fingers above and below it, as the cabinet is in the way of a hand from above.
    np.testing.assert_allclose(pull.position[1:], [-0.165, 0.2], atol=0.009)
    assert abs(pull.rotation[2, 0]) > 0.8 and pull.rotation[1, 2] < -0.8
    scene = make_scene(CABINET, {"drawer": -0.15})
    push = plan_push(scene, moving_part(scene, "cabinet_region"))
    # Its outer face is at -0.3 + 0.15 + 0.143; the finger is 10.5 mm thick to its middle, and 1 mm away.
    assert push.position[1] == pytest.approx(-0.007 + 0.0115)
    assert push.rotation[2, 2] < -0.6


def test_a_knob_is_gripped_across_from_above() -> None:
    scene = make_scene(STOVE)
    hold = plan_pull(scene, moving_part(scene, "stove"))
    np.testing.assert_allclose(hold.position[:2], [-0.1, 0.2], atol=1e-6)
    # The blade is thin in x, so the finger axis is x.
    assert abs(hold.rotation[0, 0]) > 0.99


# -- order -------------------------------------------------------------------------------------------------------------
def order(goals: list[list[str]], joints: dict[str, float] | None = None) -> list[str]:
    return [goal.label for goal in order_subgoals(make_scene(CABINET + STOVE, joints), parse_goals(goals), lambda _: False)]


def test_a_shut_drawer_is_opened_before_and_closed_after_something_goes_in() -> None:
    goals = [["close", "cabinet_region"], ["in", "bowl_1", "cabinet_region"]]
    assert order(goals) == ["open cabinet_region", "in bowl_1 cabinet_region", "close cabinet_region"]
    assert order(goals, {"drawer": -0.15}) == ["in bowl_1 cabinet_region", "close cabinet_region"]


def test_what_carries_comes_first_and_what_holds_is_left_alone() -> None:
    goals = [["on", "bowl_1", "bowl_2"], ["in", "bowl_2", "tray_region"], ["turnon", "stove"], ["close", "cabinet_region"]]
    assert order(goals) == ["close cabinet_region", "turnon stove", "in bowl_2 tray_region", "on bowl_1 bowl_2"]
    left = order_subgoals(make_scene(CABINET), parse_goals(goals), lambda goal: goal.predicate != "turnon")
    assert left == [Subgoal("turnon", ("stove",))]


# -- style -------------------------------------------------------------------------------------------------------------
def test_style_changes_speed_and_route_and_still_arrives() -> None:
    plain, _ = funnel(np.array([0.0, 0.0, 0.2]), np.array([0.3, 0.0, 0.0]), hover=0.2)
    fast, _ = funnel(np.array([0.0, 0.0, 0.2]), np.array([0.3, 0.0, 0.0]), hover=0.2, style=Style(speed=1.2, bend=0.3))
    np.testing.assert_allclose(plain, [0.7, 0, 0])
    np.testing.assert_allclose(fast, [0.84 * np.cos(0.3), 0.84 * np.sin(0.3), 0])
    rng = np.random.default_rng(0)
    for _ in range(20):
        style, position, target = Style.draw(rng), rng.uniform(-0.3, 0.3, 3), rng.uniform(-0.3, 0.3, 3)
        assert 0.8 <= style.speed <= 1.2 and 0 <= style.height <= 0.05 and abs(style.bend) <= 0.4
        for _ in range(400):
            command, arrived = funnel(position, target, target[2] + 0.1, style=style)
            position = position + 0.015 * command
        assert arrived


def test_a_straight_approach_first_gets_onto_its_line() -> None:
    # 5 cm beside the line and 9 cm before the end: no motion along it until the hand is within 14 mm of the line.
    command, arrived = straight(np.array([0.05, -0.09, 0.0]), np.array([0.0, -0.09, 0.0]), np.zeros(3))
    np.testing.assert_allclose(command, [-0.6, 0, 0])
    assert not arrived
    command, arrived = straight(np.array([0.0, -0.002, 0.0]), np.array([0.0, -0.09, 0.0]), np.zeros(3))
    np.testing.assert_allclose(command, [0, 0.024, 0], atol=1e-12)
    assert arrived


# -- in the simulator --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def backend() -> LiberoBackend:
    return LiberoBackend(num_slots=1, cameras=())


def work_on(backend: LiberoBackend, goal: list[str], limit: int, through: bool = True) -> list[Skill]:
    """Run the expert for one goal until it holds, and `through` to the hand's retreat; returns its skills in their order."""
    expert = TaskExpert([goal], lambda words: bool(backend.problem(0)._eval_predicate(words)))
    skills: list[Skill] = []
    view = SceneView(backend.model(0), backend.data(0))
    for _ in range(limit):
        backend.data(0)
        step = expert.act(view)
        if expert.done or (not through and backend.problem(0)._eval_predicate(goal)):
            return list(dict.fromkeys(skills))
        assert step.subgoal == " ".join(goal)
        skills.append(step.skill)
        backend.step(0, step.action)
    raise AssertionError(f"{goal} does not hold after {limit} steps; last skills: {skills[-5:]}")


def test_it_opens_and_closes_a_drawer_and_turns_the_stove_on_and_off(backend: LiberoBackend) -> None:
    backend.reset(0, EpisodeSpec("libero_goal", 0, seed=5))
    drawer = "wooden_cabinet_1_middle_region"
    pulling = [Skill.REACH, Skill.GRASP, Skill.PULL, Skill.RELEASE, Skill.RETREAT]
    assert work_on(backend, ["open", drawer], 180) == pulling
    assert Skill.PUSH in work_on(backend, ["close", drawer], 180)
    assert Skill.TURN in work_on(backend, ["turnon", "flat_stove_1"], 180)
    assert Skill.TURN in work_on(backend, ["turnoff", "flat_stove_1"], 180)


def test_it_opens_a_microwave(backend: LiberoBackend) -> None:
    backend.reset(0, EpisodeSpec("libero_90", 35, seed=5))
    assert Skill.PULL in work_on(backend, ["open", "microwave_1"], 150, through=False)
