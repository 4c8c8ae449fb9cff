"""Which robot: by the name of its class, or by a file of its own."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import ConfigError
from vla_rl.config_files import load_section
from vla_rl.driving.settings import ROBOTS, RobotSettings


def robot_settings(name: str) -> RobotSettings:
    """The settings of a class of robots (slow, fast), or of a YAML file. Raises `ConfigError` for neither."""
    if name in ROBOTS:
        return ROBOTS[name]
    if not Path(name).is_file():
        raise ConfigError(f"there is no robot {name!r}; choose {', '.join(ROBOTS)}, or give a YAML file of its settings")
    return load_section(RobotSettings, name)
