"""`vla-rl bench rehearsal`: an exported policy through the whole ROS 2 graph, beside the same episodes in the simulator alone.

The graph is the policy's node and the simulated base, two processes in real time; the simulator asks the same export.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from vla_rl.driving.manifest import ExportError
from vla_rl.robot.endings import Ending
from vla_rl.robot.exported import ExportedPolicy
from vla_rl.robot.graph import started, wheeled_graph
from vla_rl.robot.record import read_log
from vla_rl.sim.control import episode_seed, evaluation_seeds
from vla_rl.sim.wheeled.settings import merged
from vla_rl.sim.wheeled.simulator import WheeledControl

PATIENCE = 30.0
"""s for what takes no driving: starting processes, the end of a log."""
WANTED = 0.1
"""Largest difference of an episode's cross-track errors, as a share of the simulator's."""


@dataclass(frozen=True)
class Drive:
    success: bool
    collision: bool
    cross_track: float
    """Mean absolute error, m."""
    seconds: float


@dataclass(frozen=True)
class Pair:
    seed: int
    simulator: Drive
    graph: Drive


def measure(
    export: Path,
    episodes: int,
    options: Mapping[str, Any] | None = None,
    on_pair: Callable[[Pair], None] = lambda pair: None,
) -> list[Pair]:
    """Drive so many held-out episodes both ways, of the task that the policy was trained on, changed by `options`.

    Raises `ExportError` for what is no export and for a graph that does not run, `SimError` for wrong options.
    """
    policy = ExportedPolicy(export)
    task = policy.manifest.training["sim"]
    options = merged(task["options"], options or {})
    sim = WheeledControl(task["id"], 1, **options)
    pairs = []
    for seed in evaluation_seeds(episodes):
        with tempfile.TemporaryDirectory() as folder:
            graph, lead = _drive(export, episode_seed(seed, 0), options, Path(folder), sim.settings.time_limit)
        pairs.append(Pair(seed, simulate(sim, policy, seed, lead), graph))
        on_pair(pairs[-1])
    return pairs


def simulate(sim: WheeledControl, policy: ExportedPolicy, seed: int, lead: float) -> Drive:
    """The episode in the simulator, where the robot stands for `lead` s first, and only others move."""
    period = sim.settings.robot.decision_period
    observation, errors = sim.reset([seed]), []
    for _ in range(round(lead / period)):
        observation = sim.step(np.zeros((1, 2), np.float32)).observation
    while True:
        errors.append(abs(float(sim.truth.errors[0, 1])))
        outcome = sim.step(policy.act(observation))
        observation = outcome.observation
        if outcome.terminated[0] or outcome.truncated[0]:
            success, collision = (bool(outcome.measures[name][0]) for name in ("success", "collision"))
            return Drive(success, collision, float(np.mean(errors)), len(errors) * period)


def _drive(export: Path, seed: int, options: Mapping[str, Any], folder: Path, time_limit: float) -> tuple[Drive, float]:
    """One episode of the base through the graph, from the call of `start` to the end that the policy's node sees; and how long
    the base's world had been moving before it, s."""
    namespace = f"rehearsal_{os.getpid()}"
    changes = [
        f"fake_base.seed={seed}",
        f"fake_base.options={json.dumps(options)}",
        f"wheeled_policy.time_limit={time_limit}",
        "wheeled_policy.teleop=none",
    ]
    changes += ["wheeled_policy.realtime=true", "fake_base.realtime=true"]
    processes = wheeled_graph(export, "fake", changes, namespace, [], folder)
    logs = processes[0].output.parent
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(started(process, lambda text: None))
        policy, base = logs / "wheeled_policy.jsonl", logs / "fake_base.jsonl"
        _wait(policy, lambda record: record.get("reason") == "not started", PATIENCE)
        words = [sys.executable, "-m", "vla_rl.robot.nodes.operator_node", "start", "--node", f"/{namespace}/wheeled_policy"]
        asked = subprocess.run(words, capture_output=True, text=True)
        if asked.returncode:
            raise ExportError(f"the graph does not start: {asked.stderr.strip()}")
        end = _wait(policy, lambda record: record.get("event") == "end", time_limit + PATIENCE)
        begin = next(record["time"] for record in read_log(policy) if record.get("event") == "start")
        every = [record for record in read_log(base) if "tick" in record]
    ticks = [tick for tick in every if begin <= tick["time"] <= end["time"]]
    touched = any(tick["clearance"] is not None and tick["clearance"] <= 0 for tick in ticks)
    error = float(np.mean([abs(tick["cross_track"]) for tick in ticks]))
    return Drive(end["ending"] == Ending.SUCCESS, touched, error, end["time"] - begin), begin - every[0]["time"]


def _wait(log: Path, wanted: Callable[[dict[str, Any]], bool], patience: float) -> dict[str, Any]:
    """The first record of a log that is wanted."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if log.exists() and (found := next(filter(wanted, read_log(log)), None)) is not None:
            return found
        time.sleep(0.2)
    raise ExportError(f"the graph does not run: after {patience:.0f} s {log.name} lacks what was waited for")


class Ratios(NamedTuple):
    """Cross-track error through the graph over that in the simulator, of the episodes that both finished."""

    median: float
    """Of the episodes: what the graph does to a drive. Where it meets somebody a moment later it may pass on the other side,
    and the errors of such an episode have little in common."""
    close: int
    """How many episodes differ by no more than what is wanted."""
    finished: int
    of_means: float
    low: float
    """Of the 95% interval of `of_means` (normal, of the paired differences)."""
    high: float


def ratios(pairs: list[Pair]) -> Ratios | None:
    """None for fewer than two episodes that both finished."""
    both = [(p.graph.cross_track, p.simulator.cross_track) for p in pairs if p.graph.success and p.simulator.success]
    if len(both) < 2:
        return None
    graph, simulator = np.array(both).T
    mean, each = float(simulator.mean()), graph / simulator
    half = 1.96 * float((graph - simulator).std(ddof=1)) / len(both) ** 0.5 / mean
    found, close = float(graph.mean()) / mean, int((np.abs(each - 1) <= WANTED).sum())
    return Ratios(float(np.median(each)), close, len(both), found, found - half, found + half)


def table(pairs: list[Pair]) -> Table:
    found = ratios(pairs)
    made = Table(title=f"an exported policy on {len(pairs)} held-out episodes")
    if found is not None:
        verdict = "met" if abs(found.median - 1) <= WANTED else "not met"
        made.caption = (
            f"cross-track error through the graph / in the simulator: median {found.median:.3f}, wanted within {WANTED:.0%}: "
            f"{verdict}; {found.close} of {found.finished} episodes within it; of the means {found.of_means:.3f} "
            f"({found.low:.3f} to {found.high:.3f})"
        )
    for heading in ("", "success", "collisions", "cross-track error, m", "time, s"):
        made.add_column(heading, justify="right" if heading else "left")
    for name, drives in (("simulator", [p.simulator for p in pairs]), ("ROS 2 graph", [p.graph for p in pairs])):
        done = [drive for drive in drives if drive.success]
        means = [f"{np.mean([getattr(d, key) for d in done]):.{digits}f}" if done else "-" for key, digits in _SHOWN]
        made.add_row(name, f"{len(done)}/{len(drives)}", str(sum(drive.collision for drive in drives)), *means)
    return made


_SHOWN = (("cross_track", 3), ("seconds", 1))


def to_dict(pairs: list[Pair]) -> dict[str, Any]:
    found = ratios(pairs)
    return {"ratios": found and found._asdict(), "episodes": [asdict(pair) for pair in pairs]}
