"""Small demonstrations with smooth frames, which lossy codecs keep, and two-valued grippers, which every convention can hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_rl.data import Demonstration
from vla_rl.data.libero_hdf5 import TaskHeader, write_demonstrations
from vla_rl.types import EpisodeSpec

CAMERAS = ("agentview", "robot0_eye_in_hand")


def header(task: str) -> TaskHeader:
    return TaskHeader(
        env_name="Libero_Floor_Manipulation",
        problem_info={"language_instruction": task.replace("_", " "), "problem_name": "libero_floor_manipulation"},
        bddl_file_name=f"libero_object/{task}.bddl",
        bddl_file_content="(define (problem LIBERO_Floor_Manipulation))",
        env_args={"type": 1, "env_name": "Libero_Floor_Manipulation", "env_kwargs": {"control_freq": 20}},
    )


def frames(steps: int, seed: int, size: int) -> np.ndarray:
    """Colour ramps that move, with a bright upper left corner, so that a turned frame shows."""
    rows, columns = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    pictures = np.zeros((steps, size, size, 3), np.uint8)
    for t in range(steps):
        level = 100 + 60 * np.sin(t / 9 + seed) - 90 * rows - 20 * columns
        pictures[t] = np.clip(level, 0, 255)[..., None]
    return pictures


def demonstration(task: str = "push_it", steps: int = 12, seed: int = 0, size: int = 32) -> Demonstration:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
    turn = rng.normal(size=(steps, 3)) / 10 + np.array([3.0, 0, 0])
    proprio = np.concatenate([rng.normal(size=(steps, 3)).cumsum(axis=0) / 100, turn, rng.uniform(0, 0.04, (steps, 2))], axis=1)
    return Demonstration(
        instruction=task.replace("_", " "),
        images={camera: frames(steps, seed + number, size) for number, camera in enumerate(CAMERAS)},
        frame_index=np.arange(steps),
        proprio=proprio.astype(np.float32),
        actions=actions,
        rewards=np.eye(1, steps, steps - 1, dtype=np.float32)[0],
        success=True,
        expert_actions=np.concatenate([actions[:, :6] * np.float32(0.9), actions[:, 6:]], axis=1),
        spec=EpisodeSpec("libero_object", 0, init_state_id=3, seed=seed),
        skills=tuple(["reach", "grasp"][t * 2 // steps] for t in range(steps)),
        joint_states=rng.normal(size=(steps, 7)),
        states=rng.normal(size=(steps, 11)),
        model_xml="<mujoco/>",
        provenance={"source": "test", "seed": seed},
    )


def write_small(folder: Path, size: int = 32) -> list[Demonstration]:
    """Two tasks, three episodes of different lengths, the last a failure; returned in the order of reading."""
    lift = [demonstration("lift_it", 12, 1, size)]
    push = [demonstration("push_it", 15, 2, size), replace(demonstration("push_it", 9, 3, size), success=False)]
    folder.mkdir(parents=True)
    write_demonstrations(folder / "lift_it_demo.hdf5", header("lift_it"), lift)
    write_demonstrations(folder / "push_it_demo.hdf5", header("push_it"), push)
    return lift + push
