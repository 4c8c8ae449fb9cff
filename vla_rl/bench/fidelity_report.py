"""Tables, verdicts and JSON of `vla-rl bench fidelity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vla_rl.bench.fidelity import CAMERAS, EpisodeComparison, FidelitySettings, TaskComparison
from vla_rl.bench.output import target_table
from vla_rl.bench.spread import Spread, Target
from vla_rl.machine import describe_machine

MAX_QPOS_DIFFERENCE = 1e-10


def targets(compared: Sequence[TaskComparison]) -> list[Target]:
    """What is asked of every step and frame of every episode."""
    episodes = _episodes(compared)

    def worst(name: str) -> Spread | None:
        return Spread.of([max(float(getattr(episode, name)) for episode in episodes)]) if episodes else None

    return [
        Target("largest difference of a coordinate", "<=", MAX_QPOS_DIFFERENCE, worst("qpos_difference")),
        Target("success labels that differ, in an episode", "<=", 0, worst("labels_that_differ")),
        Target("largest difference of a pixel of exact pictures", "<=", 0, worst("pixel_difference")),
    ]


def tables(compared: Sequence[TaskComparison], settings: FidelitySettings) -> list[Table]:
    quality = [_quality_table(compared, settings)] if settings.quality_sizes else []
    return [_comparison_table(compared), *quality, target_table(targets(compared))]


def _comparison_table(compared: Sequence[TaskComparison]) -> Table:
    table = Table(title="ours against LIBERO's own environment, in lockstep")
    headings = ("suite", "tasks", "random steps", "expert steps", "solved", "largest difference", "labels", "frames", "pixels")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("suite", "tasks") else "right")
    for suite, tasks in _by_suite(compared).items():
        episodes = _episodes(tasks)
        experts = [episode for episode in episodes if episode.kind == "expert"]
        table.add_row(
            suite,
            ", ".join(str(task.task_id) for task in tasks),
            str(sum(episode.steps for episode in episodes if episode.kind == "random")),
            str(sum(episode.steps for episode in experts)),
            f"{sum(episode.success for episode in experts)} of {len(experts)}",
            f"{max(episode.qpos_difference for episode in episodes):.1e}",
            str(sum(episode.labels_that_differ for episode in episodes)),
            str(sum(episode.frames for episode in episodes)),
            str(max(episode.pixel_difference for episode in episodes)),
        )
    without = [f"{task.suite} {task.task_id}" for task in compared if task.note]
    if without:
        table.caption = f"no episode of the expert, which has no plan for them: {', '.join(without)}"
    return table


def _quality_table(compared: Sequence[TaskComparison], settings: FidelitySettings) -> Table:
    table = Table(title="fast pictures against exact ones: median (lowest)")
    for heading in ("suite", "camera", "px", "pictures", "PSNR dB", "SSIM"):
        table.add_column(heading, justify="left" if heading in ("suite", "camera") else "right")
    for suite, tasks in _by_suite(compared).items():
        for camera in CAMERAS:
            for size in settings.quality_sizes:
                seen = [p for task in tasks for p in task.pictures if (p.camera, p.size) == (camera, size)]
                if seen:
                    decibels, similarity = Spread.of([p.psnr for p in seen]), Spread.of([p.ssim for p in seen])
                    low = f"{decibels.median:.1f} ({decibels.low:.1f})", f"{similarity.median:.3f} ({similarity.low:.3f})"
                    table.add_row(suite, camera, str(size), str(len(seen)), *low)
    return table


def to_dict(compared: Sequence[TaskComparison], settings: FidelitySettings) -> dict[str, Any]:
    """Everything, with the machine that it was measured on, as plain values."""
    return {
        "benchmark": "fidelity",
        "machine": describe_machine(),
        "settings": asdict(settings),
        "tasks": [asdict(task) for task in compared],
        "targets": [target.to_dict() for target in targets(compared)],
    }


def _by_suite(compared: Sequence[TaskComparison]) -> dict[str, list[TaskComparison]]:
    suites: dict[str, list[TaskComparison]] = {}
    for task in compared:
        suites.setdefault(task.suite, []).append(task)
    return suites


def _episodes(tasks: Sequence[TaskComparison]) -> list[EpisodeComparison]:
    return [episode for task in tasks for episode in task.episodes]
