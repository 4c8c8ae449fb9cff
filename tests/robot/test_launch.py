"""The launch files, without ROS: `launch` is on no package index, so what it would be told is recorded here."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from vla_rl.robot.nodes.parameters import FAKE_BASE, WHEELED_POLICY

FOLDER = Path(__file__).resolve().parents[2] / "launch"
NAMES = {
    "launch": ("LaunchDescription",),
    "launch.actions": ("DeclareLaunchArgument", "EmitEvent", "IncludeLaunchDescription", "RegisterEventHandler", "Shutdown"),
    "launch.conditions": ("IfCondition",),
    "launch.event_handlers": ("OnProcessStart",),
    "launch.events": ("matches_action",),
    "launch.launch_description_sources": ("PythonLaunchDescriptionSource",),
    "launch.substitutions": ("EqualsSubstitution", "LaunchConfiguration"),
    "launch_ros": (),
    "launch_ros.actions": ("LifecycleNode", "Node"),
    "launch_ros.event_handlers": ("OnStateTransition",),
    "launch_ros.events": (),
    "launch_ros.events.lifecycle": ("ChangeState",),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
}


class Told:
    """What one object of `launch` was made with."""

    def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
        self.kind, self.args, self.kwargs = kind, args, kwargs


@pytest.fixture
def fake_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, names in NAMES.items():
        made = ModuleType(module)
        for name in names:
            setattr(made, name, lambda *args, _name=name, **kwargs: Told(_name, *args, **kwargs))
        monkeypatch.setitem(sys.modules, module, made)
    yield


def actions(file: str) -> list[Told]:
    made: list[Told] = runpy.run_path(str(FOLDER / file))["generate_launch_description"]().args[0]
    return made


@pytest.mark.ros
def test_the_policy_is_configured_then_activated(fake_launch: None) -> None:
    from lifecycle_msgs.msg import Transition

    made = actions("wheeled_dsac.launch.py")
    declared = {action.args[0]: action.kwargs for action in made if action.kind == "DeclareLaunchArgument"}
    (policy,) = (action for action in made if action.kind == "LifecycleNode")
    (base,) = (action for action in made if action.kind == "Node")
    assert policy.kwargs["arguments"] == ["-m", "vla_rl.robot.nodes.wheeled_policy_node"]
    parameters = policy.kwargs["parameters"][0]
    assert set(parameters) <= set(WHEELED_POLICY) and set(base.kwargs["parameters"][0]) <= set(FAKE_BASE)
    for name, value in parameters.items():
        default = WHEELED_POLICY[name][0]
        text = str(default).lower() if isinstance(default, bool) else str(default)
        assert value.kwargs["value_type"] is type(default)
        if name != "latched_path":
            assert declared[name]["default_value"] == text
    # The simulated base sends its path once, when it starts, and is the robot that the policy was trained on.
    assert declared["latched_path"]["default_value"].args == ("fake_base",)
    order = [action.args[0] for action in made if action.kind == "DeclareLaunchArgument"]
    assert order.index("fake_base") < order.index("latched_path")
    assert base.kwargs["parameters"][0]["export"] is parameters["export"]
    used = {value.args[0].args[0] for value in parameters.values()}
    used |= {target.args[0] for node in (policy, base) for _, target in node.kwargs["remappings"]}
    assert used | {"namespace", "python", "params_file", "fake_base"} == set(declared)
    (file,) = yaml.safe_load_all(Path(declared["params_file"]["default_value"]).read_text())
    shipped = file["/**"]["ros__parameters"]
    assert shipped == {name: WHEELED_POLICY[name][0] for name in shipped} and not set(shipped) & set(parameters)
    started, configured, refused = (action.args[0] for action in made if action.kind == "RegisterEventHandler")
    assert started.kwargs["target_action"] is policy
    assert started.kwargs["on_start"][0].kwargs["event"].kwargs["transition_id"] == Transition.TRANSITION_CONFIGURE
    assert (configured.kwargs["start_state"], configured.kwargs["goal_state"]) == ("configuring", "inactive")
    assert configured.kwargs["entities"][0].kwargs["event"].kwargs["transition_id"] == Transition.TRANSITION_ACTIVATE
    assert refused.kwargs["goal_state"] == "unconfigured" and refused.kwargs["entities"][0].kind == "Shutdown"


def test_teleoperation_is_the_same_graph_without_a_policy(fake_launch: None) -> None:
    made = actions("wheeled_teleop.launch.py")
    (included,) = (action for action in made if action.kind == "IncludeLaunchDescription")
    assert Path(included.args[0].args[0]) == FOLDER / "wheeled_dsac.launch.py"
    assert set(dict(included.kwargs["launch_arguments"])) == {"robot", "teleop"}
    joystick = next(action for action in made if action.kind == "Node")
    assert joystick.kwargs["package"] == "joy" and joystick.kwargs["parameters"][0]["autorepeat_rate"] > 1 / 0.17
