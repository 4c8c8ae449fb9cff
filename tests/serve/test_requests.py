"""What clients send -> what the policy sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_rl.serve.requests import RequestReader
from vla_rl.wire import WireError

READER = RequestReader(cameras=("front", "wrist"), proprio_dim=3, turns_frames=True, temperature=0.0)
FRAME = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
STATE = np.array([0.1, 0.2, 0.3])
OURS = {"images/front": FRAME, "images/wrist": FRAME + 100, "proprio": STATE, "instruction": "lift"}
OPENPI = {"observation/image": FRAME, "observation/wrist_image": FRAME + 100, "observation/state": STATE, "prompt": "lift"}


def test_our_keys() -> None:
    request = READER.read(OURS | {"images/unused": "anything", "extra": 1})
    assert list(request.images) == ["front", "wrist"]
    np.testing.assert_array_equal(request.images["front"], FRAME)
    np.testing.assert_array_equal(request.proprio, np.float32(STATE))
    assert request.proprio.dtype == np.float32
    assert (request.instruction, request.temperature) == ("lift", 0.0)


def test_openpis_keys_bring_frames_that_are_turned_already() -> None:
    """Row 0 of what the policy sees is the last row that was sent, from right to left: the policy turns it back."""
    request = READER.read(OPENPI)
    np.testing.assert_array_equal(request.images["front"][0], FRAME[1, ::-1])
    np.testing.assert_array_equal(request.images["wrist"][1, 0], FRAME[0, 3] + 100)
    np.testing.assert_array_equal(request.proprio, np.float32(STATE))
    upright = RequestReader(("front",), 3, turns_frames=False, temperature=0.0).read(OPENPI)
    assert list(upright.images) == ["front"]
    np.testing.assert_array_equal(upright.images["front"], FRAME)


def test_other_forms_of_the_same() -> None:
    request = READER.read(OURS | {"proprio": [1, 2.5, 3], "instruction": np.array("lift"), "temperature": 1, "seed": 4})
    np.testing.assert_array_equal(request.proprio, np.float32([1, 2.5, 3]))
    assert (request.instruction, request.temperature, request.seed) == ("lift", 1.0, 4)
    blind = RequestReader(("front",), 0, turns_frames=True, temperature=0.5)
    request = blind.read({"images/front": FRAME, "instruction": "lift"})
    assert request.proprio.shape == (0,) and request.temperature == 0.5
    assert request.seed != blind.read({"images/front": FRAME, "instruction": "lift"}).seed


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ([1], "an observation is a map, not a list"),
        ({}, "lacks images/front, images/wrist, instruction, proprio; it has 'nothing'"),
        ({key: OURS[key] for key in OURS if key != "images/wrist"}, "lacks images/wrist"),
        ({"prompt": "lift"}, "lacks observation/image"),
        (OURS | {"images/front": FRAME.astype(np.float32) * np.nan}, "images/front must be uint8"),
        (OURS | {"images/front": FRAME[0]}, r"it is uint8 \[4, 3\]"),
        (OURS | {"images/front": FRAME.transpose(2, 0, 1)}, r"it is uint8 \[3, 2, 4\]"),
        (OURS | {"images/front": np.zeros((0, 2, 3), np.uint8)}, "sides of 1 to"),
        (OURS | {"images/front": np.zeros((1, 5000, 3), np.uint8)}, "sides of 1 to 4096"),
        (OURS | {"images/front": "frame"}, "must be an array"),
        (OURS | {"proprio": STATE[:2]}, r"proprio must be 3 numbers; it is float64 \[2\]"),
        (OURS | {"proprio": [0, 1, float("nan")]}, "proprio must be finite"),
        (OURS | {"proprio": np.array([1e300, 0, 0])}, "proprio must be finite"),
        (OURS | {"proprio": ["a", "b", "c"]}, "proprio must be 3 numbers"),
        (OURS | {"proprio": [[1], [1, 2]]}, "proprio must be 3 numbers"),
        (OURS | {"proprio": None}, "proprio must be 3 numbers"),
        (OURS | {"proprio": [{}, {}, {}]}, "proprio must be 3 numbers"),
        (OURS | {"proprio": b"abc"}, "proprio must be 3 numbers"),
        (OURS | {"instruction": 3}, "instruction must be a text, not a int"),
        (OURS | {"instruction": " \n"}, "instruction must be a text of 1 to"),
        (OURS | {"instruction": "x" * 2000}, "it has 2000"),
        (OURS | {"temperature": float("nan")}, "temperature must be"),
        (OURS | {"temperature": -1}, "temperature must be"),
        (OURS | {"temperature": "hot"}, "temperature must be"),
        (OURS | {"seed": -1}, "seed must be"),
        (OURS | {"seed": 1 << 63}, "seed must be"),
        (OURS | {"seed": True}, "seed must be"),
    ],
)
def test_what_does_not_fit_is_named(message: Any, reason: str) -> None:
    with pytest.raises(WireError, match=rf"^[^\n]*(?:{reason})[^\n]*$"):
        READER.read(message)


def test_three_cameras_have_no_openpi_keys() -> None:
    with pytest.raises(WireError, match="the policy looks through a, b, c; send images/CAMERA"):
        RequestReader(("a", "b", "c"), 3, turns_frames=True, temperature=0.0).read(OPENPI)


def test_only_equal_frames_and_temperatures_share_a_batch() -> None:
    wide = OURS | {"images/front": np.zeros((4, 4, 3), np.uint8)}
    keys = [READER.read(message).batch_key for message in (OURS, dict(OURS), wide, OURS | {"temperature": 1.0})]
    assert keys[0] == keys[1] and len(set(keys)) == 3
