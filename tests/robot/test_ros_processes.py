"""Starting, refusing and ending: the processes of a real ROS 2 graph, as `vla-rl robot up` runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hand_made import OPEN_FIELD
from ros_graph import Program, wait_for
from typer.testing import CliRunner

from vla_rl.cli import app
from vla_rl.config import ConfigError
from vla_rl.robot.graph import wheeled_graph
from vla_rl.robot.record import read_log

REALTIME = ("--set", "wheeled_policy.realtime=true", "--set", "fake_base.realtime=true")
CLI = (sys.executable, "-m", "vla_rl.cli")


@pytest.mark.ros
def test_the_export_for_another_robot_never_drives(export: Path, tmp_path: Path) -> None:
    policy = Program("wheeled_policy", tmp_path, export=str(export), robot="fast", autostart=True)
    assert policy.process.wait(30) == 1
    assert "cannot be configured: the policy in" in policy.output.read_text()
    assert "is for another robot: radius is 0.17 in the export, but 0.25 on this one (and 18 more" in policy.output.read_text()
    assert not policy.log.exists(), "it never became active, so it published nothing"


@contextmanager
def robot_up(export: Path, folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`vla-rl robot up`, and the folder of its logs."""
    words = [*CLI, "robot", "up", "wheeled", "--export", str(export), "--logs", str(folder), *more]
    with (folder / "said.txt").open("w") as said:
        program = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        yield program, wait_for(lambda: next(folder.glob("2*"), None), "nothing is started")
    finally:
        program.terminate()
        program.wait(20)


def ticks(log: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(log) if "tick" in record] if log.exists() else []


@pytest.mark.ros
@pytest.mark.slow
def test_robot_up_drives_and_ctrl_c_brakes_before_it_ends(export: Path, tmp_path: Path) -> None:
    with robot_up(export, tmp_path, "--namespace", "robot1", *REALTIME) as (program, folder):
        wait_for(
            lambda: any(tick["reason"] == "not started" for tick in ticks(folder / "wheeled_policy.jsonl")),
            "the node does not run",
        )
        words = [*CLI, "robot", "call", "start", "--node", "/robot1/wheeled_policy"]
        asked = subprocess.run(words, capture_output=True, text=True)
        assert asked.returncode == 0 and asked.stdout == "start\n", asked
        wait_for(lambda: ticks(folder / "wheeled_policy.jsonl")[-1]["command"][0] > 0.2, "the policy does not drive")
        program.send_signal(signal.SIGINT)
        assert program.wait(20) == 0, (tmp_path / "said.txt").read_text()
    base = ticks(folder / "fake_base.jsonl")
    stopped = next(i for i, tick in enumerate(base) if tick["time"] > ticks(folder / "wheeled_policy.jsonl")[-1]["time"])
    # It braked while the node still lived: the base never had to help itself.
    timeouts = [record for record in read_log(folder / "fake_base.jsonl") if record.get("event") == "command timeout"]
    assert base[stopped]["command"] == [0, 0] and all(timeout["time"] > base[stopped]["time"] for timeout in timeouts)
    endings = [record["ending"] for record in read_log(folder / "wheeled_policy.jsonl") if record.get("event") == "end"]
    assert endings == ["operator abort"]
    said = (tmp_path / "said.txt").read_text()
    assert (
        "wheeled_policy: " in said
        and "Ctrl-C stops the robot" in said
        and "the policy drives" in (folder / "wheeled_policy.txt").read_text()
    )


@pytest.mark.ros
@pytest.mark.slow
def test_a_process_that_dies_takes_the_graph_down(export: Path, tmp_path: Path) -> None:
    with robot_up(export, tmp_path, *REALTIME) as (program, folder):
        wait_for(lambda: ticks(folder / "fake_base.jsonl"), "the base does not run")
        os.kill(child_of(program.pid, "fake_base"), signal.SIGKILL)
        assert program.wait(20) == 1
    assert "fake_base ended with exit code -9: stopping the others" in (tmp_path / "said.txt").read_text()


def child_of(parent: int, name: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and name in command:
            return int(folder.name)
    raise AssertionError(f"{parent} has no child {name}")


def test_without_ros_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words in (["up", "wheeled"], ["call", "start"]):
        result = CliRunner().invoke(app, ["robot", *words])
        assert str(result.exception).startswith("rclpy is not installed: pip install 'vla_rl[ros]'")


def test_the_graph_of_an_export(export: Path, tmp_path: Path) -> None:
    changes = ["wheeled_policy.teleop=none", "fake_base.seed=4", "wheeled_policy.time_limit=60"]
    policy, base = wheeled_graph(export, "fake", changes, "a", ["scan:=lidar"], tmp_path)
    words = list(policy.command)
    assert words[1:4] == ["-m", "vla_rl.robot.nodes.wheeled_policy_node", "--ros-args"]
    assert words[4:8] == ["-r", "__ns:=/a", "-r", "scan:=lidar"]
    assert {f'export:="{export}"', 'teleop:="none"', "time_limit:=60.0", "autostart:=true", "latched_path:=true"} <= set(words)
    assert {"seed:=4", 'task:="tracking_slow"'} <= set(base.command) and "scan:=lidar" not in base.command
    options = next(word for word in base.command if word.startswith("options:="))
    assert json.loads(json.loads(options.removeprefix("options:="))) == OPEN_FIELD, "the base is what the policy was trained on"
    (alone,) = wheeled_graph(None, "none", [], "", [], tmp_path)
    assert 'robot:="slow"' in alone.command and "latched_path:=true" not in alone.command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teleop=none", "write NODE.NAME=VALUE, where NODE is wheeled_policy or fake_base"),
        ("wheeled_policy.telop=none", "has no parameter 'telop'; did you mean 'teleop'"),
        ("fake_base.seed=many", "fake_base.seed is a int, not 'many'"),
        ("wheeled_policy.recovery=[", r"wheeled_policy.recovery is a float, not '\['"),
        ("wheeled_policy.autostart=1", "wheeled_policy.autostart is a bool, not '1'"),
    ],
)
def test_wrong_parameters_are_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        wheeled_graph(None, "fake", [change], "", [], tmp_path)
    assert not list(tmp_path.iterdir())
