"""How often the scripted expert solves LIBERO's tasks, from initial states that training never sees.

One line of JSON an episode, appended as soon as it ends, so that a stopped measurement goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vla_rl.curriculum import EVALUATION_SEED_START
from vla_rl.evaluate import wilson_interval
from vla_rl.sim.base import SimError
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.expert import ActionNoise, NoiseSettings, SceneView, TaskExpert
from vla_rl.sim.libero.tasks import find_task, suite_tasks
from vla_rl.types import EpisodeSpec

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
TARGETS = {"libero_spatial": 0.9, "libero_object": 0.9, "libero_goal": 0.8, "libero_10": 0.7, "libero_90": 0.7}
"""Share of episodes from which on a task counts as mastered."""


@dataclass(frozen=True)
class ExpertOutcome:
    """One measured episode."""

    suite: str
    task_id: int
    seed: int
    noise: float
    """Standard deviation of the noise on executed actions; 0 for none."""
    success: bool
    steps: int
    reason: str
    """Why it failed, in words; empty after a success."""
    seconds: float

    @property
    def key(self) -> tuple[str, int, int, float]:
        return self.suite, self.task_id, self.seed, self.noise


def selected_tasks(names: Sequence[str]) -> list[tuple[str, int]]:
    """Tasks from words such as "libero_goal" (all of a suite) and "libero_goal:3" or "libero_90:0-9". Raises `SimError`."""
    tasks: list[tuple[str, int]] = []
    for name in names or SUITES:
        suite, _, ids = name.partition(":")
        first, _, last = ids.partition("-")
        try:
            chosen = range(int(first), int(last or first) + 1) if ids else range(len(suite_tasks(suite)))
        except ValueError as error:
            raise SimError(f"tasks are named libero_goal, libero_goal:3 or libero_90:0-9, not {name!r}") from error
        tasks += [(suite, find_task(suite, task_id).task_id) for task_id in chosen]
    return list(dict.fromkeys(tasks))


def measure(
    tasks: Sequence[tuple[str, int]], episodes_per_task: int, noise: float, record: Path, first_seed: int = EVALUATION_SEED_START
) -> Iterator[ExpertOutcome]:
    """Run the episodes that `record` does not hold yet, task by task; yields and appends each as it ends."""
    done = {outcome.key for outcome in read_outcomes(record)}
    backend = LiberoBackend(num_slots=1, cameras=(), max_scenes=1)
    try:
        for suite, task_id in tasks:
            for seed in range(first_seed, first_seed + episodes_per_task):
                if (suite, task_id, seed, noise) in done:
                    continue
                outcome = run_episode(backend, EpisodeSpec(suite, task_id, seed=seed), noise)
                record.parent.mkdir(parents=True, exist_ok=True)
                with record.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                yield outcome
    finally:
        backend.close()


def run_episode(backend: LiberoBackend, spec: EpisodeSpec, noise: float) -> ExpertOutcome:
    start = time.perf_counter()
    steps, reason, success = 0, "", False
    disturb = ActionNoise(NoiseSettings.of(noise), np.random.default_rng([spec.seed, 1]))
    where = "start"
    try:
        backend.reset(0, spec)
        expert = TaskExpert.of(backend, 0)
        view = SceneView(backend.model(0), backend.data(0))
        while steps < backend.max_steps(0) and not success:
            backend.data(0)  # brings the poses that the view shows up to date
            step = expert.act(view)
            where = f"{step.skill.value}: {step.subgoal}"
            success = backend.step(0, disturb(step.action)).success
            steps += 1
        reason = "" if success else f"out of steps at {where}"
    except SimError as error:
        reason = str(error)
    return ExpertOutcome(
        spec.suite, spec.task_id, spec.seed, noise, success, steps, reason, round(time.perf_counter() - start, 2)
    )


def line(outcome: ExpertOutcome) -> str:
    """An episode in one line, for a terminal."""
    end = "success" if outcome.success else outcome.reason
    return f"{outcome.suite} {outcome.task_id}, seed {outcome.seed}: {end} ({outcome.steps} steps, {outcome.seconds:.0f} s)"


def read_outcomes(record: Path) -> list[ExpertOutcome]:
    """The episodes of a record; a last line that a kill cut short is left out."""
    outcomes = []
    for line in record.read_text().splitlines() if record.is_file() else []:
        try:
            outcomes.append(ExpertOutcome(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return outcomes


def by_task(outcomes: Iterable[ExpertOutcome], noise: float) -> dict[tuple[str, int], list[ExpertOutcome]]:
    """The outcomes at one noise, by task, in the suites' order."""
    found: dict[tuple[str, int], list[ExpertOutcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (SUITES.index(outcome.suite), outcome.task_id, outcome.seed)):
        if outcome.noise == noise:
            found.setdefault((outcome.suite, outcome.task_id), []).append(outcome)
    return found


def _summary(group: Sequence[ExpertOutcome]) -> dict[str, Any]:
    successes = sum(outcome.success for outcome in group)
    low, high = wilson_interval(successes, len(group))
    steps = [outcome.steps for outcome in group if outcome.success]
    reasons = Counter(outcome.reason for outcome in group if not outcome.success)
    return {
        "successes": successes,
        "episodes": len(group),
        "interval": [round(low, 3), round(high, 3)],
        "median_steps": int(np.median(steps)) if steps else None,
        "reasons": dict(reasons.most_common()),
    }


def to_dict(outcomes: Sequence[ExpertOutcome], noise: float) -> dict[str, Any]:
    """What is written as JSON."""
    tasks = by_task(outcomes, noise)
    return {
        "noise": noise,
        "tasks": [
            {"suite": suite, "task_id": task_id, "instruction": find_task(suite, task_id).instruction} | _summary(group)
            for (suite, task_id), group in tasks.items()
        ],
    }


def tables(outcomes: Sequence[ExpertOutcome], noise: float) -> list[Table]:
    """One row a suite, then one row a task."""
    tasks = by_task(outcomes, noise)
    suites = Table("suite", title=f"Scripted expert, action noise {noise}")
    for column in ("tasks", "target", "tasks that reach it", "successes", "episodes"):
        suites.add_column(column, justify="right")
    each = Table("suite", title="Tasks")
    each.add_column("task", justify="right")
    each.add_column("instruction")
    for column in ("successes", "95% interval", "steps"):
        each.add_column(column, justify="right")
    each.add_column("what went wrong")
    for suite in SUITES:
        found = {task_id: _summary(group) for (name, task_id), group in tasks.items() if name == suite}
        if not found:
            continue
        reached = sum(row["successes"] >= TARGETS[suite] * row["episodes"] for row in found.values())
        totals = (str(sum(row[key] for row in found.values())) for key in ("successes", "episodes"))
        suites.add_row(suite, str(len(found)), f"{TARGETS[suite]:.0%}", str(reached), *totals)
        for task_id, row in found.items():
            low, high = row["interval"]
            wrong = "; ".join(f"{count} x {reason}" for reason, count in row["reasons"].items())
            each.add_row(
                suite,
                str(task_id),
                find_task(suite, task_id).instruction,
                f"{row['successes']}/{row['episodes']}",
                f"{low:.0%} to {high:.0%}",
                str(row["median_steps"] or ""),
                wrong,
            )
    return [suites, each]
