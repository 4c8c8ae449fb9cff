"""A wheeled robot driven by an operator alone, behind the same safety layer, arbiter and log as a policy.

ros2 launch launch/wheeled_teleop.launch.py robot:=slow                      # with the package `joy` for the joystick
ros2 launch launch/wheeled_teleop.launch.py robot:=my_robot.yaml teleop:=twist teleop_cmd_vel:=key_vel
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EqualsSubstitution, LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    passed = ("robot", "teleop")
    robot = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).with_name("wheeled_dsac.launch.py"))),
        launch_arguments={name: LaunchConfiguration(name) for name in passed}.items(),
    )
    joystick = Node(
        package="joy",
        executable="joy_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[{"autorepeat_rate": 20.0}],  # a stick that is held still must not look like a lost operator
        remappings=[("joy", LaunchConfiguration("joy"))],
        condition=IfCondition(EqualsSubstitution(LaunchConfiguration("teleop"), "joy")),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", default_value="slow", description="slow, fast or a YAML file of the robot's settings"),
            DeclareLaunchArgument("teleop", default_value="joy", description="joy or twist"),
            robot,
            joystick,
        ]
    )
