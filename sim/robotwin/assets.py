"""What a task needs on disk, told before anything is built: RoboTwin itself would retry a missing mesh for ever."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.sim.base import SimError
from vla_rl.sim.robotwin.tasks import RoboTwinTask

ROOT_VARIABLE = "ROBOTWIN_ASSETS_ROOT"
WHERE_FROM = (
    "RoboTwin's assets (about 16 GB) are the dataset TianxingChen/RoboTwin2.0 on Hugging Face; with network access, "
    f"`python -m robotwin.assets --output DIR` of the simulator's interpreter fetches them; then set {ROOT_VARIABLE}=DIR"
)
PROFILES = ("auto", "lite", "official")
_NEEDED = ("sapien", "robotwin", "mplib", "toppra")
_OBJECT = re.compile(r"[\"'](\d{3}_[\w-]+)[\"']")


@dataclass(frozen=True)
class Profile:
    """Which robot, pictures and planner an environment has."""

    name: str
    """lite or official."""
    root: Path | None = None
    """Of the official assets."""
    ray_tracing: bool = False
    planner: str = "lite"

    @property
    def published(self) -> bool:
        """Whether scores may be compared with published ones."""
        return self.name == "official" and self.ray_tracing

    def embodiment(self, config: Any) -> tuple[Path, dict[str, Any]]:
        """Folder and description of the robot; `config` is `robotwin.config`."""
        if self.name == "lite":
            from vla_rl.sim.robotwin.arms import embodiment_folder, write_embodiment

            return embodiment_folder(), write_embodiment(embodiment_folder())
        import yaml

        assert self.root is not None
        folder = self.root / config.load_task_config("_embodiment_config")["aloha-agilex"]["file_path"]
        return folder, yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))


def choose_profile(name: str, shader: str, planner: str) -> Profile:
    """The profile that the options mean on this machine. Raises `SimError` for options that do not exist or fit.

    `auto` is the official robot where `ROBOTWIN_ASSETS_ROOT` is set, else the lite one; the shader `auto` is the ray tracer
    of RoboTwin's scores with the official robot, else the raster shader.
    """
    for option, value, choices in (
        ("profile", name, PROFILES),
        ("shader", shader, ("auto", "raster", "ray_tracing")),
        ("planner", planner, ("auto", "curobo", "mplib")),
    ):
        if value not in choices:
            raise SimError(f"RoboTwin has no {option} {value!r}; choose one of: {', '.join(choices)}")
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise SimError(f"this interpreter lacks {', '.join(missing)}; make RoboTwin's own with `vla-rl sim install robotwin`")
    root = os.environ.get(ROOT_VARIABLE)
    if name == "auto":
        name = "official" if root else "lite"
    if name == "lite":
        return Profile("lite", ray_tracing=shader == "ray_tracing")
    if not root:
        raise SimError(f"the official robot needs its files, and {ROOT_VARIABLE} is not set; {WHERE_FROM}")
    if planner == "auto":
        planner = "curobo" if importlib.util.find_spec("curobo") is not None else "mplib"
    return Profile("official", Path(root).expanduser().resolve(), shader != "raster", planner)


def score_note(profile: str, shader: str) -> str:
    """What must stand beside every score under these options; empty where it may be compared with published ones."""
    if profile == "lite" or (profile == "auto" and not os.environ.get(ROOT_VARIABLE)):
        return "lite profile (substitute arms, pictures and expert): not comparable with published RoboTwin scores"
    return "raster pictures: not comparable with published RoboTwin scores" if shader == "raster" else ""


def check_files(task: RoboTwinTask, profile: Profile) -> None:
    """Raises `SimError`, in one line, where files that a task needs are missing."""
    objects = _objects_of(task)
    if profile.name == "lite":
        if objects:
            raise SimError(f"the lite profile cannot run {task.name}: it needs the meshes {', '.join(objects)}; {WHERE_FROM}")
        return
    assert profile.root is not None
    assets = profile.root / "assets"
    needed = [assets / "embodiments" / "aloha-agilex" / "config.yml", *(assets / "objects" / name for name in objects)]
    missing = [str(path.relative_to(profile.root)) for path in needed if not path.exists()]
    if missing:
        raise SimError(f"{task.name} needs files that {profile.root} lacks: {', '.join(missing)}; {WHERE_FROM}")


def _objects_of(task: RoboTwinTask) -> list[str]:
    """Folders of `assets/objects` that the task's source names."""
    package = importlib.util.find_spec("robotwin")
    assert package is not None and package.submodule_search_locations
    source = Path(package.submodule_search_locations[0]) / "envs" / f"{task.name}.py"
    return sorted(set(_OBJECT.findall(source.read_text(encoding="utf-8"))))
