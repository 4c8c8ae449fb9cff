"""The reward of a decision, worked out by hand."""

import numpy as np
import pytest

from vla_rl.sim.wheeled.reward import Outcome, rewards
from vla_rl.sim.wheeled.settings import task_settings

# At 0.28 m/s a decision of 0.1 s makes 0.028 m.
TRACKING = task_settings("tracking_slow")


def judged(task: str = "tracking_slow", **what: float) -> Outcome:
    values = {
        "arc_before": 1.0, "distance_before": 3.0, "arc": 1.028, "error": 0.0, "remaining": 2.0, "distance": 2.9, "speed": 0.28,
        "clearance": 1.0, "change": 0.0, "slowed": 0.0, "late": 0.0,
    } | what  # fmt: skip
    return rewards(
        task_settings(task),
        np.array([[values["arc_before"], values["distance_before"]]]),
        np.array([[values["arc"], values["error"], 0.0, values["remaining"]]]),
        np.array([values["distance"]]),
        np.array([values["speed"]]),
        np.array([values["clearance"]]),
        np.array([[values["change"], 0.0]], np.float32),
        np.array([values["slowed"] > 0]),
        np.array([values["late"] > 0]),
    )


@pytest.mark.parametrize(
    ("what", "reward"),
    [
        ({}, 0.7),  # 1 for the target speed, less 0.3 for the time
        ({"arc": 1.014}, 0.2),
        ({"arc": 1.1}, 0.7),  # no more than the target speed is worth anything
        ({"arc": 0.986}, -0.8),
        ({"error": -0.25}, 0.7 - 0.25),  # (0.25 / 0.5)^2
        ({"speed": 0.42}, 0.7 - 0.25),  # half too fast
        ({"clearance": 0.05}, 0.7 - 0.5 * 0.64),  # (1 - 0.05 / 0.25)^2
        ({"change": 1.0}, 0.7 - 0.05 * 0.25),  # half of the way from -1 to 1
        ({"slowed": 1.0}, 0.6),
        ({"clearance": 0.0}, 0.7 - 0.5 - 50.0),
        ({"error": 1.5}, 0.7 - 4 - 50.0),  # off the path; the price of the error stops at twice its scale
        ({"distance": 0.1, "remaining": 0.1}, 50.7),
    ],
)
def test_tracking(what: dict[str, float], reward: float) -> None:
    assert judged(**what).reward[0] == pytest.approx(reward, abs=1e-6)


def test_a_goal_is_approached_and_its_line_may_be_left() -> None:
    # 0.014 m nearer is half of what the target speed makes, and time costs 0.3; the cross-track error costs and ends nothing.
    outcome = judged("goal_slow", distance=2.986, error=1.5)
    assert outcome.reward[0] == pytest.approx(0.2) and not outcome.terminated[0]


def test_ends() -> None:
    arrived = judged(distance=0.1, remaining=0.1, late=1.0)
    assert arrived.success[0] and arrived.terminated[0] and not arrived.truncated[0]
    assert not judged(distance=0.1, remaining=2.0).success[0], "near the end of a path that turns back, but not done with it"
    assert judged(late=1.0).truncated[0] and not judged(late=1.0).terminated[0]
    hit = judged(distance=0.1, remaining=0.1, clearance=-0.01)
    assert hit.terminated[0] and not hit.success[0]
