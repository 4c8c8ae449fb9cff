"""Frames: which way up, by which names."""

import numpy as np
import pytest
from libero_cases import DRAWER, OBJECT, SIZE, STOVE, frame, random_actions, shared_backend

from vla_rl.bench.image_quality import psnr
from vla_rl.sim.base import SimError
from vla_rl.sim.libero import engine
from vla_rl.sim.libero.backend import LiberoBackend


def test_scenes_take_turns_on_one_context() -> None:
    """Each has a buffer of its own, and a frame must not land in another's: every order of two, after a first look."""
    backend = shared_backend()
    for slot, spec in enumerate((OBJECT, DRAWER, STOVE)):
        backend.reset(slot, spec)
    first = [frame(backend, slot) for slot in range(3)]
    for slot in (0, 1, 0, 2, 1, 2, 0):
        backend.step(slot, np.array([0, 0, 1, 0, 0, 0, -1], np.float32))
        moved = frame(backend, slot)
        assert 15 < psnr(moved, first[slot]) < 60 and np.array_equal(frame(backend, slot), moved)


def test_the_first_row_is_the_lowest() -> None:
    """As LIBERO's own observations: the arm's mount, which is at the back, shows in the lower rows of the array's upper end."""
    backend = shared_backend()
    backend.reset(0, DRAWER)
    scene = backend._at(0)[0].scene
    hand, _ = backend.end_effector(0)
    camera = backend.data(0).camera("agentview")
    offset = camera.xmat.reshape(3, 3).T @ (hand - camera.xpos)  # x right, y up, z backwards
    assert offset[1] > 0 and offset[2] < 0
    row = SIZE / 2 + SIZE / 2 * (offset[1] / -offset[2]) / np.tan(np.radians(scene.model.camera("agentview").fovy[0]) / 2)
    before = frame(backend, 0).astype(int)
    for _ in range(8):
        backend.step(0, np.array([0, 0, -1, 0, 0, 0, -1], np.float32))
    changed = np.abs(frame(backend, 0) - before).sum(axis=(1, 2))
    centre = (np.arange(SIZE) * changed).sum() / changed.sum()
    assert abs(centre - row) < abs(centre - (SIZE - row))


def test_the_burner_shows_its_state_one_step_late_as_in_libero() -> None:
    """LIBERO takes the picture before it updates the burner's flame."""
    backend = shared_backend()
    backend.reset(0, STOVE)
    on = frame(backend, 0)
    data = backend.data(0)
    knob = backend._at(0)[0].scene.problem.object_states_dict["flat_stove_1"]
    assert knob.turn_on()
    knob.set_joint(0.0)
    late = backend.save_state(0)
    backend.load_state(1, late)
    assert np.array_equal(frame(backend, 1), on)
    backend.step(0, np.zeros(7, np.float32))
    off = frame(backend, 0)
    assert data is not None and np.abs(off.astype(int) - on).max() > 60
    backend.load_state(1, backend.save_state(0))
    assert np.array_equal(frame(backend, 1), off)


def test_sizes_and_memory_layouts() -> None:
    """A strided view (an environment's frame in shared memory) gets the same pixels; bigger frames replace the buffer."""
    backend = shared_backend()
    backend.reset(0, OBJECT)
    expected = frame(backend, 0)
    wide = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
    backend.render(0, "agentview", wide[:, ::2])
    assert np.array_equal(wide[:, ::2], expected) and not wide[:, 1::2].any()
    big = np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)
    backend.render(0, "agentview", big)
    assert psnr(big.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3)), expected) > 20
    assert np.array_equal(frame(backend, 0), expected)


def test_unknown_cameras_are_answered_with_the_known_ones() -> None:
    backend = shared_backend()
    backend.reset(0, OBJECT)
    with pytest.raises(SimError, match="no camera 'nose'; it has: agentview, .*robot0_eye_in_hand"):
        backend.render(0, "nose", np.zeros((SIZE, SIZE, 3), np.uint8))
    blind = LiberoBackend(num_slots=1, cameras=())
    blind._steppers, blind._episodes = backend._steppers, list(backend._episodes)
    with pytest.raises(SimError, match="made without cameras"):
        blind.render(0, "agentview", np.zeros((SIZE, SIZE, 3), np.uint8))


def test_looking_changes_nothing() -> None:
    backend = shared_backend()
    backend.reset(0, DRAWER)
    for action in random_actions(3, 3):
        backend.step(0, action)
    before = backend.save_state(0)
    frame(backend, 0, "robot0_eye_in_hand")
    assert backend.save_state(0) == before


def test_a_missing_opengl_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(SimError, match="libosmesa6"):
        engine.choose_platform()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libOSMesa.so.8" if name == "OSMesa" else None)
    monkeypatch.delenv("MUJOCO_GL")
    assert engine.choose_platform() == "osmesa"
