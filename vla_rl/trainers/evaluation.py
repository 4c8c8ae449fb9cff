"""The evaluations of a run: before, during and after training, each made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from vla_rl.curriculum import held_out_specs
from vla_rl.evaluate import evaluate, record_videos
from vla_rl.policies.base import Policy
from vla_rl.run import Run
from vla_rl.sim.base import VectorSim
from vla_rl.trainers.progress import Progress


def evaluate_held_out(
    run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], name: str, step: int, episodes: int, videos: int = 0
) -> dict[str, Any]:
    """Evaluate on the run's held-out list and write evaluation/NAME.json, unless that is there already."""
    path = run.evaluation_path(name)
    if path.exists():
        return json.loads(path.read_text())
    config = run.config.evaluation
    specs = held_out_specs(run.config.task.suite, task_ids, episodes)
    with Progress(f"Evaluation {name}", total=len(specs)) as progress:
        result = evaluate(
            policy, sim, specs, name=name, step=step, temperature=config.temperature, on_episode=progress.counted_episode
        )
    if videos:
        record_videos(result, sim, run.directory, videos)
    result.save(path)
    Console().print(result.table())
    return result.to_dict()


def evaluate_when_due(run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], iteration: int) -> None:
    """The smaller evaluation between two rounds of training, every `evaluation.every` of them."""
    config = run.config.evaluation
    if config.every and iteration > 0 and iteration % config.every == 0:
        evaluate_held_out(run, sim, policy, task_ids, f"iteration_{iteration:06d}", iteration, config.interim_episodes)
