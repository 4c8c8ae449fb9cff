"""The evaluations of a run: before, during and after training, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vla_rl.config import Config
from vla_rl.curriculum import held_out_specs, validation_specs
from vla_rl.distributed.ranks import Ranks
from vla_rl.evaluate import EpisodeOutcome, Evaluation, evaluate, is_made, pass_at_k_record, record_videos, write_json
from vla_rl.policies.base import ActingPolicy, Policy
from vla_rl.progress import Progress
from vla_rl.run import Run
from vla_rl.sim.base import VectorSim
from vla_rl.sim.robotwin.assets import score_note
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
    ranks: Ranks | None = None,
) -> Path:
    """Evaluate on `specs`, film some episodes, print the table; returns the JSON's path, which rank 0 writes."""
    ranks = ranks or Ranks()
    result = _evaluate(ranks, sim, policy, specs, name, step, config.evaluation.temperature)
    if config.sim.name == "robotwin":
        result.note = score_note(config.sim.robotwin.profile, config.sim.robotwin.shader)
    path = directory / "evaluation" / f"{name}.json"
    if not ranks.leads:
        return path
    result.save(path)
    if videos:
        record_videos(result, sim, directory, videos)
        result.save(path)
    Console().print(result.table())
    return path


def _evaluate(
    ranks: Ranks, sim: VectorSim, policy: ActingPolicy, specs: Sequence[EpisodeSpec], name: str, step: int, temperature: float
) -> Evaluation:
    """Each rank runs its share of the episodes; all get all outcomes."""
    mine = ranks.share(specs)
    with Progress(f"Evaluation {name}", total=len(mine)) as progress:
        seed, count = ranks.rank, progress.counted_episode
        result = evaluate(policy, sim, mine, name=name, step=step, temperature=temperature, seed=seed, on_episode=count)
    if ranks.size == 1:
        return result
    trees = ranks.together([vars(outcome) | {"spec": outcome.spec.to_dict()} for outcome in result.outcomes])
    return replace(result, outcomes=[EpisodeOutcome(**tree | {"spec": EpisodeSpec.from_dict(tree["spec"])}) for tree in trees])


def evaluate_held_out(run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], name: str, step: int) -> None:
    """The larger evaluation before and after training, and pass@k with it where asked for, unless they were made before: of the
    same step and on the same episodes, as a run can be resumed with more of either."""
    config = run.config.evaluation
    specs = held_out_specs(run.config.task.suite, task_ids, config.episodes)
    _evaluate_once(run, sim, policy, specs, name, step, config.videos)
    path = run.lead / "pass_at_k" / f"{name}.json"
    states = held_out_specs(run.config.task.suite, task_ids, config.sample_states)
    wanted = [{"spec": state.to_dict(), "episodes": config.samples} for state in states]
    if config.samples and run.ranks.first(not is_made(path, step, "states", wanted)):
        specs = [state for state in states for _ in range(config.samples)]
        result = _evaluate(run.ranks, sim, policy, specs, name, step, config.sample_temperature)
        if run.ranks.leads:
            write_json(path, pass_at_k_record(result))


def evaluate_when_due(run: Run, sim: VectorSim, policy: Policy, task_ids: Sequence[int], iteration: int) -> None:
    """The smaller evaluation between two rounds of training, every `evaluation.every` of them, on episodes of its own."""
    config = run.config.evaluation
    if config.every and iteration > 0 and iteration % config.every == 0:
        specs = validation_specs(run.config.task.suite, task_ids, config.interim_episodes)
        _evaluate_once(run, sim, policy, specs, f"iteration_{iteration:06d}", iteration)


def _evaluate_once(
    run: Run, sim: VectorSim, policy: Policy, specs: Sequence[EpisodeSpec], name: str, step: int, videos: int = 0
) -> None:
    path, wanted = run.lead / "evaluation" / f"{name}.json", [{"spec": spec.to_dict()} for spec in specs]
    if run.ranks.first(not is_made(path, step, "episodes", wanted)):
        evaluate_and_save(run.lead, run.config, sim, policy, specs, name, step, videos, run.ranks)
