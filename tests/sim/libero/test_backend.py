"""Episodes do not depend on where they run, states can be saved and continued anywhere, mistakes are answered clearly."""

import hashlib
import subprocess
import sys
import weakref
from pathlib import Path

import msgpack
import numpy as np
import pytest
from libero_cases import DRAWER, OBJECT, STOVE, frame, random_actions, shared_backend

from vla_rl.sim.base import SimError, StepResult
from vla_rl.sim.libero import stepper
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.types import EpisodeSpec

SAMPLED = EpisodeSpec("libero_object", 0, seed=4)


def run(backend: LiberoBackend, slot: int, spec: EpisodeSpec, actions: np.ndarray) -> bytes:
    backend.reset(slot, spec)
    for action in actions:
        backend.step(slot, action)
    return backend.save_state(slot)


def test_an_episode_depends_on_neither_slot_nor_history() -> None:
    backend, actions = shared_backend(), random_actions(5, 6)
    expected = run(backend, 0, OBJECT, actions)
    run(backend, 1, SAMPLED, random_actions(6, 9))
    run(backend, 2, DRAWER, random_actions(7, 3))
    assert run(backend, 1, OBJECT, actions) == expected


def test_a_beginning_is_settled_once_and_the_same_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that share a beginning go their own ways from it; forgotten, it is settled again to the same bits."""
    monkeypatch.setattr(stepper, "SETTLED_KEPT", 2)
    backend, specs = shared_backend(), [EpisodeSpec("libero_object", 0, seed=seed) for seed in (21, 22, 23)]
    settled: list[EpisodeSpec] = []
    settle = stepper.Stepper._settle
    monkeypatch.setattr(stepper.Stepper, "_settle", lambda self, spec: settled.append(spec) or settle(self, spec))
    first = run(backend, 0, specs[0], random_actions(1, 3))
    assert run(backend, 1, specs[0], random_actions(2, 3)) != first
    assert run(backend, 1, specs[0], random_actions(1, 3)) == first
    assert settled == specs[:1]
    for spec in specs[1:]:
        backend.reset(2, spec)
    assert run(backend, 0, specs[0], random_actions(1, 3)) == first
    assert settled == [*specs, specs[0]]


def test_interleaved_episodes_of_one_scene_do_not_touch_each_other() -> None:
    """Rendering, reading poses and saving in between included."""
    backend, specs = shared_backend(), [DRAWER, EpisodeSpec(DRAWER.suite, DRAWER.task_id, seed=1)]
    sequences = [random_actions(8, 5), random_actions(9, 5)]
    alone = [run(backend, 0, spec, actions) for spec, actions in zip(specs, sequences, strict=True)]
    for slot, spec in enumerate(specs):
        backend.reset(slot, spec)
    for pair in zip(*sequences, strict=True):
        for slot, action in enumerate(pair):
            backend.step(slot, action)
            frame(backend, slot)
            backend.body_pose(1 - slot, "wooden_cabinet_1")
    assert [backend.save_state(slot) for slot in range(2)] == alone


def test_a_loaded_state_shows_the_same_and_continues_the_same() -> None:
    backend, actions = shared_backend(), random_actions(10, 12)
    middle = run(backend, 0, STOVE, actions[:5])
    shown = frame(backend, 0), backend.proprio(0)
    expected = [(backend.step(0, action), backend.proprio(0), backend.save_state(0)) for action in actions[5:]]
    run(backend, 1, EpisodeSpec(STOVE.suite, STOVE.task_id, seed=2), actions[:2])
    backend.load_state(2, middle)
    assert np.array_equal(frame(backend, 2), shown[0]) and np.array_equal(backend.proprio(2), shown[1])
    assert backend.save_state(2) == middle
    for action, (result, proprio, state) in zip(actions[5:], expected, strict=True):
        assert backend.step(2, action) == result
        assert np.array_equal(backend.proprio(2), proprio) and backend.save_state(2) == state


OTHER_PROCESS = """
import hashlib, sys
import numpy as np
from vla_rl.sim.libero.backend import LiberoBackend
backend = LiberoBackend(num_slots=1, cameras=("agentview",), image_size=64)
backend.load_state(0, open(sys.argv[1], "rb").read())
for action in np.load(sys.argv[2]):
    backend.step(0, action)
out = np.zeros((64, 64, 3), np.uint8)
backend.render(0, "agentview", out)
print(hashlib.sha256(backend.save_state(0) + out.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_continues_bit_for_bit_and_ends_in_silence(tmp_path: Path) -> None:
    """It does not close its backend: OpenGL's contexts must be freed in order all the same."""
    backend, actions = shared_backend(), random_actions(11, 6)
    (tmp_path / "state").write_bytes(run(backend, 0, OBJECT, actions[:3]))
    np.save(tmp_path / "actions.npy", actions[3:])
    for action in actions[3:]:
        backend.step(0, action)
    expected = hashlib.sha256(backend.save_state(0) + frame(backend, 0).tobytes()).hexdigest()
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "state"), str(tmp_path / "actions.npy")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, expected, "")


def test_seeds_do_not_matter_to_shipped_states() -> None:
    backend = shared_backend()
    states = []
    for seed in (0, 77):
        backend.reset(0, EpisodeSpec(OBJECT.suite, OBJECT.task_id, OBJECT.init_state_id, seed))
        states.append(msgpack.unpackb(backend.save_state(0))["integration"])
    assert states[0] == states[1]


def test_a_refused_reset_or_load_leaves_the_slot_as_it_was() -> None:
    backend = shared_backend()
    before = run(backend, 0, OBJECT, random_actions(12, 1))
    for spec in (EpisodeSpec("libero_mars", 0), EpisodeSpec("libero_object", 10), EpisodeSpec("libero_object", 0, 50)):
        with pytest.raises(SimError, match="there is no|has no suite"):
            backend.reset(0, spec)
    for state in (b"", b"nonsense", msgpack.packb({"format": 1}), msgpack.packb([1]), before[:-40]):
        with pytest.raises(SimError, match="not a state saved"):
            backend.load_state(0, state)
    record = msgpack.unpackb(before)
    for change in ({"integration": record["integration"][8:]}, {"goal_position": "text"}, {"fingers": None}):
        with pytest.raises(SimError, match="does not fit"):
            backend.load_state(0, msgpack.packb(record | change))
    assert backend.save_state(0) == before


def test_bad_actions_move_nothing() -> None:
    backend = shared_backend()
    before = run(backend, 0, OBJECT, random_actions(13, 1))
    for action in (np.zeros(6), np.full(7, np.nan), np.array([0, 0, 0, 0, 0, np.inf, 0])):
        with pytest.raises(SimError, match="7 finite numbers"):
            backend.step(0, action)
    assert backend.save_state(0) == before


def test_a_diverged_simulation_ends_the_task_as_a_failure() -> None:
    """In the state before that action. MuJoCo itself would silently start over from its default state."""
    backend = shared_backend()
    backend.reset(0, OBJECT)
    backend.reset(1, SAMPLED)
    other = backend.save_state(1)
    backend.data(0).qvel[0] = 1e12
    before = backend.save_state(0)
    assert backend.step(0, np.zeros(7)) == StepResult(reward=0.0, success=False, terminated=True)
    assert backend.save_state(0) == before and np.isfinite(backend.proprio(0)).all()
    assert backend.save_state(1) == other
    backend.reset(0, OBJECT)
    assert not backend.step(0, np.zeros(7)).success


def test_an_unstarted_slot_and_unknown_options() -> None:
    with pytest.raises(SimError, match="choose one of: exact, fast"):
        LiberoBackend(num_slots=1, render_quality="pretty")
    backend = LiberoBackend(num_slots=1, cameras=())
    with pytest.raises(SimError, match="slot 0 holds no episode; reset it first"):
        backend.proprio(0)
    backend.close()


def test_the_settled_hand_is_where_the_shipped_pose_puts_it() -> None:
    """Nominal joints (0, -.161, 0, -2.445, 0, 2.227, pi/4): 1.1 to 1.2 m high, pointing down (a turn of pi about x), open."""
    backend = shared_backend()
    backend.reset(0, DRAWER)
    proprio = backend.proprio(0)
    assert proprio.dtype == np.float32 and proprio.shape == (8,)
    assert 1.1 < proprio[2] < 1.25 and abs(proprio[1]) < 0.05
    assert abs(abs(proprio[3]) - np.pi) < 0.1 and proprio[6] > 0.03 and proprio[7] < -0.03
    position, rotation = backend.end_effector(0)
    assert position == pytest.approx(proprio[:3], abs=1e-3) and rotation[2, 2] < -0.98


def test_objects_are_found_by_their_bddl_names() -> None:
    backend = shared_backend()
    backend.reset(0, DRAWER)
    position, _ = backend.body_pose(0, "plate_1")
    assert np.array_equal(position, backend.data(0).body("plate_1_main").xpos)
    assert backend.max_steps(0) == 220 and backend.instruction(0).startswith("pick up the black bowl in the top drawer")
    with pytest.raises(SimError, match="no object 'teapot'; it has: akita_black_bowl_1"):
        backend.body_pose(0, "teapot")
    with pytest.raises(SimError, match="no site"):
        backend.site_pose(0, "nowhere")


def test_tasks_that_differ_in_their_goals_share_a_scene() -> None:
    """All of libero_spatial does; each task keeps its own goal and furniture, and they may alternate."""
    backend, other = shared_backend(), EpisodeSpec("libero_spatial", 0, init_state_id=3)
    sequences = random_actions(15, 4), random_actions(16, 4)
    alone = [run(backend, slot, spec, sequences[slot]) for slot, spec in enumerate((DRAWER, other))]
    for slot, spec in enumerate((DRAWER, other)):
        backend.reset(slot, spec)
    assert backend.model(0) is backend.model(1)
    assert backend.instruction(0) != backend.instruction(1)
    for pair in zip(*sequences, strict=True):
        for slot, action in enumerate(pair):
            backend.step(slot, action)
    assert [backend.save_state(slot) for slot in range(2)] == alone


@pytest.mark.slow
def test_idle_scenes_make_room_and_come_back() -> None:
    backend = LiberoBackend(num_slots=1, cameras=("agentview",), image_size=64, max_scenes=1)
    first = run(backend, 0, OBJECT, random_actions(14, 1))
    picture, model = frame(backend, 0), weakref.ref(backend._at(0)[0].scene.stage)
    run(backend, 0, EpisodeSpec("libero_object", 5, 0), random_actions(14, 1))
    frame(backend, 0)
    run(backend, 0, EpisodeSpec("libero_object", 7, 0), random_actions(14, 1))
    assert model() is None
    assert run(backend, 0, OBJECT, random_actions(14, 1)) == first
    assert np.array_equal(frame(backend, 0), picture)
    backend.close()
