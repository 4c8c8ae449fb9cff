"""The look that published checkpoints were trained on: one small reference picture a suite fails when it moves.

The pictures in reference/ are exact frames of agentview at 224 px, task 0, shipped initial state 0 after settling, turned
upright and halved. `python tests/sim/libero/test_look.py` draws them anew; do that only for a look that is meant.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vla_rl.bench.image_quality import psnr, ssim
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.tasks import STANDARD_SUITES
from vla_rl.types import EpisodeSpec

REFERENCES = Path(__file__).with_name("reference")
SIZE = 224


def draw(suite: str) -> np.ndarray:
    """Upright RGB picture [112, 112, 3]."""
    backend = LiberoBackend(num_slots=1, image_size=SIZE, max_scenes=1)
    try:
        backend.reset(0, EpisodeSpec(suite, 0, init_state_id=0))
        frame = np.zeros((SIZE, SIZE, 3), np.uint8)
        backend.render(0, "agentview", frame)
    finally:
        backend.close()
    return cv2.resize(frame[::-1], (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("suite", STANDARD_SUITES)
def test_frames_look_as_they_did(suite: str) -> None:
    """Drivers differ in the last bits and at edges; another colour space or light costs 10 dB more than this bound.

    MuJoCo above 3.3.2 makes libero_object's floor (120, 108, 97) by itself; policies were trained on (173, 165, 157).
    """
    reference = cv2.imread(str(REFERENCES / f"{suite}.png"))
    assert reference is not None
    picture = draw(suite)
    assert psnr(picture, reference[..., ::-1]) > 28 and ssim(picture, reference[..., ::-1]) > 0.9
    if suite == "libero_object":
        floor = picture[-SIZE // 16 :, : SIZE // 16].reshape(-1, 3).mean(axis=0)
        assert floor == pytest.approx([173, 165, 157], abs=8)


def test_references_stay_small() -> None:
    """They are in every clone."""
    files = list(REFERENCES.iterdir())
    assert {file.name for file in files} == {f"{suite}.png" for suite in STANDARD_SUITES}
    assert sum(file.stat().st_size for file in files) < 300_000


if __name__ == "__main__":
    for name in sys.argv[1:] or STANDARD_SUITES:
        REFERENCES.mkdir(exist_ok=True)
        cv2.imwrite(str(REFERENCES / f"{name}.png"), np.ascontiguousarray(draw(name)[..., ::-1]))
