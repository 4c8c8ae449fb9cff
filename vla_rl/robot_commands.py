"""`vla-rl robot`: start a robot's graph, talk to it, and try a policy on a recording."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

app = typer.Typer(name="robot", help="Drive robots over ROS 2, and try policies on recordings.", no_args_is_help=True)


def require_ros() -> None:
    from vla_rl.config import ConfigError

    if importlib.util.find_spec("rclpy") is None:
        raise ConfigError(
            "rclpy is not installed: pip install 'vla_rl[ros]', or source the setup.bash of your ROS 2 installation"
        )


@app.command()
def up(
    robot: Annotated[Literal["wheeled"], typer.Argument(help="Which kind of robot.")],
    export: Annotated[Path | None, typer.Option(help="Folder that `vla-rl export` wrote; without it only teleoperation.")] = None,
    base: Annotated[Literal["fake", "none"], typer.Option(help="fake: the simulator; none: the robot's own.")] = "fake",
    parameters: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NODE.NAME=VALUE", help="wheeled_policy.teleop=none fake_base.seed=3 (repeat)."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Of all nodes.")] = "",
    remap: Annotated[list[str] | None, typer.Option(metavar="FROM:=TO", help="Topic of the policy's node (repeat).")] = None,
    logs: Annotated[Path, typer.Option(help="Folder for what the processes say and log.")] = Path("robot_logs"),
) -> None:
    """Start the nodes of `launch/wheeled_dsac.launch.py` where only the PyPI wheels are; Ctrl-C stops them in order."""
    from vla_rl.config_files import shipped_path
    from vla_rl.robot.graph import run_graph, wheeled_graph

    require_ros()
    processes = wheeled_graph(shipped_path(export) if export else None, base, parameters or [], namespace, remap or [], logs)
    raise typer.Exit(run_graph(processes, lambda text: print(text, flush=True)))


@app.command()
def call(
    service: Annotated[str, typer.Argument(help="start, stop, estop, clear_estop or resume.")],
    node: Annotated[str, typer.Option(help="Name of the policy's node, with its namespace.")] = "wheeled_policy",
) -> None:
    """Ask the policy's node for something, as `ros2 service call` does; exit code 1 where it refuses."""
    require_ros()
    arguments = [sys.executable, "-m", "vla_rl.robot.nodes.operator_node", service, "--node", node]
    os.execv(sys.executable, arguments)


@app.command()
def shadow(
    export: Annotated[Path, typer.Argument(help="Folder that `vla-rl export` wrote.")],
    bag: Annotated[Path, typer.Argument(help="A rosbag2 folder (sqlite3 or mcap).")],
    topics: Annotated[
        list[str] | None, typer.Option("--topic", metavar="INPUT=TOPIC", help="scan=/front/scan; odom, path, cmd_vel (repeat).")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Also write every decision as JSON.")] = None,
) -> None:
    """Where a policy would have driven differently than whoever drove while a bag was recorded; needs no ROS."""
    from vla_rl.config_files import shipped_path
    from vla_rl.robot.shadow import replay_bag, shadow_table, topic_names

    found = replay_bag(shipped_path(export), bag, topic_names(topics or []))
    Console().print(shadow_table(found))
    if json_path is not None:
        json_path.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
