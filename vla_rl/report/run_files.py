"""What a run directory holds, read so that a damaged or missing part costs that part of the report only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_rl.metrics import read_metrics

COUNTS = ("successes", "episodes")


@dataclass(frozen=True)
class Series:
    """One metric of one phase, ordered by step; None where the value was not finite."""

    phase: str
    key: str
    steps: list[int]
    values: list[float | None]

    @property
    def last(self) -> float | None:
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass
class RunFiles:
    """The contents of a run directory, and in `remarks` what is missing or unreadable, in words for the page."""

    directory: Path
    config: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    """By phase, in the order in which phases began, then by key."""
    times: dict[str, dict[int, float]] = field(default_factory=dict)
    """By phase: step -> seconds of running at its record."""
    records: int = 0
    wall_time: float = 0.0
    """Seconds of running at the last record."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Ordered by step; those of one step as they were made."""
    returns: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations that have a mean return, ordered by step; those that count successes are among `evaluations`, too."""
    pass_at_k: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name (start, final): successes and episodes of each state, and the estimates by k."""
    videos: list[str] = field(default_factory=list)
    """Paths relative to the run directory."""
    checkpoints: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def get(self, phase: str, key: str) -> Series | None:
        return self.series.get(phase, {}).get(key)


def read_run(directory: Path) -> RunFiles:
    files = RunFiles(directory)
    if (directory / "config.yaml").exists():
        files.config = (directory / "config.yaml").read_text(encoding="utf-8", errors="replace")
    else:
        files.remarks.append("There is no config.yaml, so the configuration is unknown.")
    files.environment = _read_json(directory / "environment.json", files.remarks) or {}
    if not files.environment:
        files.remarks.append("There is no environment.json, so the machine and the versions are unknown.")
    if (directory / "stopped.txt").exists():
        reason = (directory / "stopped.txt").read_text(encoding="utf-8", errors="replace")
        files.remarks.append(f"Training stopped early: {reason}.")
    _read_series(files)
    _read_evaluations(files)
    for path in sorted((directory / "pass_at_k").glob("*.json")):
        record = _read_json(path, files.remarks)
        if record is not None and all(_has_counts(state) and state["episodes"] for state in record.get("states") or [{}]):
            files.pass_at_k[path.stem] = record
    files.videos = sorted(str(path.relative_to(directory)) for path in (directory / "videos").glob("*.mp4"))
    found = (directory / "checkpoints").glob("**/step_*/manifest.json")
    files.checkpoints = sorted(str(path.parent.relative_to(directory)) for path in found)
    return files


def _read_json(path: Path, remarks: list[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name} cannot be read ({error}).")
        return None
    if not isinstance(record, dict):
        remarks.append(f"{path.name} does not hold a record.")
        return None
    return record


def _read_series(files: RunFiles) -> None:
    records = read_metrics(files.directory)
    files.records = len(records)
    files.wall_time = max((record["wall_time"] for record in records), default=0.0)
    points: dict[str, dict[str, dict[int, float | None]]] = {}
    for record in records:
        files.times.setdefault(record["phase"], {})[record["step"]] = float(record["wall_time"])
        for key, value in record["values"].items():
            number = float(value) if isinstance(value, int | float) else None
            points.setdefault(record["phase"], {}).setdefault(key, {})[record["step"]] = number
    for phase, keys in points.items():
        files.series[phase] = {
            key: Series(phase, key, sorted(values), [values[step] for step in sorted(values)]) for key, values in keys.items()
        }
    if not records:
        files.remarks.append("No metrics have been recorded yet.")


def _has_counts(record: Any) -> bool:
    if not isinstance(record, dict) or not all(isinstance(record.get(key), int) for key in COUNTS):
        return False
    return 0 <= record["successes"] <= record["episodes"]


def _has_return(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(key), int | float) for key in ("mean", "low", "high", "episodes")
    )


def _read_evaluations(files: RunFiles) -> None:
    paths = sorted((files.directory / "evaluation").glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in paths:
        record = _read_json(path, files.remarks)
        if record is None:
            continue
        has_return = _has_return(record.get("return"))
        if has_return:
            record |= {"name": str(record.get("name") or path.stem), "step": int(record.get("step") or 0)}
            files.returns.append(record)
        if not _has_counts(record.get("total")) and has_return:
            continue
        if not _has_counts(record.get("total")):
            files.remarks.append(f"evaluation/{path.name} has no total of successes and episodes, so it is left out.")
            continue
        record["name"] = str(record.get("name") or path.stem)
        record["step"] = record["step"] if isinstance(record.get("step"), int) else 0
        for part in ("tasks", "suites"):
            record[part] = [entry for entry in record.get(part) or [] if _has_counts(entry)]
        record["episodes"] = [entry for entry in record.get("episodes") or [] if isinstance(entry, dict)]
        files.evaluations.append(record)
    for evaluations in (files.evaluations, files.returns):
        evaluations.sort(key=lambda record: (record["step"], record["name"] != "start"))
    if not files.evaluations and not files.returns:
        files.remarks.append("No evaluation has finished yet.")
