"""What importing loads, and under which names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["sim", "robot", "reward_models"])
def test_bare_names_raise_and_tell_the_right_one(name: str) -> None:
    result = run_python(f"import {name}")
    assert result.returncode != 0
    assert f"vla_rl.{name}" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["sim", "robot", "reward_models"])
def test_the_links_are_relative_and_committed(name: str) -> None:
    link = ROOT / "vla_rl" / name
    assert link.is_symlink() and str(link.readlink()) == f"../{name}"
    listed = subprocess.run(["git", "ls-files", "-s", str(link)], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        assert listed.stdout.startswith("120000"), f"git does not keep vla_rl/{name} as a link"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("vla_rl.robot", ("torch", "mujoco", "libero", "robosuite", "transformers")),
        ("vla_rl.robot.wheeled", ("torch", "mujoco", "libero", "transformers", "vla_rl.sim", "rclpy")),
        ("vla_rl.robot.exported", ("torch", "mujoco", "libero", "transformers", "vla_rl.sim", "rclpy", "onnx")),
        ("vla_rl.robot.shadow", ("torch", "mujoco", "libero", "transformers", "vla_rl.sim", "rclpy", "rosbags")),
        ("vla_rl.robot.graph", ("torch", "mujoco", "libero", "transformers", "vla_rl.sim", "rclpy")),
        ("vla_rl.driving.observation", ("torch", "mujoco", "libero", "transformers", "vla_rl.sim")),
        ("vla_rl.sim.wheeled.simulator", ("torch", "mujoco", "libero", "transformers", "irsim")),
        ("vla_rl.types", ("torch", "mujoco", "libero", "transformers")),
        ("vla_rl.sim", ("torch", "mujoco", "libero", "robosuite", "transformers")),
        ("vla_rl.wire", ("torch", "mujoco", "libero", "transformers")),
        ("vla_rl.config", ("torch", "mujoco", "transformers")),
        ("vla_rl.cli", ("torch", "mujoco", "transformers")),
    ],
)
def test_what_importing_loads(module: str, forbidden: tuple[str, ...]) -> None:
    """`vla-rl --help` answers at once, robots need no torch, and only simulator workers load a simulator."""
    result = run_python(f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]", f"importing {module} loads {result.stdout.strip()}"


@pytest.mark.ros
def test_the_policy_node_loads_neither_torch_nor_a_simulator() -> None:
    forbidden = ("torch", "mujoco", "libero", "transformers", "vla_rl.sim")
    code = f"import sys, vla_rl.robot.nodes.wheeled_policy_node; print([name for name in {forbidden!r} if name in sys.modules])"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_only_nodes_import_ros() -> None:
    """Everything else runs, and is tested, where there is no ROS."""
    importing = {
        path.relative_to(ROOT).as_posix()
        for folder in ("vla_rl", "robot", "sim", "reward_models")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(?:import|from) (?:rclpy|\w+_(?:msgs|srvs))\b", path.read_text(), flags=re.MULTILINE)
    }
    assert importing and all(path.startswith("robot/nodes/") and path.endswith("_node.py") for path in importing), importing


def test_ruff_bans_the_bare_names(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "vla_rl/example.py", "-"],
        cwd=ROOT, input="import sim\nfrom robot import arbiter\nimport vla_rl.sim\n", capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.count("TID251") == 2, result.stdout + result.stderr
