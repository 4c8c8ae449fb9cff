"""The evaluations of a run: before, during and after training, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_rl.config import Config
from vla_rl.curriculum import held_out_specs
from vla_rl.evaluate import evaluate, record_videos
from vla_rl.policies.base import Policy
from vla_rl.progress import Progress
from vla_rl.run import Run
from vla_rl.sim.base import VectorSim


def evaluate_and_save(
    directory: Path,
    config: Config,
    sim: VectorSim,
    policy: Policy,
    task_ids: Sequence[int],
    name: str,
    step: int,
    episodes: int,
    videos: int = 0,
) -> Path:
    """Evaluate on the held-out list, film some episodes, print the table; returns the JSON's path."""
    specs = held_out_specs(config.task.suite, task_ids, episodes)
    temperature = config.evaluation.temperature
    with Progress(f"Evaluation {name}", total=len(specs)) as progress:
        result = evaluate(policy, sim, specs, name=name, step=step, temperature=temperature, on_episode=progress.counted_episode)
    if videos:
        record_videos(result, sim, directory, videos)
    path = directory / "evaluation" / f"{name}.json"
    result.save(path)
    Console().print(result.table())
    return path


def evaluate_held_out(
    run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], name: str, step: int, episodes: int, videos: int = 0
) -> None:
    """An evaluation of the run, unless it was made before."""
    if not (run.directory / "evaluation" / f"{name}.json").exists():
        evaluate_and_save(run.directory, run.config, sim, policy, task_ids, name, step, episodes, videos)


def evaluate_when_due(run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], iteration: int) -> None:
    """The smaller evaluation between two rounds of training, every `evaluation.every` of them."""
    config = run.config.evaluation
    if config.every and iteration > 0 and iteration % config.every == 0:
        evaluate_held_out(run, sim, policy, task_ids, f"iteration_{iteration:06d}", iteration, config.interim_episodes)
