"""A wheeled robot driven by an exported policy: its lifecycle node, configured and activated, and a simulated base if asked for.

ros2 launch launch/wheeled_dsac.launch.py export:=/path/to/export scan:=/front/scan odom:=/odometry/filtered
ros2 launch launch/wheeled_dsac.launch.py export:=/path/to/export fake_base:=true
"""

import sys
from pathlib import Path

from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler, Shutdown
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from launch import LaunchDescription

PARAMETERS = {
    "export": ("", str, "folder that `vla-rl export` wrote; empty: only an operator drives"),
    "robot": ("", str, "slow, fast or a YAML file of the robot's settings; empty: those of the export"),
    "stamped_cmd_vel": ("true", bool, "commands are TwistStamped, otherwise Twist"),
    "teleop": ("joy", str, "joy, twist or none"),
    "frame": ("map", str, "of path, goal and odometry"),
    "base_frame": ("base_link", str, "child frame of the odometry"),
    "scan_frame": ("", str, "of the scan; empty: any"),
    "latched_path": (LaunchConfiguration("fake_base"), bool, "the path's publisher is transient local, as the simulated base's"),
    "estop_timeout": ("0.0", float, "silence of the e-stop's heartbeat that counts as pressed, s; 0: there is none"),
    "realtime": ("false", bool, "real-time scheduling; needs CAP_SYS_NICE"),
    "log": ("", str, "file of the append-only log"),
}
"""Parameters of the policy's node; the others are set in a file: params_file:=..."""
SHIPPED = str(Path(__file__).with_name("wheeled_params.yaml"))
TOPICS = ("scan", "odom", "path", "goal_pose", "estop", "joy", "teleop_cmd_vel", "cmd_vel")


def generate_launch_description() -> LaunchDescription:
    arguments = [DeclareLaunchArgument("fake_base", default_value="false", description="also start the simulated base")]
    arguments += [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, _, text) in PARAMETERS.items()
    ]
    arguments += [DeclareLaunchArgument(topic, default_value=topic, description=f"topic of {topic}") for topic in TOPICS]
    arguments += [
        DeclareLaunchArgument("namespace", default_value="", description="of all nodes"),
        DeclareLaunchArgument("python", default_value=sys.executable, description="interpreter that has vla_rl"),
        DeclareLaunchArgument("params_file", default_value=SHIPPED, description="YAML file with more parameters"),
    ]
    typed = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, (_, kind, _) in PARAMETERS.items()}
    policy = LifecycleNode(
        executable=LaunchConfiguration("python"),
        arguments=["-m", "vla_rl.robot.nodes.wheeled_policy_node"],
        name="wheeled_policy",
        namespace=LaunchConfiguration("namespace"),
        parameters=[typed, LaunchConfiguration("params_file")],
        remappings=[(topic, LaunchConfiguration(topic)) for topic in TOPICS],
        output="both",
    )
    base = Node(
        executable=LaunchConfiguration("python"),
        arguments=["-m", "vla_rl.robot.nodes.fake_base_node"],
        name="fake_base",
        namespace=LaunchConfiguration("namespace"),
        parameters=[{name: typed[name] for name in ("export", "stamped_cmd_vel")}],
        remappings=[(topic, LaunchConfiguration(topic)) for topic in ("scan", "odom", "path", "cmd_vel")],
        condition=IfCondition(LaunchConfiguration("fake_base")),
        output="both",
    )
    return LaunchDescription([*arguments, *bring_up(policy), base, policy])


def bring_up(node: LifecycleNode) -> list[RegisterEventHandler]:
    """Configure the node when its process has started, then activate it; where it refuses to be configured, end everything."""

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    configured = OnStateTransition(
        target_lifecycle_node=node, start_state="configuring", goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )  # fmt: skip
    refused = OnStateTransition(
        target_lifecycle_node=node, start_state="configuring", goal_state="unconfigured",
        entities=[Shutdown(reason="the policy's node cannot be configured; its output says why")],
    )  # fmt: skip
    started = OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)])
    return [RegisterEventHandler(handler) for handler in (started, configured, refused)]
