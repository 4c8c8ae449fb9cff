"""Parameters of the nodes: name -> (default, what it is). No ROS: launch files and `vla-rl robot up` are checked against them."""

from __future__ import annotations

from vla_rl.robot.supervision import SupervisionSettings

Value = bool | int | float | str
Parameters = dict[str, tuple[Value, str]]
PARENT = "VLA_RL_PARENT"
"""Environment variable with the id of the process that a node must not outlive."""

_SUPERVISION: Parameters = {
    name: (0.0, f"{field.description} (0: null)") if field.default is None else (field.default, str(field.description))
    for name, field in SupervisionSettings.model_fields.items()
}
WHEELED_POLICY: Parameters = {
    "export": ("", "folder that `vla-rl export` wrote; empty: no policy, only an operator drives"),
    "robot": ("", "slow, fast or a YAML file of RobotSettings: the robot's own, which must agree with the export; empty: its"),
    "stamped_cmd_vel": (True, "commands are TwistStamped (Nav2's default from Kilted on), otherwise Twist"),
    "frame": ("map", "of path, goal and odometry; empty: any"),
    "base_frame": ("base_link", "child frame of the odometry; empty: any"),
    "scan_frame": ("", "of the scan; empty: any"),
    "latched_path": (False, "the path's publisher is transient local: also take the path that it sent before this node began"),
    "teleop": ("joy", "joy, twist (TwistStamped if stamped_cmd_vel) or none"),
    "joy_switch": (4, "button that the operator holds while driving"),
    "joy_forward_axis": (1, "axis of the forward speed"),
    "joy_turn_axis": (0, "axis of the turn, left positive"),
    "log": ("", "file of the append-only log; empty: robot_logs/NODE_TIME.jsonl"),
    "autostart": (False, "configure and activate at once, without a lifecycle manager"),
    "realtime": (False, "ask the kernel for real-time scheduling (SCHED_FIFO); needs CAP_SYS_NICE"),
    **_SUPERVISION,
}
FAKE_BASE: Parameters = {
    "export": ("", "folder that `vla-rl export` wrote: the task that its policy was trained on; empty: task and options"),
    "task": ("tracking_slow", "of the wheeled simulator"),
    "options": ("{}", 'that change the task, as YAML: {"scene": {"moving": [0, 0]}}'),
    "seed": (1, "of the episode"),
    "stamped_cmd_vel": (True, "commands are TwistStamped, otherwise Twist"),
    "frame": ("map", "of path and odometry"),
    "base_frame": ("base_link", "child frame of the odometry"),
    "scan_frame": ("laser", "of the scan"),
    "command_timeout": (0.15, "without a command for so long the base brakes by itself, s"),
    "log": ("", "file of the log; empty: robot_logs/NODE_TIME.jsonl"),
    "realtime": (False, "as of the policy's node"),
    "mute_scan": (False, "fault: no scans are sent"),
    "mute_odometry": (False, "fault: no odometry is sent"),
    "blind_scan": (False, "fault: every range is NaN"),
    "beams": (0, "fault: scans have so many beams; 0: as many as the scanner has"),
    "stamp_offset": (0.0, "fault: the sensors' clock is ahead by so much, s"),
    "delay": (0.0, "fault: sensor messages are under way for so long, s"),
}
