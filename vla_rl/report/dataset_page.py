"""The page of a dataset: quality and variety of its episodes, in one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.data.dataset import ReadOptions
from vla_rl.data.demonstration import DatasetError
from vla_rl.data.quality import sparc_cutoff
from vla_rl.data.quality_report import QualityReport, quality_report
from vla_rl.report.charts import Chart, Curve, make_chart, slug
from vla_rl.report.page import render_page

MAX_PATH_CHARTS = 12
MAX_EPISODE_ROWS = 500
AXES = {"x": "forward (x)", "y": "left (y)", "z": "up (z)"}


@dataclass(frozen=True)
class Measure:
    """How one number of an episode is called on the page."""

    key: str
    title: str
    unit: str
    note: str


def measures(report: QualityReport) -> list[Measure]:
    """What is measured of every episode, in the order of the page."""
    cutoff = sparc_cutoff(report.info.convention.fps)
    found = [
        Measure("sparc", "SPARC", "", f"Spectral arc length of the hand's speed up to {cutoff:g} Hz; nearer 0 is smoother."),
        Measure("log_dimensionless_jerk", "Log dimensionless jerk", "", "Of the hand's speed; higher is smoother."),
        Measure("action_variation", "Action variation", "per step", "Change of the arm's six commands a step, summed."),
        Measure("path_length", "Path length", "m", "Of the end effector."),
        Measure("directness", "Directness", "", "Farthest distance from the start over path length."),
        Measure("duration", "Duration", "s", ""),
        Measure("peak_speed", "Peak speed", "m/s", "Of the end effector."),
        Measure("gripper_switches", "Gripper switches", "", "Changes between opening and closing."),
        Measure("no_ops", "No-ops", "steps", "Actions that move neither arm nor gripper."),
    ]
    if report.chunk_length is not None:
        note = f"Change of commands where chunks of {report.chunk_length} meet, over that inside; 1 is seamless."
        found.append(Measure("chunk_jump", "Jump between chunks", "", note))
    return found


def write_dataset_report(
    path: Path, output: Path, options: ReadOptions | None = None, chunk_length: int | None = None
) -> tuple[Path, Path]:
    """Write `output` (an .html file) and the same numbers beside it as .json; returns both paths.

    Raises `DatasetError` for a dataset that cannot be read, and where the files cannot be written.
    """
    report = quality_report(path, options, chunk_length)
    if not report.episodes:
        raise DatasetError(f"{path} holds no episodes")
    numbers = output.with_suffix(".json")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for file, text in ((numbers, json.dumps(report.to_dict(), indent=1)), (output, render_dataset(report, Path(path)))):
            partial = file.with_name(f".{file.name}.partial")
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"cannot write the report {output} ({error.strerror or error})") from error
    return output, numbers


def render_dataset(report: QualityReport, path: Path) -> str:
    """The page as HTML."""
    listed = measures(report)
    shown = list(report.tasks.items())[:MAX_PATH_CHARTS]
    return render_page(
        "dataset.html",
        name=path.resolve().name,
        info=report.info,
        remarks=_remarks(report),
        tiles=_tiles(report),
        charts=[chart for measure in listed if (chart := _percentiles(report, measure))],
        paths=[_path_chart(instruction, task) for instruction, task in shown],
        paths_left_out=len(report.tasks) - len(shown),
        tasks=[_task_row(instruction, task) for instruction, task in report.tasks.items()],
        measures=listed,
        episodes=report.episodes[:MAX_EPISODE_ROWS],
    )


def _remarks(report: QualityReport) -> list[str]:
    info = report.info
    found = [f"The dataset does not state its {name}: {getattr(info.convention, name)} is assumed." for name in info.assumed]
    found += [f"{remark[0].upper()}{remark[1:]}." for remark in info.remarks]
    repeated = sum(task["spread"]["repeated"] for task in report.tasks.values())
    if repeated:
        found.append(f"{repeated} episodes repeat the actions of another, to the bit.")
    return found


def _tiles(report: QualityReport) -> list[dict[str, Any]]:
    def median(measure: str) -> float | int | None:
        return report.summary(measure)["median"]

    pairs = [task["spread"]["pairwise_distance"] for task in report.tasks.values()]
    there = [100 * value for value in pairs if value is not None]
    return [
        {"title": "Duration", "value": median("duration"), "unit": "s", "note": "median of the episodes"},
        {"title": "SPARC", "value": median("sparc"), "unit": "", "note": "median; nearer 0 is smoother"},
        {
            "title": "Distance of pairs",
            "value": sum(there) / len(there) if there else None,
            "unit": "cm",
            "note": "between the paths of two episodes of a task, mean",
        },
    ]


def _percentiles(report: QualityReport, measure: Measure) -> Chart | None:
    """The measure at each percentile of the successes and of the failures; None where nothing was measured."""
    curves = []
    for name, style, success in (("successes", "c1", True), ("failures", "c4", False)):
        values = sorted(e[measure.key] for e in report.episodes if e["success"] is success and e[measure.key] is not None)
        if values:
            curves.append(Curve(name, _shares(values), values, key=measure.key, style=style))
    if not curves:
        return None
    return make_chart(
        measure.title,
        curves,
        chart_id=slug("measure", measure.key),
        unit=measure.unit,
        x_label="% of the episodes",
        note=measure.note,
    )


def _shares(values: Sequence[float]) -> list[float]:
    """Percent of the episodes up to each of the sorted values, the middle of its own share."""
    return [100 * (index + 0.5) / len(values) for index in range(len(values))]


def _path_chart(instruction: str, task: dict[str, Any]) -> Chart:
    curves = []
    for (axis, title), style in zip(AXES.items(), ("c1", "c2", "c3"), strict=True):
        band = task["path"][axis]
        share = [100 * index / (len(band["median"]) - 1) for index in range(len(band["median"]))]
        curves.append(Curve(title, share, band["median"], band["low"], band["high"], key=axis, style=style))
    return make_chart(
        instruction or "no instruction",
        curves,
        chart_id=slug("path", instruction or "none"),
        unit="hand, m",
        x_label="% of the episode",
        note=f"Median and 5-95% band of {task['episodes']} episodes.",
    )


def _task_row(instruction: str, task: dict[str, Any]) -> dict[str, Any]:
    spread, numbers = task["spread"], task["measures"]

    def centimetres(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return {
        "instruction": instruction,
        "episodes": task["episodes"],
        "successes": task["successes"],
        "duration": numbers["duration"]["median"],
        "sparc": numbers["sparc"]["median"],
        "jerk": numbers["log_dimensionless_jerk"]["median"],
        "path": numbers["path_length"]["median"],
        "distance": centimetres(spread["pairwise_distance"]),
        "warped": centimetres(spread["pairwise_warped_distance"]),
        "nearest": centimetres(spread["nearest_distance"]),
        "repeated": spread["repeated"],
    }
