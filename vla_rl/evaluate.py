"""Success of a policy on a fixed list of episodes, each run exactly once, with Wilson intervals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from rich.table import Table

from vla_rl.metrics import Stopwatch
from vla_rl.policies.base import ActingPolicy
from vla_rl.rollout.collector import run_episodes
from vla_rl.sim.base import VectorSim
from vla_rl.sim.robotwin.tasks import SUITE as ROBOTWIN
from vla_rl.sim.suites import task_label
from vla_rl.types import EpisodeSpec, Trajectory
from vla_rl.video import write_video

VIDEO_STRIDE = 2
"""Control steps between two frames of a video."""
VIDEO_FPS = 20.0 / VIDEO_STRIDE
"""LIBERO's control rate (20 Hz), so that a video plays in real time."""


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927): inside [0, 1] and honest at 0 and at 100%.

    Returns (0, 1) for no episodes. Raises `ValueError` for counts that cannot be.
    """
    if not 0 <= successes <= episodes or not 0 < confidence < 1:
        raise ValueError(f"cannot make an interval of {successes} successes in {episodes} episodes at confidence {confidence}")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    scale = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def pass_at_k(successes: int, episodes: int, k: int) -> float:
    """Probability that at least one of `k` episodes succeeds, from c = `successes` of n = `episodes` that were run.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374, equation 1).

    Raises `ValueError` unless 1 <= k <= episodes and 0 <= successes <= episodes.
    """
    if not 0 <= successes <= episodes or not 1 <= k <= episodes:
        raise ValueError(f"cannot estimate pass@{k} from {successes} successes in {episodes} episodes")
    return 1 - math.comb(episodes - successes, k) / math.comb(episodes, k)


def ks_up_to(episodes: int) -> list[int]:
    """The k of which pass@k is shown where every state has so many episodes: 1, 2, 4, ... and all of them."""
    return sorted({2**i for i in range(episodes.bit_length())} | {episodes})


@dataclass(frozen=True)
class EpisodeOutcome:
    """What is kept of one evaluated episode."""

    spec: EpisodeSpec
    instruction: str
    success: bool
    steps: int
    """Control steps that ran, after settling."""
    total_reward: float
    actions: np.ndarray
    """float32 [turns, A, D], with those behind the last that ran: enough to repeat the episode, bit for bit."""
    video: str | None = None


@dataclass
class Evaluation:
    """All outcomes of an evaluation, in the order of its specs."""

    name: str
    temperature: float
    step: int
    outcomes: list[EpisodeOutcome]
    seconds: float
    policy_version: int
    videos: dict[int, str] = field(default_factory=dict)
    """Index of an outcome -> its video, relative to the run directory."""
    note: str = ""
    """What a reader of the scores must know."""

    @property
    def successes(self) -> int:
        return sum(o.success for o in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        tasks: dict[tuple[str, int], list[EpisodeOutcome]] = {}
        suites: dict[str, list[EpisodeOutcome]] = {}
        for outcome in self.outcomes:
            tasks.setdefault((outcome.spec.suite, outcome.spec.task_id), []).append(outcome)
            suites.setdefault(outcome.spec.suite, []).append(outcome)
        return {
            "name": self.name,
            "step": self.step,
            "mode": "greedy" if self.temperature == 0 else "sampled",
            "temperature": self.temperature,
            "policy_version": self.policy_version,
            "tasks": [
                {"suite": suite, "task_id": task, "instruction": task_label(suite, task, group[0].instruction), **_rate(group)}
                for (suite, task), group in tasks.items()
            ],
            "suites": [{"suite": suite, **_rate(group)} for suite, group in suites.items()],
            "total": _rate(self.outcomes),
            "episodes": [
                {
                    "spec": asdict(o.spec),
                    "success": o.success,
                    "steps": o.steps,
                    "return": o.total_reward,
                    "video": self.videos.get(i),
                }
                for i, o in enumerate(self.outcomes)
            ],
            "seconds": round(self.seconds, 2),
            **({"note": self.note} if self.note else {}),
        }

    def save(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_json(path, self.to_dict())

    def table(self) -> Table:
        record = self.to_dict()
        table = Table(title=f"{self.name}: {record['mode']} success on held-out initial states, 95% Wilson intervals")
        table.caption = self.note or None
        for column in ("suite", "task", "successes", "rate", "interval"):
            table.add_column(column, justify="left" if column in ("suite", "task") else "right")
        rows = [(t["suite"], f"{t['task_id']} {t['instruction']}", t) for t in record["tasks"]]
        rows += [(s["suite"], "all", s) for s in record["suites"]] if len(rows) > 1 else []
        for suite, task, r in rows:
            table.add_row(
                suite, task, f"{r['successes']}/{r['episodes']}", f"{r['rate']:.1%}", f"{r['low']:.1%} to {r['high']:.1%}"
            )
        return table


def pass_at_k_record(evaluation: Evaluation) -> dict[str, Any]:
    """Of an evaluation that ran each spec several times: successes of each state, and pass@k of k = 1, 2, 4, ... up to the
    smallest number of episodes that a state has, averaged over the states."""
    states: dict[EpisodeSpec, list[EpisodeOutcome]] = {}
    for outcome in evaluation.outcomes:
        states.setdefault(outcome.spec, []).append(outcome)
    counts = [(sum(o.success for o in group), len(group)) for group in states.values()]
    most = min(episodes for _, episodes in counts)
    return {
        "name": evaluation.name,
        "step": evaluation.step,
        "temperature": evaluation.temperature,
        "policy_version": evaluation.policy_version,
        "pass_at_k": {str(k): float(np.mean([pass_at_k(c, n, k) for c, n in counts])) for k in ks_up_to(most)},
        "states": [{"spec": asdict(spec), "successes": c, "episodes": n} for spec, (c, n) in zip(states, counts, strict=True)],
        "seconds": round(evaluation.seconds, 2),
    }


def is_made(path: Path, step: int, key: str, wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the record in `path` is that of `step` and its list `key` has the wanted entries: a run can be resumed with more
    steps, or with other episodes to evaluate."""
    try:
        record = json.loads(path.read_text())
        found = [{part: entry[part] for part in one} for entry, one in zip(record[key], wanted, strict=True)]
        return bool(record["step"] == step and found == list(wanted))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(path)


def _rate(group: Sequence[EpisodeOutcome]) -> dict[str, Any]:
    successes = sum(o.success for o in group)
    low, high = wilson_interval(successes, len(group))
    rate = successes / len(group) if group else 0.0
    return {"successes": successes, "episodes": len(group), "rate": rate, "low": low, "high": high}


def evaluate(
    policy: ActingPolicy,
    sim: VectorSim,
    specs: Iterable[EpisodeSpec],
    *,
    name: str = "evaluation",
    step: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
    on_episode: Callable[[Trajectory], None] | None = None,
    stopwatch: Stopwatch | None = None,
) -> Evaluation:
    """Run each episode once, greedily (temperature 0) or sampled from `seed`. Frames are dropped as episodes end."""
    specs = list(specs)
    outcomes: dict[int, EpisodeOutcome] = {}
    begin = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    for index, trajectory in run_episodes(sim, policy, specs, temperature, generator, stopwatch):
        outcomes[index] = EpisodeOutcome(
            spec=trajectory.spec,
            instruction=trajectory.instruction,
            success=trajectory.success,
            steps=trajectory.num_actions,
            total_reward=float((trajectory.rewards * trajectory.executed).sum()),
            actions=trajectory.actions,
        )
        if on_episode is not None:
            on_episode(trajectory)
    return Evaluation(
        name=name,
        temperature=temperature,
        step=step,
        outcomes=[outcomes[i] for i in range(len(specs))],
        seconds=time.monotonic() - begin,
        policy_version=policy.version,
    )


def record_videos(evaluation: Evaluation, sim: VectorSim, run_directory: Path, count: int) -> None:
    """Film the first `count` successes and failures by repeating their actions, all cameras side by side, if there are any."""
    if not sim.cameras:
        return
    chosen = []
    for wanted in (True, False):
        chosen += [i for i, o in enumerate(evaluation.outcomes) if o.success is wanted][:count]
    for index in chosen:
        outcome = evaluation.outcomes[index]
        label = "success" if outcome.success else "failure"
        path = Path("videos") / f"{evaluation.name}_{index:04d}_{label}.mp4"
        write_video(run_directory / path, _repeat(sim, outcome), fps=VIDEO_FPS)
        evaluation.videos[index] = str(path)


def _repeat(sim: VectorSim, outcome: EpisodeOutcome) -> np.ndarray:
    """Frames [T, H, W * cameras, 3] of an episode, upright: each second control step; the end of each chunk where that is one
    motion as a whole."""
    whole = outcome.spec.suite == ROBOTWIN

    def frame(images: Any) -> np.ndarray:
        return np.concatenate([images[camera][0][:: 1 if whole else -1] for camera in sim.cameras], axis=1)

    steps = np.concatenate(outcome.actions)[: outcome.steps]
    parts = outcome.actions if whole else [steps[start : start + VIDEO_STRIDE] for start in range(0, len(steps), VIDEO_STRIDE)]
    frames = [frame(sim.reset([outcome.spec]).images)]
    for part in parts:
        actions = np.zeros((sim.num_envs, *part.shape), np.float32)
        actions[0] = part
        frames.append(frame(sim.step_chunk(actions).observation.images))
    return np.stack(frames)
