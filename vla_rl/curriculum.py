"""Which task and initial state comes next, and which ones training never sees.

Held out are the shipped states 40-49 of every task and all placements sampled from evaluation seeds. Evaluations during
training, which a user looks at while choosing settings, have seeds of their own, so that no choice has seen the last one's.

A curriculum draws from sources: each shipped training state of each task is one, and so are a task's placements sampled
from seeds, together. Legend: K sources (or tasks, at `curriculum.level=task`), N turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_rl.config import CurriculumConfig
from vla_rl.types import EpisodeSpec, Trajectory

TRAINING_STATES = range(0, 40)
HELD_OUT_STATES = range(40, 50)
EVALUATION_SEED_START = 2**30
"""Seeds below train, seeds from here on evaluate."""
VALIDATION_SEED_START = 2**31
"""From here on for evaluations during training."""

DEFAULT_TAU = 0.5
DUMP_TAU = 0.1


def held_out_specs(suite: str, task_ids: Sequence[int], episodes_per_task: int) -> list[EpisodeSpec]:
    """The fixed evaluation list: for each task the shipped states 40-49, then placements sampled from evaluation seeds.

    All episodes are different, and a shorter list is a prefix of a longer one, task by task.
    """
    specs = []
    for task_id in task_ids:
        for i in range(episodes_per_task):
            if i < len(HELD_OUT_STATES):
                specs.append(EpisodeSpec(suite, task_id, init_state_id=HELD_OUT_STATES[i]))
            else:
                specs.append(EpisodeSpec(suite, task_id, seed=EVALUATION_SEED_START + i))
    return specs


def validation_specs(suite: str, task_ids: Sequence[int], episodes_per_task: int) -> list[EpisodeSpec]:
    """The fixed list of evaluations during training: for each task placements that neither training nor `held_out_specs` has."""
    return [EpisodeSpec(suite, task, seed=VALIDATION_SEED_START + i) for task in task_ids for i in range(episodes_per_task)]


@dataclass(frozen=True)
class FinishedEpisode:
    """What a curriculum learns of one training episode."""

    spec: EpisodeSpec
    success: bool
    log_prob: float
    """Mean over the tokens of its executed actions under the policy that acted, nat."""
    advantage: float
    """Mean over its turns of the absolute advantage that the update used."""


def finished_episodes(trajectories: Sequence[Trajectory], advantages: Float[np.ndarray, "N *rest"]) -> list[FinishedEpisode]:
    """What the curriculum takes from a round's trajectories and the advantages of their turns, one after another."""
    turns = [t.num_turns for t in trajectories]
    if sum(turns) != len(advantages):
        raise ValueError(f"{len(advantages)} advantages do not belong to the {sum(turns)} turns of these trajectories")
    parts = np.split(np.abs(advantages), np.cumsum(turns)[:-1])
    episodes = []
    for trajectory, part in zip(trajectories, parts, strict=True):
        tokens = np.repeat(trajectory.executed, trajectory.log_probs.shape[1] // trajectory.executed.shape[1], axis=1)
        log_prob = float(trajectory.log_probs[tokens].mean(dtype=np.float64))
        episodes.append(FinishedEpisode(trajectory.spec, trajectory.success, log_prob, float(part.mean(dtype=np.float64))))
    return episodes


@dataclass(frozen=True)
class Statistics:
    """What is known of K sources; older episodes weigh less (`curriculum.forgetting`)."""

    base: Float[np.ndarray, "K"]
    """Share of each under uniform sampling; sums to 1."""
    episodes: Float[np.ndarray, "K"]
    """Remembered episodes."""
    success: Float[np.ndarray, "K"]
    """Success rate, drawn towards that of the task where there are few episodes; inside (0, 1)."""
    advantage: Float[np.ndarray, "K"]
    """Mean absolute advantage; 0 where nothing is remembered."""
    log_prob: Float[np.ndarray, "K"]
    """Mean log-prob of a token in the successes, nat; the lowest of all where no success is remembered."""


def uniform(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """Tasks in equal shares."""
    return np.zeros_like(statistics.base)


def success_rate(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """P ~ exp((0.5 - s) / tau): the lower the success rate s, the more often (VLA-RL, arXiv 2505.18719, curriculum)."""
    return (0.5 - statistics.success) / (config.tau or DEFAULT_TAU)


def learnability(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """P ~ s (1 - s): most often what succeeds half of the time, which VLA-RL's text asks for and its formula does not do."""
    return np.log(statistics.success) + np.log1p(-statistics.success)


def dump(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """P ~ exp(UCB / tau), UCB = mean |A| + c sqrt(2 ln(N + 1) / (n + 1)), n of all N episodes (DUMP, arXiv 2504.09710)."""
    total = statistics.episodes.sum()
    bonus = np.sqrt(2 * np.log(total + 1) / (statistics.episodes + 1))
    return (statistics.advantage + config.exploration * bonus) / (config.tau or DUMP_TAU)


def self_curation(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """Only what is likelier to fail than to succeed (SELF, arXiv 2510.02230, keeps what greedy decoding fails; here the
    success rate of sampled episodes stands for it: s < `curriculum.threshold`)."""
    return np.where(statistics.success < config.threshold, 0.0, -np.inf)


def low_likelihood(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """P ~ exp(-l / tau), l = mean log-prob of a token in the successes: where correct behaviour is least likely, which
    on-policy learning neglects (the winner-take-all effect of arXiv 2510.02230)."""
    return -statistics.log_prob / (config.tau or DEFAULT_TAU)


CURRICULA: dict[str, Callable[[Statistics, CurriculumConfig], Float[np.ndarray, "K"]]] = {
    "uniform": uniform,
    "success_rate": success_rate,
    "learnability": learnability,
    "dump": dump,
    "self": self_curation,
    "low_likelihood": low_likelihood,
}
"""Name -> log-weights of the sources, relative to uniform sampling; -inf leaves a source to the floor."""


def probabilities(statistics: Statistics, config: CurriculumConfig) -> Float[np.ndarray, "K"]:
    """How often each source is drawn: floor x base + (1 - floor) x P, with P ~ base x exp(log-weight).

    Where every weight is 0, P is the base.
    """
    log_weights = CURRICULA[config.name](statistics, config)
    highest = log_weights.max(initial=-np.inf, where=statistics.base > 0)
    if highest == -np.inf:
        return statistics.base
    weights = statistics.base * np.exp(np.minimum(log_weights - highest, 0.0))
    return config.floor * statistics.base + (1 - config.floor) * weights / weights.sum()


class Curriculum:
    """Draws the episodes of each round, and learns from the finished ones what to draw next."""

    def __init__(self, suite: str, task_ids: Sequence[int], shipped_states: float, config: CurriculumConfig) -> None:
        self.config = config
        self._suite = suite
        self._tasks = list(task_ids)
        per_task = [(None, 1 - shipped_states), *((state, shipped_states / len(TRAINING_STATES)) for state in TRAINING_STATES)]
        self.sources = [(task, state) for task in self._tasks for state, share in per_task if share > 0]
        self._base = np.array([share for _ in self._tasks for _, share in per_task if share > 0]) / len(self._tasks)
        self._task_of = np.repeat(np.arange(len(self._tasks)), len(self.sources) // len(self._tasks))
        self._index = {source: i for i, source in enumerate(self.sources)}
        # Columns: episodes, successes, sum of |advantage|, sum of the successes' log-probs.
        self._sums = np.zeros((len(self.sources), 4))

    def statistics(self) -> Statistics:
        """Of the sources, or of the tasks at `curriculum.level=task`."""
        tasks = self._pool(self._sums)
        task_success = (tasks[:, 1] + 0.5 * self.config.prior) / (tasks[:, 0] + self.config.prior)
        if self.config.level == "task":
            return self._summarise(tasks, self._pool(self._base), task_success)
        expected = task_success[self._task_of]
        success = (self._sums[:, 1] + self.config.prior * expected) / (self._sums[:, 0] + self.config.prior)
        return self._summarise(self._sums, self._base, success)

    @staticmethod
    def _summarise(sums: Float[np.ndarray, "K 4"], base: Float[np.ndarray, "K"], success: Float[np.ndarray, "K"]) -> Statistics:
        def ratio(total: np.ndarray, count: np.ndarray, otherwise: float) -> np.ndarray:
            return np.divide(total, count, out=np.full_like(total, otherwise), where=count > 0)

        solved = sums[:, 1] > 0
        log_prob = ratio(sums[:, 3], sums[:, 1], 0.0)
        log_prob[~solved] = log_prob[solved].min(initial=0.0)
        return Statistics(base, sums[:, 0], success, ratio(sums[:, 2], sums[:, 0], 0.0), log_prob)

    def _pool(self, values: np.ndarray) -> np.ndarray:
        return np.stack([values[self._task_of == i].sum(axis=0) for i in range(len(self._tasks))])

    def probabilities(self) -> Float[np.ndarray, "K"]:
        """How often each of `sources` is drawn in the next round."""
        chosen = probabilities(self.statistics(), self.config)
        if self.config.level == "task":
            return self._base * (chosen / self._pool(self._base))[self._task_of]
        return chosen

    def draw(self, count: int, rng: np.random.Generator) -> list[EpisodeSpec]:
        """`count` different episodes in random order.

        Systematic sampling: a source, and a whole task, of probability p comes count x p times, rounded up or down.
        """
        order = np.argsort(self._task_of + rng.random(len(self.sources)))
        edges = np.cumsum(self.probabilities()[order])
        points = np.minimum((rng.random() + np.arange(count)) / count, np.nextafter(1.0, 0.0))
        chosen = rng.permutation(order[np.searchsorted(edges / edges[-1], points, side="right")])
        seeds = rng.choice(EVALUATION_SEED_START, size=count, replace=False)
        drawn = [self.sources[i] for i in chosen]
        return [EpisodeSpec(self._suite, task, state, int(seed)) for (task, state), seed in zip(drawn, seeds, strict=True)]

    def update(self, episodes: Sequence[FinishedEpisode]) -> dict[str, float]:
        """Learn from one round; returns its metrics: how many sources are drawn from in effect (the exponential of the
        entropy of the probabilities), and episodes and successes of each source that the round had."""
        drawn = self.probabilities()
        entropy = -np.sum(drawn * np.log(drawn, out=np.zeros_like(drawn), where=drawn > 0))
        metrics = {"curriculum/effective_sources": float(np.exp(entropy))}
        self._sums *= self.config.forgetting
        for episode in episodes:
            index = self._index[episode.spec.task_id, episode.spec.init_state_id]
            log_prob = episode.log_prob if episode.success else 0.0
            self._sums[index] += (1.0, float(episode.success), episode.advantage, log_prob)
            name = self.label(index)
            metrics[f"curriculum/episodes/{name}"] = metrics.get(f"curriculum/episodes/{name}", 0.0) + 1.0
            metrics[f"curriculum/successes/{name}"] = metrics.get(f"curriculum/successes/{name}", 0.0) + episode.success
        return metrics

    def label(self, index: int) -> str:
        """`3/17` is state 17 of task 3, `3/sampled` its sampled placements."""
        task, state = self.sources[index]
        return f"{task}/{'sampled' if state is None else state}"

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {self.label(i): self._sums[i].tolist() for i in range(len(self.sources)) if self._sums[i].any()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave, bit for bit. Raises `KeyError` for a source that this curriculum lacks."""
        index = {self.label(i): i for i in range(len(self.sources))}
        self._sums[:] = 0.0
        for label, sums in state.items():
            self._sums[index[label]] = sums
