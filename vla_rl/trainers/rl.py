"""The loop of reinforcement learning: rollouts, advantages, updates, evaluations, checkpoints; for every objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vla_rl.algorithms.composition import compose
from vla_rl.algorithms.learner import RlLearner
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.checkpoint import latest_checkpoint, load_checkpoint
from vla_rl.config import RlConfig
from vla_rl.curriculum import Curriculum, FinishedEpisode, finished_episodes
from vla_rl.data.chunks import ChunkDataset
from vla_rl.distributed.sharding import gathered as whole_tree
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.progress import Progress
from vla_rl.rollout.batch import make_round
from vla_rl.rollout.groups import Gathered, Group, gather, groups_from_tree, groups_to_tree
from vla_rl.run import Run, load_weights, prepare_for_training
from vla_rl.sim.base import VectorSim
from vla_rl.trainers.actor import Actor
from vla_rl.trainers.evaluation import evaluate_when_due
from vla_rl.trainers.statistics import RoundClock, rollout_statistics
from vla_rl.types import EpisodeSpec, Trajectory

PHASE = "rl"


def train_rl(
    run: Run, sim: VectorSim, policy: OpenVLAPolicy, task_ids: Sequence[int], demonstrations: Callable[[], ChunkDataset]
) -> int:
    """Improve `policy` in place for `rl.iterations` rounds, continuing from the run's last checkpoint if there is one.

    Every round draws its episodes, its exploration and its mini-batches from (run.seed, iteration) and the curriculum's
    checkpointed statistics alone, so a resumed run repeats an uninterrupted one bit for bit on CPU. `demonstrations` are asked
    for where the objective learns from some. Returns the number of rounds, which is smaller where the run's budget was spent
    (`run.max_minutes`, `run.max_episodes`) or where dynamic sampling finds nothing to learn from; `run` then knows why.
    """
    config, objective = run.config.rl, compose(run.config.objective)
    prepare_for_training(policy, run.config)
    actor = Actor(run, policy)
    learner = RlLearner(
        policy, config, objective, demonstrations() if objective.needs("demonstrations") else None, run.ranks, actor.shard
    )
    state = _restore(run, policy, learner)
    task = run.config.task
    curriculum = Curriculum(task.suite, task_ids, task.shipped_states, run.config.curriculum)
    curriculum.load_state_dict(state["curriculum"])
    with Progress(objective.name, total=config.iterations, done=state["iteration"]) as progress:
        while not _is_over(run, state):
            actor.follow()
            evaluate_when_due(run, sim, actor.policy, task_ids, state["iteration"])
            clock = RoundClock(sim)
            rng = np.random.default_rng([run.config.run.seed, state["iteration"]])
            rollouts = actor.rollouts(sim, int(rng.integers(2**63)), clock.stopwatch, progress.episode)
            gathered = _gather(run, sim, partial(curriculum.draw, rng=rng), rollouts, state["waiting"])
            if not gathered.groups:
                _stop(run, policy, learner, state, gathered.why_none())
                continue
            with clock.stopwatch.part("learning"):
                if objective.reference_reset_every and state["iteration"] % objective.reference_reset_every == 0:
                    learner.reset_reference()
                last = actor.final_values(gathered.learned) if objective.needs("critic") else None
                turns = learner.prepare(make_round(gathered.groups, last))
                stats = learner.update(turns, rng, train_policy=state["warm"])
            stats |= curriculum.update(_decided(gathered, turns))
            _count(state, gathered, stats, config)
            state["curriculum"] = curriculum.state_dict()
            stats |= rollout_statistics(gathered) | clock.statistics() | {"rollout/total_episodes": state["episodes"]}
            run.metrics.log(state["iteration"], stats, phase=PHASE)
            if state["iteration"] % config.checkpoint_every == 0 or _is_over(run, state):
                _save(run, policy, learner, state)
            progress.advance(_note(stats))
    return int(state["iteration"])


def _is_over(run: Run, state: dict[str, Any]) -> bool:
    return run.stopped or state["iteration"] >= run.config.rl.iterations or run.budget_is_spent(state["episodes"])


def _gather(
    run: Run,
    sim: VectorSim,
    draw: Callable[[int], Sequence[EpisodeSpec]],
    rollouts: Callable[[Sequence[EpisodeSpec]], list[Trajectory]],
    waiting: Sequence[Group],
) -> Gathered:
    """The groups of one round: initial states from the curriculum, episodes from the simulators of all ranks."""
    config = run.config.rl
    return gather(
        draw,
        rollouts,
        waiting,
        config.episodes_per_iteration // config.group_size,
        size=config.group_size,
        attempts=config.sampling_attempts,
        at_least=math.ceil(run.ranks.size * sim.num_envs / config.group_size),
        low=config.success_low,
        high=config.success_high,
    )


def _decided(gathered: Gathered, turns: TurnBatch) -> list[FinishedEpisode]:
    """The episodes that a round has learned from, and those that dynamic sampling has dropped, which taught nothing: the
    surplus counts in the round that learns from it."""
    assert turns.advantages is not None
    kept = {id(group) for group in (*gathered.groups, *gathered.surplus)}
    dropped = [trajectory for group in gathered.drawn if id(group) not in kept for trajectory in group]
    nothing = np.zeros(sum(trajectory.num_turns for trajectory in dropped))
    return finished_episodes([*gathered.learned, *dropped], np.concatenate([turns.advantages.numpy(), nothing]))


def _count(state: dict[str, Any], gathered: Gathered, stats: dict[str, float], config: RlConfig) -> None:
    state["iteration"] += 1
    state["episodes"] += len(gathered.sampled)
    state["waiting"] = gathered.surplus
    state["warm"] |= state["iteration"] >= config.warmup_iterations
    state["warm"] |= stats.get("value/explained_variance", 0.0) >= config.warmup_explained_variance


def _restore(run: Run, policy: OpenVLAPolicy, learner: RlLearner) -> dict[str, Any]:
    """The state of the loop, at its beginning or as the last checkpoint has it; the learner is put back, too."""
    state: dict[str, Any] = {"iteration": 0, "episodes": 0, "waiting": [], "reference": None, "curriculum": {}}
    state["warm"] = not learner.objective.needs("critic") or run.config.rl.warmup_iterations == 0
    checkpoint = latest_checkpoint(run.checkpoints(PHASE))
    if checkpoint is not None:
        restore = partial(load_weights, policy)
        state = load_checkpoint(checkpoint, policy_load=restore, optimizers=learner.optimizers, verify=False)
    reference = state.pop("reference")
    if learner.reference is not None and reference is not None:
        learner.reference.load_state_dict(reference)
    run.metrics.truncate_after(state["iteration"], PHASE)
    return state | {"waiting": groups_from_tree(state["waiting"])}


def _save(run: Run, policy: OpenVLAPolicy, learner: RlLearner, state: dict[str, Any]) -> None:
    """A checkpoint holds the surplus groups and the reference, as neither can be made again from the policy."""
    kept = {
        "waiting": groups_to_tree(state["waiting"]),
        "reference": None if learner.reference is None else whole_tree(learner.reference.state_dict()),
    }
    run.save(PHASE, state["iteration"], policy, learner.optimizers, state | kept)


def _stop(run: Run, policy: OpenVLAPolicy, learner: RlLearner, state: dict[str, Any], reason: str) -> None:
    """End early; what has been learned so far is kept."""
    if state["iteration"]:
        _save(run, policy, learner, state)
    run.stop(reason)


def _note(stats: dict[str, float]) -> str:
    """The figures of a round that its progress line shows."""
    note = f"success {stats['rollout/success']:.0%}" if "rollout/success" in stats else "surplus groups only"
    if "value/explained_variance" in stats:
        return f"{note}, explained variance {stats['value/explained_variance']:.2f}"
    return f"{note}, {stats['rollout/mixed_groups']:.0%} of groups mixed" if "rollout/mixed_groups" in stats else note
