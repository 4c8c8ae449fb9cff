"""ROS 2 nodes around the core. Only the files whose names end in `_node` import rclpy."""
