"""Our end of the expert's process, and what the expert notes, without the simulator."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_rl import collect_robotwin
from vla_rl.collect import collect_demonstrations
from vla_rl.config import CollectSettings
from vla_rl.sim import SimError
from vla_rl.sim.robotwin import expert, world
from vla_rl.sim.robotwin.assets import Profile
from vla_rl.sim.robotwin.expert_process import ExpertProcess
from vla_rl.sim.robotwin.tasks import find_task

STAND_IN = """#!{python} -S
import json, os, sys, time
for line in sys.stdin:
    seed = json.loads(line)["seed"]
    if seed == 1:
        sys.exit(3)
    time.sleep(600 if seed == 2 else 0)
    print(json.dumps({{"solved": True, "pid": os.getpid()}}), flush=True)
"""
SETTINGS = CollectSettings(suite="robotwin", task_ids=(45,), cameras=())


def test_a_process_that_dies_or_hangs_is_replaced(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    with ExpertProcess(str(python)) as process:
        pids = [process.ask({"seed": 0})["pid"]]
        with pytest.raises(SimError, match="ended with status 3"):
            process.ask({"seed": 1})
        pids.append(process.ask({"seed": 0})["pid"])
        with pytest.raises(SimError, match=r"no answer within 0\.1 s"):
            process.ask({"seed": 2}, seconds=0.1)
        pids.append(process.ask({"seed": 0})["pid"])
    assert len(set(pids)) == 3
    with pytest.raises(SimError, match="is closed"):
        process.ask({"seed": 0})


def test_an_interpreter_that_is_not_there_is_said() -> None:
    with pytest.raises(SimError, match="cannot start RoboTwin's expert with python='/nope': No such file"):
        ExpertProcess("/nope")


class Unreliable:
    """Fails over the seeds below `works_from`, and solves the others."""

    def __init__(self, works_from: int) -> None:
        self.works_from, self.tried = works_from, list[int]()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        self.tried.append(job["seed"])
        if job["seed"] < self.works_from:
            raise SimError("RoboTwin's expert gave no answer")
        np.savez(job["path"], states=np.zeros((4, 14)))
        return {"solved": True, "instruction": "stack", "profile": "lite", "comparable": False}


def test_a_seed_that_cannot_be_played_is_passed_over() -> None:
    """Seeds of the first demonstration begin at 10000000; five that fail in a row are no matter of seeds."""
    process: Any = Unreliable(10_000_004)
    demonstration, failures = collect_robotwin._demonstrate(process, SETTINGS, find_task("robotwin", 45), 0)
    assert failures == 4 and demonstration.spec is not None and demonstration.spec.seed == 10_000_004
    process = Unreliable(10_000_005)
    with pytest.raises(SimError, match="no answer"):
        collect_robotwin._demonstrate(process, SETTINGS, find_task("robotwin", 45), 0)
    assert process.tried == list(range(10_000_000, 10_000_005))


def test_cameras_of_other_simulators_are_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = CollectSettings(suite="robotwin", task_ids=(45,), output=tmp_path, python="/nope")
    with pytest.raises(SimError, match="no camera 'agentview'; choose from: head_camera, left_camera, right_camera"):
        collect_demonstrations(settings, progress=False)


def test_a_recorder_that_fails_is_no_failure_of_the_expert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Dark:
        seed, instruction = 7, "stack"

        def __init__(self, *words: object) -> None:
            robot = SimpleNamespace(left_entity=SimpleNamespace(get_qpos=lambda: np.zeros(2)))
            self.env = SimpleNamespace(robot=robot, play_once=lambda: self.env.recorder())

        def proprio(self) -> np.ndarray:
            return np.zeros(14)

        def render(self, camera: str) -> np.ndarray:
            raise RuntimeError("there is no light")

        def close(self) -> None: ...

    monkeypatch.setattr(world, "World", Dark)
    monkeypatch.setattr(expert, "choose_profile", lambda *words: Profile("lite"))
    monkeypatch.setattr(expert, "check_files", lambda *words: None)
    job = {
        "task_id": 45, "seed": 7, "cameras": ["head_camera"], "image_size": 16, "profile": "lite", "shader": "raster",
        "planner": "auto", "task_config": "demo_clean", "instructions": "seen", "privileged": False,
        "path": str(tmp_path / "episode.npz"),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="there is no light"):
        expert.play(job)
