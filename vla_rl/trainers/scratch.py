"""Policies from scratch: what is taken from the simulator and the demonstrations, so that a new network can act and learn.

Legend: S samples, P proprioception size, N labels, D action size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from vla_rl.config import Config
from vla_rl.data.chunks import ChunkDataset
from vla_rl.policies.openvla import ActionStatistics, OpenVLAPolicy, build_policy
from vla_rl.sim.base import SimError
from vla_rl.sim.libero import tasks as libero
from vla_rl.sim.robotwin.expert_process import ExpertProcess
from vla_rl.sim.suites import find_task, suite_tasks

LEAST_PROPRIO_RANGE = 0.2
"""m, rad, share of a gripper's opening: what moves less is not blown up to the size of what moves."""


def new_policy(config: Config, dataset: ChunkDataset) -> OpenVLAPolicy:
    """A policy from scratch, shaped for the run's simulator and the demonstrations' actions.

    LIBERO's actions are motions: bins that lie symmetrically make standing still exact. RoboTwin's are positions of joints:
    bins span what was demonstrated, and so does the scale of proprioception.
    """
    positions = config.sim.name == "robotwin"
    return build_policy(
        config.policy.preset,
        cameras=config.sim.cameras,
        chunk_length=config.policy.chunk_length,
        action_dim=dataset.actions.shape[-1],
        proprio_dim=dataset.proprio.shape[-1],
        instructions=sorted(_sentences(config, set(dataset.instruction))),
        statistics=ActionStatistics.bounds(dataset.actions) if positions else ActionStatistics.symmetric(dataset.actions),
        seed=config.run.seed,
        value_gradient=config.policy.value_gradient,
        **(proprio_range(dataset.proprio) if positions else {}),
    )


def proprio_range(proprio: Float[np.ndarray, "S P"]) -> dict[str, tuple[float, ...]]:
    """`proprio_centre` and `proprio_scale` that map what was demonstrated onto [-1, 1], or less where it hardly varies."""
    low, high = proprio.min(axis=0), proprio.max(axis=0)
    scale = np.maximum(high - low, LEAST_PROPRIO_RANGE) / 2
    return {"proprio_centre": tuple(((low + high) / 2).tolist()), "proprio_scale": tuple(scale.tolist())}


def _sentences(config: Config, demonstrated: set[str]) -> set[str]:
    """What the text tokenizer learns its words from: all that LIBERO says, the demonstrations, and RoboTwin's templates.

    Without RoboTwin's interpreter, as where a policy is only cloned, words that were not demonstrated are spelled in pieces.
    """
    known = {task.instruction for suite in libero.suite_names() for task in libero.suite_tasks(suite)}
    if config.sim.name == "libero":
        return known
    try:
        templates = _templates(config)
    except SimError:
        templates = []
    return known | demonstrated | {sentence for template in templates for sentence in filled(template)}


def _templates(config: Config) -> list[str]:
    suite = config.task.suite
    tasks = [find_task(suite, task_id) for task_id in config.task.task_ids] or suite_tasks(suite)
    with ExpertProcess(config.sim.python) as process:
        return [text for task in tasks for text in process.ask({"templates": task.name})["templates"]]


def filled(template: str) -> Iterable[str]:
    """RoboTwin's sentences of a template: {a} is one of the arms; names of objects, {A}, are left to the demonstrations."""
    without_objects = re.sub(r"\{[A-Z]\}", "", template)
    return (re.sub(r"\{[a-z]\}", f"the {arm} arm", without_objects) for arm in ("left", "right"))
