"""`render_quality="fast"`: the same physics, nearly the same picture, and no memory of what was drawn before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from libero_cases import DRAWER, SIZE, STOVE, frame, random_actions, shared_backend

from vla_rl.bench.image_quality import psnr
from vla_rl.sim.base import SimError
from vla_rl.sim.libero.backend import LiberoBackend

CAMERAS = ("agentview", "robot0_eye_in_hand")


def fast_backend(**options: int) -> LiberoBackend:
    return LiberoBackend(num_slots=2, cameras=CAMERAS, image_size=SIZE, render_quality="fast", **options)


@pytest.fixture(scope="module")
def backend() -> Iterator[LiberoBackend]:
    made = fast_backend()
    yield made
    made.close()


@pytest.mark.parametrize("spec", [DRAWER, STOVE], ids=lambda spec: spec.suite)
def test_the_picture_is_close_and_the_physics_the_same(backend: LiberoBackend, spec) -> None:  # type: ignore[no-untyped-def]
    exact = shared_backend()
    for each in (exact, backend):
        each.reset(0, spec)
    for action in random_actions(6, 1):
        for each in (exact, backend):
            each.step(0, action)
    assert backend.save_state(0) == exact.save_state(0)
    for camera in CAMERAS:
        assert psnr(frame(backend, 0, camera), frame(exact, 0, camera)) > 25


def test_a_frame_does_not_depend_on_what_was_drawn_before(backend: LiberoBackend) -> None:
    """A fresh renderer that has drawn nothing, and one that has drawn both cameras, other poses and another scene."""
    backend.reset(1, DRAWER)
    backend.reset(0, STOVE)
    for action in random_actions(4, 2):
        backend.step(0, action)
        for camera in CAMERAS:
            frame(backend, 0, camera)
            frame(backend, 1, camera)
    state = backend.save_state(0)
    fresh = fast_backend()
    try:
        for camera in reversed(CAMERAS):
            fresh.load_state(1, state)
            assert np.array_equal(frame(fresh, 1, camera), frame(backend, 0, camera)), camera
    finally:
        fresh.close()


def test_more_samples_a_pixel_come_closer_to_the_exact_picture() -> None:
    exact = shared_backend()
    exact.reset(0, DRAWER)
    found = []
    for samples in (1, 4):
        backend = fast_backend(antialiasing=samples)
        backend.reset(0, DRAWER)
        found.append(psnr(frame(backend, 0), frame(exact, 0)))
        backend.close()
    assert found[0] + 0.5 < found[1]


def test_antialiasing_is_counted_in_samples() -> None:
    with pytest.raises(SimError, match="antialiasing=2 is not possible with render_quality=fast; choose one of: 1, 4, 9, 16"):
        fast_backend(antialiasing=2)
    with pytest.raises(SimError, match="choose one of: 1, 2, 4, 8"):
        LiberoBackend(num_slots=1, antialiasing=3)
