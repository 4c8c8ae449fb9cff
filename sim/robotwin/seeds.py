"""Initial states: RoboTwin's are seeds, and those count that the scripted expert solves.

State k of a task is the k-th seed from `FIRST_SEED` on that the expert solves, as RoboTwin and its RL papers filter them.
The lite profile's first states ship with the package; others are looked for once (`vla-rl sim seeds`) and kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from vla_rl.sim.base import SimError
from vla_rl.sim.cache import cache_folder
from vla_rl.sim.robotwin.assets import Profile
from vla_rl.sim.robotwin.expert_process import MAX_FAULTS
from vla_rl.sim.robotwin.tasks import RoboTwinTask

FIRST_SEED = 100_000
"""Where RoboTwin's evaluation begins."""
_SHIPPED = Path(__file__).with_name("lite_seeds.json")


def find_seed(task: RoboTwinTask, profile: Profile, state: int) -> int:
    """The seed of an initial state. Raises `SimError` for one that is not known yet."""
    known = known_seeds(task, profile)
    if not 0 <= state < len(known):
        raise SimError(
            f"{task.name} has {len(known)} initial states that the expert is known to solve, so there is no state {state}; "
            f"look for more with `vla-rl sim seeds robotwin task_ids=[{task.id}] count={max(state + 1, 50)}`, or leave "
            "init_state_id out and give a seed"
        )
    return known[state]


def known_seeds(task: RoboTwinTask, profile: Profile) -> list[int]:
    """Seeds that the expert solves, in order."""
    path = cache_path(task, profile)
    found = _read(path, path.stat().st_mtime_ns)["solved"] if path.exists() else []
    shipped = _read(_SHIPPED, 0).get(task.name, []) if profile.name == "lite" else []
    return max(found, shipped, key=len)


def cache_path(task: RoboTwinTask, profile: Profile) -> Path:
    """Where the found seeds of a task are kept."""
    return cache_folder() / "robotwin_seeds" / f"{task.name}_{profile.name}_{profile.planner}.json"


def search_seeds(task: RoboTwinTask, profile: Profile, count: int, solves: Callable[[int], bool]) -> list[int]:
    """Have `solves(seed)` try seeds until `count` are known, and keep them after each; continues where it stopped.

    A seed over which it raises `SimError` is not solved. Raises `SimError` where a hundred seeds in a row fail, and the last
    one's where it was raised over `MAX_FAULTS` in a row.
    """
    path = cache_path(task, profile)
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    else:
        known = known_seeds(task, profile)
        record = {"next": known[-1] + 1 if known else FIRST_SEED, "solved": list(known)}
    failures, faults, seed = 0, 0, record["next"] - 1
    while len(record["solved"]) < count:
        if failures >= 100:
            raise SimError(f"the expert fails on 100 seeds of {task.name} in a row, up to {seed}")
        seed += 1
        try:
            failures, faults = 0 if solves(seed) else failures + 1, 0
        except SimError:
            failures, faults = failures + 1, faults + 1
            if faults == MAX_FAULTS:
                raise
            continue  # kept with the next seed that can be tried: where none can, it is not the seeds' fault
        record = {"next": seed + 1, "solved": record["solved"] + ([seed] if failures == 0 else [])}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(record), encoding="utf-8")
        os.replace(partial, path)
    return list(record["solved"])


@lru_cache(maxsize=64)
def _read(path: Path, version: int) -> dict[str, list[int]]:
    return json.loads(path.read_text(encoding="utf-8"))
