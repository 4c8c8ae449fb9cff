"""The loop of off-policy reinforcement learning: act, remember, update; evaluations and checkpoints between rounds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from vla_rl.algorithms.dsac_t import DsacT
from vla_rl.checkpoint import latest_checkpoint, load_checkpoint
from vla_rl.config import ConfigError
from vla_rl.control_config import ControlConfig, OffPolicyConfig
from vla_rl.metrics import Stopwatch
from vla_rl.progress import Progress
from vla_rl.replay import ReplayBuffer
from vla_rl.run import Run
from vla_rl.sim.control import ControlSim, training_seeds
from vla_rl.trainers.control_evaluation import evaluate_best, evaluate_held_out, validate
from vla_rl.trainers.experience import Experience

PHASE = "off_policy"


def train_offpolicy(run: Run[ControlConfig], sim: ControlSim, judge: ControlSim, device: torch.device) -> int:
    """Learn for `off_policy.env_steps` control steps, continuing from the run's last checkpoint if there is one.

    A round draws its actions, batches and noise from (run.seed, step) alone. After every checkpoint all environments begin
    new episodes, whose seeds come from the same two numbers, in a run that goes on as in one that resumes: so a resumed run
    repeats an uninterrupted one bit for bit on CPU. `judge` is the simulator that evaluations use. Returns the control steps
    done, which are fewer where the run's budget was spent.
    """
    config, seed = run.config.off_policy, run.config.run.seed
    if config.greedy_share and not round(config.greedy_share * sim.num_envs):
        raise ConfigError(
            f"off_policy.greedy_share={config.greedy_share} of sim.num_envs={sim.num_envs} is no environment; raise one of them"
        )
    learner = DsacT(run.config.algorithm, sim.observation_dim, sim.action_dim, seed, device)
    replay = ReplayBuffer(config.replay_capacity, sim.observation_dim, sim.action_dim)
    state = _restore(run, learner, replay)
    experience = Experience(sim, replay)
    with Progress(run.config.algorithm.name, total=config.env_steps, done=state["step"]) as progress:
        while not _is_over(run, state):
            _evaluate_when_due(run, judge, learner, state["step"])
            if experience.observation is None or _is_boundary(config, state["step"]):
                experience.restart(training_seeds(seed, state["step"], sim.num_envs))
            watch = Stopwatch()
            stats = _round(config, learner, replay, experience, np.random.default_rng([seed, state["step"]]), state, watch)
            state["step"] += config.round_steps
            finished = experience.take_finished()
            state["episodes"] += len(finished)
            stats |= _episode_statistics(finished) | {"rollout/total_episodes": state["episodes"]}
            run.metrics.log(state["step"], stats | _speeds(watch, config, learner.updates - state["updates"]), phase=PHASE)
            state["updates"] = learner.updates
            if _is_boundary(config, state["step"]) or _is_over(run, state):
                run.save(PHASE, state["step"], learner.actor, learner.optimizers, _record(state, learner, replay))
            progress.advance(_note(stats), to=state["step"])
    _evaluate_when_due(run, judge, learner, state["step"])
    evaluate_held_out(run, judge, learner, "final", state["step"], run.config.evaluation.videos)
    evaluate_best(run, judge, state["step"])
    return int(state["step"])


def _round(
    config: OffPolicyConfig,
    learner: DsacT,
    replay: ReplayBuffer,
    experience: Experience,
    rng: np.random.Generator,
    state: dict[str, Any],
    watch: Stopwatch,
) -> dict[str, float]:
    """Act for `round_steps` control steps, with the updates that are due after each step of all environments."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    assert experience.observation is not None
    rows, batch_size = len(experience.observation), learner.config.batch_size
    greedy_rows = round(config.greedy_share * rows)
    for step in range(state["step"], state["step"] + config.round_steps, rows):
        with watch.part("inference"):
            if step < config.random_steps:
                actions = rng.uniform(-1, 1, (rows, learner.actor.action_dim)).astype(np.float32)
            else:
                noise = rng.standard_normal((rows, learner.actor.action_dim), np.float32)
                noise[:greedy_rows] = 0.0
                actions = learner.actor.act(experience.observation, noise)
        with watch.part("simulation"):
            experience.advance(actions)
        with watch.part("learning"):
            for _ in range(_updates_due(config, step + rows) - learner.updates):
                learner.update(replay.sample(batch_size, rng, learner.device), generator)
    with watch.part("learning"):
        return learner.diagnose(replay.sample(batch_size, rng, learner.device), generator) if learner.updates else {}


def _updates_due(config: OffPolicyConfig, step: int) -> int:
    """Updates after `step` control steps in all; the random ones at the beginning call for none."""
    # The small number keeps a ratio such as 0.1, which floats hold inexactly, from losing an update.
    return int(max(0, step - config.random_steps) * config.updates_per_step + 1e-6)


def _is_over(run: Run[ControlConfig], state: dict[str, Any]) -> bool:
    return state["step"] >= run.config.off_policy.env_steps or run.budget_is_spent(state["episodes"])


def _is_boundary(config: OffPolicyConfig, step: int) -> bool:
    return step % (config.round_steps * config.checkpoint_every) == 0


def _evaluate_when_due(run: Run[ControlConfig], judge: ControlSim, learner: DsacT, step: int) -> None:
    every = run.config.evaluation.every * run.config.off_policy.round_steps
    if step == 0:
        evaluate_held_out(run, judge, learner, "start", 0)
    elif every and step % every == 0:
        validate(run, judge, learner, step)


def _episode_statistics(finished: list[dict[str, float]]) -> dict[str, float]:
    """Means over the training episodes that ended in a round, those of greedy environments among them."""
    stats: dict[str, float] = {"rollout/episodes": len(finished)}
    for name in finished[0] if finished else ():
        stats["rollout/steps_mean" if name == "steps" else f"rollout/{name}"] = float(np.mean([e[name] for e in finished]))
    return stats


def _speeds(watch: Stopwatch, config: OffPolicyConfig, updates: int) -> dict[str, float]:
    seconds = watch.seconds
    acting, learning = seconds["simulation"] + seconds["inference"], seconds["learning"]
    speeds = {"speed/env_steps_per_s": config.round_steps / max(acting, 1e-9)}
    if updates:
        speeds["speed/updates_per_s"] = updates / max(learning, 1e-9)
    return watch.lap() | speeds


def _restore(run: Run[ControlConfig], learner: DsacT, replay: ReplayBuffer) -> dict[str, Any]:
    """The state of the loop, at its beginning or as the last checkpoint has it; learner and replay are put back, too."""
    state: dict[str, Any] = {"step": 0, "episodes": 0, "updates": 0}
    checkpoint = latest_checkpoint(run.checkpoints(PHASE))
    if checkpoint is not None:
        restore = partial(_load_actor, learner)
        state = load_checkpoint(checkpoint, policy_load=restore, optimizers=learner.optimizers, verify=False)
        learner.load_state_dict(state.pop("learner"))
        replay.load_state_dict(state.pop("replay"))
    run.metrics.truncate_after(state["step"], PHASE)
    return state


def _load_actor(learner: DsacT, folder: Path) -> None:
    learner.actor.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))


def _record(state: dict[str, Any], learner: DsacT, replay: ReplayBuffer) -> dict[str, Any]:
    return state | {"learner": learner.state_dict(), "replay": replay.state_dict()}


def _note(stats: dict[str, float]) -> str:
    """The figures of a round that its progress line shows."""
    parts = [f"return {stats['rollout/return']:.1f}"] if "rollout/return" in stats else []
    if "rollout/success" in stats:
        parts.append(f"success {stats['rollout/success']:.0%}")
    if "critic/q_mean" in stats:
        parts.append(f"Q {stats['critic/q_mean']:.1f}, alpha {stats['policy/alpha']:.3f}")
    return ", ".join(parts) or "random actions"
