"""What the runs of a study came to, read from their directories as they are: finished, cut, under way or not begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_rl.report.run_files import RunFiles, read_run
from vla_rl.report.sections import rate_of
from vla_rl.run import STOPPED

Point = tuple[float, float]
AXES = ("episodes", "minutes")
FAILED = "the run ended with exit code"


@dataclass(frozen=True)
class StudyRun:
    """One run of a study, as planned."""

    variant: str
    seed: int
    directory: Path
    rounds: int
    max_minutes: float | None
    max_episodes: int | None
    log: Path
    """What the run printed."""


@dataclass(frozen=True)
class RunResult:
    """What is there of a run."""

    plan: StudyRun
    files: RunFiles
    status: str
    """finished | cut (by the time budget) | stopped (nothing left to learn from) | failed | under way | not begun."""
    reason: str
    """Why it is not simply finished; empty where it is."""
    rounds: int
    episodes: int
    minutes: float
    start: dict[str, Any] | None
    """Successes, episodes, rate, low, high of the evaluation before training."""
    final: dict[str, Any] | None
    rollouts: dict[str, list[Point]]
    """Axis (episodes, minutes) -> success of each round's training episodes."""
    evaluations: dict[str, list[Point]]
    """Axis -> success of each evaluation."""

    def evaluation(self, name: str) -> dict[str, Any]:
        """The record of the evaluation `start` or `final`. Raises `StopIteration` where there is none."""
        return next(e for e in self.files.evaluations if e["name"] == name)


@dataclass
class VariantResult:
    """The runs of one variant, over its seeds."""

    name: str
    settings: Mapping[str, Any]
    runs: list[RunResult] = field(default_factory=list)

    @property
    def done(self) -> list[RunResult]:
        return [run for run in self.runs if run.final is not None]

    @property
    def final(self) -> dict[str, Any] | None:
        """Successes of all seeds together, which takes their episodes for independent."""
        return pooled([run.final for run in self.runs])

    @property
    def start(self) -> dict[str, Any] | None:
        """Of the seeds that have a final evaluation, so that the two compare."""
        return pooled([run.start for run in self.done])

    def mean(self, curves: str, axis: str) -> list[Point]:
        """The mean over seeds of `rollouts` or `evaluations`."""
        return mean_curve([points for run in self.runs if (points := getattr(run, curves)[axis])])


def pooled(counts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    there = [count for count in counts if count is not None]
    if not there:
        return None
    return rate_of({key: sum(count[key] for count in there) for key in ("successes", "episodes")})


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean of curves at every x that one of them has, interpolated linearly, where all of them reach."""
    if not curves:
        return []
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    xs = sorted({x for curve in curves for x, _ in curve if low <= x <= high})
    return [(x, sum(_at(curve, x) for curve in curves) / len(curves)) for x in xs]


def _at(curve: Sequence[Point], x: float) -> float:
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return next(y for at, y in curve if at == x)


def read_result(plan: StudyRun) -> RunResult:
    """Read a run's directory; whatever is missing is empty."""
    files = read_run(plan.directory)
    phase = next((phase for phase in files.series if files.get(phase, "rollout/episodes")), "")
    progress = _progress(files, phase)
    rounds = max(progress, default=0)
    episodes, minutes = progress.get(rounds, (0, 0.0))
    counted = {e["name"]: rate_of(e["total"]) for e in files.evaluations}
    final = counted.get("final")
    status, reason = _status(plan, files, rounds, episodes, minutes)
    return RunResult(
        plan=plan,
        files=files,
        status=status,
        reason=reason,
        rounds=rounds,
        episodes=episodes,
        minutes=minutes,
        start=counted.get("start"),
        final=final,
        rollouts=_rollouts(files, phase, progress),
        evaluations=_evaluations(files, progress),
    )


def _progress(files: RunFiles, phase: str) -> dict[int, tuple[int, float]]:
    """Round -> training episodes until its end, and minutes of running."""
    counts = files.get(phase, "rollout/episodes")
    totals = files.get(phase, "rollout/total_episodes")
    if counts is None:
        return {}
    known = dict(zip(totals.steps, totals.values, strict=True)) if totals else {}
    done, progress = 0, {}
    for step, count in zip(counts.steps, counts.values, strict=True):
        done = round(known.get(step) or done + (count or 0))
        progress[step] = (done, files.times[phase][step] / 60)
    return progress


def _rollouts(files: RunFiles, phase: str, progress: Mapping[int, tuple[int, float]]) -> dict[str, list[Point]]:
    rates = files.get(phase, "rollout/success")
    points = [(step, rate) for step, rate in zip(rates.steps, rates.values, strict=True) if rate is not None] if rates else []
    return {axis: [(progress[step][i], rate) for step, rate in points if step in progress] for i, axis in enumerate(AXES)}


def _evaluations(files: RunFiles, progress: Mapping[int, tuple[int, float]]) -> dict[str, list[Point]]:
    """The evaluations before, during and after training: of the same policy mode, not of the same episodes."""
    own = [e for e in files.evaluations if e["name"] in ("start", "final") or e["name"].startswith("iteration_")]
    points = [(e["step"], rate_of(e["total"])["rate"]) for e in own]
    at = {0: (0, 0.0), **progress}
    return {
        axis: [(at[step][i], rate) for step, rate in points if step in at and rate is not None] for i, axis in enumerate(AXES)
    }


def _status(plan: StudyRun, files: RunFiles, rounds: int, episodes: int, minutes: float) -> tuple[str, str]:
    if any(e["name"] == "final" for e in files.evaluations):
        if rounds >= plan.rounds:
            return "finished", ""
        if plan.max_episodes is not None and episodes >= plan.max_episodes:
            return "finished", f"stopped at its {plan.max_episodes} episodes"
        stopped = plan.directory / STOPPED
        if stopped.exists():
            return "stopped", f"{rounds} of {plan.rounds} rounds: {stopped.read_text(encoding='utf-8', errors='replace')}"
        limit = "" if plan.max_minutes is None else f" its {plan.max_minutes:g} minutes were over after {minutes:.1f}"
        return "cut", f"{rounds} of {plan.rounds} rounds:{limit or ' it ended early'}"
    error = _last_error(plan.log)
    if error:
        return "failed", error
    if not files.records and not files.checkpoints:
        return "not begun", ""
    return "under way", f"{rounds} of {plan.rounds} rounds so far"


def failure_line(exit_code: int) -> str:
    """What stands last in the log of a run that failed."""
    return f"{FAILED} {exit_code}"


def _last_error(log: Path) -> str:
    """The last line that a failed run printed; empty where it did not fail."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    if not lines or not lines[-1].startswith(FAILED):
        return ""
    return lines[-2][:300] if len(lines) > 1 else lines[-1]
