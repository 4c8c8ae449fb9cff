"""The parts of a robot that the expert looks for, as MuJoCo XML: shoulder, wrist, grip site and two fingers."""

ROBOT = """
<body name="robot0_link2" pos="-0.6 0 0.33"><geom size="0.01" contype="0" conaffinity="0"/></body>
<body name="robot0_link6" pos="-0.2 0 0.5"><geom size="0.01" contype="0" conaffinity="0"/></body>
<body name="gripper0_eef" pos="0 0 0.4"><site name="gripper0_grip_site" quat="0 0.70710678 0.70710678 0"/></body>
<body name="gripper0_leftfinger" pos="0 0.04 0.4">
  <joint name="gripper0_finger_joint1" type="slide" axis="0 1 0"/><geom type="box" size="0.01 0.004 0.01"/>
</body>
<body name="gripper0_rightfinger" pos="0 -0.04 0.4">
  <joint name="gripper0_finger_joint2" type="slide" axis="0 1 0"/><geom type="box" size="0.01 0.004 0.01"/>
</body>
"""
