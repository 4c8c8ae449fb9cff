"""Run policies on real robots: the core here is free of ROS and of torch."""

if __name__ != "vla_rl.robot":
    raise ImportError("import it as `vla_rl.robot`: `robot` alone is another distribution's name")
