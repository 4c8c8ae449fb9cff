"""Which task and initial state comes next, and which ones training never sees.

Held out are the shipped states 40-49 of every task and all placements sampled from evaluation seeds. Evaluations during
training, which a user looks at while choosing settings, have seeds of their own, so that no choice has seen the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_rl.types import EpisodeSpec

TRAINING_STATES = range(0, 40)
HELD_OUT_STATES = range(40, 50)
EVALUATION_SEED_START = 2**30
"""Seeds below train, seeds from here on evaluate."""
VALIDATION_SEED_START = 2**31
"""From here on for evaluations during training."""


def training_specs(
    suite: str, task_ids: Sequence[int], count: int, shipped_states: float, rng: np.random.Generator
) -> list[EpisodeSpec]:
    """Draw `count` training episodes: tasks in equal shares, in random order, each from the shipped states 0-39 with
    probability `shipped_states` and otherwise from a random training seed."""
    tasks = rng.permutation(np.resize(np.asarray(task_ids), count))
    specs = []
    for task_id in tasks:
        seed = int(rng.integers(EVALUATION_SEED_START))
        state = int(rng.integers(len(TRAINING_STATES))) if rng.random() < shipped_states else None
        specs.append(EpisodeSpec(suite, int(task_id), init_state_id=state, seed=seed))
    return specs


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
