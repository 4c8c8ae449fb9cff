import mujoco
import numpy as np
import pytest
from robot_xml import ROBOT

from vla_rl.sim import EpisodeSpec, SimError
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.expert import ActionNoise, ExpertError, NoiseSettings, SceneView, Skill, TaskExpert, parse_goals
from vla_rl.sim.libero.expert.grasps import HeightMap, _rate, plan_grasp
from vla_rl.sim.libero.expert.motion import DOWN, funnel, orientation_command

HERE = np.zeros(3)


def make_scene(bodies: str) -> SceneView:
    """A floor at height 0, a hand above it, and some bodies."""
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><worldbody><geom name="floor" type="plane" size="2 2 0.1"/>{ROBOT}{bodies}</worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return SceneView(model, data)


def block(size: str, pos: str = "0 0 0.05", name: str = "block", euler: str = "0 0 0") -> str:
    return f'<body name="{name}_main" pos="{pos}" euler="{euler}"><freejoint/><geom type="box" size="{size}"/></body>'


# -- motion laws -------------------------------------------------------------------------------------------------------
def test_far_from_its_target_the_funnel_travels_at_hover_height() -> None:
    # 0.3 m away in x, at hover height: gain 12 asks for 3.6, limited to 0.7. Height and y need nothing: exactly 0.
    command, arrived = funnel(np.array([0.0, 0.0, 0.2]), np.array([0.3, 0.0, 0.0]), hover=0.2)
    np.testing.assert_allclose(command, [0.7, 0.0, 0.0])
    assert command[1] == 0.0 and command[2] == 0.0
    assert not arrived


def test_too_low_the_funnel_rises_before_it_travels() -> None:
    # 15 cm below hover height and beside the target: horizontal motion waits (factor clip(1 - (0.15 - 0.01) / 0.03) = 0).
    command, _ = funnel(np.array([0.0, 0.0, 0.05]), np.array([0.1, 0.0, 0.0]), hover=0.2)
    np.testing.assert_allclose(command, [0.0, 0.0, 0.7])


def test_the_funnel_ends_in_exact_zeros() -> None:
    # 1 mm off asks for 0.012, inside the dead band of 0.02.
    command, arrived = funnel(np.array([0.001, -0.001, 0.001]), np.zeros(3), hover=0.2)
    assert command.tolist() == [0.0, 0.0, 0.0]
    assert arrived


def test_the_funnel_arrives_from_anywhere() -> None:
    # A command of 1 moves the arm by about 15 mm in a control step.
    rng = np.random.default_rng(0)
    for _ in range(50):
        position, target = rng.uniform(-0.3, 0.3, 3), rng.uniform(-0.3, 0.3, 3)
        for _ in range(300):
            command, arrived = funnel(position, target, hover=target[2] + 0.1)
            if arrived:
                break
            assert np.linalg.norm(command) <= 0.7 + 1e-9
            position = position + 0.015 * command
        assert arrived


def test_orientation_is_left_alone_until_it_is_off_by_more_than_the_tolerance() -> None:
    assert orientation_command(DOWN, 0.1, np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    # A yaw of 0.3 rad is 0.6 units of 0.5 rad, limited to 0.4; so is a lean of 0.21 rad about -y.
    np.testing.assert_allclose(orientation_command(DOWN, 0.3, np.zeros(3)), [0, 0, 0.4], atol=1e-9)
    np.testing.assert_allclose(orientation_command(DOWN, 0.0, np.array([0, -0.21, 0])), [0, -0.4, 0], atol=1e-9)


# -- noise -------------------------------------------------------------------------------------------------------------
def test_noise_moves_the_hand_only_and_repeats_by_seed() -> None:
    action = np.array([0.9, 0.0, -0.9, 0.0, 0.0, 0.0, 1.0], dtype=np.float32)
    runs = []
    for _ in range(2):
        noise = ActionNoise(NoiseSettings(std=0.2, burst_probability=0.1), np.random.default_rng(3))
        runs.append(np.stack([noise(action) for _ in range(400)]))
    np.testing.assert_array_equal(*runs)
    assert (runs[0][:, 3:] == action[3:]).all()
    assert (np.abs(runs[0]) <= 1).all()
    assert runs[0][:, 1].std() > 0.2
    assert action.tolist() == np.float32([0.9, 0, -0.9, 0, 0, 0, 1]).tolist()


def test_without_noise_actions_are_executed_as_they_are() -> None:
    action = np.linspace(-1, 1, 7, dtype=np.float32)
    noise = ActionNoise(NoiseSettings.of(0.0), np.random.default_rng(0))
    for _ in range(100):
        np.testing.assert_array_equal(noise(action), action)


def test_pushes_last_as_long_as_set_and_are_as_strong() -> None:
    noise = ActionNoise(
        NoiseSettings(std=0.0, burst_probability=0.05, burst_size=0.5, burst_steps=(4, 4)), np.random.default_rng(1)
    )
    pushes = np.stack([noise(np.zeros(7, dtype=np.float32)) for _ in range(2000)])[:, :3]
    size = np.linalg.norm(pushes, axis=1)
    pushed = size > 0
    np.testing.assert_allclose(size[pushed], 0.5, rtol=1e-5)
    lengths = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], pushed, [0]]))))[::2]
    assert len(lengths) > 20
    assert (lengths % 4 == 0).all()


def test_impossible_noise_is_refused() -> None:
    for wrong in ({"std": -1.0}, {"burst_probability": 1.5}, {"burst_steps": (3, 2)}, {"std": float("nan")}):
        with pytest.raises(SimError, match="noise must not be negative"):
            NoiseSettings(**wrong)


# -- geometry ----------------------------------------------------------------------------------------------------------
def test_heights_of_upright_and_tilted_boxes() -> None:
    # A cube of side 0.1 at (0, 0, 0.05) reaches to 0.1. One of side 0.2 turned by 45 degrees about y, centred at (1, 0, 0.5):
    # at its centre line it reaches up by 0.1 * sqrt(2); 0.05 beside it by 0.1 * sqrt(2) - 0.05.
    scene = make_scene(block("0.05 0.05 0.05") + block("0.1 0.1 0.1", "1 0 0.5", "tilted", "0 45 0"))
    points = np.array([[0, 0], [0.049, 0.049], [0.06, 0], [1, 0], [1.05, 0.05], [1, 0.11]])
    peak = 0.5 + 0.1 * 2**0.5
    np.testing.assert_allclose(scene.heights(points), [0.1, 0.1, 0, peak, peak - 0.05, 0], atol=1e-9)
    assert scene.heights(points, only="block")[3] == -np.inf
    np.testing.assert_allclose(scene.heights(points, without="block")[:3], 0)


def test_a_box_is_gripped_across_its_narrow_side_at_its_centre() -> None:
    # Fingers close along y at yaw 0. A bar of 0.04 x 0.12 is narrow in x, so the hand must turn by 90 degrees.
    for size, yaw in (("0.06 0.02 0.04", 0.0), ("0.02 0.06 0.04", np.pi / 2)):
        scene = make_scene(block(size, "0.05 0.1 0.04"))
        grasp = plan_grasp(scene, "block", HERE)
        assert grasp.yaw == yaw
        np.testing.assert_allclose(grasp.position(scene, "block")[:2], [0.05, 0.1], atol=0.005)
        # It reaches 0.08 high; the fingers go 0.03 below that.
        np.testing.assert_allclose(grasp.position(scene, "block")[2], 0.05, atol=0.002)


def test_a_flat_box_is_gripped_above_the_floor() -> None:
    # 16 mm high: fingertips, 7 mm below the grip centre, must not touch the floor.
    grasp = plan_grasp(scene := make_scene(block("0.04 0.02 0.008", "0 0 0.008")), "block", HERE)
    assert 0.007 < grasp.position(scene, "block")[2] < 0.012


def test_a_bowl_is_gripped_at_its_rim() -> None:
    # Four walls 0.12 apart, wider than the gripper opens: only a wall itself fits between the fingers.
    walls = "".join(
        f'<geom type="box" size="{x} {y} 0.03" pos="{px} {py} 0.03"/>'
        for x, y, px, py in ((0.06, 0.002, 0, 0.06), (0.06, 0.002, 0, -0.06), (0.002, 0.06, 0.06, 0), (0.002, 0.06, -0.06, 0))
    )
    scene = make_scene(f'<body name="bowl_main"><freejoint/><geom type="box" size="0.06 0.06 0.002"/>{walls}</body>')
    grasp = plan_grasp(scene, "bowl", HERE)
    position = grasp.position(scene, "bowl")
    assert grasp.yaw == 0.0
    np.testing.assert_allclose(abs(position[1]), 0.06, atol=0.006)
    assert abs(position[0]) < 0.05
    # A tower beside one rim leaves the other, even where that is farther from the robot.
    for side in (0.12, -0.12):
        tower = f'<body name="tower_main" pos="0 {side} 0.1"><geom type="box" size="0.05 0.03 0.1"/></body>'
        scene = make_scene(f'<body name="bowl_main"><freejoint/><geom type="box" size="0.06 0.06 0.002"/>{walls}</body>{tower}')
        assert plan_grasp(scene, "bowl", HERE).position(scene, "bowl")[1] * side < 0


def test_a_leaning_palm_needs_room_on_the_robots_side() -> None:
    # A wall 0.06 high, gripped 0.03 below its top: the palm is at 0.03 + 0.034 = 0.064, above a post that is 0.045 high and
    # stands 0.08 to 0.12 beside it. The palm ends 0.105 beside it; one that rises by 0.3 m per m in y is 0.0315 lower there, at
    # 0.0325: it hits the post. Gripped 0.014 below the top its end is at 0.080 - 0.0315 = 0.0485, and does not.
    scene = make_scene(block("0.03 0.005 0.03", "0 0 0.03") + block("0.01 0.02 0.0225", "0 -0.1 0.0225", "post"))
    low, high, centre = np.full(2, -0.2), np.full(2, 0.2), np.zeros((1, 2))
    own, others = HeightMap(scene, low, high, only="block"), HeightMap(scene, low, high, without="block")
    for slope, depth, fits in ((0.0, 0.03, True), (0.3, 0.03, False), (0.3, 0.014, True), (-0.3, 0.03, True)):
        score, _, _ = _rate(own, others, centre, 0.0, depth, slopes=np.array([[0.0, slope]]))
        assert np.isfinite(score[0]) == fits, (slope, depth)


def test_the_hand_leans_away_from_the_robot_where_it_must() -> None:
    # It leans by 0.3 rad: along the way out from the shoulder its palm rises by tan 0.3 = 0.309 m per m.
    scene = make_scene("")
    out = np.array([0.6, 0.8])
    far, near = (np.array([*(scene.base[:2] + distance * out), scene.base[2]]) for distance in (0.9, 0.5))
    np.testing.assert_allclose(scene.palm_slope(far), 0.309 * out, atol=1e-3)
    assert scene.palm_slope(near).tolist() == [0.0, 0.0]


def test_a_failed_grasp_is_not_tried_again_at_once() -> None:
    scene = make_scene(block("0.06 0.02 0.04", "0 0 0.04"))
    first = plan_grasp(scene, "block", HERE)
    second = plan_grasp(scene, "block", HERE, [first])
    assert np.linalg.norm(first.offset - second.offset) > 0.01


def test_what_cannot_be_gripped_is_said() -> None:
    with pytest.raises(ExpertError, match="no top-down grasp of 'block'"):
        plan_grasp(make_scene(block("0.06 0.06 0.06", "0 0 0.06")), "block", HERE)
    with pytest.raises(ExpertError, match="no object 'spoon'"):
        plan_grasp(make_scene(""), "spoon", HERE)


def test_goals_are_read_whatever_their_case_and_unknown_predicates_are_refused() -> None:
    goals = parse_goals([["in", "soup_1", "basket_1_contain_region"], ["TurnOn", "flat_stove_1"]])
    assert [(goal.predicate, goal.arguments) for goal in goals] == [
        ("in", ("soup_1", "basket_1_contain_region")),
        ("turnon", ("flat_stove_1",)),
    ]
    with pytest.raises(ExpertError, match=r"predicates in, on, .* not \['stack', 'a', 'b'\]"):
        parse_goals([["stack", "a", "b"]])


# -- in the simulator --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def backend() -> LiberoBackend:
    return LiberoBackend(num_slots=1, cameras=())


def solve(
    backend: LiberoBackend, spec: EpisodeSpec, disturb: dict[int, np.ndarray]
) -> tuple[bool, list[np.ndarray], list[Skill]]:
    """Run the expert; `disturb` replaces executed actions by step."""
    backend.reset(0, spec)
    expert = TaskExpert.of(backend, 0)
    actions, skills = [], []
    for step in range(backend.max_steps(0)):
        label = expert.act(SceneView(backend.model(0), backend.data(0)))
        actions.append(label.action)
        skills.append(label.skill)
        if backend.step(0, disturb.get(step, label.action)).success:
            return True, actions, skills
    return False, actions, skills


@pytest.mark.parametrize(
    "spec",
    [
        EpisodeSpec("libero_object", 1, init_state_id=45),
        EpisodeSpec("libero_object", 4, seed=11),
        EpisodeSpec("libero_spatial", 2, seed=8),
    ],
    ids=str,
)
def test_it_solves_tasks_within_easy_reach_without_ever_turning_the_hand(backend: LiberoBackend, spec: EpisodeSpec) -> None:
    success, actions, skills = solve(backend, spec, {})
    assert success
    assert list(dict.fromkeys(skills))[:4] == [Skill.REACH, Skill.GRASP, Skill.LIFT, Skill.CARRY]
    assert all((action[3:6] == 0.0).all() for action in actions)
    assert all(abs(action[6]) == 1.0 and (np.abs(action) <= 1).all() for action in actions)


def test_it_picks_up_again_what_was_dropped_and_turns_the_hand_back(backend: LiberoBackend) -> None:
    # Steps 70-85 are on the way to the basket. The hand lets go there, and is turned by up to 6 * 0.2 * 0.5 rad.
    drop = {step: np.array([0, 0, 0, 0, 0, 0, -1.0]) for step in range(70, 80)}
    turn = {step: np.array([0, 0, 0, 0, 0, 0.2, -1.0]) for step in range(80, 86)}
    success, actions, skills = solve(backend, EpisodeSpec("libero_object", 1, init_state_id=0), drop | turn)
    assert success
    assert skills.count(Skill.GRASP) > 6
    assert any((action[3:6] != 0).any() for action in actions[80:100])
    assert Skill.REACH in skills[72:90]


@pytest.mark.parametrize("task_id", [0, 4])
def test_it_leans_to_where_an_upright_hand_does_not_reach(backend: LiberoBackend, task_id: int) -> None:
    """Task 0: with the bowl at its rim, over a plate at the arm's end. Task 4: the bowl in a drawer, between its walls."""
    success, actions, _ = solve(backend, EpisodeSpec("libero_spatial", task_id, seed=2**30 + 13), {})
    assert success and len(actions) < 160
    assert any((action[3:6] != 0).any() for action in actions)
