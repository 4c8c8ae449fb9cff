"""The settings of robots and tasks: each is read, documented, and refused where it cannot be."""

import ast
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vla_rl.driving.settings import ROBOTS, RobotSettings
from vla_rl.robot.wheeled import SupervisionSettings
from vla_rl.sim.base import SimError
from vla_rl.sim.wheeled.baseline import BaselineSettings
from vla_rl.sim.wheeled.physics import PLANT
from vla_rl.sim.wheeled.settings import TASKS, WheeledSettings, task_settings

ROOT = Path(__file__).parents[2]


def fields(model: type[BaseModel]) -> list[tuple[str, str]]:
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += fields(field.annotation)
        else:
            found.append((name, field.description or ""))
    return found


@pytest.mark.parametrize("model", [WheeledSettings, SupervisionSettings, BaselineSettings])
def test_every_setting_is_read_and_documented(model: type[BaseModel]) -> None:
    read = set(PLANT.names or ())  # taken by name, one by one
    for folder in ("vla_rl/driving", "sim/wheeled", "robot"):
        for path in (ROOT / folder).glob("*.py"):
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    for name, description in fields(model):
        assert name in read, f"nobody reads {name}"
        assert description, f"{name} has no docstring"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plant": {"lag": [0, 0]}}, r"plant\.lag"),
        ({"plant": {"delay": [-0.1, -0.05]}}, r"plant\.delay"),
        ({"plant": {"track_error": [-1, 0]}}, r"plant\.track_error"),
        ({"plant": {"slip": [0, 2]}}, r"plant\.slip"),
        ({"scene": {"box_side": [0, 1]}}, r"scene\.box_side"),
        # 512 points every 0.05 m: 511 gaps, 25.55 m.
        ({"scene": {"path_length": [30, 40]}}, r"at least 0\.05 m and less than 25\.55 m; change robot\.view\.path_points"),
        ({"scene": {"path_length": [0.01, 4]}}, r"scene\.path_length is \[0\.01, 4\.0\] m"),
    ],
)
def test_what_no_robot_can_be_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimError, match=rf"^[^\n]*{message}[^\n]*$"):
        task_settings("tracking_slow", options)


def test_tasks_take_their_class_of_robot() -> None:
    assert task_settings("tracking_slow").robot == ROBOTS["slow"] == RobotSettings()
    assert task_settings("tracking_fast").robot == ROBOTS["fast"]
    goals = [task_settings(name).robot.view.reference for name in TASKS if name.startswith("goal")]
    assert goals == ["goal", "goal"]
