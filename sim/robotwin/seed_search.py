"""`vla-rl sim seeds`: the expert tries seeds in RoboTwin's interpreter, one after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

from vla_rl.config import Count, Positive, Section
from vla_rl.sim.robotwin.assets import ROOT_VARIABLE, Profile
from vla_rl.sim.robotwin.expert_process import ExpertProcess
from vla_rl.sim.robotwin.seeds import search_seeds
from vla_rl.sim.robotwin.tasks import MESH_FREE, SUITE, RoboTwinTask, find_task, suite_tasks


class SeedSearch(Section):
    """What to look for."""

    task_ids: tuple[Count, ...] = ()
    """Tasks; an empty list means the mesh-free ones."""
    count: Positive = 50
    """Initial states of each task."""
    profile: Literal["auto", "lite", "official"] = "auto"
    """auto: official where ROBOTWIN_ASSETS_ROOT is set."""
    planner: Literal["curobo", "mplib"] = "curobo"
    """Of the expert with the official robot."""
    python: str | None = None
    """Interpreter; by default the one that `vla-rl sim install` made."""


def search(settings: SeedSearch) -> Iterator[tuple[RoboTwinTask, int]]:
    """Each task and how many initial states are known, as they are found. Raises `SimError`."""
    name = settings.profile if settings.profile != "auto" else ("official" if os.environ.get(ROOT_VARIABLE) else "lite")
    profile = Profile(name, planner="lite" if name == "lite" else settings.planner)
    mesh_free = tuple(task.id for task in suite_tasks(SUITE) if task.name in MESH_FREE)
    with ExpertProcess(settings.python) as process:
        for task_id in settings.task_ids or mesh_free:
            task = find_task(SUITE, task_id)

            def solves(seed: int, task: RoboTwinTask = task) -> bool:
                job = {
                    "task_id": task.id,
                    "seed": seed,
                    "cameras": [],
                    "image_size": 16,
                    "profile": name,
                    "shader": "raster",
                    "planner": "auto" if name == "lite" else settings.planner,
                    "task_config": "demo_clean",
                    "instructions": "seen",
                    "privileged": False,
                }
                return bool(process.ask(job)["solved"])

            yield task, len(search_seeds(task, profile, settings.count, solves))
