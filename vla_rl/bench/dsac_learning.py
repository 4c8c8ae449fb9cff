"""`vla-rl bench dsac-learning`: what DSAC-T and SAC learn with the same budget and networks, beside Stable-Baselines3's SAC.

Legend: N environments, O observation size, D action size.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.table import Table

from vla_rl.config import ConfigError
from vla_rl.control_config import ControlConfig
from vla_rl.run import set_threads
from vla_rl.sim.control import evaluation_seeds
from vla_rl.sim.control_registry import make_control
from vla_rl.trainers import control
from vla_rl.trainers.control_evaluation import ROWS, run_control_episodes

ALGORITHMS = ("dsac_t", "sac", "sb3_sac")
EPISODES = 20
HIDDEN = (256, 256, 256)


@dataclass(frozen=True)
class Task:
    env_steps: int
    seeds: int
    random_steps: int
    learning_rate: float
    """Of actor, critics and temperature, in all algorithms; what else there is stays as each has it."""


TASKS = {
    "Pendulum-v1": Task(10_000, 5, 1_000, 1e-3),
    "InvertedDoublePendulum-v5": Task(30_000, 3, 1_000, 3e-4),
    "Hopper-v5": Task(100_000, 2, 5_000, 3e-4),
    "HalfCheetah-v5": Task(50_000, 1, 5_000, 3e-4),
}


@dataclass(frozen=True)
class Outcome:
    task: str
    algorithm: str
    seed: int
    env_steps: int
    returns: list[float]
    """Of each evaluation episode, the same seeds for all."""
    seconds: float
    """Of the last process that worked on it."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.algorithm, self.seed


def measure(tasks: Sequence[str], algorithms: Sequence[str], record: Path) -> Iterator[Outcome]:
    """Run what `record` does not hold yet, one line each as it ends; what was interrupted goes on from its checkpoint, but
    for Stable-Baselines3, which begins that run again. Raises `ConfigError` for unknown names."""
    for name, known in [(t, TASKS) for t in tasks] + [(a, ALGORITHMS) for a in algorithms]:
        if name not in known:  # type: ignore[operator]
            raise ConfigError(f"there is no {name!r} here; choose among {', '.join(known)}")
    if "sb3_sac" in algorithms and importlib.util.find_spec("stable_baselines3") is None:
        raise ConfigError("Stable-Baselines3 is not installed: pip install stable-baselines3, or leave out sb3_sac")
    record.parent.mkdir(parents=True, exist_ok=True)
    done = {outcome.key for outcome in read_outcomes(record)}
    for task in tasks:
        for seed in range(TASKS[task].seeds):
            for algorithm in algorithms:
                if (task, algorithm, seed) in done:
                    continue
                outcome = run_one(task, TASKS[task], algorithm, seed, record.parent)
                with record.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                yield outcome


def read_outcomes(record: Path) -> list[Outcome]:
    lines = record.read_text().splitlines() if record.exists() else []
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("}")]


def run_one(name: str, task: Task, algorithm: str, seed: int, root: Path) -> Outcome:
    began = time.perf_counter()
    returns = _sb3_returns(name, task, seed) if algorithm == "sb3_sac" else _our_returns(name, task, algorithm, seed, root)
    return Outcome(name, algorithm, seed, task.env_steps, returns, round(time.perf_counter() - began, 1))


def our_config(name: str, task: Task, algorithm: str, seed: int, root: Path) -> ControlConfig:
    rates = {f"{part}_learning_rate": task.learning_rate for part in ("actor", "critic", "temperature")}
    # SAC's own beginning is a temperature of 1, as Stable-Baselines3 has it.
    beginning = {"initial_temperature": 1.0} if algorithm == "sac" else {}
    record = {
        "run": {"name": f"{name}_{algorithm}_seed{seed}", "root": root, "seed": seed, "device": "cpu", "threads": 1},
        "sim": {"name": "gymnasium", "id": name},
        "algorithm": {"name": algorithm, "hidden": HIDDEN, **rates, **beginning},
        "off_policy": {"env_steps": task.env_steps, "random_steps": task.random_steps, "checkpoint_every": 5},
        "evaluation": {"episodes": EPISODES, "every": 10},
    }
    return ControlConfig.model_validate(record)


def _our_returns(name: str, task: Task, algorithm: str, seed: int, root: Path) -> list[float]:
    config = our_config(name, task, algorithm, seed, root)
    control.train(config)
    final = json.loads((root / config.run.name / "evaluation" / "final.json").read_text())
    return [episode["return"] for episode in final["episodes"]]


def _sb3_returns(name: str, task: Task, seed: int) -> list[float]:
    set_threads(1)
    sb3: Any = importlib.import_module("stable_baselines3")
    model = sb3.SAC(
        "MlpPolicy",
        name,
        learning_rate=task.learning_rate,
        learning_starts=task.random_steps,
        buffer_size=task.env_steps,
        policy_kwargs={"net_arch": list(HIDDEN), "activation_fn": torch.nn.GELU},
        device="cpu",
        seed=seed,
    )
    model.learn(task.env_steps)

    def act(observation: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = model.policy.scale_action(model.predict(observation, deterministic=True)[0])
        return scaled.astype(np.float32)

    judge = make_control("gymnasium", name, min(EPISODES, ROWS))
    try:
        return [episode.total_reward for episode in run_control_episodes(judge, act, evaluation_seeds(EPISODES))]
    finally:
        judge.close()


def line(outcome: Outcome) -> str:
    return f"{outcome.task}, {outcome.algorithm}, seed {outcome.seed}: {mean(outcome.returns):.1f} after {outcome.seconds:.0f} s"


def tables(outcomes: Iterable[Outcome]) -> list[Table]:
    """Mean return of each run by seed, for each task and algorithm."""
    table = Table(title=f"mean return of {EPISODES} evaluation episodes after training, by seed")
    for heading in ("environment", "control steps", "algorithm", "seeds 0, 1, ...", "mean", "seconds a run"):
        table.add_column(heading, justify="right" if heading in ("control steps", "mean", "seconds a run") else "left")
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (list(TASKS).index(outcome.task), outcome.algorithm, outcome.seed)):
        groups.setdefault((outcome.task, outcome.algorithm), []).append(outcome)
    for (task, algorithm), runs in groups.items():
        each = [mean(run.returns) for run in runs]
        by_seed = ", ".join(f"{value:.1f}" for value in each)
        seconds = f"{mean(run.seconds for run in runs):.0f}"
        table.add_row(task, f"{runs[0].env_steps:,}", algorithm, by_seed, f"{mean(each):.1f}", seconds)
    return [table]


def to_dict(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    return {"outcomes": [asdict(outcome) for outcome in outcomes]}
