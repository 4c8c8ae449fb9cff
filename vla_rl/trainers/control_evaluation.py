"""How well a Gaussian policy controls, on episodes that training never sees, and how far the critics are from the truth.

Legend: N environments, O observation size, D action size, T control steps or frames, H x W image size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from vla_rl.algorithms.dsac_t import DsacT
from vla_rl.control_config import ControlConfig
from vla_rl.evaluate import is_made, wilson_interval, write_json
from vla_rl.policies.best import BEST, best_policy, keep_best
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.run import Run
from vla_rl.sim.base import SimError
from vla_rl.sim.control import ControlSim, Filmable, evaluation_seeds, validation_seeds
from vla_rl.video import write_video

ROWS = 16
"""At most so many episodes of an evaluation side by side."""


@dataclass(frozen=True)
class ControlEpisode:
    seed: int
    total_reward: float
    steps: int
    """Control steps."""
    measures: dict[str, float]
    """Of the simulator, such as `success`."""

    def to_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "return": self.total_reward, "steps": self.steps, **self.measures}


def run_control_episodes(
    sim: ControlSim, act: Callable[[Float32[np.ndarray, "N O"]], Float32[np.ndarray, "N D"]], seeds: Sequence[int]
) -> list[ControlEpisode]:
    """One episode of each seed, `sim.num_envs` at a time, in the order of the seeds."""
    found: list[ControlEpisode] = []
    for start in range(0, len(seeds), sim.num_envs):
        chosen = list(seeds[start : start + sim.num_envs])
        observation = sim.reset(chosen + [chosen[-1]] * (sim.num_envs - len(chosen)))
        total, steps = np.zeros(sim.num_envs), 0
        ended: dict[int, ControlEpisode] = {}
        while len(ended) < sim.num_envs:
            outcome = sim.step(act(observation))
            observation, steps = outcome.observation, steps + 1
            total += outcome.reward
            for row in np.flatnonzero(outcome.terminated | outcome.truncated):
                if row not in ended:
                    measures = {name: float(values[row]) for name, values in outcome.measures.items()}
                    seed = chosen[min(int(row), len(chosen) - 1)]
                    ended[int(row)] = ControlEpisode(seed, float(total[row]), steps, measures)
        found += [ended[row] for row in range(len(chosen))]
    return found


def film_episode(
    sim: Filmable, act: Callable[[Float32[np.ndarray, "N O"]], Float32[np.ndarray, "N D"]], seed: int
) -> UInt8[np.ndarray, "T H W 3"]:
    """Row 0 through the first episode of a seed, a frame for each control step; other rows play along."""
    observation = sim.reset([seed] * sim.num_envs)
    frames = [sim.frame()]
    while True:
        outcome = sim.step(act(observation))
        if outcome.terminated[0] or outcome.truncated[0]:
            return np.stack(frames)
        observation = outcome.observation
        frames.append(sim.frame())


def require_film(sim: ControlSim) -> None:
    """Raises `SimError` where a simulator cannot be filmed."""
    if not isinstance(sim, Filmable):
        raise SimError("this simulator makes no pictures; set evaluation.videos=0")
    sim.reset(evaluation_seeds(1) * sim.num_envs)
    sim.frame()


def record_videos(record: dict[str, Any], sim: ControlSim, policy: GaussianPolicy, run_directory: Path, count: int) -> None:
    """Film the first `count` successes and failures of an evaluation (just the first, where nothing tells) by playing them
    again, and name the files in its record."""
    assert isinstance(sim, Filmable)
    episodes = record["episodes"]
    for wanted in sorted({episode.get("success") for episode in episodes}, reverse=True):
        for episode in [e for e in episodes if e.get("success") == wanted][:count]:
            label = {None: "", 0.0: "_failure", 1.0: "_success"}[wanted]
            path = Path("videos") / f"{record['name']}_seed{episode['seed']}{label}.mp4"
            write_video(run_directory / path, film_episode(sim, policy.act, episode["seed"]), fps=sim.frame_rate)
            episode["video"] = str(path)


def evaluate_control(policy: GaussianPolicy, sim: ControlSim, seeds: Sequence[int], name: str, step: int) -> dict[str, Any]:
    """The record of an evaluation with the middle of the Gaussian as the action."""
    began, episodes = time.perf_counter(), len(seeds)
    outcomes = run_control_episodes(sim, policy.act, seeds)
    returns = np.array([outcome.total_reward for outcome in outcomes])
    spread = float(returns.std(ddof=1)) if episodes > 1 else 0.0
    half = 1.96 * spread / np.sqrt(episodes)
    record: dict[str, Any] = {"name": name, "step": step, "phase": "off_policy", "mode": "greedy"}
    record["return"] = {
        "mean": float(returns.mean()),
        "std": spread,
        "low": float(returns.mean() - half),
        "high": float(returns.mean() + half),
        "episodes": episodes,
    }
    record["steps_mean"] = float(np.mean([outcome.steps for outcome in outcomes]))
    record["measures"] = {key: float(np.mean([outcome.measures[key] for outcome in outcomes])) for key in outcomes[0].measures}
    if "success" in record["measures"]:
        successes = sum(outcome.measures["success"] > 0.5 for outcome in outcomes)
        low, high = wilson_interval(successes, episodes)
        rate = successes / episodes
        record["total"] = {"successes": successes, "episodes": episodes, "rate": rate, "low": low, "high": high}
    record["episodes"] = [outcome.to_dict() for outcome in outcomes]
    record["seconds"] = time.perf_counter() - began
    return record


def evaluate_held_out(run: Run[ControlConfig], sim: ControlSim, learner: DsacT, name: str, step: int, videos: int = 0) -> None:
    """Evaluate and save `evaluation/NAME.json`, unless it is there for this step and the same episodes; of so many episodes of
    each outcome also videos."""
    config, path = run.config.evaluation, _record_path(run, name)
    seeds = evaluation_seeds(config.episodes)
    if is_made(path, step, "episodes", [{"seed": seed} for seed in seeds]):
        return
    record = evaluate_control(learner.actor, sim, seeds, name, step)
    if config.bias_episodes:
        record["q"] = q_bias(learner, sim, evaluation_seeds(min(config.bias_episodes, sim.num_envs)))
    write_json(path, record)
    if videos:
        record_videos(record, sim, learner.actor, run.directory, videos)
        write_json(path, record)


def validate(run: Run[ControlConfig], sim: ControlSim, learner: DsacT, step: int) -> None:
    """Evaluate on `validation_seeds` and save `evaluation/step_STEP.json`, unless it is there. The policy with the largest mean
    return so far is kept in `best/step_STEP`."""
    path = _record_path(run, f"step_{step:08d}")
    if path.exists():
        return
    config = run.config.evaluation
    record = evaluate_control(learner.actor, sim, validation_seeds(config.episodes), path.stem, step)
    if config.bias_episodes:
        record["q"] = q_bias(learner, sim, validation_seeds(min(config.bias_episodes, sim.num_envs)))
    earlier = [json.loads(other.read_text())["return"]["mean"] for other in path.parent.glob("step_*.json")]
    if record["return"]["mean"] > max(earlier, default=-np.inf):
        keep_best(run.directory, learner.actor, step)
    write_json(path, record)


def evaluate_best(run: Run[ControlConfig], sim: ControlSim, step: int) -> None:
    """Evaluate the best policy, unless it is that of `step`, on the held-out seeds, too: `evaluation/best.json`."""
    path, found = _record_path(run, BEST), best_policy(run.directory)
    seeds = evaluation_seeds(run.config.evaluation.episodes)
    wanted = [{"seed": seed} for seed in seeds]
    if found is not None and found[1] != step and not is_made(path, found[1], "episodes", wanted):
        write_json(path, evaluate_control(found[0], sim, seeds, BEST, found[1]))


def _record_path(run: Run[ControlConfig], name: str) -> Path:
    return run.directory / "evaluation" / f"{name}.json"


@torch.no_grad()
def q_bias(learner: DsacT, sim: ControlSim, seeds: Sequence[int]) -> dict[str, float]:
    """How far Q (the mean of both critics) lies above the soft return that sampled actions then bring.

    `bias` is the mean of Q - G, `scale` the mean of |G|, over the first episode of each seed. G sums gamma^t (r - alpha log pi of
    the next action); at a time limit it ends in Q of the final observation, so that only the first half of such an
    episode counts, where that weighs little. Raises `ValueError` for more seeds than environments.
    """
    if len(seeds) > sim.num_envs:
        raise ValueError(f"{len(seeds)} episodes at once need as many environments, and there are {sim.num_envs}")
    padded = [*seeds, *[seeds[-1]] * (sim.num_envs - len(seeds))]
    generator = torch.Generator().manual_seed(seeds[0])
    actor, device, alpha = learner.actor, learner.device, float(learner.log_alpha.exp())

    def choose(observation: Float32[np.ndarray, "N O"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = torch.from_numpy(observation).to(device)
        noise = torch.randn(len(seen), actor.action_dim, generator=generator).to(device)
        action, log_prob = actor.sample(seen, noise)
        mean, _ = learner.critic(torch.cat((seen, action), 1))
        return action.cpu().numpy(), log_prob.cpu().numpy().astype(np.float64), mean.mean(0).cpu().numpy().astype(np.float64)

    observation = sim.reset(padded)
    action, log_prob, value = choose(observation)
    rows: list[list[tuple[float, float, float]]] = [[] for _ in padded]
    away: list[np.ndarray] = []
    scale: list[np.ndarray] = []
    open_rows = set(range(len(seeds)))
    while open_rows:
        outcome = sim.step(action)
        last_action, last_log_prob, last_value = choose(outcome.final_observation)
        for row in sorted(open_rows):
            rows[row].append((float(outcome.reward[row]), float(log_prob[row]), float(value[row])))
            if outcome.terminated[row] or outcome.truncated[row]:
                open_rows.discard(row)
                tail = 0.0 if outcome.terminated[row] else last_value[row] - alpha * last_log_prob[row]
                rewards, log_probs, values = np.array(rows[row]).T
                returns = soft_returns(rewards, log_probs, float(tail), alpha, learner.config.gamma)
                counted = len(returns) if outcome.terminated[row] else (len(returns) + 1) // 2
                away.append((values - returns)[:counted])
                scale.append(np.abs(returns)[:counted])
        action, log_prob, value = last_action, last_log_prob, last_value
        if open_rows and not np.array_equal(outcome.observation, outcome.final_observation):
            action, log_prob, value = choose(outcome.observation)
    return {"bias": float(np.concatenate(away).mean()), "scale": float(np.concatenate(scale).mean())}


def soft_returns(
    rewards: Float[np.ndarray, "T"], log_probs: Float[np.ndarray, "T"], tail: float, alpha: float, gamma: float
) -> Float[np.ndarray, "T"]:
    """G_t = r_t + gamma (G_{t+1} - alpha log pi_{t+1}), the soft return of each action; after the last one comes `tail`."""
    returns = np.empty(len(rewards))
    after = tail
    for step in range(len(rewards) - 1, -1, -1):
        returns[step] = rewards[step] + gamma * after
        after = returns[step] - alpha * log_probs[step]
    return returns
