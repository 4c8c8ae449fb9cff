"""The evaluations of a run: before, during and after training, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_rl.config import Config
from vla_rl.curriculum import held_out_specs, validation_specs
from vla_rl.evaluate import evaluate, pass_at_k_record, record_videos, write_json
from vla_rl.policies.base import ActingPolicy, Policy
from vla_rl.progress import Progress
from vla_rl.run import Run
from vla_rl.sim.base import VectorSim
from vla_rl.types import EpisodeSpec


def evaluate_and_save(
    directory: Path,
    config: Config,
    sim: VectorSim,
    policy: ActingPolicy,
    specs: Sequence[EpisodeSpec],
    name: str,
    step: int,
    videos: int = 0,
) -> Path:
    """Evaluate on `specs`, film some episodes, print the table; returns the JSON's path."""
    temperature = config.evaluation.temperature
    with Progress(f"Evaluation {name}", total=len(specs)) as progress:
        result = evaluate(policy, sim, specs, name=name, step=step, temperature=temperature, on_episode=progress.counted_episode)
    if videos:
        record_videos(result, sim, directory, videos)
    path = directory / "evaluation" / f"{name}.json"
    result.save(path)
    Console().print(result.table())
    return path


def evaluate_held_out(run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], name: str, step: int) -> None:
    """The larger evaluation before and after training, and pass@k with it where asked for, unless they were made before."""
    config = run.config.evaluation
    specs = held_out_specs(run.config.task.suite, task_ids, config.episodes)
    _evaluate_once(run, sim, policy, specs, name, step, config.videos)
    path = run.directory / "pass_at_k" / f"{name}.json"
    if config.samples and not path.exists():
        states = held_out_specs(run.config.task.suite, task_ids, config.sample_states)
        write_json(path, _pass_at_k(run.config, sim, policy, states, name, step))


def _pass_at_k(
    config: Config, sim: VectorSim, policy: Policy, states: Sequence[EpisodeSpec], name: str, step: int
) -> dict[str, Any]:
    specs = [state for state in states for _ in range(config.evaluation.samples)]
    temperature = config.evaluation.sample_temperature
    with Progress(f"pass@k {name}", total=len(specs)) as progress:
        result = evaluate(policy, sim, specs, name=name, step=step, temperature=temperature, on_episode=progress.counted_episode)
    return pass_at_k_record(result)


def evaluate_when_due(run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], iteration: int) -> None:
    """The smaller evaluation between two rounds of training, every `evaluation.every` of them, on episodes of its own."""
    config = run.config.evaluation
    if config.every and iteration > 0 and iteration % config.every == 0:
        specs = validation_specs(run.config.task.suite, task_ids, config.interim_episodes)
        _evaluate_once(run, sim, policy, specs, f"iteration_{iteration:06d}", iteration)


def _evaluate_once(
    run: Run, sim: VectorSim, policy: Policy, specs: Sequence[EpisodeSpec], name: str, step: int, videos: int = 0
) -> None:
    if not (run.directory / "evaluation" / f"{name}.json").exists():
        evaluate_and_save(run.directory, run.config, sim, policy, specs, name, step, videos)
