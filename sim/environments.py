"""Interpreters of simulators whose pins fight with ours: where `vla-rl sim install` put them, and how to run them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import vla_rl
from vla_rl.sim.base import SimError
from vla_rl.sim.cache import cache_folder

RECORD = "environment.json"
"""Written last: an environment without it is not complete."""
OWN_INTERPRETER = ("robotwin",)
"""Simulators that never run in ours."""


@dataclass(frozen=True)
class Environment:
    """An interpreter, and what its processes need in their environment."""

    python: Path
    variables: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    """What it was made of; another one makes it anew."""

    def to_json(self) -> str:
        return json.dumps({"python": str(self.python), "variables": self.variables, "recipe": self.recipe}, indent=1)


def environment_folder(name: str) -> Path:
    """The folder that is the whole environment of a simulator; deleting it removes the environment."""
    return cache_folder() / "environments" / name


def find_environment(name: str) -> Environment | None:
    """The installed environment of a simulator, or None."""
    try:
        record = json.loads((environment_folder(name) / RECORD).read_text(encoding="utf-8"))
        found = Environment(Path(record["python"]), dict(record["variables"]), str(record["recipe"]))
    except (OSError, ValueError, KeyError):
        return None
    return found if found.python.exists() else None


def needed_environment(name: str) -> Environment | None:
    """The environment that a simulator runs in by default; None: ours. Raises `SimError` where one is missing."""
    if name not in OWN_INTERPRETER:
        return None
    found = find_environment(name)
    if found is None:
        raise SimError(
            f"{name} needs an interpreter of its own: `vla-rl sim install {name}` makes it in {environment_folder(name)}; "
            "or name one that has the simulator's packages with sim.python=PATH"
        )
    return found


@lru_cache(maxsize=1)
def package_path() -> str:
    """A folder to import this package from, and nothing else: a packages folder would bring its neighbours along."""
    package = Path(vla_rl.__file__).parent
    if package.parent.name not in ("site-packages", "dist-packages"):
        return str(package.parent)
    folder = tempfile.TemporaryDirectory(prefix="vla_rl_package_")
    _FOLDERS.append(folder)
    (Path(folder.name) / "vla_rl").symlink_to(package, target_is_directory=True)
    return folder.name


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
